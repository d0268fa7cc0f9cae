# SPDX-License-Identifier: Apache-2.0
"""What a session remembers of itself while it runs: what went wrong and what happened when.

Everything remembered is told to the journal as well. What it all amounts to is decided elsewhere.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable

from vmsnap.consistency import Level
from vmsnap.errors import Failure
from vmsnap.journal import Event, Journal, Priority

# Which field of a record names what a failure is about; VMSNAP_SUBJECT if none of these.
SUBJECT_FIELD = {
    "pre": "VMSNAP_APP",
    "post": "VMSNAP_APP",
    "freeze": "VMSNAP_MOUNT",
    "thaw": "VMSNAP_MOUNT",
    "presync": "VMSNAP_MOUNT",
}


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
    journal.send(
        f"{failure.kind.label}: {failure.message}",
        failure.kind.message_id,
        Priority.ERROR,
        VMSNAP_PHASE=failure.phase,
        VMSNAP_ERROR=failure.kind.label,
        VMSNAP_CODE=str(failure.kind.code),
        VMSNAP_CONSISTENCY=consistency,
        **{SUBJECT_FIELD.get(failure.phase, "VMSNAP_SUBJECT"): failure.subject},
    )
