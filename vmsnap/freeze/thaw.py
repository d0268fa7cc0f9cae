# SPDX-License-Identifier: Apache-2.0
"""Thawing without the guard: many filesystems at once, each in a thread of its own.

Runs in: engine, supervisor, caller, forks of them. While frozen: no file, no journal, no import.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import threading
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from vmsnap.freeze.states import FROZEN, States
from vmsnap.system.proc import has_ended

FITHAW = 0xC0045878  # linux/fs.h: _IOWR('X', 120, int)
RCU_EXPEDITED = Path("/sys/kernel/rcu_expedited")
STEP_PATIENCE = 5.0  # seconds for one step of a thaw; as in the guard

THAWED = (0, errno.EINVAL)  # EINVAL: it is not frozen


@dataclass(frozen=True)
class Suspect:
    """A filesystem that may be frozen, open as `fd`. `index` is its place in the list."""

    index: int
    step: int
    fd: int


def thaw_for_guard(
    guard: int | None,
    states: States,
    batches: Iterable[Sequence[Suspect]],
    end_patience: float = STEP_PATIENCE,
) -> Iterator[dict[int, int]]:
    """Thaw in the guard's place: the one way of all who have to. `guard` is its pidfd, None if
    nothing is left of it. What comes in one batch is thawed before the next is asked for. Yield the
    errno of each filesystem, by its index.

    As long as anything is left of the guard, even if it was killed, a FIFREEZE without an answer
    may yet succeed, and until then FITHAW says EINVAL (fs/super.c, freeze_super). So wait for the
    end of the guard and thaw again, but yield EINPROGRESS for those after `end_patience`, and
    ETIMEDOUT for a FITHAW that has not returned. Whoever goes on waits without limit, until there
    is nothing to yield but how it ended. A process must go on before it ends: its end would kill
    a FITHAW, after which btrfs is read-only for good.
    """
    left = guard is not None and not has_ended(guard, 0.0)
    before = states.read()
    suspects: list[Suspect] = []
    calls: dict[int, Call] = {}
    for batch in batches:
        suspects += batch
        calls.update(thaw_all(batch))
    for patience in (end_patience, None):
        if patience is None:
            for call in calls.values():
                call.wait(None)
        unanswered = [
            s
            for s in suspects
            if left and before[s.index] != FROZEN and calls[s.index].error == errno.EINVAL
        ]
        if guard is not None and unanswered and has_ended(guard, patience):
            left = False
            calls.update(thaw_all(s for s in unanswered if s.index in states.maybe_frozen()))
            unanswered = []
        results = {index: call.result for index, call in calls.items()}
        results.update((s.index, errno.EINPROGRESS) for s in unanswered)
        for index, error in results.items():
            if error in THAWED:
                states.settle(index)
        yield results
        if not {errno.EINPROGRESS, errno.ETIMEDOUT} & set(results.values()):
            return


def thaw_all(suspects: Iterable[Suspect]) -> dict[int, Call]:
    """Thaw backing filesystems first, each step at once. Return the calls by index."""
    calls = [(suspect, Call(suspect.fd)) for suspect in suspects]
    for current in sorted({suspect.step for suspect, _ in calls}, reverse=True):
        deadline = time.monotonic() + STEP_PATIENCE
        of_step = [call for suspect, call in calls if suspect.step == current]
        for call in of_step:
            call.start()
        for call in of_step:
            call.wait(deadline)
    return {suspect.index: call for suspect, call in calls}


class Call:
    """One FITHAW in a thread of its own, which may never return. `error` is None until it does."""

    def __init__(self, fd: int) -> None:
        self.fd = fd
        self.error: int | None = None
        self._thread = threading.Thread(target=self._thaw, daemon=True)

    @property
    def result(self) -> int:
        return errno.ETIMEDOUT if self.error is None else self.error

    def start(self) -> None:
        try:
            self._thread.start()
        except RuntimeError:  # no more threads or memory, which is when things get killed
            self._thaw()

    def wait(self, deadline: float | None) -> None:
        if self.error is None:
            self._thread.join(deadline and max(0.0, deadline - time.monotonic()))

    def _thaw(self) -> None:
        try:
            fcntl.ioctl(self.fd, FITHAW, 0)
            self.error = 0
        except OSError as e:
            self.error = e.errno or errno.EIO


def is_read_only(fd: int) -> bool:
    """Of a filesystem that is not frozen. A kill inside FITHAW forces btrfs to be, which reads its
    superblock again there (fs/btrfs/super.c, btrfs_unfreeze)."""
    return bool(os.fstatvfs(fd).f_flag & os.ST_RDONLY)


def open_rcu() -> int:
    """Open the kernel's switch, for when there are no descriptors any more; -1 if it has none."""
    try:
        return os.open(RCU_EXPEDITED, os.O_WRONLY | os.O_CLOEXEC)
    except OSError:
        return -1


def restore_rcu(states: States, switch: int = -1) -> None:
    """Undo what a guard that was killed while freezing could not undo (guard.py, expedited_rcu).
    `switch` is from open_rcu, if that was called before."""
    if not states.rcu_expedited:
        return
    fd = switch if switch >= 0 else open_rcu()
    with contextlib.suppress(OSError):
        os.pwrite(fd, b"0", 0)
        states.rcu_restored()
    if fd != switch and fd >= 0:
        os.close(fd)
