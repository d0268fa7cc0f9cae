# SPDX-License-Identifier: Apache-2.0
"""A filesystem whose FIFREEZE does not return: it lies on one that somebody else has frozen."""

from __future__ import annotations

from dataclasses import dataclass

from . import kernel
from .lab import Filesystem, Lab
from .processes import is_stuck, wait_until
from .running import Session


@dataclass(frozen=True)
class Stuck:
    parent: Filesystem
    child: Filesystem
    other: Filesystem
    dirty: bool

    @property
    def only(self) -> list[str]:
        """What a session selects: the parent is the business of whoever froze it."""
        return [str(self.child.mount), str(self.other.mount)]


def prepare(lab: Lab, dirty: bool = False) -> Stuck:
    parent = lab.filesystem(name="parent", mib=96)
    child = lab.filesystem(name="child", on=parent)
    other = lab.filesystem(name="other")
    if dirty:
        (child.mount / "dirty").write_bytes(b"x" * (1 << 20))
    kernel.freeze(parent.mount)
    return Stuck(parent, child, other, dirty)


def wait_until_inside(session: Session, made: Stuck) -> int:
    """Wait until the guard is inside a call that does not return; return the guard's pid.

    With dirty data the call is the syncfs before the freeze; FIFREEZE otherwise.
    """
    request = None if made.dirty else kernel.FIFREEZE
    wait_until(lambda: any(is_stuck(pid, made.child.mount, request) for pid in session.guards))
    return session.guard
