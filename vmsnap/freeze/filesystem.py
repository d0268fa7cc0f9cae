# SPDX-License-Identifier: Apache-2.0
"""Opening the filesystems of a plan so that they are certainly those, and stay them.

While the descriptor is open, umount fails instead of hiding a frozen superblock. What only another
mount namespace has is opened in a child (ways.py): the path there is not ours and may lead
anywhere, so the engine itself looks at none of it.

Runs in: engine, caller (`vmsnap check`). While frozen: no file, no journal, no import.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from vmsnap.errors import Kind, Problem, Severity
from vmsnap.freeze.blockers import Blocker
from vmsnap.freeze.plan import Entry, Plan
from vmsnap.freeze.ways import MountOpenError, open_filesystem, open_ways
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


def open_plan(plan: Plan, run_dir: Path) -> tuple[list[Filesystem], list[Problem]]:
    """Open every filesystem that the plan acts on. The caller closes what it gets.

    Nothing may be frozen if there is any error: a filesystem cannot be opened, a pattern of --only
    names nothing, nothing is left to freeze, or the run directory would be frozen as well. What
    cannot be opened and only a foreign user namespace has is left out with a warning: else any user
    could end every freeze.
    """
    pinned: list[Filesystem] = []
    failures = [warning(Kind.MOUNT_OPEN_FAILED, note) for note in plan.notes]

    def fail(kind: Kind, subject: str, message: str) -> None:
        failures.append(Problem(kind, message, "freeze", subject))

    run_mount = mount_of(run_dir)
    elsewhere = open_elsewhere([e for e in plan.acted_on if e.mounts[0].pid is not None])
    for entry in plan.acted_on:
        try:
            fd = descriptor(entry, elsewhere)
        except MountOpenError as e:
            if entry.foreign:
                message = f"{entry.mount}: left out, as only a foreign user namespace has it: {e}"
                failures.append(warning(Kind.MOUNT_OPEN_FAILED, message, entry.mount))
            else:
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
    if not pinned and all(entry.foreign for entry in plan.acted_on):
        fail(Kind.FREEZE_FAILED, "", "found no filesystem to freeze; `vmsnap plan` says why")
    return pinned, failures


def warning(kind: Kind, message: str, subject: str = "") -> Problem:
    return Problem(kind, message, "freeze", subject, severity=Severity.WARNING)


def descriptor(entry: Entry, elsewhere: Mapping[str, int | str]) -> int:
    answer = elsewhere.get(entry.device)
    if isinstance(answer, str):
        raise MountOpenError(answer)
    return open_filesystem(entry.mounts) if answer is None else answer


def open_elsewhere(entries: Sequence[Entry]) -> dict[str, int | str]:
    """Open what other mount namespaces have, bounded. Return for each device a descriptor, or why
    there is none."""
    if not entries:
        return {}
    ways = [(n, partial(open_filesystem, entry.mounts)) for n, entry in enumerate(entries)]
    try:
        batches = [*open_ways(ways)]
    except OSError as e:
        reason = f"cannot start a process for it: {e.strerror}"
        return {entry.device: reason for entry in entries}
    return {entries[n].device: answer for batch in batches for n, answer in batch.items()}


def mount_of(path: Path) -> int:
    """The mount id of a path, or of where it will be made."""
    fd = os.open(next(p for p in (path, *path.parents) if p.exists()), os.O_PATH)
    try:
        return mount_id(fd)
    finally:
        os.close(fd)
