# SPDX-License-Identifier: Apache-2.0
"""What a freeze and a thaw amount to, in the words of the catalogue."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterable, Iterator

from vmsnap.errors import Failure, Kind
from vmsnap.freeze.filesystem import Filesystem

# Why the guard thawed without being asked: what it says, and what that means.
CAUSES = {
    "signal": "the guard was told to end by a signal, and thawed",
    "broken": "the guard failed, and thawed",
}


def freeze_failures(
    filesystems: Iterable[Filesystem], cause: str, timeout: float
) -> Iterator[Failure]:
    """Why not everything was frozen. `cause` is why the guard thawed; `timeout` in seconds."""
    found = False
    for f in filesystems:
        mount = f.entry.mount
        if f.error == errno.EBUSY:
            message = f"{mount}: somebody else has frozen it ({os.strerror(f.error)})"
            yield Failure(Kind.FREEZE_FAILED, "freeze", mount, message)
        elif f.error:
            yield Failure(Kind.FREEZE_FAILED, "freeze", mount, f"{mount}: {os.strerror(f.error)}")
        elif f.maybe_frozen and f.frozen_at is None and cause == "timeout":
            message = f"{mount}: found it still not frozen after {timeout:g} s"
            yield Failure(Kind.FREEZE_TIMEOUT, "freeze", mount, message)
        else:
            continue
        found = True
    if not found and cause == "timeout":
        message = f"found filesystems still being written out after {timeout:g} s"
        yield Failure(Kind.FREEZE_TIMEOUT, "freeze", "", message)


def thaw_failures(filesystems: Iterable[Filesystem], lost: str) -> Iterator[Failure]:
    """What was wrong at the thaw of what had been frozen. `lost`: why the guard was not there."""
    for f in filesystems:
        mount = f.entry.mount
        if f.frozen_at is None:
            continue
        if f.thaw_error == errno.EINVAL:
            if not lost:  # else the guard may have thawed with its last breath
                message = f"{mount}: somebody else thawed it during the hold"
                yield Failure(Kind.THAWED_EARLY, "thaw", mount, message)
        elif f.thaw_error or f.thawed_at is None:
            reason = os.strerror(f.thaw_error) if f.thaw_error else "FITHAW did not return"
            yield Failure(Kind.THAW_FAILED, "thaw", mount, f"{mount}: {reason}")


def guard_failures(cause: str, lost: str, hold: float) -> Iterator[Failure]:
    """What the guard itself did that nobody asked it to. `hold` in seconds."""
    if cause == "expired":
        message = f"found the hold still going on after {hold:g} s"
        yield Failure(Kind.HOLD_EXPIRED, "thaw", "", message)
    if cause in CAUSES:
        yield Failure(Kind.GUARD_LOST, "thaw", "guard", CAUSES[cause])
    if lost:
        yield Failure(Kind.GUARD_LOST, "thaw", "guard", lost)
