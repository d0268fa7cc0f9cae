# SPDX-License-Identifier: Apache-2.0
"""A terminal for a session, that can hang up or be stopped."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Sequence
from typing import Any

CONTROLLED = """
import fcntl, os, sys, termios
fcntl.ioctl(0, termios.TIOCSCTTY, 0)
os.execv(sys.argv[1], sys.argv[1:])
"""


class Terminal:
    """Our side of it; nothing, until it is opened."""

    def __init__(self) -> None:
        self.fds: list[int] = []
        self._theirs = -1

    def open(self, argv: Sequence[str]) -> tuple[list[str], dict[str, Any]]:
        """Return what to run, and with which streams."""
        ours, self._theirs = os.openpty()
        os.set_blocking(ours, False)
        self.fds = [ours]
        streams = dict.fromkeys(("stdin", "stdout", "stderr"), self._theirs)
        return [sys.executable, "-ISc", CONTROLLED, *argv], streams

    def started(self) -> None:
        if self._theirs >= 0:
            os.close(self._theirs)
            self._theirs = -1

    def type(self, keys: bytes) -> None:
        with contextlib.suppress(OSError):
            for fd in self.fds:
                os.write(fd, keys)

    def drain(self) -> None:
        for fd in self.fds:
            try:
                while os.read(fd, 65536):
                    pass
            except BlockingIOError:
                pass
            except OSError:  # nobody has the other side open any more
                self.hang_up()

    def hang_up(self) -> None:
        for fd in self.fds:
            os.close(fd)
        self.fds = []
