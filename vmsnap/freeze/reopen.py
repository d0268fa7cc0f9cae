# SPDX-License-Identifier: Apache-2.0
"""Opening again what may be frozen, when those that had it open are gone: by the path at which it
was frozen, and what cannot be reached there by any mount of it in any namespace.

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
from vmsnap.freeze.plan import REMOTE
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

PATIENCE = 2 * OPEN_PATIENCE + ALL_SECONDS  # seconds that it takes at most


@dataclass(frozen=True)
class Item:
    """What identifies a filesystem: the path and device number with which it was opened, and its
    MAJOR:MINOR in the mount tables. A list of an older version has no more than the first two."""

    mount: str
    st_dev: int
    step: int
    device: str = ""


def open_again(items: Mapping[int, Item], unreached: dict[int, str]) -> Iterator[dict[int, int]]:
    """Yield descriptors by the number of the item, as soon as there are any. In the end `unreached`
    says why there is none of the others."""
    reasons: dict[int, list[str]] = {number: [] for number in items}
    for find in (by_path, by_mount_tables):
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


def servers() -> set[str]:
    """The mount points, in our namespace, of filesystems that somebody else has to answer for."""
    with contextlib.suppress(OSError):
        lines = read(Path("/proc/self/mountinfo"), lambda: None)
        return {m.point for m in parse(lines) if m.fstype in REMOTE or m.fstype.startswith("fuse")}
    return set()


def may_hang(path: str, points: Collection[str]) -> bool:
    above = map(str, (PurePath(path), *PurePath(path).parents))
    return path.startswith("/proc/") or any(point in points for point in above)
