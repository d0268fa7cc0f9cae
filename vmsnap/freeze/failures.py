# SPDX-License-Identifier: Apache-2.0
"""The problems of a freeze and of a thaw, as the catalogue has them.

Runs in: engine, caller (`vmsnap check`). While frozen: no file, no journal, no import.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import replace

from vmsnap.errors import Kind, Problem, Severity
from vmsnap.freeze.filesystem import Filesystem, newly_hidden, warning
from vmsnap.freeze.plan import Plan

# Why the guard thawed without a command: the cause it sends, and what that means.
CAUSES = {
    "signal": "the guard was terminated by a signal, and thawed",
    "broken": "the guard failed, and thawed",
}

BY_OTHERS = (
    "already frozen by another program, as fsfreeze, LVM or another backup agent; it did not thaw "
    "it in time, and vmsnap thaws only what it has frozen"
)
BY_SCRIPT = (
    "already frozen by a pre-script or another program; vmsnap freezes by itself when the "
    "pre-scripts have ended, so remove `fsfreeze` from pre- and post-script"
)
MEND = "see `dmesg`; mend its disk, unmount and check it, or leave it out with [freeze] exclude="


def unused_excludes(plan: Plan) -> Iterator[Problem]:
    """Warnings of the patterns of --exclude and [freeze] exclude= that match nothing."""
    for pattern in plan.idle:
        message = f"{pattern}: nothing is mounted there to be excluded"
        yield Problem(Kind.FREEZE_FAILED, message, path=pattern, severity=Severity.WARNING)


def left_out(plan: Plan) -> Iterator[Problem]:
    """What is not frozen though it was mounted to be written to: the kernel has stopped that."""
    for entry in plan.entries:
        if entry.became_read_only:
            mount = entry.mounts[0]
            found = f"{mount.fstype} with {mount.options}"
            message = f"{entry.mount}: found {found}, expected it to be writable; it is left out"
            severity = Severity.WARNING if entry.foreign else Severity.ERROR
            yield Problem(Kind.BECAME_READ_ONLY, message, "freeze", entry.mount, severity=severity)


def freeze_failures(
    filesystems: Sequence[Filesystem], cause: str, timeout: float, after_scripts: bool
) -> Iterator[Problem]:
    """Why not everything was frozen; only warnings of what is foreign, which any user may have
    mounted. `cause` is why the guard thawed, "" if it holds all but what fails here; `timeout` in
    seconds. `after_scripts`: pre-scripts have run."""
    found = False
    for f in filesystems:
        mount = f.entry.mount
        late = f.maybe_frozen and f.frozen_at is None and cause == "timeout"
        if f.error or (f.unwritten and not late):
            reason = not_frozen(f, cause, after_scripts) if f.error else not_written(f)
            if f.entry.foreign:
                message = f"{mount}: {reason}; only a foreign user namespace has it"
                yield warning(Kind.FREEZE_FAILED, message, mount)
                continue
            yield Problem(Kind.FREEZE_FAILED, f"{mount}: {reason}", "freeze", mount)
        elif late:
            who = "".join(f"; {blocker}" for blocker in f.blockers) or lies_on([f])
            message = f"{mount}: not frozen within {timeout:g} s{who}"
            yield Problem(Kind.FREEZE_TIMEOUT, message, "freeze", mount)
        else:
            continue
        found = True
    if not cause and all(f.error and f.entry.foreign for f in filesystems):
        yield Problem(Kind.FREEZE_FAILED, "none of the filesystems could be frozen", "freeze")
    if not found and cause == "timeout":
        message = f"still writing back dirty pages after {timeout:g} s{lies_on(filesystems)}"
        yield Problem(Kind.FREEZE_TIMEOUT, message, "freeze")


def not_frozen(f: Filesystem, cause: str, after_scripts: bool) -> str:
    reason = os.strerror(f.error)
    if f.error == errno.EBUSY:
        return f"{BY_SCRIPT if after_scripts else BY_OTHERS} ({reason})"
    if cause or f.entry.foreign:
        return reason
    return f"left out, as it is damaged or its disk fails: {reason}; {MEND}"


def not_written(f: Filesystem) -> str:
    reason = os.strerror(f.unwritten)
    return f"what was written to it has not all reached the disk: {reason}; {MEND}"


def lies_on(filesystems: Iterable[Filesystem]) -> str:
    """What others may have frozen, for then what lies on it cannot be written out."""
    backing = sorted({mount for f in filesystems for mount in f.entry.backing})
    return f"; expected what it lies on to be writable: {', '.join(backing)}" if backing else ""


def thaw_failures(filesystems: Iterable[Filesystem], lost: str) -> Iterator[Problem]:
    """What was wrong at the thaw of what had been frozen. `lost`: why the guard was not there."""
    for f in filesystems:
        mount = f.entry.mount
        if f.frozen_at is None:
            continue
        if f.thaw_error == errno.EINVAL:
            if not lost:  # else the guard may have thawed before it died
                message = f"{mount}: another program thawed it during the hold"
                yield Problem(Kind.THAWED_EARLY, message, "thaw", mount)
        elif f.thaw_error or f.thawed_at is None:
            reason = os.strerror(f.thaw_error) if f.thaw_error else "FITHAW did not return"
            yield Problem(Kind.THAW_FAILED, f"{mount}: {reason}", "thaw", mount)


def newly_read_only(filesystems: Iterable[Filesystem], after: Plan) -> Iterator[Problem]:
    """What was frozen, hence meant to be written to, and is read-only by a later plan. A btrfs
    whose commit has failed freezes like any other; one whose disk fails, or in whose FITHAW a
    process was killed, becomes so in the thaw (fs/btrfs/super.c, btrfs_unfreeze). What no mount
    table has shows it by itself."""
    stopped = {entry.device for entry in after.entries if entry.mounts[0].read_only}
    for f in filesystems:
        if f.frozen_at is not None and (f.entry.device in stopped or f.hidden_read_only):
            message = f"{f.entry.mount}: has become read-only in the freeze or in the thaw"
            yield Problem(Kind.BECAME_READ_ONLY, message, "thaw", f.entry.mount)


def newly_writable(before: Plan, after: Plan, told: Collection[str]) -> Iterator[Problem]:
    """What a later plan would act on, but not the one by which everything was frozen. Of what no
    mount table has, only those count that were frozen, or `told` of as failures, by their mounts:
    the rest was read-only, or gone, when it was opened."""
    entries = tuple(e for e in before.entries if not e.hidden or e.mount in told)
    decided = replace(before, entries=entries)
    known = {entry.device for entry in decided.acted_on}
    new = [entry for entry in after.acted_on if not entry.hidden and entry.device not in known]
    for entry in (*new, *newly_hidden(decided, after)):
        message = f"{entry.mount}: was mounted, or became writable, after the plan was made"
        yield Problem(Kind.NOT_FROZEN, message, "thaw", entry.mount)


def guard_failures(cause: str, lost: str, hold: float) -> Iterator[Problem]:
    """What the guard itself did without a command. `hold` in seconds."""
    if cause == "expired":
        yield hold_expired("thaw", hold)
    if cause in CAUSES:
        yield Problem(Kind.GUARD_LOST, CAUSES[cause], "thaw", "guard")
    if lost:
        yield Problem(Kind.GUARD_LOST, lost, "thaw", "guard")


def hold_expired(phase: str, hold: float) -> Problem:
    return Problem(Kind.HOLD_EXPIRED, f"the hold expired after {hold:g} s", phase)
