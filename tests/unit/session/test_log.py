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
    ("phase", "subject", "field"),
    [
        ("pre", "web", "VMSNAP_APP"),
        ("post", "web", "VMSNAP_APP"),
        ("freeze", "/srv", "VMSNAP_MOUNT"),
        ("thaw", "/srv", "VMSNAP_MOUNT"),
        ("thaw", "guard", "VMSNAP_SUBJECT"),
        ("check", "/etc/vmsnap/vmsnap.conf", "VMSNAP_SUBJECT"),
        ("snapshot", "/opt/snap", "VMSNAP_SUBJECT"),
    ],
)
def test_a_failure_reaches_the_journal_with_the_fields_of_the_design(
    tmp_path: Path, phase: str, subject: str, field: str
) -> None:
    receiver = Receiver(tmp_path / "socket")
    journal = Journal({"VMSNAP_SESSION": "s-1"}, receiver.path)
    record = Record(journal, lambda _: None, lambda: Level.CRASH)
    assert record.fail(Problem(Kind.FREEZE_FAILED, "it is busy", phase, subject))
    (found,) = receiver.records()
    receiver.socket.close()
    assert journal._socket
    journal._socket.close()
    assert found["PRIORITY"] == "3"
    assert found["MESSAGE"] == "FreezeFailed: it is busy"
    assert found["MESSAGE_ID"] == Kind.FREEZE_FAILED.message_id
    assert found["VMSNAP_PHASE"] == phase
    assert (found["VMSNAP_ERROR"], found["VMSNAP_CODE"]) == ("FreezeFailed", "121")
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
