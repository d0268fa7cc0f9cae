# SPDX-License-Identifier: Apache-2.0
"""Opening the filesystems of a plan so that they are certainly those, and stay them.

While the descriptor is open, umount fails instead of hiding a frozen superblock.

Runs in: engine, caller (`vmsnap check`). While frozen: no file, no journal, no import.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from vmsnap.errors import Kind, Problem, VmsnapError
from vmsnap.freeze.blockers import Blocker
from vmsnap.freeze.plan import Entry, Plan
from vmsnap.result import FilesystemResult
from vmsnap.system.files import mount_id


@dataclass
class Filesystem:
    """One filesystem of the plan, pinned by a descriptor, and what the guard has sent about it.

    Times are seconds on the monotonic clock. Until `frozen_at` or `error` is set after
    `freezing_at`, it is not known whether it is frozen.
    """

    entry: Entry
    fd: int
    freezing_at: float | None = None
    frozen_at: float | None = None
    synced_at: float | None = None
    thawed_at: float | None = None
    error: int = 0  # of FIFREEZE or syncfs
    thaw_error: int = 0
    blockers: tuple[Blocker, ...] = ()  # who kept it from freezing in time

    @property
    def maybe_frozen(self) -> bool:
        return self.freezing_at is not None and not self.error and self.thawed_at is None

    @property
    def step(self) -> int:
        return self.entry.step or 0

    def result(self, thawing_at: float | None) -> FilesystemResult:
        def ms(begin: float | None, end: float | None) -> float | None:
            return None if begin is None or end is None else round((end - begin) * 1000, 3)

        error = self.error or self.thaw_error
        return FilesystemResult(
            mount=self.entry.mount,
            fstype=self.entry.mounts[0].fstype,
            device=self.entry.device,
            step=self.entry.step,
            freeze_ms=ms(self.freezing_at, self.frozen_at),
            held_ms=ms(self.frozen_at, self.thawed_at),
            thaw_ms=ms(thawing_at, self.thawed_at) if self.frozen_at else None,
            error=os.strerror(error) if error else None,
        )

    def events(self) -> Iterable[tuple[float, str]]:
        for name in ("freezing", "frozen", "synced", "thawed"):
            at = getattr(self, f"{name}_at")
            if at is not None:
                yield at, name


class MountOpenError(VmsnapError):
    """A filesystem of the plan could not be opened, or is no longer what was planned."""


def open_plan(plan: Plan, run_dir: Path) -> tuple[list[Filesystem], list[Problem]]:
    """Open every filesystem that the plan acts on. The caller closes what it gets.

    Nothing may be frozen if there is any failure: a filesystem cannot be opened, a pattern of
    --only names nothing, nothing is left to freeze, or the run directory would be frozen as well.
    """
    pinned: list[Filesystem] = []
    failures: list[Problem] = []

    def fail(kind: Kind, subject: str, message: str) -> None:
        failures.append(Problem(kind, message, "freeze", subject))

    run_mount = mount_of(run_dir)
    for entry in plan.acted_on:
        try:
            fd = open_filesystem(entry)
        except MountOpenError as e:
            fail(Kind.MOUNT_OPEN_FAILED, entry.mount, f"{entry.mount}: {e}")
            continue
        pinned.append(Filesystem(entry, fd))
        if run_mount in {mount.id for mount in entry.mounts}:
            message = (
                f"{entry.mount}: found the run directory {run_dir} on it, expected it on a tmpfs, "
                "since vmsnap cannot write there while it is frozen"
            )
            fail(Kind.FREEZE_FAILED, entry.mount, message)
    for pattern in plan.unmatched:
        fail(Kind.MOUNT_OPEN_FAILED, pattern, f"{pattern!r}: found nothing mounted there")
    if not plan.acted_on:
        fail(Kind.FREEZE_FAILED, "", "found no filesystem to freeze; `vmsnap plan` says why")
    return pinned, failures


def open_filesystem(entry: Entry) -> int:
    """Open one superblock through any of its mounts and make sure that it is the one planned."""
    reason = "it has no mount point that can be reached"
    for mount in entry.mounts:
        if not mount.reachable:
            continue
        try:
            pinned = os.open(mount.path, os.O_PATH | os.O_NOFOLLOW)
        except OSError as e:
            reason = e.strerror or str(e)
            continue
        try:
            status = os.fstat(pinned)
            if mount_id(pinned) != mount.id or not same_device(status, mount.device):
                reason = "something else is mounted there now"
            elif not (stat.S_ISDIR(status.st_mode) or stat.S_ISREG(status.st_mode)):
                reason = "it is mounted on a special file"
            else:
                return os.open(f"/proc/self/fd/{pinned}", os.O_RDONLY | os.O_NONBLOCK)
        except OSError as e:
            reason = e.strerror or str(e)
        finally:
            os.close(pinned)
    raise MountOpenError(reason)


def mount_of(path: Path) -> int:
    """The mount id of a path, or of where it will be made."""
    fd = os.open(next(p for p in (path, *path.parents) if p.exists()), os.O_PATH)
    try:
        return mount_id(fd)
    finally:
        os.close(fd)


def same_device(status: os.stat_result, device: str) -> bool:
    """btrfs gives subvolumes device numbers that no mount table shows; the mount id decides."""
    return (
        device.startswith("0:") or device == f"{os.major(status.st_dev)}:{os.minor(status.st_dev)}"
    )
