# SPDX-License-Identifier: Apache-2.0
"""The log of a session while it runs: its problems, and a timeline of its events.

All of it is sent to the journal as well. finish.py makes the result of it.

Runs in: engine. While frozen: no file, no import, and the journal buffers.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable

from vmsnap.consistency import Level
from vmsnap.errors import Problem, Severity
from vmsnap.journal.problems import send_problem
from vmsnap.journal.sender import Event, Journal, Priority
from vmsnap.result import Phase


class Record:
    """`level` returns the consistency that the snapshot can still reach."""

    def __init__(
        self, journal: Journal, show: Callable[[Phase], None], level: Callable[[], Level]
    ) -> None:
        self.journal, self.show, self.level = journal, show, level
        self.began = time.monotonic()
        self.phase = Phase.CHECK
        self.failures: list[Problem] = []
        self.timeline: list[tuple[float, str, str]] = []  # monotonic seconds, event, subject

    def enter(self, phase: Phase, message: str = "", event: Event = Event.PHASE) -> None:
        """A phase begins. Shown to a person who waits, so never while frozen."""
        self.begin(phase)
        self.show_phase()
        self.send(message or phase.doing, event)

    def begin(self, phase: Phase) -> None:
        """The same, in memory alone: for while anything is frozen."""
        self.phase = phase
        self.mark(phase.value)

    def show_phase(self) -> None:
        with contextlib.suppress(OSError):  # the terminal may be gone
            self.show(self.phase)

    def mark(self, event: str, subject: str = "") -> None:
        self.timeline.append((time.monotonic(), event, subject))

    def send(self, message: str, event: Event, priority: Priority = Priority.INFO) -> None:
        self.journal.send(message, event.value, priority, VMSNAP_PHASE=self.phase.value)

    def note(self, message: str) -> None:
        self.send(message, Event.NOTE, Priority.WARNING)

    def fail(self, *problems: Problem) -> bool:
        """Add problems to the log; a warning is sent only. True if there was any error."""
        errors = [problem for problem in problems if problem.severity is Severity.ERROR]
        for problem in problems:
            if problem.severity is Severity.ERROR:
                self.failures.append(problem)
            send_problem(self.journal, problem, self.level())
        return bool(errors)
