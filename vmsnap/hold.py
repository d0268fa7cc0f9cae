# SPDX-License-Identifier: Apache-2.0
"""The hold: waiting for the snapshot command, with one eye on the guard, the clock and signals."""

from __future__ import annotations

import time
from collections.abc import Callable

from vmsnap.events import Waiter
from vmsnap.freezer import Freezer
from vmsnap.snapshot import AFTER_EXPIRY, Command


def hold(
    command: Command,
    freezer: Freezer | None,
    waiter: Waiter,
    seconds: float,
    thaw: Callable[[], None],
) -> str:
    """Wait until the command has ended. Return "expired" if that took longer than `seconds` with
    nothing frozen, "interrupted" if a signal came before, else "".

    If filesystems are frozen the guard thaws them at its own deadline; if none are, the same time
    is watched here, since the applications are held all the same. After it the command has a
    little longer to end before it is stopped. An interruption thaws at once and stops the command.
    """
    frozen = freezer is not None and freezer.holding
    expires = time.monotonic() + seconds
    stop_at: float | None = None
    interrupted = False
    while command.ending is None:
        holding = freezer is not None and freezer.holding
        fds = [*command.fds(), *(freezer.fds() if freezer else ())]
        deadline = freezer.deadline() if freezer and holding else expires
        ready = waiter.wait(fds, command.deadline() or stop_at or deadline)
        command.hear(ready)
        if freezer and holding:
            freezer.hear()
            if freezer.holding and time.monotonic() >= freezer.deadline():
                freezer.overdue()
        if command.ending is not None:
            break
        if waiter.interrupted:
            # Also if it then ends well: what it did since the thaw is no snapshot of anything.
            interrupted = True
            thaw()
            command.stop()
        elif stop_at is not None:
            if time.monotonic() >= stop_at:
                command.stop()
        elif not (freezer and freezer.holding) if frozen else time.monotonic() >= expires:
            stop_at = time.monotonic() + AFTER_EXPIRY
    if interrupted:
        return "interrupted"
    return "expired" if stop_at is not None and not frozen else ""
