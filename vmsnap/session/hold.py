# SPDX-License-Identifier: Apache-2.0
"""The hold: everything is quiesced and frozen until the snapshot has been taken, the hold's time is
over, or a signal comes.

Runs in: engine. While frozen: no file, no journal, no import.
"""

from __future__ import annotations

import time
from collections.abc import Iterable
from enum import Enum

from vmsnap.errors import Problem
from vmsnap.freeze.failures import hold_expired
from vmsnap.freeze.freezer import Freezer
from vmsnap.result import Phase
from vmsnap.system.waiter import Waiter


class HoldEnd(Enum):
    """Why a hold is over."""

    TAKEN = "the snapshot has been taken, or has failed"
    EXPIRED = "its time was over before"
    INTERRUPTED = "a signal came before"


class Hold:
    """Begins when it is made. `ends` is in seconds on CLOCK_MONOTONIC.

    If anything is frozen the guard keeps the time, and thaws; if nothing is, the same time is kept
    here, since the applications are quiesced all the same. Once `expired`, it stays
    so: an end of the hold that arrives later is too late, even before receive() has noticed.
    """

    def __init__(self, freezer: Freezer | None, waiter: Waiter, seconds: float) -> None:
        self.seconds = seconds
        self.ends = time.monotonic() + seconds
        self.expired = False
        self._freezer = freezer if freezer and freezer.holding else None
        self._waiter = waiter

    def wait(self, fds: Iterable[int] = (), until: float | None = None) -> set[int]:
        """Sleep until one of `fds` is ready, at most `until` (monotonic) if given, else until the
        hold must be over. Return what is ready; receive() comes next."""
        freezer, deadline = self._freezer, self.ends
        if freezer and freezer.holding:
            deadline = freezer.deadline()
        guard = freezer.fds() if freezer else ()
        return self._waiter.wait([*fds, *guard], until or deadline)

    def receive(self) -> None:
        """Take in what the guard has sent, do its work should it be lost, and see whether the hold
        is still on."""
        freezer = self._freezer
        if freezer:
            freezer.receive_or_replace()
        over = not freezer.holding if freezer else time.monotonic() >= self.ends
        self.expired = self.expired or over

    @property
    def problems(self) -> tuple[Problem, ...]:
        """That it has expired with nothing frozen; else the guard says so at the thaw."""
        if self._freezer or not self.expired:
            return ()
        return (hold_expired(Phase.SNAPSHOT, self.seconds),)
