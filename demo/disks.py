# SPDX-License-Identifier: Apache-2.0
"""Filesystems in image files: making, mounting, thawing, unmounting.

Everything is mounted with `-o loop`, so that the loop device goes away by itself with its mount,
and inside the demo's private mount namespace, so that the mounts go away with the demo.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import struct
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

FITHAW = 0xC0045878  # linux/fs.h: _IOWR('X', 120, int)

# mkfs.xfs wants at least 300 MiB.
SIZE_BYTES = 350 << 20
MAKE = {"ext4": ("mkfs.ext4", "-q"), "xfs": ("mkfs.xfs", "-q")}
# Log replay forbidden; nouuid because the original is mounted at the same time.
AS_IT_LIES = {"ext4": "ro,noload", "xfs": "ro,norecovery,nouuid"}
AS_A_RESTORE = {"ext4": "rw", "xfs": "rw,nouuid"}


@dataclass(frozen=True)
class Disk:
    fstype: str
    image: Path
    mount: Path


def output(*command: str) -> str:
    """What the command says, in English; CalledProcessError if it fails."""
    done = attempt(*command)
    done.check_returncode()
    return done.stdout


def attempt(*command: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        env={**os.environ, "LC_ALL": "C"},
        check=False,
    )


def make(disk: Disk) -> None:
    with disk.image.open("wb") as image:
        image.truncate(SIZE_BYTES)
    output(*MAKE[disk.fstype], str(disk.image))


@contextlib.contextmanager
def mounted(disk: Disk, options: str = "rw") -> Iterator[Path]:
    disk.mount.mkdir(exist_ok=True)
    # The way out is prepared before the way in: a Ctrl-C may come between the two.
    try:
        output("mount", "-o", f"loop,{options}", str(disk.image), str(disk.mount))
        yield disk.mount
    finally:
        unmount(disk.mount)


@contextlib.contextmanager
def memory(directory: Path) -> Iterator[Path]:
    """A tmpfs, on which sockets and markers can be written whatever is frozen."""
    directory.mkdir()
    try:
        output("mount", "-t", "tmpfs", "-o", "mode=0700,size=16m", "demo", str(directory))
        yield directory
    finally:
        unmount(directory)


def unmount(mount: Path) -> None:
    if not mount.is_mount():
        return
    thaw(mount)
    if attempt("umount", str(mount)).returncode != 0:
        # Somebody still holds a file. It leaves the tree now, and goes with its last user.
        output("umount", "--lazy", str(mount))


def thaw(mount: Path) -> bool:
    """Whether the filesystem had been left frozen. Only ever called for the demo's own mounts."""
    descriptor = os.open(mount, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.ioctl(descriptor, FITHAW, struct.pack("i", 0))
    except OSError as error:
        if error.errno in (errno.EINVAL, errno.EOPNOTSUPP):  # not frozen; cannot be frozen (tmpfs)
            return False
        raise
    finally:
        os.close(descriptor)
    return True
