# SPDX-License-Identifier: Apache-2.0
"""Thawing without the guard: many filesystems at once, each in a thread of its own.

Runs in: engine, supervisor, caller, forks of them. While frozen: no file, no journal, no import.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import threading
import time
from collections.abc import Iterable
from pathlib import Path
from typing import TypeVar

FITHAW = 0xC0045878  # linux/fs.h: _IOWR('X', 120, int)
RCU_EXPEDITED = Path("/sys/kernel/rcu_expedited")
STEP_PATIENCE = 5.0  # seconds for one step of a thaw; as in the guard

What = TypeVar("What")


class Call:
    """One FITHAW in a thread of its own, which may never return. `error` is None until it does."""

    def __init__(self, fd: int) -> None:
        self.fd = fd
        self.error: int | None = None
        self._thread = threading.Thread(target=self._thaw, daemon=True)

    def start(self) -> None:
        try:
            self._thread.start()
        except RuntimeError:  # no more threads or memory, which is when things get killed
            self._thaw()

    def wait(self, deadline: float) -> None:
        if self.error is None:
            self._thread.join(max(0.0, deadline - time.monotonic()))

    def _thaw(self) -> None:
        try:
            fcntl.ioctl(self.fd, FITHAW, 0)
            self.error = 0
        except OSError as e:
            self.error = e.errno or errno.EIO


def thaw_all(filesystems: Iterable[tuple[int, int, What]]) -> list[tuple[What, int]]:
    """Thaw (step, descriptor, what), backing filesystems first, each step at once. Return (what,
    errno)."""
    calls = [(step, Call(fd), what) for step, fd, what in filesystems]
    for current in sorted({step for step, _, _ in calls}, reverse=True):
        deadline = time.monotonic() + STEP_PATIENCE
        of_step = [call for step, call, _ in calls if step == current]
        for call in of_step:
            call.start()
        for call in of_step:
            call.wait(deadline)
    return [(what, errno.ETIMEDOUT if c.error is None else c.error) for _, c, what in calls]


def restore_rcu(before: str) -> None:
    """Undo what a guard that was killed while freezing could not undo (guard.py, expedited_rcu)."""
    with contextlib.suppress(OSError):
        if before == "0":
            RCU_EXPEDITED.write_text("0")


def rcu_expedited() -> str:
    """ "0" or "1"; "" if this kernel has no such switch."""
    with contextlib.suppress(OSError):
        return RCU_EXPEDITED.read_text().strip()
    return ""
