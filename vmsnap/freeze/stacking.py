# SPDX-License-Identifier: Apache-2.0
"""What lies on what: filesystems, block devices and files, by the kernel's device numbers.

From sysfs, the mount tables and the loop devices (loops.py); paths are hints at most. A device
number stands for a block device and for what is mounted from it.

Runs in: engine, caller. Not while this session has anything frozen.
"""

from __future__ import annotations

import contextlib
import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from vmsnap.freeze.loops import Backing, ask_loops
from vmsnap.freeze.mountinfo import ANONYMOUS, Mount

IN_MEMORY = {"tmpfs", "ramfs", "rootfs", "devtmpfs", "hugetlbfs"}
# Of the virtual block devices, those of which sysfs shows what they lie on. The others have a
# server, which may be a process here (nbd, ublk) or another machine (drbd).
EXPLAINED = ("loop", "dm-", "md", "bcache", "ram", "zram")
VIRTUAL = "/devices/virtual/block/"
DELETED = " (deleted)"

Graph = dict[str, set[str]]
Rank = tuple[bool, bool, int]


@dataclass
class Stacking:
    """`below` says what each device number lies on. `unknown` are those that lie on something else
    as well, or altogether, which cannot be found out; `hints` are guesses what that is. On each of
    `used` something lies that no mount table shows."""

    below: Graph = field(default_factory=dict)
    unknown: set[str] = field(default_factory=set)
    hints: list[tuple[str, str]] = field(default_factory=list)
    used: set[str] = field(default_factory=set)


def order(stacking: Stacking) -> dict[str, Rank]:
    """A rank of each device: smaller than that of everything it lies on.

    What lies on something unknown comes first, since that may be any of the others. What carries
    something of unknown use comes last.
    """
    below = {device: set(lower) for device, lower in stacking.below.items()}
    for upper, lower in stacking.hints:
        if upper not in reached({lower}, below):
            below.setdefault(upper, set()).add(lower)
    above: Graph = {}
    for upper, lowers in below.items():
        for lower in lowers:
            above.setdefault(lower, set()).add(upper)
    first = reached(stacking.unknown, above)
    last = reached(stacking.used, below)
    groups = {d: (d not in first, d in last) for d in {*below, *above, *first, *last}}
    within = {d: {x for x in below.get(d, ()) if groups[x] == groups[d]} for d in groups}
    return {device: (*groups[device], height) for device, height in heights(within).items()}


def reached(start: Iterable[str], graph: Mapping[str, set[str]]) -> set[str]:
    found = set(start)
    pending = [*found]
    while pending:
        new = graph.get(pending.pop(), set()) - found
        found |= new
        pending += new
    return found


def heights(below: Mapping[str, set[str]]) -> dict[str, int]:
    """How many at most lie one above the other on each."""
    found = dict.fromkeys(below, 0)
    uppers = Counter(lower for lowers in below.values() for lower in lowers)
    settled = [device for device in found if not uppers[device]]
    for device in settled:  # grows
        for lower in below[device]:
            found[lower] = max(found[lower], found[device] + 1)
            uppers[lower] -= 1
            if not uppers[lower]:
                settled.append(lower)
    return found


# --- from the kernel -----------------------------------------------------------------------------


def look(
    superblocks: Mapping[str, Sequence[Mount]],
    proc: Path,
    sys: Path,
    pulse: Callable[[], object] = lambda: None,
) -> Stacking:
    """Everything below these superblocks, given with their mounts, the best one first."""
    found = Stacking()
    points = {m.point: m.device for ms in superblocks.values() for m in ms if m.pid is None}
    loops = writable_loops(sys)
    backings = ask_loops(loops, pulse)
    for device, mounts in superblocks.items():
        devices, known = devices_of(mounts[0], proc, sys)
        found.below[device] = devices - {device}
        if not known:
            found.unknown.add(device)
        if mounts[0].fstype == "overlay" and mounts[0].pid is None:  # else its names are not ours
            found.hints += hints(device, upper_directory(mounts[0]), points)
    add_below(found, {*superblocks, *loops}, superblocks, backings, sys)
    explained = reached(superblocks, found.below)
    found.used |= loops.keys() - explained
    for device in loops.keys() - backings.keys():
        found.hints += hints(device, loops[device][1], points)
    return found


def add_below(
    found: Stacking,
    start: Iterable[str],
    superblocks: Mapping[str, object],
    backings: Mapping[str, Backing],
    sys: Path,
) -> None:
    """Follow the block devices down to the disks, and to the filesystems of loops' files."""
    seen: set[str] = set()
    pending = [*reached(start, found.below)]
    while pending:
        device = pending.pop()
        if device in seen:
            continue
        seen.add(device)
        if device.startswith("0:"):
            if device not in superblocks:  # a subvolume, or a layer of an overlay
                found.unknown.add(device)
            lowers: set[str] = set()
        else:
            lowers, known = below_block_device(device, backings, sys)
            if not known:
                found.unknown.add(device)
        found.below.setdefault(device, set()).update(lowers - {device})
        pending += found.below[device]


