# SPDX-License-Identifier: Apache-2.0
"""A session in which nothing goes wrong, and one beside another."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import pytest

from .lab import Lab
from .processes import is_stuck, wait_until


@pytest.mark.parametrize("fstype", ["ext4", "xfs", "btrfs"])
def test_a_filesystem_is_frozen_while_the_command_runs_and_no_longer(lab: Lab, fstype: str) -> None:
    filesystem = lab.filesystem(fstype)
    session = lab.hold()
    assert filesystem.is_frozen
    lab.release()
    outcome = session.finish()
    assert outcome.verdict == ("success", "filesystem", 0)
    assert outcome.errors == []
    assert not filesystem.is_frozen


def test_a_write_stalls_from_the_freeze_to_the_thaw(lab: Lab) -> None:
    filesystem = lab.filesystem()
    session = lab.hold(last=lab.say("command-ends"))
    writer = lab.writer(filesystem)
    wait_until(lambda: is_stuck(writer.pid))
    assert not (filesystem.mount / "written-by-test").exists()
    lab.release()
    lab.events.wait("wrote-fs0")
    heard = lab.events.heard
    assert heard.index("command-ends") < heard.index("wrote-fs0")
    assert (filesystem.mount / "written-by-test").read_text() == "x\n"
    assert session.finish().code == 0


def test_sixteen_filesystems_are_frozen_together(lab: Lab) -> None:
    for _ in range(16):
        lab.filesystem(mib=8)
    session = lab.hold()
    assert lab.frozen == [f"fs{n}" for n in range(16)]
    lab.release()
    outcome = session.finish()
    assert outcome.verdict == ("success", "filesystem", 0)
    assert sorted(f["mount"] for f in outcome.result["filesystems"]) == sorted(lab.mounts)
    assert {f["step"] for f in outcome.result["filesystems"]} == {1}
    events = [event for event, _ in outcome.events("freezing", "frozen")]
    assert events[:2] == ["freezing", "freezing"]  # the second does not wait for the first
    assert lab.frozen == []


def test_a_second_session_is_turned_away_and_does_not_disturb_the_first(lab: Lab) -> None:
    lab.filesystem()
    first = lab.hold()
    second = lab.run("false")
    assert second.code == 75
    assert second.errors == ["SessionInProgress"]
    assert second.result["consistency"] == "none"
    assert second.result["snapshot"] is None
    assert lab.frozen == ["fs0"]
    lab.release()
    assert first.finish().verdict == ("success", "filesystem", 0)


def test_the_result_tells_what_happened_to_each_filesystem(lab: Lab) -> None:
    lab.filesystem("ext4")
    lab.filesystem("xfs")
    outcome = lab.run("exit 0")
    found = {f["mount"]: f for f in outcome.result["filesystems"]}
    assert {mount: f["fstype"] for mount, f in found.items()} == dict(
        zip(lab.mounts, ("ext4", "xfs"))
    )
    for f in found.values():
        assert f["error"] is None
        assert f["step"] == 1
        assert f["freeze_ms"] > 0
        assert f["held_ms"] > 0
    assert outcome.result["version"] == 1
    assert outcome.result["frozen_seconds"] > 0
    assert outcome.result["snapshot"]["exit"] == 0
    assert outcome.result["snapshot"]["command"] == ["/bin/sh", "-c", "exit 0"]


def test_the_last_result_can_be_read_back(lab: Lab) -> None:
    lab.filesystem()
    outcome = lab.run("exit 0")
    status = lab.vmsnap("status", "--json")
    assert status.code == 0
    others: dict[str, object] = {
        "provisioning": None,
        "in_progress": None,
        "lost": None,
        "writers_wait": {},
    }
    assert status.result == {**others, "last": outcome.result}


def test_status_names_the_session_in_progress(lab: Lab) -> None:
    lab.filesystem()
    session = lab.hold()
    assert lab.vmsnap("status", "--json").result["in_progress"]
    lab.release()
    assert session.finish().result["session"]


def test_configuration_and_state_may_lie_on_frozen_filesystems(lab: Lab) -> None:
    filesystem = lab.filesystem()
    (filesystem.mount / "etc/vmsnap/apps.d").mkdir(mode=0o700, parents=True)
    (filesystem.mount / "etc").chmod(0o700)
    lab.etc, lab.state = filesystem.mount / "etc", filesystem.mount / "state"
    lab.app(pre=lab.say("quiesced"), post=lab.say("resumed"))
    outcome = lab.run(lab.say("taken"))
    assert outcome.verdict == ("success", "application", 0)
    assert lab.events.heard == ["quiesced", "taken", "resumed"]
    assert lab.vmsnap("status", "--json").result["last"]["session"] == outcome.result["session"]


def test_the_run_directory_on_a_frozen_filesystem_is_refused(lab: Lab) -> None:
    filesystem = lab.filesystem()
    lab.run_directory = filesystem.mount / "run"
    outcome = lab.run("exit 0")
    assert outcome.subjects == [("FreezeFailed", str(filesystem.mount))]
    assert outcome.verdict == ("success", "crash", 0)
    assert lab.frozen == []


PROGRAM = """
import sys
sys.path.insert(0, sys.argv.pop(1))
from vmsnap.cli.main import main
sys.exit(main())
"""


@pytest.mark.parametrize("phase", ["pre", "command", "post"])
def test_a_session_goes_on_without_the_files_it_was_started_from(lab: Lab, phase: str) -> None:
    """As in an upgrade or a removal of the package."""
    copy = lab.directory / "copy"
    shutil.copytree(Path(__file__).parents[2] / "vmsnap", copy / "vmsnap")
    removal = {phase: f"rm -r {copy}/vmsnap; "}
    lab.filesystem()
    lab.app(
        pre=removal.get("pre", "") + lab.say("quiesced"),
        post=removal.get("post", "") + lab.say("resumed $VMSNAP_OUTCOME $VMSNAP_CONSISTENCY"),
    )
    outcome = lab.run(
        removal.get("command", "") + lab.say("taken"),
        program=(sys.executable, "-IBc", PROGRAM, str(copy)),
    )
    assert not list(copy.iterdir())
    assert (outcome.verdict, outcome.errors) == (("success", "application", 0), [])
    assert lab.events.heard == ["quiesced", "taken", "resumed success application"]
    assert lab.frozen == []
