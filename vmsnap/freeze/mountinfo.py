# SPDX-License-Identifier: Apache-2.0
"""The kernel's mount tables (proc(5), /proc/PID/mountinfo), of every mount namespace, as data.

Who has a user namespace of his own mounts in it what he likes, without any privilege, and so writes
into these tables what he likes: sources, options, mount points, as many as the kernel allows. Of
such a namespace, called foreign here, only the device number is believed, which is the kernel's.
Nothing here looks at a mount itself, whose filesystem may never answer.

Runs in: engine, caller. Not while this session has anything frozen.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import sys
import time
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

NS_GET_USERNS = 0xB701  # linux/nsfs.h: _IO(0xb7, 1)
# On block devices, though the kernel gives their superblocks an anonymous device number.
ANONYMOUS = {"btrfs", "bcachefs"}
# Limits for the mount tables of foreign user namespaces.
TABLE_SECONDS, ALL_SECONDS = 1.0, 4.0  # for one, and for all together
WAYS = 4  # mounts that are kept of one filesystem: ways in, of which one is enough
AT_ONCE = 1000  # lines or processes, after which the time is looked at

Item = TypeVar("Item")
OCTAL = re.compile(r"\\([0-7]{3})")


@dataclass(frozen=True)
class Mount:
    """One line of a mount table. `device` is the superblock's MAJOR:MINOR."""

    id: int
    device: str
    root: str
    point: str
    fstype: str
    source: str
    options: str  # of the superblock, not of this mount
    pid: int | None = None  # a process that sees it, if it is not in our mount namespace
    foreign: bool = False  # that namespace is owned by another user namespace than ours
    writable: bool = True  # as it was mounted, whatever the superblock is
    hidden: bool = False  # in no mount table (hidden.py): `point` is a device

    @property
    def path(self) -> str:
        """Where this process can open it."""
        return self.point if self.pid is None else f"/proc/{self.pid}/root{self.point}"

    @property
    def read_only(self) -> bool:
        return self.failed or "ro" in self.options.split(",")

    @property
    def failed(self) -> bool:
        """ext4 says so (fs/ext4/super.c, _ext4_show_options; Linux 6.15), and stays rw."""
        return not {"emergency_ro", "shutdown"}.isdisjoint(self.options.split(","))

    @property
    def reachable(self) -> bool:
        """False if the directory it was mounted on has been deleted, or there has been none."""
        return not (self.hidden or self.point.endswith("//deleted"))


def unescape(field: str) -> str:
    """Space, tab, newline, backslash and # stand as octal escapes."""
    if "\\" not in field:
        return field
    return OCTAL.sub(lambda match: chr(int(match[1], 8)), field)


def parse(
    lines: Iterable[str],
    pid: int | None = None,
    unless: Collection[str] = (),
    foreign: bool = False,
) -> Iterator[Mount]:
    """Parse a mount table, leaving out the superblocks named in `unless` and, of a foreign one,
    what is certainly not on a disk."""
    for line in lines:
        left, dash, right = line.rstrip("\n").partition(" - ")
        if not dash:
            continue
        # The optional fields between the sixth and the dash are not used.
        mount_id, _parent, device, root, point, flags, *_ = left.split(" ")
        fstype, source, options = (right.split(" ") + ["", ""])[:3]
        if device in unless or (foreign and not maybe_on_disk(device, fstype)):
            continue
        yield Mount(
            int(mount_id),
            device,
            unescape(root),
            unescape(point),
            fstype,
            unescape(source),
            unescape(options),
            pid,
            foreign,
            "ro" not in flags.split(","),
        )


def maybe_on_disk(device: str, fstype: str) -> bool:
    return fstype in ANONYMOUS or not (device.startswith("0:") or fstype.startswith("fuse"))


def paced(items: Iterable[Item], pulse: Callable[[], object]) -> Iterator[Item]:
    for number, item in enumerate(items):
        if number % AT_ONCE == 0:
            pulse()
        yield item


def until(deadline: float, pulse: Callable[[], object]) -> Callable[[], None]:
    def check() -> None:
        if time.monotonic() > deadline:
            raise TimeoutError
        pulse()

    return check


def read(path: Path, pulse: Callable[[], object]) -> Iterator[str]:
    """The lines of a mount table, of which there may be more than fit into memory."""
    encoding = sys.getfilesystemencoding()
    with path.open(encoding=encoding, errors="surrogateescape", newline="\n") as table:
        yield from paced(table, pulse)


