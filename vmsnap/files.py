# SPDX-License-Identifier: Apache-2.0
"""Writing files so that a reader, or a crash, sees the old content or the new one and nothing
else."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

from vmsnap.mountinfo import mount_id


def write_atomically(path: Path, data: bytes, mode: int) -> None:
    """Write beside, fsync, rename, fsync the directory. After an OSError nothing is left behind."""
    temporary = path.with_name(f".{path.name}.{os.urandom(4).hex()}")
    try:
        fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, mode)
        with open(fd, "wb") as file:
            os.fchmod(fd, mode)  # whatever the umask
            file.write(data)
            file.flush()
            os.fsync(fd)
        temporary.rename(path)
    except OSError:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise
    directory = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)


def make_private(path: Path) -> None:
    """Make a directory and those of its parents that are missing, for root alone."""
    if not path.parent.exists():
        make_private(path.parent)
    path.mkdir()
    path.chmod(0o700)


def remove_tree(path: Path) -> None:
    """Remove a directory and what is in it, but nothing that is mounted below it: somebody's mount
    that was not undone is not ours to empty. What cannot be removed stays."""
    with contextlib.suppress(OSError):
        fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
        try:
            empty(fd, mount_id(fd))
        finally:
            os.close(fd)
        path.rmdir()


def empty(directory: int, mount: int) -> None:
    for name in os.listdir(directory):
        with contextlib.suppress(OSError):
            try:
                fd = os.open(name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW, dir_fd=directory)
            except OSError:  # no directory
                os.unlink(name, dir_fd=directory)  # noqa: PTH108 - by descriptor
                continue
            try:
                if mount_id(fd) == mount:
                    empty(fd, mount)
            finally:
                os.close(fd)
            os.rmdir(name, dir_fd=directory)  # noqa: PTH106 - by descriptor
