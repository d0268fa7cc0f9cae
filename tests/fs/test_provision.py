# SPDX-License-Identifier: Apache-2.0
"""`vmsnap provision` on real filesystems: one that is full, and one that a killed session froze."""

from __future__ import annotations

import json
from pathlib import Path

from .faults import kill_all
from .lab import VMSNAP, Lab
from .running import Session

POST = "resumed $VMSNAP_OUTCOME $VMSNAP_CONSISTENCY"
SETTINGS = {"conf": {"freeze": {"hold": 9}}}


def document(lab: Lab, found: object = SETTINGS) -> Path:
    return lab.write(lab.directory / "document.json", json.dumps(found), 0o600)


def keep_state_on_what_is_frozen(lab: Lab) -> None:
    lab.state = Path(lab.filesystem().mount) / "state"
    lab.state.mkdir(mode=0o700)


def assert_ended(lab: Lab) -> None:
    """Of the session that was killed; and what was asked for is done."""
    assert lab.frozen == []
    assert lab.events.wait("resumed") == "failed none"
    assert "hold = 9" in (lab.etc / "vmsnap/vmsnap.conf.d/50-provision.conf").read_text()
    status = lab.vmsnap("status", "--json")
    assert [error["name"] for error in status.result["last"]["errors"]] == ["EngineLost"]
    assert status.result["provisioning"]["ok"] is True


def test_a_session_that_was_killed_is_ended_before_anything_is_written(lab: Lab) -> None:
    """Whoever gets the lock does that, and what is frozen cannot be written to."""
    keep_state_on_what_is_frozen(lab)
    lab.app(pre=lab.say("quiesced"), post=lab.say(POST))
    kill_all(lab.hold())
    lab.release()
    lab.wait_for_rest()
    assert lab.frozen == ["fs0"]
    assert lab.vmsnap("provision", "--file", document(lab)).code == 0
    assert_ended(lab)


def test_one_that_is_killed_while_it_is_waited_for_is_ended_as_well(lab: Lab) -> None:
    keep_state_on_what_is_frozen(lab)
    lab.app(pre=lab.say("quiesced"), post=lab.say(POST))
    holding = lab.hold()
    argv = [str(VMSNAP), "provision", *lab.places(), "--file", str(document(lab))]
    provisioning = Session(lab.directory, argv, lab.environment())
    lab.sessions.append(provisioning)
    kill_all(holding)
    lab.release()
    assert provisioning.finish().code == 0
    assert_ended(lab)


def test_a_disk_that_fills_up_leaves_nothing_behind(lab: Lab) -> None:
    lab.mount("-t", "tmpfs", "-o", "mode=0700,size=32k", "tmpfs", lab.etc)
    long = {"scripts": {"pre": "#!/bin/sh\n" + ":\n" * 40_000}}
    failed = lab.vmsnap("provision", "--file", document(lab, long))
    assert failed.code == 1
    assert f"{lab.etc}/vmsnap/scripts/app/pre: No space left on device" in failed.err
    assert [path for path in lab.etc.rglob("*") if not path.is_dir()] == []
    assert lab.vmsnap("provision", "--file", document(lab)).code == 0