def every_mount(
    proc: Path = Path("/proc"),
    warn: Callable[[str], object] = lambda _: None,
    pulse: Callable[[], object] = lambda: None,
) -> list[Mount]:
    """All mounts of our namespace, and from the others those of superblocks that ours lacks; of
    foreign ones only such as may be on a disk.

    `warn` is called with what was left out, `pulse` every few milliseconds.
    """
    mounts = list(parse(read(proc / "self/mountinfo", pulse)))
    known = {mount.device for mount in mounts}
    views = other_namespaces(proc, pulse)
    # A process may end while we look at it; its mounts then end with it or are seen elsewhere.
    for pid, namespace in ((view.pid, view.namespace) for view in views if not view.foreign):
        with contextlib.suppress(OSError):
            new = list(parse(read(proc / str(pid) / "mountinfo", pulse), pid, known))
            if (proc / str(pid) / "ns/mnt").readlink() != namespace:
                # What it has entered may be anybody's. It cannot have come back without privileges.
                warn(f"process {pid} left its mount namespace, so what is mounted there is missing")
                continue
            mounts += new
            known |= {mount.device for mount in new}
    ways: Counter[str] = Counter()
    end = time.monotonic() + ALL_SECONDS
    unread = 0
    for pid in (view.pid for view in views if view.foreign):
        check = until(min(end, time.monotonic() + TABLE_SECONDS), pulse)
        try:
            table = read(proc / str(pid) / "mountinfo", check)
            for mount in parse(table, pid, known, foreign=True):
                ways[mount.device] += 1
                if ways[mount.device] <= WAYS:
                    mounts.append(mount)
        except TimeoutError:
            unread += 1
        except OSError:
            continue
    if unread:
        warn(
            f"found too many mounts in foreign user namespaces, so {unread} of their mount tables "
            "were not read to the end: a filesystem that is mounted only there may be missing"
        )
    return mounts


def ways_to(devices: Collection[str], proc: Path = Path("/proc")) -> list[Mount]:
    """The mounts of some superblocks in every mount namespace, ours first and foreign ones last;
    of each not more than WAYS in one namespace."""
    views = sorted(other_namespaces(proc), key=lambda view: view.foreign)
    tables: list[tuple[int | None, bool]] = [(None, False), *((v.pid, v.foreign) for v in views)]
    found = []
    end = time.monotonic() + ALL_SECONDS
    for pid, foreign in tables:
        ways: Counter[str] = Counter()
        check = until(min(end, time.monotonic() + TABLE_SECONDS), lambda: None)
        with contextlib.suppress(OSError):  # the process has ended, or too many mounts
            table = read(proc / str(pid or "self") / "mountinfo", check)
            for mount in parse(table, pid, foreign=foreign):
                if mount.device in devices and mount.reachable and ways[mount.device] < WAYS:
                    ways[mount.device] += 1
                    found.append(mount)
    return found


@dataclass(frozen=True)
class View:
    """A process that sees a mount namespace, which is named by its link in /proc/PID/ns."""

    pid: int
    namespace: Path
    foreign: bool


def other_namespaces(proc: Path, pulse: Callable[[], object] = lambda: None) -> list[View]:
    """The processes through which to see all of each mount namespace that is not ours, by pid.

    It is the oldest process whose root is that of the namespace. If there is none, it is the oldest
    of each root: the mount table of a process in a chroot lacks what is mounted outside of it
    (fs/proc_namespace.c). The link says where a root is without any look at it.
    """
    pids = sorted(int(entry.name) for entry in os.scandir(proc) if entry.name.isdigit())
    ours = (proc / "self/ns/mnt").readlink()
    namespaces: dict[Path, dict[str, int]] = {}
    for pid in paced(pids, pulse):
        with contextlib.suppress(OSError):
            namespace = (proc / str(pid) / "ns/mnt").readlink()
            if namespace != ours:
                root = str((proc / str(pid) / "root").readlink())
                namespaces.setdefault(namespace, {}).setdefault(root, pid)
    found = []
    our_owner = owner(proc / "self/ns/mnt") if namespaces else None
    for namespace, roots in paced(namespaces.items(), pulse):
        for pid in [roots["/"]] if "/" in roots else roots.values():
            with contextlib.suppress(OSError):
                of = owner(proc / str(pid) / "ns/mnt")
                found.append(View(pid, namespace, of is None or of != our_owner))
    return sorted(found, key=lambda view: view.pid)


def owner(namespace: Path) -> int | None:
    """The inode of the user namespace that owns a mount namespace; None if that is none of ours or
    below (ioctl_ns(2), EPERM). Raises OSError if the process has ended."""
    fd = os.open(namespace, os.O_RDONLY | os.O_CLOEXEC)
    try:
        user = fcntl.ioctl(fd, NS_GET_USERNS)
    except OSError:
        return None
    finally:
        os.close(fd)
    try:
        return os.fstat(user).st_ino
    finally:
        os.close(user)
