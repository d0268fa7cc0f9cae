# SPDX-License-Identifier: Apache-2.0
"""Opening again what may be frozen, when those that had it open are gone: by the path at which it
was frozen; what cannot be reached there, by any mount of it in any namespace; and what is mounted
nowhere any more, by mounting it again.

None waits for another's lookup. Where there can be no child to look things up, the caller does it.

Runs in: engine, supervisor, caller, forks of them. While frozen: no file but the mount points and
the mount tables, no journal, no import.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path, PurePath

from vmsnap.freeze.mountinfo import ALL_SECONDS, parse, read, ways_to
from vmsnap.freeze.new_mount import mount_again
from vmsnap.freeze.plan import Entry
from vmsnap.freeze.stacking import block_devices
from vmsnap.freeze.ways import (
    OPEN_PATIENCE,
    SOMETHING_ELSE,
    MountOpenError,
    Way,
    open_mount,
    open_pinned,
    open_ways,
    reason_of,
)
from vmsnap.system.files import mount_id
from vmsnap.system.trusted import REMOTE

PATIENCE = 3 * OPEN_PATIENCE + ALL_SECONDS  # seconds that it takes at most


@dataclass(frozen=True)
class Item:
    """What identifies a filesystem: its path, the device number of what was opened, which btrfs has
    for each `subvolume`, its MAJOR:MINOR in the mount tables, and those of the disks it lies on. A
    list of an older version has no more than the first two, and the step."""

    mount: str
    st_dev: int
    step: int
    device: str = ""
    fstype: str = ""
    disks: tuple[str, ...] = ()
    subvolume: str = ""


def identify(entry: Entry, fd: int) -> Item:
    """`fd` is open on any of the mounts."""
    opened = mount_id(fd)
    mount = next((m for m in entry.mounts if m.id == opened), entry.mounts[0])
    options = dict(option.partition("=")[::2] for option in mount.options.split(","))
    return Item(
        entry.mount,
        os.fstat(fd).st_dev,
        entry.step or 0,
        entry.device,
        mount.fstype,
        tuple(block_devices(mount, Path("/sys"))),
        options.get("subvolid", ""),
    )


def open_again(items: Mapping[int, Item], unreached: dict[int, str]) -> Iterator[dict[int, int]]:
    """Yield descriptors by the number of the item, as soon as there are any. In the end `unreached`
    says why there is none of the others."""
    reasons: dict[int, list[str]] = {number: [] for number in items}
    for find in (by_path, by_mount_tables, by_new_mount):
        ways = list(find({number: items[number] for number in reasons}))
        for answers in try_ways(ways) if ways else ():
            opened = {n: answer for n, answer in answers.items() if isinstance(answer, int)}
            for number, answer in answers.items():
                if number in opened:
                    del reasons[number]
                else:
                    reasons[number].append(str(answer))
            yield opened
    unreached.update((number, "; ".join(words)) for number, words in reasons.items())


def try_ways(ways: Sequence[tuple[int, Way]]) -> Iterator[dict[int, int | str]]:
    try:
        return open_ways(ways)
    except OSError:  # no more processes, memory or descriptors, which is when things get killed
        return open_here(ways)


def open_here(ways: Iterable[tuple[int, Way]]) -> Iterator[dict[int, int | str]]:
    """One by one: the next is opened when what was done with the one before is done."""
    reasons: dict[int, int | str] = {}
    opened = set()
    for number, way in ways:
        if number not in opened:
            try:
                fd = way()
            except (OSError, MountOpenError) as e:
                reasons[number] = reason_of(e)
            else:
                opened.add(number)
                yield {number: fd}
    yield {number: reason for number, reason in reasons.items() if number not in opened}


# --- ways ----------------------------------------------------------------------------------------


def by_path(items: Mapping[int, Item]) -> Iterator[tuple[int, Way]]:
    """What may hang comes last; and what backs others first, as in the thaw."""
    points = servers()

    def order(number: int) -> tuple[bool, int]:
        return may_hang(items[number].mount, points), -items[number].step

    for number in sorted(items, key=order):
        yield number, partial(open_listed, items[number])


def open_listed(item: Item) -> int:
    def doubt(fd: int) -> str:
        return "" if os.fstat(fd).st_dev == item.st_dev else SOMETHING_ELSE

    return open_pinned(item.mount, doubt)


def by_mount_tables(items: Mapping[int, Item]) -> Iterator[tuple[int, Way]]:
    points = servers()
    mounts = ways_to({item.device for item in items.values()}) if items else []
    for mount in sorted(mounts, key=lambda mount: may_hang(mount.path, points)):
        for number, item in items.items():
            if mount.device == item.device and mount.path != item.mount:
                yield number, partial(open_mount, mount)


def by_new_mount(items: Mapping[int, Item]) -> Iterator[tuple[int, Way]]:
    for number, item in items.items():
        if item.disks:
            yield number, partial(mount_again, item.disks, item.fstype, item.subvolume, item.st_dev)


def servers() -> set[str]:
    """The mount points, in our namespace, of filesystems that somebody else has to answer for."""
    with contextlib.suppress(OSError):
        lines = read(Path("/proc/self/mountinfo"), lambda: None)
        return {m.point for m in parse(lines) if m.fstype in REMOTE or m.fstype.startswith("fuse")}
    return set()


def may_hang(path: str, points: Collection[str]) -> bool:
    above = map(str, (PurePath(path), *PurePath(path).parents))
    return path.startswith("/proc/") or any(point in points for point in above)
