# SPDX-License-Identifier: Apache-2.0
"""Filesystems that are mounted, and in no mount table that can be read.

All processes of their namespace are in a chroot, or it has none and is kept by a descriptor or a
bind mount; or it is a single thread's; they are unmounted lazily and still open; or have never had
a mount point (fsmount(2)). The drivers list their superblocks in sysfs, wherever they are mounted.

sysfs is the same in every container, and has the host's as well. So only root looks for them, and
only in the initial PID namespace, whose /proc has every process of the kernel: what is in none of
their mount tables is nobody else's. In a container it may be the host's or its neighbour's.

Runs in: engine, caller. Not while this session has anything frozen.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import struct
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from pathlib import Path

from vmsnap.freeze.mountinfo import Mount
from vmsnap.freeze.stacking import block_devices, entries, text
from vmsnap.freeze.thaw import is_read_only
from vmsnap.freeze.ways import MountOpenError, Way

INITIAL = "pid:[4026531836]"  # linux/proc_ns.h: PROC_PID_INIT_INO
BY_DEVICE = ("ext4", "xfs", "f2fs", "nilfs2")  # /sys/fs/TYPE/NAME, by the name of the device
NOWHERE = -1  # in place of a mount id
NO_LOSS = "there is nothing to freeze"
# asm-generic/fcntl.h, as is the order of struct flock
F_OFD_SETLK, FLOCK = 37, "hhqqi4x"


def hidden_mounts(superblocks: Mapping[str, Sequence[Mount]], proc: Path, sys: Path) -> list[Mount]:
    """One that stands for each superblock that is not among these: its mount point is the path of
    its device. A btrfs among these whose source says nothing may be with them (open_hidden)."""
    if not sees_every_mount_table(proc):
        return []
    seen = {*superblocks}
    for mounts in superblocks.values():
        if mounts[0].fstype == "btrfs":
            seen.update(block_devices(mounts[0], sys))
    return [m for m in all_superblocks(sys) if seen.isdisjoint(block_devices(m, sys))]


def nameless_btrfs(superblocks: Iterable[Sequence[Mount]], sys: Path) -> set[str]:
    """The numbers of those whose source is the name of no device."""
    return {
        mounts[0].device
        for mounts in superblocks
        if mounts[0].fstype == "btrfs" and not block_devices(mounts[0], sys)
    }


def sees_every_mount_table(proc: Path) -> bool:
    if os.geteuid():
        return False
    with contextlib.suppress(OSError):
        return str((proc / "self/ns/pid").readlink()) == INITIAL
    return False


def is_mounted(mount: Mount, sys: Path) -> bool:
    """Whether the superblock is still there."""
    return mount in all_superblocks(sys)


def all_superblocks(sys: Path) -> Iterator[Mount]:
    """All of the types that sysfs tells of, but those whose device has been removed."""
    for fstype in BY_DEVICE:
        for entry in entries(sys / "fs" / fstype):
            number = text(sys / "class/block" / entry.name / "dev")
            if number:
                yield hidden(number, entry.name, fstype, sys)
    for pool in (sys / "fs/btrfs").glob("*-*"):
        members = sorted(m.name for m in entries(pool / "devices") if text(m / "dev"))
        if members:
            # Its number is anonymous, and not known until it is open.
            yield hidden(f"0:{pool.name}", members[0], "btrfs", sys)


def hidden(device: str, name: str, fstype: str, sys: Path) -> Mount:
    volume = text(sys / "class/block" / name / "dm/name")
    path = f"/dev/mapper/{volume}" if volume else f"/dev/{name.replace('!', '/')}"
    return Mount(NOWHERE, device, "/", path, fstype, path, "", hidden=True)


def open_hidden(way: Way, nameless: Collection[str]) -> int:
    """It shows only now whether it is read-only, or is a btrfs that is one of the `nameless`.
    Raises OSError and MountOpenError, which is NO_LOSS if so."""
    fd = way()
    try:
        if is_read_only(fd) or (nameless and superblock_number(fd) in nameless):
            raise MountOpenError(NO_LOSS)
    except BaseException:
        os.close(fd)
        raise
    return fd


def superblock_number(fd: int) -> str:
    """As the mount tables have it; fstat(2) has one for each subvolume. The kernel shows it of a
    file that is locked (proc(5), fdinfo; fcntl(2), F_OFD_SETLK). Raises OSError."""
    locked = os.open(".", os.O_RDONLY, dir_fd=fd)
    try:
        # Of one byte that nobody else locks.
        fcntl.fcntl(
            locked, F_OFD_SETLK, struct.pack(FLOCK, fcntl.F_RDLCK, os.SEEK_SET, 1 << 62, 1, 0)
        )
        shown = Path(f"/proc/self/fdinfo/{locked}").read_text()
    finally:
        os.close(locked)
    major, minor, _ = shown.partition("lock:")[2].split()[5].split(":")
    return f"{int(major, 16)}:{int(minor, 16)}"
