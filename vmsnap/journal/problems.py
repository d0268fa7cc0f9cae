# SPDX-License-Identifier: Apache-2.0
"""A problem as a journal record: with the same fields whether the checks or a session have found
it, so that one query finds both."""

from __future__ import annotations

from collections.abc import Iterable

from vmsnap.consistency import Level
from vmsnap.errors import SCRIPT, Problem, Severity
from vmsnap.journal.sender import Event, Journal, Priority

OF_SCRIPTS = {kind for kinds in SCRIPT.values() for kind in vars(kinds).values()}
ON_MOUNTS = ("presync", "freeze", "thaw")  # phases


def send_problem(journal: Journal, problem: Problem, level: Level | None, text: str = "") -> None:
    """`level`: the best that a snapshot can be all the same; None for what concerns no session.
    `text`: more lines for the message."""
    kind, error = problem.kind, problem.severity is Severity.ERROR
    journal.send(
        f"{kind.label}: {problem.message}" + (f"\n{text}" if text else ""),
        kind.message_id if error else Event.NOTE.value,
        Priority.ERROR if error else Priority.WARNING,
        VMSNAP_PHASE=str(problem.phase),
        VMSNAP_ERROR=kind.label,
        VMSNAP_CODE=str(kind.code),
        **({} if level is None else {"VMSNAP_CONSISTENCY": level.word}),
        **about(problem),
    )


def about(problem: Problem) -> dict[str, str]:
    """The fields that name what a problem is about."""
    found = {"VMSNAP_SUBJECT": problem.path, subject_field(problem): problem.subject}
    if not problem.subject:
        found = {"VMSNAP_SUBJECT": problem.path}
    return {field: value for field, value in found.items() if value}


def subject_field(problem: Problem) -> str:
    if problem.phase in ("pre", "post") or problem.kind in OF_SCRIPTS:
        return "VMSNAP_APP"
    on_a_mount = problem.phase in ON_MOUNTS and problem.subject.startswith("/")
    return "VMSNAP_MOUNT" if on_a_mount else "VMSNAP_SUBJECT"


def send_problems(problems: Iterable[Problem], level: Level | None = None) -> None:
    """What was found outside of a session, each error with what to do about it."""
    journal = Journal()
    for problem in problems:
        error = problem.severity is Severity.ERROR
        send_problem(journal, problem, level, problem.kind.action if error else "")
