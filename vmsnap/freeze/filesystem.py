# SPDX-License-Identifier: Apache-2.0
"""Opening the filesystems of a plan so that they are certainly those, and stay them.

While the descriptor is open, umount fails instead of hiding a frozen superblock. All are opened in
a child (ways.py): any path may lead to a server that never answers.

Runs in: engine, caller (`vmsnap check`). While frozen: no file, no journal, no import.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path, PurePath

from vmsnap.errors import Kind, Problem, Severity
from vmsnap.freeze.blockers import Blocker
from vmsnap.freeze.hidden import NO_LOSS, is_mounted, nameless_btrfs, open_hidden
from vmsnap.freeze.new_mount import device_number, mount_again
from vmsnap.freeze.plan import CHOSEN, Action, Entry, Plan
from vmsnap.freeze.stacking import block_devices
from vmsnap.freeze.ways import Way, open_all, open_filesystem
from vmsnap.result import FilesystemResult
from vmsnap.system.files import mount_id
from vmsnap.system.trusted import REMOTE


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
    hidden_read_only: bool = False  # it has become so, and is in no mount table
    unwritten: int = 0  # errno: what had been written before the freeze has not reached the disk
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

        error = self.error or self.unwritten or self.thaw_error
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


@dataclass
class Opened:
    """What of a plan could be opened, for the caller to close. `left_out` is why not the rest,
    without which the others are frozen; `unmatched` are the patterns of --only that name
    nothing."""

    filesystems: list[Filesystem]
    left_out: list[Problem]
    unmatched: list[Problem]

    @property
    def refused(self) -> list[Problem]:
        """Why nothing may be frozen at all."""
        known = any(problem.severity is Severity.ERROR for problem in self.left_out)
        if self.filesystems or known:
            return self.unmatched
        message = "found no filesystem to freeze; `vmsnap plan` says why"
        return [*self.unmatched, Problem(Kind.FREEZE_FAILED, message, "freeze")]

    def close(self) -> None:
        for filesystem in self.filesystems:
            os.close(filesystem.fd)


def open_plan(plan: Plan, run_dir: Path) -> Opened:
    """Open every filesystem that the plan acts on.

    What cannot be opened is left out, and so is that of the run directory: an error, but a warning
    if only a foreign user namespace has it, else any user could end every freeze. Nothing may be
    frozen if a pattern of --only names nothing, or nothing is left.
    """
    opened = Opened([], [warning(Kind.MOUNT_OPEN_FAILED, note) for note in plan.notes], [])

    def left_out(kind: Kind, entry: Entry, message: str) -> None:
        opened.left_out.append(Problem(kind, message, "freeze", entry.mount))

    run_mount, run_device = place_of(run_dir)
    for entry, answer in zip(plan.acted_on, open_entries(plan.acted_on, plan)):
        if answer is None:
            continue
        if isinstance(answer, str) and entry.foreign:
            message = f"{entry.mount}: left out, as only a foreign user namespace has it: {answer}"
            opened.left_out.append(warning(Kind.MOUNT_OPEN_FAILED, message, entry.mount))
        elif isinstance(answer, str):
            message = f"{entry.mount}{behind(entry, plan)}: left out: {answer}"
            left_out(Kind.MOUNT_OPEN_FAILED, entry, message)
        elif run_mount in {mount.id for mount in entry.mounts} or (
            # In a chroot, which no mount table shows.
            entry.hidden and os.fstat(answer).st_dev == run_device
        ):
            os.close(answer)
            message = (
                f"{entry.mount}: found the run directory {run_dir} on it, expected it on a tmpfs, "
                "since vmsnap cannot write there while it is frozen; left out"
            )
            left_out(Kind.FREEZE_FAILED, entry, message)
        else:
            opened.filesystems.append(Filesystem(entry, answer))
    for pattern in plan.unmatched:
        message = f"{pattern!r}: found nothing mounted there"
        opened.unmatched.append(Problem(Kind.MOUNT_OPEN_FAILED, message, "freeze", pattern))
    return opened


def warning(kind: Kind, message: str, subject: str = "") -> Problem:
    return Problem(kind, message, "freeze", subject, severity=Severity.WARNING)


def open_entries(entries: Sequence[Entry], plan: Plan) -> list[int | str | None]:
    """A descriptor of each of these of the plan, or why there is none: by any of its mounts, else
    by a new one. None if there is nothing to freeze."""
    answers: dict[int, int | str] = dict.fromkeys(range(len(entries)), "")
    ours = [number for number, entry in enumerate(entries) if not entry.foreign]
    shown = [number for number, entry in enumerate(entries) if not entry.hidden]
    nameless = nameless_btrfs((e.mounts for e in plan.entries if not e.hidden), Path("/sys"))
    new_mount = partial(by_new_mount, nameless=nameless)
    for way, numbers in ((by_mounts, shown), (new_mount, ours)):
        ways = [(n, way(entries[n])) for n in numbers if isinstance(answers[n], str)]
        for number, answer in open_all(ways).items():
            first = answers[number]
            answers[number] = f"{first}; {answer}" if first and isinstance(answer, str) else answer
    return [
        None if entry.hidden and is_no_loss(entry, answer) else answer
        for entry, answer in zip(entries, answers.values())
    ]


def is_no_loss(entry: Entry, answer: int | str) -> bool:
    """Whether it has turned out to be nothing to freeze, or was unmounted just now."""
    if isinstance(answer, int):
        return False
    return answer == NO_LOSS or not is_mounted(entry.mounts[0], Path("/sys"))


def by_mounts(entry: Entry) -> Way:
    return partial(open_filesystem, entry.mounts)


def by_new_mount(entry: Entry, nameless: Collection[str]) -> Way:
    """For what is covered, or lies behind a server that does not answer."""
    mount = entry.mounts[0]
    disks = block_devices(mount, Path("/sys"))
    st_dev = None if mount.device.startswith("0:") else device_number(mount.device)
    way = partial(mount_again, disks, mount.fstype, "", st_dev)
    if not entry.hidden:
        return way
    return partial(open_hidden, way, nameless if mount.fstype == "btrfs" else ())


def newly_hidden(before: Plan, after: Plan) -> list[Entry]:
    """Those of `after` which no mount table has, that can be written to and that `before`
    neither acted on nor left out because it was told to. Not while anything is frozen."""
    sys = Path("/sys")
    decided = {
        number
        for entry in before.entries
        if entry.action is not Action.SKIP or entry.reason in CHOSEN
        for number in (entry.device, *block_devices(entry.mounts[0], sys))
    }
    hidden = [entry for entry in after.acted_on if entry.hidden]
    new = [e for e in hidden if decided.isdisjoint(block_devices(e.mounts[0], sys))]
    answers = open_entries(new, after)
    for answer in answers:
        if isinstance(answer, int):
            os.close(answer)
    return [entry for entry, answer in zip(new, answers) if answer is not None]


def behind(entry: Entry, plan: Plan) -> str:
    """Names the server that has to answer before this filesystem can be looked at."""
    above = {str(path) for path in PurePath(entry.mount).parents}
    servers = [
        mount
        for other in plan.entries
        for mount in other.mounts
        if mount.path in above and (mount.fstype in REMOTE or mount.fstype.startswith("fuse"))
    ]
    nearest = max(servers, key=lambda mount: len(mount.path), default=None)
    return f", behind {nearest.path} ({nearest.fstype} of {nearest.source})" if nearest else ""


def place_of(path: Path) -> tuple[int, int]:
    """The mount id and the device number of a path that was walked before (lock.py), or of where it
    will be made."""
    fd = os.open(next(p for p in (path, *path.parents) if p.exists()), os.O_PATH)
    try:
        return mount_id(fd), os.fstat(fd).st_dev
    finally:
        os.close(fd)