def below_block_device(
    device: str, backings: Mapping[str, Backing], sys: Path
) -> tuple[set[str], bool]:
    """What a block device lies on, and whether that is all."""
    base = sys / "dev/block" / device
    lowers = {text(slave / "dev") for slave in entries(base / "slaves")}
    known = True
    if (base / "partition").exists():
        lowers.add(text(base.resolve().parent / "dev"))
    elif device in backings:
        lowers.add(backings[device].below)
    elif (base / "loop").exists():
        known = text(base / "ro") == "1"
    else:
        _, virtual, name = str(base.resolve()).partition(VIRTUAL)
        known = not virtual or name.startswith(EXPLAINED)
        known = known and text(base / "md/bitmap/location") != "file"
    return lowers - {""}, known


def devices_of(mount: Mount, proc: Path, sys: Path) -> tuple[set[str], bool]:
    """What a filesystem lies on, and whether that is all."""
    if mount.fstype in ANONYMOUS:
        devices = set(block_devices(mount, sys))
        return devices, bool(devices)
    if mount.device.startswith("0:"):
        return set(), mount.fstype in IN_MEMORY
    further: list[str] = []
    if mount.fstype == "xfs":
        options = dict(option.partition("=")[::2] for option in mount.options.split(","))
        names = (options[key] for key in ("logdev", "rtdev") if key in options)
        further = [number_of(name, mount, sys) for name in names]
    elif mount.fstype in ("ext2", "ext3", "ext4"):
        further = journal_of_ext4(mount.device, proc, sys)
    devices = {mount.device, *further} - {""}
    return devices, "" not in further and not mount.fstype.startswith("fuse")


def journal_of_ext4(device: str, proc: Path, sys: Path) -> list[str]:
    """The device of an external journal; "" if it has one that is not known. The thread that writes
    a journal has its device's name, with the inode behind it if the journal is a file."""
    name = (sys / "dev/block" / device).resolve().name
    writer = text(sys / "fs/ext4" / name / "journal_task")
    thread = text(proc / writer / "comm") if writer.isdigit() else ""
    journal = thread[len("jbd2/") :] if thread.startswith("jbd2/") else ""
    external = text(sys / "class/block" / journal / "dev") if journal else ""
    if external:
        return [external]
    # Before Linux 5.17 the name of a thread ends after 15 characters.
    own = not journal or journal.startswith(name) or name.startswith(journal.rstrip("-"))
    return [] if own else [""]


def block_devices(mount: Mount, sys: Path) -> list[str]:
    """MAJOR:MINOR of what a filesystem lies on, without its log or journal.

    A source is a text that whoever mounts may choose, and may lead to a server that never answers,
    so it is not looked at but for the types that need it, which only root can mount.
    """
    if not mount.device.startswith("0:"):
        return [mount.device]
    if mount.fstype not in ANONYMOUS:
        return []
    found = [*filter(None, (number_of(name, mount, sys) for name in mount.source.split(":")))]
    if mount.fstype == "btrfs":
        found += btrfs_members(set(found), sys)
    return found


def number_of(name: str, mount: Mount, sys: Path) -> str:
    """By the kernel's own name, or by one link to it in our own /dev."""
    number = number_by_name(name, sys)
    path = Path(os.path.normpath(name))
    if not number and mount.pid is None and Path("/dev") in path.parents:
        with contextlib.suppress(OSError):
            number = number_by_name(os.path.normpath(path.parent / path.readlink()), sys)
    return number


def number_by_name(name: str, sys: Path) -> str:
    """By the kernel's own name, or that of the device mapper; without a look at any path."""
    devices = sys / "class/block"
    if name.startswith("/dev/mapper/"):
        volume = name[len("/dev/mapper/") :]
        found = (text(dm / "dev") for dm in devices.glob("dm-*") if text(dm / "dm/name") == volume)
        return next(found, "")
    if name.startswith("/dev/"):
        return text(devices / name[len("/dev/") :].replace("/", "!") / "dev")
    return ""


def btrfs_members(some: set[str], sys: Path) -> list[str]:
    """All devices of the btrfs to which one of `some` belongs."""
    for pool in (sys / "fs/btrfs").glob("*-*/devices"):
        members = {text(member / "dev") for member in pool.iterdir()} - {""}
        if members & some:
            return sorted(members)
    return []


def writable_loops(sys: Path) -> dict[str, tuple[str, str]]:
    """Name and path of the backing file of each loop device that can be written to."""
    found = {}
    for base in entries(sys / "dev/block"):
        backing = text(base / "loop/backing_file")
        if backing and text(base / "ro") != "1":
            found[base.name] = (base.resolve().name, backing)
    return found


# --- from names ----------------------------------------------------------------------------------


def hints(device: str, path: str, points: Mapping[str, str]) -> Iterator[tuple[str, str]]:
    """On which superblock a file lies, by the mount point above it. The file itself is not asked:
    it may lie on a server that does not answer."""
    if path.endswith(DELETED):
        path = path[: -len(DELETED)]
    pure = PurePosixPath(path)
    for point in map(str, (pure, *pure.parents)):
        if point in points:
            if points[point] != device:
                yield device, points[point]
            return


def upper_directory(overlay: Mount) -> str:
    options = (option.partition("=") for option in overlay.options.split(","))
    return next((value for key, _, value in options if key == "upperdir"), "")


def entries(directory: Path) -> list[Path]:
    try:
        return [*directory.iterdir()]
    except OSError:
        return []


def text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="surrogateescape").strip("\n")
    except OSError:
        return ""
