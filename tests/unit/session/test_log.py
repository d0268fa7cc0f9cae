# SPDX-License-Identifier: Apache-2.0
"""What a session remembers of itself, and what the journal hears of it."""

from __future__ import annotations

from pathlib import Path

import pytest

from vmsnap.consistency import Level
from vmsnap.errors import Kind, Problem
from vmsnap.journal.sender import Event, Journal
from vmsnap.result import Phase
from vmsnap.session.log import Record

from ..journal.test_sender import Receiver


@pytest.mark.parametrize(
    ("kind", "phase", "subject", "field"),
    [
        (Kind.PRE_SCRIPT_TIMEOUT, "pre", "web", "VMSNAP_APP"),
        (Kind.POST_SCRIPT_EXECUTION_FAILED, "post", "web", "VMSNAP_APP"),
        (Kind.PRE_SCRIPT_NOT_FOUND, "check", "web", "VMSNAP_APP"),
        (Kind.FREEZE_FAILED, "freeze", "/srv", "VMSNAP_MOUNT"),
        (Kind.MOUNT_OPEN_FAILED, "check", "/srv", "VMSNAP_MOUNT"),
        (Kind.THAW_FAILED, "thaw", "/srv", "VMSNAP_MOUNT"),
        (Kind.GUARD_LOST, "thaw", "guard", "VMSNAP_SUBJECT"),
        (Kind.INCORRECT_SETTINGS, "check", "/etc/vmsnap/vmsnap.conf", "VMSNAP_SUBJECT"),
        (Kind.SNAPSHOT_FAILED, "snapshot", "/opt/snap", "VMSNAP_SUBJECT"),
    ],
)
def test_a_failure_reaches_the_journal_with_the_fields_of_the_design(
    tmp_path: Path, kind: Kind, phase: str, subject: str, field: str
) -> None:
    receiver = Receiver(tmp_path / "socket")
    journal = Journal({"VMSNAP_SESSION": "s-1"}, receiver.path)
    record = Record(journal, lambda _: None, lambda: Level.CRASH)
    assert record.fail(Problem(kind, "it is busy", phase, subject))
    (found,) = receiver.records()
    receiver.socket.close()
    assert journal._socket
    journal._socket.close()
    assert found["PRIORITY"] == "3"
    assert found["MESSAGE"] == f"{kind.label}: it is busy"
    assert found["MESSAGE_ID"] == kind.message_id
    assert found["VMSNAP_PHASE"] == phase
    assert (found["VMSNAP_ERROR"], found["VMSNAP_CODE"]) == (kind.label, str(kind.code))
    assert found["VMSNAP_CONSISTENCY"] == "crash"
    assert found[field] == subject


@pytest.fixture
def record() -> Record:
    return Record(Journal(path="/nonexistent/socket"), lambda _: None, lambda: Level.CRASH)


def test_nothing_that_failed_is_no_failure(record: Record) -> None:
    assert not record.fail()
    assert record.failures == []


def test_phases_are_shown_and_stand_in_the_timeline_in_their_order() -> None:
    shown: list[str] = []
    record = Record(Journal(path="/nonexistent/socket"), shown.append, lambda: Level.CRASH)
    record.enter(Phase.CHECK, "Session begins", Event.STARTED)
    record.enter(Phase.PRE)
    record.mark("pre-attempt 1", "web")
    assert shown == ["check", "pre"]
    assert [(event, subject) for _, event, subject in record.timeline] == [
        *(("check", ""), ("pre", ""), ("pre-attempt 1", "web"))
    ]
    times = [at for at, _, _ in record.timeline]
    assert times == sorted(times)
