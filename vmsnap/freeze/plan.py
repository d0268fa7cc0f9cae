# SPDX-License-Identifier: Apache-2.0
"""The plan: which filesystems are frozen, written out or left alone, in which order, and why.

Built from the mount tables; the order is that of what lies on what (stacking.py). No filesystem is
opened, and nothing is changed.

Runs in: engine, caller. Not while this session has anything frozen.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from fnmatch import fnmatchcase
from pathlib import Path

from vmsnap.freeze.hidden import hidden_mounts
from vmsnap.freeze.mountinfo import ANONYMOUS, Mount, every_mount
from vmsnap.freeze.stacking import Rank, Stacking, block_devices, look, order, reached, text
from vmsnap.system.trusted import REMOTE

# On block devices, but their drivers have no freeze_fs: FIFREEZE says EOPNOTSUPP.
SYNC_ONLY = {
    *("vfat", "msdos", "exfat", "ntfs3", "ntfs", "hfs", "hfsplus", "udf", "minix", "ufs", "affs"),
    *("sysv", "v7", "omfs", "hpfs", "adfs", "bfs", "qnx4"),
}
# Mounted read-write, their superblocks are read-only all the same.
NEVER_WRITTEN = {"iso9660", "squashfs", "erofs", "cramfs", "romfs", "efs", "qnx6", "befs"}
BECAME_READ_ONLY = "read-only after an error, though it was mounted to be written to"
HIDDEN = "in no mount table; left alone if it turns out to be read-only"
CHOSEN = {"not selected", "excluded"}
FIRST = "comes first, since all that it lies on cannot be known"
NO_DISK = ("loop", "ram", "zram", "sr", "fd", "dm-", "md", "bcache", "drbd", "mtdblock")

SMALLEST_DISK = 2048  # sectors of 512 bytes: even a partition begins only there
SEEDS = ("cidata", "CIDATA", "config-2", "CONFIG-2")  # cloud-init, DataSourceNoCloud, ConfigDrive
SEED_LABELS = {f"E:ID_FS_LABEL={label}" for label in SEEDS}


class Action(Enum):
    FREEZE = "freeze"
    SYNC = "sync"
    SKIP = "skip"


@dataclass(frozen=True)
class Entry:
    """One superblock: all its mounts, best first, and what is done with it in which step. `backing`
    are the mount points of the filesystems that it is known to lie on."""

    mounts: tuple[Mount, ...]
    action: Action
    step: int | None
    reason: str
    backing: tuple[str, ...] = ()

    @property
    def mount(self) -> str:
        return self.mounts[0].path

    @property
    def device(self) -> str:
        return self.mounts[0].device

    @property
    def foreign(self) -> bool:
        """Whether nothing but namespaces of foreign user namespaces has it mounted."""
        return all(mount.foreign for mount in self.mounts)

    @property
    def hidden(self) -> bool:
        """Whether no mount table has it."""
        return self.mounts[0].hidden

    @property
    def optional(self) -> bool:
        """Whether its failure keeps no other from being frozen, since any user may have kept it."""
        return self.foreign or self.hidden

    @property
    def became_read_only(self) -> bool:
        return self.reason == BECAME_READ_ONLY

    @property
    def virtual(self) -> bool:
        return self.reason.startswith("virtual")

    def to_json(self) -> dict[str, object]:
        first = self.mounts[0]
        return {
            "mount": first.path,
            "source": first.source,
            "fstype": first.fstype,
            "device": first.device,
            "action": self.action.value,
            "step": self.step,
            "reason": self.reason,
        }


@dataclass(frozen=True)
class Plan:
    """Every superblock. `unmatched` are plain names in --only at which nothing is mounted,
    `idle` the same in --exclude; `notes` are what may be missing, and why."""

    entries: tuple[Entry, ...]
    unmatched: tuple[str, ...] = ()
    idle: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def acted_on(self) -> list[Entry]:
        return [entry for entry in self.entries if entry.action is not Action.SKIP]


def make_plan(
    only: Sequence[str] = (),
    exclude: Sequence[str] = (),
    proc: Path = Path("/proc"),
    sys: Path = Path("/sys"),
    pulse: Callable[[], object] = lambda: None,
) -> Plan:
    """Plan a freeze. `only` and `exclude` are globs of mount points (`*` crosses slashes), or of
    devices of what is in no mount table; `pulse` is called every few milliseconds while the mount
    tables are read."""
    superblocks: dict[str, list[Mount]] = {}
    notes: list[str] = []
    for mount in every_mount(proc, notes.append, pulse):
        superblocks.setdefault(mount.device, []).append(mount)
    failed = {device for device, mounts in superblocks.items() if has_become_read_only(mounts)}
    for mounts in superblocks.values():
        # A mount of the whole filesystem in our own namespace says best which one is meant.
        mounts.sort(key=lambda m: (m.pid is not None, not m.reachable, m.root != "/"))
    for mount in hidden_mounts(superblocks, proc, sys):
        superblocks[mount.device] = [mount]
    only, exclude = [trimmed(p) for p in only], [trimmed(p) for p in exclude]
    decisions = {
        device: decide(mounts, only, exclude, sys, device in failed)
        for device, mounts in superblocks.items()
    }
    stacking = look(superblocks, proc, sys, pulse)
    ranks = order(stacking)
    steps = steps_of(superblocks, decisions, stacking, ranks)
    entries = tuple(
        Entry(
            tuple(mounts),
            *decisions[device][:1],
            steps.get(device),
            decisions[device][1] or ("" if ranks[device][0] else FIRST),
            backing_mounts(device, superblocks, stacking),
        )
        for device, mounts in superblocks.items()
    )
    points = {m.point for mounts in superblocks.values() for m in mounts if not m.foreign}
    unmatched, idle = (not_mounted(patterns, points) for patterns in (only, exclude))
    return Plan(entries, unmatched, idle, tuple(notes))


def backing_mounts(
    device: str, superblocks: Mapping[str, Sequence[Mount]], stacking: Stacking
) -> tuple[str, ...]:
    below = reached({device}, stacking.below) & superblocks.keys() - {device}
    return tuple(sorted(superblocks[d][0].path for d in below))


def not_mounted(patterns: Iterable[str], points: Collection[str]) -> tuple[str, ...]:
    return tuple(p for p in patterns if not any(c in p for c in "*?[") and p not in points)


def trimmed(pattern: str) -> str:
    return pattern.rstrip("/") or pattern[:1]


def decide(
    mounts: Sequence[Mount],
    only: Sequence[str],
    exclude: Sequence[str],
    sys: Path,
    failed: bool = False,
) -> tuple[Action, str]:
    action, reason = (Action.SKIP, BECAME_READ_ONLY) if failed else by_nature(mounts[0])
    if action is Action.SKIP and not failed:
        return action, reason
    if mounts[0].foreign and is_gone(mounts[0], sys):
        return Action.SKIP, "its device has been removed"
    if only and not matches(mounts, only):
        return Action.SKIP, "not selected"
    if matches(mounts, exclude):
        return Action.SKIP, "excluded"
    return action, reason


def matches(mounts: Iterable[Mount], patterns: Sequence[str]) -> bool:
    """A mount point in a foreign user namespace is whatever a user calls it, and says nothing."""
    points = [mount.point for mount in mounts if not mount.foreign]
    return any(point == p or fnmatchcase(point, p) for p in patterns for point in points)


def is_gone(mount: Mount, sys: Path) -> bool:
    """Whether all block devices were unplugged, though a mount that a user has kept still pins what
    was on them: to freeze that would fail (EIO), and all others with it."""
    devices = block_devices(mount, sys)
    return bool(devices) and not any((sys / "dev/block" / d).exists() for d in devices)


def has_become_read_only(mounts: Sequence[Mount]) -> bool:
    """Whether the kernel has made a superblock read-only, which it does after an error. `mounts`
    are in the order of the mount table: the first one shows how the superblock was mounted. What is
    mounted read-only on purpose can be shown read-write elsewhere, by a bind mount.

    Of another namespace only what ext4 says itself is believed: the first mount may be elsewhere.
    """
    first = mounts[0]
    action, reason = by_nature(first)
    if not reason.startswith("read-only") or first.fstype in NEVER_WRITTEN:
        return False
    if first.fstype in SYNC_ONLY and "errors=remount-ro" not in first.options.split(","):
        return False
    return first.failed or (first.writable and first.pid is None)


def by_nature(mount: Mount) -> tuple[Action, str]:
    fstype = mount.fstype
    if fstype in REMOTE:
        return Action.SKIP, "remote: its data is on another machine"
    if fstype.startswith("fuse"):
        return Action.SKIP, "FUSE: its server could hang"
    if fstype == "overlay":
        return Action.SKIP, "overlay: its layers are frozen below it"
    if fstype == "zfs":
        return Action.SKIP, "ZFS cannot be frozen; use its own snapshots"
    if mount.device.startswith("0:") and fstype not in ANONYMOUS:
        return Action.SKIP, f"virtual: {fstype} is not on a disk"
    if mount.read_only:
        return Action.SKIP, "read-only: nothing writes to it"
    if fstype in SYNC_ONLY:
        return Action.SYNC, f"{fstype} cannot be frozen; it is written out instead"
    return Action.FREEZE, HIDDEN if mount.hidden else ""


def steps_of(
    superblocks: Mapping[str, Sequence[Mount]],
    decisions: Mapping[str, tuple[Action, str]],
    stacking: Stacking,
    ranks: Mapping[str, Rank],
) -> dict[str, int]:
    """Number the steps from 1. A filesystem comes before what it lies on; / comes last, or last of
    those that lie on something unknown."""
    acted_on = [device for device, (action, _) in decisions.items() if action is not Action.SKIP]
    root = next((d for d in acted_on if any(is_root(m) for m in superblocks[d])), "")
    if root and not (reached({root}, stacking.below) - {root}) & superblocks.keys():
        last = max(ranks[d] for d in acted_on if ranks[d][0] == ranks[root][0])
        ranks = {**ranks, root: last}
    numbers = {r: n for n, r in enumerate(sorted({ranks[d] for d in acted_on}), start=1)}
    return {device: numbers[ranks[device]] for device in acted_on}


def is_root(mount: Mount) -> bool:
    return mount.point == "/" and mount.pid is None


def count_disks(sys: Path = Path("/sys"), udev: Path = Path("/run/udev/data")) -> int:
    """The number of disks that can have data of an application: no loop, ram, zram, optical or
    device-mapper devices, nothing read-only, and no seed of cloud-init. No device is opened."""
    return sum(
        1
        for disk in (sys / "block").iterdir()
        if not disk.name.startswith(NO_DISK)
        and int(text(disk / "size") or "0") >= SMALLEST_DISK
        and text(disk / "hidden") != "1"  # the paths of a multipath NVMe
        and text(disk / "ro") != "1"
        and not (disk.name.startswith("mmcblk") and "boot" in disk.name)
        and not is_seed(disk, udev)
    )


def is_seed(disk: Path, udev: Path) -> bool:
    """Whether there is nothing on a disk but what cloud-init reads (NoCloud, ConfigDrive), by the
    label that udev has found on it, or on its partitions."""
    partitions = [p.parent for p in disk.glob("*/partition")]
    numbers = [text(device / "dev") for device in partitions or [disk]]
    found = [text(udev / f"b{number}").splitlines() for number in numbers]
    return all(any(line in SEED_LABELS for line in lines) for lines in found)
