# SPDX-License-Identifier: Apache-2.0
"""A problem as a journal record: with the same fields whether the checks or a session have found
it, so that one query finds both.

Runs in: engine, caller. While frozen the journal buffers what is sent.
"""

from __future__ import annotations

from collections.abc import Iterable

from vmsnap.consistency import Level
from vmsnap.errors import OF_APPS, Kind, Problem, Severity
from vmsnap.journal.sender import Event, Journal, Priority

OF_MOUNTS = {
    *(Kind.MOUNT_OPEN_FAILED, Kind.FREEZE_FAILED, Kind.FREEZE_TIMEOUT),
    *(Kind.THAWED_EARLY, Kind.THAW_FAILED, Kind.NOT_FROZEN, Kind.BECAME_READ_ONLY),
}


def send_problem(journal: Journal, problem: Problem, level: Level | None, text: str = "") -> None:
    """An error with its name, its code and `level`: the best that a snapshot can be all the same,
    None for what concerns no session. A warning is a note, and costs no level. `text`: more lines
    for the message."""
    kind = problem.kind
    fields: dict[str, str] = {}
    if problem.severity is Severity.WARNING:
        message_id, priority, message = Event.NOTE.value, Priority.WARNING, problem.message
    else:
        message_id, priority = kind.message_id, Priority.ERROR
        message = f"{kind.label}: {problem.message}"
        fields = {"VMSNAP_ERROR": kind.label, "VMSNAP_CODE": str(kind.code)}
        if level is not None:
            fields["VMSNAP_CONSISTENCY"] = level.word
    journal.send(
        f"{message}\n{text}" if text else message,
        message_id,
        priority,
        VMSNAP_PHASE=str(problem.phase),
        **fields,
        **about(problem),
    )


def about(problem: Problem) -> dict[str, str]:
    """The fields that name what a problem is about."""
    found = {"VMSNAP_SUBJECT": problem.path}
    if problem.subject:
        found[subject_field(problem)] = problem.subject
    return {field: value for field, value in found.items() if value}


def subject_field(problem: Problem) -> str:
    if problem.kind in OF_APPS:
        return "VMSNAP_APP"
    on_a_mount = problem.kind in OF_MOUNTS and problem.subject.startswith("/")
    return "VMSNAP_MOUNT" if on_a_mount else "VMSNAP_SUBJECT"


def send_problems(problems: Iterable[Problem], level: Level | None = None) -> None:
    """What was found outside of a session, each error with what to do about it."""
    journal = Journal()
    for problem in problems:
        error = problem.severity is Severity.ERROR
        send_problem(journal, problem, level, problem.kind.action if error else "")
