# SPDX-License-Identifier: Apache-2.0
"""What a session remembers of itself while it runs: what went wrong and what happened when.

Everything remembered is told to the journal as well. What it all amounts to is decided elsewhere.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable

from vmsnap.consistency import Level
from vmsnap.errors import SCRIPT, Failure
from vmsnap.journal.sender import Event, Journal, Priority

OF_SCRIPTS = {kind for kinds in SCRIPT.values() for kind in vars(kinds).values()}


class Record:
    """`level` tells how consistent the snapshot can still be."""

    def __init__(
        self, journal: Journal, show: Callable[[str], None], level: Callable[[], Level]
    ) -> None:
        self.journal, self.show, self.level = journal, show, level
        self.began = time.monotonic()
        self.phase = ""
        self.failures: list[Failure] = []
        self.timeline: list[tuple[float, str, str]] = []  # monotonic seconds, event, subject

    def enter(self, phase: str, message: str, event: Event = Event.PHASE) -> None:
        """A phase begins. Shown to a person who waits, so never while frozen."""
        self.phase = phase
        self.mark(phase)
        self.show_phase(phase)
        self.tell(message, event)

    def show_phase(self, phase: str) -> None:
        with contextlib.suppress(OSError):  # the terminal may be gone
            self.show(phase)

    def mark(self, event: str, subject: str = "") -> None:
        self.timeline.append((time.monotonic(), event, subject))

    def tell(self, message: str, event: Event, priority: Priority = Priority.INFO) -> None:
        self.journal.send(message, event.value, priority, VMSNAP_PHASE=self.phase)

    def note(self, message: str) -> None:
        self.tell(message, Event.NOTE, Priority.WARNING)

    def fail(self, *failures: Failure) -> bool:
        """Remember what went wrong. True if anything did."""
        for failure in failures:
            self.failures.append(failure)
            tell_failure(self.journal, failure, self.level().word)
        return bool(failures)


def tell_failure(journal: Journal, failure: Failure, consistency: str) -> None:
    fields = {subject_field(failure): failure.subject} if failure.subject else {}
    journal.send(
        f"{failure.kind.label}: {failure.message}",
        failure.kind.message_id,
        Priority.ERROR,
        VMSNAP_PHASE=failure.phase,
        VMSNAP_ERROR=failure.kind.label,
        VMSNAP_CODE=str(failure.kind.code),
        VMSNAP_CONSISTENCY=consistency,
        **fields,
    )


def subject_field(failure: Failure) -> str:
    """Which field of a record names what a failure is about."""
    if failure.phase in ("pre", "post") or failure.kind in OF_SCRIPTS:
        return "VMSNAP_APP"
    on_a_mount = failure.phase in ("presync", "freeze", "thaw") and failure.subject.startswith("/")
    return "VMSNAP_MOUNT" if on_a_mount else "VMSNAP_SUBJECT"
