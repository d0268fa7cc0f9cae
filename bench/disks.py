# SPDX-License-Identifier: Apache-2.0
"""The filesystems that are frozen: made in image files, mounted, thawed, unmounted.

They exist in the private mount namespace of the bench only. Their loop devices clear themselves
with the last mount, and the mounts go with the namespace, should all else fail.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import os
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

FITHAW = 0xC0045878  # linux/fs.h: _IOWR('X', 120, int)

# mkfs.xfs wants at least 300 MiB. ext4 gets the block size of large filesystems.
SIZE_MIB = {"ext4": 160, "xfs": 300}
MAKE = {
    "ext4": (
        "mkfs.ext4",
        "-q",
        "-F",
        "-b4096",
        "-Elazy_itable_init=0,lazy_journal_init=0,nodiscard",
    ),
    "xfs": ("mkfs.xfs", "-q", "-f", "-K"),
}

libc = ctypes.CDLL(None, use_errno=True)


class NotEnoughRoomError(Exception):
    """The images do not fit."""


def output(*command: str) -> str:
    """What the command says, in English; CalledProcessError if it fails."""
    return subprocess.run(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        env={**os.environ, "LC_ALL": "C"},
        check=True,
    ).stdout.strip()


@dataclass(frozen=True)
class Disk:
    fstype: str
    image: Path
    mount: Path


@contextlib.contextmanager
def disks(home: Path, count: int) -> Iterator[tuple[Path, ...]]:
    """The mount points of `count` filesystems, ext4 and xfs in turn."""
    kinds = [("ext4", "xfs")[number % 2] for number in range(count)]
    needed = sum(SIZE_MIB[kind] for kind in kinds) << 20
    free = shutil.disk_usage(home).free
    if free < needed * 1.1:
        raise NotEnoughRoomError(
            f"found {free >> 20} MiB free on {home.parent}, need {needed >> 20}"
        )
    with contextlib.ExitStack() as undo:
        mounts = []
        for number, kind in enumerate(kinds):
            disk = Disk(kind, home / f"{number:02}.img", home / f"{number:02}")
            undo.callback(disk.image.unlink, missing_ok=True)
            undo.callback(unmount, disk.mount)
            make(disk)
            mounts.append(disk.mount)
        yield tuple(mounts)


def make(disk: Disk) -> None:
    """Every block is written once before, so that no write has to allocate on the disk below."""
    output(
        "dd",
        "if=/dev/zero",
        f"of={disk.image}",
        "bs=4M",
        f"count={SIZE_MIB[disk.fstype] << 20}",
        "iflag=count_bytes",
        "oflag=direct",
    )
    output(*MAKE[disk.fstype], str(disk.image))
    disk.mount.mkdir()
    loop = output("losetup", "--find", "--show", "--direct-io=on", str(disk.image))
    try:
        output("mount", loop, str(disk.mount))
    finally:
        # While it is mounted, this only says that the device is to clear itself (loop(4)).
        output("losetup", "--detach", loop)


@contextlib.contextmanager
def memory(directory: Path) -> Iterator[Path]:
    """A tmpfs, as /run is one."""
    directory.mkdir()
    try:
        output("mount", "-t", "tmpfs", "-o", "mode=0700,size=64m", "bench", str(directory))
        yield directory
    finally:
        unmount(directory)


def unmount(mount: Path) -> None:
    if not mount.is_mount():
        return
    thaw(mount)
    try:
        output("umount", str(mount))
    except subprocess.CalledProcessError:
        # Somebody still holds a file. It leaves the tree now, and goes with its last user.
        output("umount", "--lazy", str(mount))


def thaw(mount: Path) -> bool:
    """Whether the filesystem had been left frozen. Only ever called for the bench's own mounts."""
    descriptor = os.open(mount, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.ioctl(descriptor, FITHAW, 0)
    except OSError as error:
        if error.errno in (errno.EINVAL, errno.EOPNOTSUPP):  # not frozen; cannot be frozen (tmpfs)
            return False
        raise
    finally:
        os.close(descriptor)
    return True


def write_out(mounts: tuple[Path, ...]) -> None:
    for mount in mounts:
        descriptor = os.open(mount, os.O_RDONLY | os.O_DIRECTORY)
        try:
            if libc.syncfs(descriptor):
                raise OSError(ctypes.get_errno(), "syncfs", str(mount))
        finally:
            os.close(descriptor)
