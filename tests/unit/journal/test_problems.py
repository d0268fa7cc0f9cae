# SPDX-License-Identifier: Apache-2.0
"""Problems as records: what the checks find and what a session finds has the same fields."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from vmsnap.consistency import Level
from vmsnap.errors import Kind, Problem, Severity
from vmsnap.journal import problems as module
from vmsnap.journal.problems import send_problem, send_problems
from vmsnap.journal.sender import Event, Journal

from .test_sender import Receiver

SCRIPT = Problem(Kind.PRE_SCRIPT_NOT_FOUND, "/opt/pre: gone", subject="db", path="/opt/pre")
MOUNT = Problem(Kind.MOUNT_OPEN_FAILED, "/srv: it is covered", subject="/srv")
SETTINGS = Problem(Kind.INCORRECT_SETTINGS, "/etc/x: no number", path="/etc/x")
ODD = replace(SETTINGS, message="/etc/x: unknown key", severity=Severity.WARNING)
OF_A_SESSION = {"VMSNAP_SESSION"}


@pytest.fixture
def receiver(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Receiver]:
    """A journal, and every sender that is made meanwhile sends to it."""
    made = Receiver(tmp_path / "socket")
    opened: list[Journal] = []

    def journal(fields: dict[str, str] | None = None) -> Journal:
        opened.append(Journal(fields, made.path))
        return opened[-1]

    monkeypatch.setattr(module, "Journal", journal)
    yield made
    for each in opened:
        if each._socket:
            each._socket.close()
    made.socket.close()


@pytest.mark.parametrize("problem", [SCRIPT, MOUNT, SETTINGS, ODD])
def test_one_problem_has_the_same_fields_in_the_check_and_in_a_session(
    receiver: Receiver, problem: Problem
) -> None:
    send_problems([problem], Level.CRASH)
    session_journal = Journal({"VMSNAP_SESSION": "s-1"}, receiver.path)
    send_problem(session_journal, problem, Level.CRASH)
    assert session_journal._socket
    session_journal._socket.close()
    checked, session = receiver.records()
    assert set(session) - set(checked) == OF_A_SESSION
    assert set(checked) <= set(session)
    for name in set(checked) - {"MESSAGE"}:
        assert checked[name] == session[name]
    assert checked["MESSAGE"].splitlines()[0] == session["MESSAGE"]


@pytest.mark.parametrize(
    ("problem", "fields"),
    [
        (SCRIPT, {"VMSNAP_APP": "db", "VMSNAP_SUBJECT": "/opt/pre"}),
        (MOUNT, {"VMSNAP_MOUNT": "/srv"}),
        (SETTINGS, {"VMSNAP_SUBJECT": "/etc/x"}),
        (replace(MOUNT, subject="data*"), {"VMSNAP_SUBJECT": "data*"}),
    ],
)
def test_a_record_names_what_the_problem_is_about(
    receiver: Receiver, problem: Problem, fields: dict[str, str]
) -> None:
    send_problems([problem])
    (found,) = receiver.records()
    names = ("VMSNAP_APP", "VMSNAP_MOUNT", "VMSNAP_SUBJECT")
    assert {name: found[name] for name in names if name in found} == fields


def test_an_error_of_the_checks_says_what_to_do(receiver: Receiver) -> None:
    send_problems([SCRIPT])
    (found,) = receiver.records()
    action = Kind.PRE_SCRIPT_NOT_FOUND.action
    assert found["MESSAGE"] == f"Pre-ScriptNotFound: /opt/pre: gone\n{action}"
    assert found["PRIORITY"] == "3"
    assert (found["VMSNAP_ERROR"], found["VMSNAP_CODE"]) == ("Pre-ScriptNotFound", "302")


def test_a_warning_is_a_note_and_no_error_of_that_name(receiver: Receiver) -> None:
    send_problems([ODD], Level.APPLICATION)
    (found,) = receiver.records()
    assert (found["MESSAGE"], found["PRIORITY"]) == ("/etc/x: unknown key", "4")
    assert found["MESSAGE_ID"] == Event.NOTE.value
    assert not {"VMSNAP_ERROR", "VMSNAP_CODE", "VMSNAP_CONSISTENCY"} & set(found)


def test_what_concerns_no_session_has_no_level(receiver: Receiver) -> None:
    send_problems([Problem(Kind.PROVISIONING_FAILED, "no", path="/x")])
    (found,) = receiver.records()
    assert "VMSNAP_CONSISTENCY" not in found
