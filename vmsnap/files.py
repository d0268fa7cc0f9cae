# SPDX-License-Identifier: Apache-2.0
"""Writing files so that a reader, or a crash, sees the old content or the new one and nothing
else."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path


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
