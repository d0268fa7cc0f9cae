# SPDX-License-Identifier: Apache-2.0
"""What needs root's own capabilities but no freeze: hence not among the unit tests."""

from __future__ import annotations

import json
import stat

import pytest

from vmsnap.journal.sender import Event, Journal

from ..unit.journal.test_sender import Receiver
from ..unit.provision.test_apply import GOOD, WRITTEN
from .lab import VMSNAP, Lab


@pytest.mark.parametrize("size", [100_000, 1 << 20, 4 << 20])
def test_a_result_with_thousands_of_filesystems_reaches_the_journal_whole(
    lab: Lab, size: int
) -> None:
    """history and plot read sessions back from VMSNAP_RESULT: 5,000 filesystems are over 1 MiB."""
    receiver = Receiver(lab.shm / "socket")
    lab.undo.callback(receiver.socket.close)
    journal = Journal({"VMSNAP_SESSION": "s-1"}, receiver.path)
    journal.send("Session ended", Event.ENDED.value, VMSNAP_RESULT="x" * size)
    (record,) = receiver.records()
    assert len(record["VMSNAP_RESULT"]) == size
    assert journal._socket
    journal._socket.close()


def test_what_is_provisioned_under_the_strictest_umask_passes_every_check(lab: Lab) -> None:
    document = lab.write(lab.directory / "document.json", json.dumps(GOOD), 0o600)
    strict = ("/bin/sh", "-c", f'umask 777; exec {VMSNAP} "$@"', "vmsnap")
    outcome = lab.vmsnap("provision", "--file", document, program=strict)
    assert outcome.code == 0, outcome
    found = [path for path in lab.etc.rglob("*") if not path.is_dir()]
    modes = {str(path.relative_to(lab.etc)): stat.S_IMODE(path.stat().st_mode) for path in found}
    assert modes == WRITTEN
    lab.filesystem()
    checked = lab.vmsnap("check", "--json", f"--only={lab.mounts[0]}")
    assert checked.result == {"ok": True, "problems": []}
    for name in ("vmsnap", "vmsnap/apps.d", "vmsnap/scripts/db", "vmsnap/vmsnap.conf.d"):
        assert stat.S_IMODE((lab.etc / name).stat().st_mode) == 0o700
