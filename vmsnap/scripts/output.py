# SPDX-License-Identifier: Apache-2.0
"""A script's output: line by line to the journal, and its end for the error message.

Runs in: supervisor. Not while frozen.
"""

from __future__ import annotations

import re

from vmsnap.journal.sender import Event, Journal, Priority

TAIL_BYTES = 4096
LINE_BYTES = 16384  # a line without an end is cut into pieces of this size
# Records for the output of all scripts of a session. journald takes 10,000 in 30 s and then drops
# what comes, the session's own records among it (RateLimitBurst=, journald.conf(5)).
LINES = 8000
PREFIX = re.compile(rb"^<([0-7])>", re.MULTILINE)  # sd-daemon(3)


class Output:
    """Cuts a script's output into lines for the journal, of which there is `room` for so many, and
    keeps its end."""

    def __init__(self, journal: Journal, phase: str, room: int = LINES) -> None:
        self.journal, self.phase, self.room = journal, phase, room
        self.left_out = 0
        self.tail = b""
        self._line = b""

    def take(self, data: bytes) -> None:
        self.tail = (self.tail + data)[-TAIL_BYTES:]
        *lines, self._line = (self._line + data).split(b"\n")
        for line in lines:
            self.record(line)
        while len(self._line) > LINE_BYTES:
            self.record(self._line[:LINE_BYTES])
            self._line = self._line[LINE_BYTES:]

    def end(self) -> None:
        if self._line:
            self.record(self._line)
        self._line = b""
        if self.left_out:
            lines = "line of output is" if self.left_out == 1 else "lines of output are"
            message = f"{self.left_out} more {lines} left out"
            self.send(message, Event.NOTE, Priority.WARNING, "vmsnap")

    def last_words(self) -> str:
        """The end of the output for a message, where priorities mean nothing."""
        return PREFIX.sub(b"", self.tail).decode("utf-8", "replace")

    def record(self, line: bytes) -> None:
        if self.room == 0:
            self.left_out += 1
            return
        self.room -= 1
        prefix = PREFIX.match(line)
        self.send(
            line[3 if prefix else 0 :].decode("utf-8", "replace"),
            Event.SCRIPT_OUTPUT,
            Priority(min(max(int(prefix[1]), 3), 6)) if prefix else Priority.INFO,
            "vmsnap-script",
        )

    def send(self, message: str, event: Event, priority: Priority, identifier: str) -> None:
        self.journal.send(message, event.value, priority, identifier, VMSNAP_PHASE=self.phase)
