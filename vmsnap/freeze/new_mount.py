# SPDX-License-Identifier: Apache-2.0
"""The last way into a filesystem that is frozen and mounted nowhere any more: mounting it again,
which the kernel answers with the superblock that it still has.

The mount is in no mount table and ends with its descriptor (fsopen(2), fsmount(2); Linux 5.2).
Nothing is mounted that the kernel has not mounted already, unless its last user unmounts it in
that very moment: that could write to the disk.

Runs in: a child of whoever thaws, or that one itself. While frozen: no file but the device.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import stat
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from itertools import product
from pathlib import Path

from vmsnap.freeze.ways import SOMETHING_ELSE, MountOpenError
from vmsnap.system.process import libc

# asm-generic/unistd.h, and the same for all others that Linux has added since 5.1.
FSOPEN, FSCONFIG, FSMOUNT = 430, 431, 432
CLOEXEC = 1  # linux/mount.h: FSOPEN_CLOEXEC, FSMOUNT_CLOEXEC
# Of one driver, which sysfs does not tell apart. A superblock has the name it was mounted by.
NAMES = {"ext4": ("ext4", "ext3", "ext2")}
# What the kernel ignores if it has the superblock already.
NO_REPLAY = {"ext3": ("noload",), "ext4": ("noload",), "xfs": ("norecovery",)}
SET_FLAG, SET_STRING, CREATE = 0, 1, 6  # linux/mount.h: enum fsconfig_command


def mount_again(disks: Sequence[str], fstype: str, subvolume: str, st_dev: int | None) -> int:
    """Open the filesystem that lies on these devices (MAJOR:MINOR). `subvolume` is the id of a
    btrfs's that has this device number, None if it may have any. Raises OSError and
    MountOpenError."""
    reason = "it lies on no block device"
    for disk in disks:
        place = detached("tmpfs", {}, ())
        try:
            os.mknod("disk", stat.S_IFBLK | 0o600, device_number(disk), dir_fd=place)
            if not is_in_use(place):
                reason = f"nothing has mounted its device {disk} any more"
                continue
            options = {"source": name_of(disk) or f"/proc/self/fd/{place}/disk"}
            if subvolume:
                options["subvolid"] = subvolume
            root = mounted(fstype, options, partial(is_in_use, place))
        finally:
            os.close(place)
        if st_dev in (None, os.fstat(root).st_dev):
            return root
        os.close(root)
        reason = SOMETHING_ELSE
    raise MountOpenError(reason)


def name_of(disk: str) -> str:
    """Its path in /dev, which a btrfs shows as its source from then on; "" if it has none."""
    base = Path("/sys/dev/block", disk).resolve()
    names = [f"/dev/{base.name.replace('!', '/')}"]
    with contextlib.suppress(OSError):
        names.insert(0, f"/dev/mapper/{(base / 'dm/name').read_text().strip()}")
    for name in names:
        with contextlib.suppress(OSError):
            status = Path(name).stat()
            if stat.S_ISBLK(status.st_mode) and status.st_rdev == device_number(disk):
                return name
    return ""


def device_number(device: str) -> int:
    major, _, minor = device.partition(":")
    return os.makedev(int(major), int(minor))


def is_in_use(place: int) -> bool:
    """A filesystem has its devices for itself alone (open(2), O_EXCL)."""
    try:
        os.close(os.open("disk", os.O_RDONLY | os.O_EXCL, dir_fd=place))
    except OSError as e:
        if e.errno == errno.EBUSY:
            return True
        raise
    return False


def mounted(fstype: str, options: Mapping[str, str], is_in_use: Callable[[], bool]) -> int:
    """Open the root of a new mount. EBUSY says that the superblock is writable. In this order: of
    one that is just being unmounted, which the kernel waits for, a new one is made, and is to write
    nothing, not even its journal; and a btrfs that is read-only would become writable. Between the
    last look and a writable mount there remains a moment."""
    for name, writable in product(NAMES.get(fstype, (fstype,)), (False, True)):
        if writable and not is_in_use():
            break
        flags = () if writable else ("ro", *NO_REPLAY.get(name, ()))
        try:
            mount = detached(name, options, flags)
        except OSError as e:
            if e.errno != errno.EBUSY:
                raise
            continue
        try:
            return os.open(".", os.O_RDONLY, dir_fd=mount)
        finally:
            os.close(mount)
    raise OSError(errno.EBUSY, os.strerror(errno.EBUSY))


def detached(fstype: str, options: Mapping[str, str], flags: Sequence[str]) -> int:
    """An O_PATH descriptor of a mount's root. Raises OSError."""
    context = system_call(FSOPEN, fstype, CLOEXEC)
    try:
        for key, value in options.items():
            system_call(FSCONFIG, context, SET_STRING, key, value, 0)
        for flag in flags:
            system_call(FSCONFIG, context, SET_FLAG, flag, None, 0)
        system_call(FSCONFIG, context, CREATE, None, None, 0)
        return system_call(FSMOUNT, context, CLOEXEC, 0)
    finally:
        os.close(context)


def system_call(number: int, *arguments: int | str | None) -> int:
    words = [
        ctypes.c_long(word)
        if isinstance(word, int)
        else ctypes.c_char_p(None if word is None else os.fsencode(word))
        for word in arguments
    ]
    result = int(libc.syscall(ctypes.c_long(number), *words))
    if result < 0:
        error = ctypes.get_errno()
        raise OSError(error, os.strerror(error))
    return result
