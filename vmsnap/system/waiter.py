# SPDX-License-Identifier: Apache-2.0
"""Waiting: the one place where a process of vmsnap sleeps, until descriptors, a signal or a
deadline.

Signals only set a word and wake the wait; what they mean is decided where the wait was called.

Runs in: engine, supervisor, caller. While frozen: no file, no journal, no import.
"""

from __future__ import annotations

import contextlib
import math
import os
import select
import signal
import time
from collections.abc import Callable, Iterable
from types import FrameType

PULSE = 1.0  # seconds
STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)  # they ask a process to end


class Waiter:
    """Owns this process's handling of signals. `interrupted` names the first one that asked to
    stop.

    A stop from the terminal (Ctrl-Z) is ignored: it would leave the filesystems frozen until the
    guard's deadline. SIGCHLD wakes the wait and says nothing. `pulse` is called once a second
    while waiting.
    """

    pulse: Callable[[], None] | None = None

    def __init__(self, stop_signals: Iterable[signal.Signals]) -> None:
        self.interrupted = ""
        self._next_pulse = 0.0
        self._woken, wake = os.pipe()
        for fd in (self._woken, wake):
            os.set_blocking(fd, False)
        signal.set_wakeup_fd(wake, warn_on_full_buffer=False)
        for number in stop_signals:
            signal.signal(number, self._interrupt)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        signal.signal(signal.SIGTSTP, signal.SIG_IGN)

    def _interrupt(self, number: int, _frame: FrameType | None) -> None:
        self.interrupted = self.interrupted or signal.Signals(number).name

    def wait(self, fds: Iterable[int], deadline: float | None = None) -> set[int]:
        """Return those of `fds` that can be read or have hung up; none at the deadline (monotonic,
        seconds), and perhaps none after a signal or a pulse."""
        if self.pulse and time.monotonic() >= self._next_pulse:
            self.pulse()
            self._next_pulse = time.monotonic() + PULSE
        if self.pulse and (deadline is None or deadline > self._next_pulse):
            deadline = self._next_pulse
        poll = select.poll()
        for fd in (*fds, self._woken):
            poll.register(fd, select.POLLIN)
        left = None if deadline is None else max(0, math.ceil((deadline - time.monotonic()) * 1000))
        ready = {fd for fd, _ in poll.poll(left)}
        if self._woken in ready:
            ready.remove(self._woken)
            with contextlib.suppress(BlockingIOError):
                while os.read(self._woken, 4096):
                    pass
        return ready
