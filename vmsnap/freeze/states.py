# SPDX-License-Identifier: Apache-2.0
"""What became of each FIFREEZE of a session: one letter for each filesystem, in the list of what
may be frozen (frozen_list.py), so that it outlives every process. And one more, for the kernel's
switch rcu_expedited (guard.py, expedited_rcu).

The guard writes ASKED before its FIFREEZE, and what that answered as soon as it has returned. No
kill can reverse the two: what is not ASKED or FROZEN is not frozen by us, and must not be thawed,
since another program may have frozen it. In the same way it writes ASKED before it sets the switch.

Runs in: engine, supervisor, caller, forks of them. While frozen: no file but the open list.
"""

from __future__ import annotations

import contextlib
import os

NOT_FROZEN, ASKED, FROZEN = "-", "a", "f"  # as in guard.py
HEAD = '{"states": "'  # with which the list begins


class States:
    """The letters in a list that is open as `fd`. In a list without letters, which is from an older
    version, everything counts as ASKED; in one that is not written yet, nothing."""

    def __init__(self, fd: int, count: int) -> None:
        self._fd, self._count = fd, count

    def read(self) -> str:
        return self._letters()[: self._count]

    @property
    def rcu_expedited(self) -> bool:
        """Whether the kernel's switch is to be put back."""
        return self._letters()[self._count :] == ASKED

    def _letters(self) -> str:
        head = os.pread(self._fd, len(HEAD) + self._count + 1, 0).decode("ascii", "replace")
        if head.startswith(HEAD):
            return head[len(HEAD) :]
        return (ASKED if head else NOT_FROZEN) * self._count

    def maybe_frozen(self) -> list[int]:
        """The indices of the filesystems that are frozen or may yet be."""
        return [i for i, state in enumerate(self.read()) if state != NOT_FROZEN]

    def rcu_restored(self) -> None:
        self.settle(self._count)

    def settle(self, index: int) -> None:
        """It is not frozen any more, and will not be."""
        if os.pread(self._fd, len(HEAD), 0) == HEAD.encode():
            with contextlib.suppress(OSError):
                os.pwrite(self._fd, NOT_FROZEN.encode(), len(HEAD) + index)
