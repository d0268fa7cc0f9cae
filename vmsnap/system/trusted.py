# SPDX-License-Identifier: Apache-2.0
"""Opening files that only root can have changed, without ever blocking or reading without end.

Every step of the path is opened relative to the one before and checked by its descriptor, so
nothing can be exchanged between the check and the use. What a file means is not decided here.
"""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path
from typing import BinaryIO

MAX_BYTES = 1 << 20
MAX_SYMLINKS = 40  # as the kernel: path_resolution(7)


class InsecurePathError(Exception):
    """Another user than root owns or can change `step`, one of the steps of a path."""

    def __init__(self, step: str, found: str, expected: str) -> None:
        super().__init__(step, found, expected)
        self.step, self.found, self.expected = step, found, expected

    def __str__(self) -> str:
        return f"{self.step}: found {self.found}, expected {self.expected}"


class UnreadableFileError(Exception):
    """A file is there, but not what a configuration can be read from."""


def encodable(word: str) -> bool:
    """Whether the system can take it: JSON can spell halves of UTF-16 pairs, which it cannot."""
    try:
        os.fsencode(word)
    except UnicodeEncodeError:
        return False
    return True


def check_owner(status: os.stat_result, step: str) -> None:
    if status.st_uid != 0:
        raise InsecurePathError(step, f"owner uid {status.st_uid}", "owner root (uid 0)")


def check_mode(status: os.stat_result, step: str, forbidden: int) -> None:
    mode = stat.S_IMODE(status.st_mode)
    if mode & forbidden:
        raise InsecurePathError(
            step, f"mode {mode:04o}", f"mode {mode & ~forbidden:04o} or stricter"
        )


def open_trusted(path: str | Path, forbidden: int = 0o7177) -> int:
    """Open a regular file for reading and return its descriptor.

    The file and every directory and symbolic link on the way must belong to root; no directory may
    be writable by group or others (the sticky bit does not excuse it); the file may have no bit of
    `forbidden` in its mode. Raises InsecurePathError for all that, UnreadableFileError if it is no
    regular file, and OSError as open(2) does."""
    names = [name for name in reversed(os.fspath(path).split("/")) if name not in ("", ".")]
    if not os.fspath(path).startswith("/") or not names or os.fspath(path).endswith("/"):
        raise UnreadableFileError(
            f"{path}: found a path that names no file, expected an absolute path"
        )
    if "\0" in os.fspath(path):
        raise UnreadableFileError(f"{str(path)!r}: found a NUL byte in the path")
    if not encodable(os.fspath(path)):
        raise UnreadableFileError(f"{str(path)!r}: found a path with half a character in it")
    directories = [os.open("/", os.O_PATH | os.O_DIRECTORY)]
    steps = [""]
    links = 0
    try:
        check_directory(directories[0], "/")
        while names:
            name = names.pop()
            if name == "..":
                if len(directories) > 1:
                    os.close(directories.pop())
                    steps.pop()
                continue
            step = f"{steps[-1]}/{name}"
            fd = os.open(name, os.O_PATH | os.O_NOFOLLOW, dir_fd=directories[-1])
            directories.append(fd)
            status = os.fstat(fd)
            if stat.S_ISLNK(status.st_mode):
                check_owner(status, step)
                links += 1
                if links > MAX_SYMLINKS:
                    raise OSError(errno.ELOOP, os.strerror(errno.ELOOP), os.fspath(path))
                target = os.readlink("", dir_fd=fd)
                os.close(directories.pop())
                if target.startswith("/"):
                    while len(directories) > 1:
                        os.close(directories.pop())
                    steps = [""]
                names += [part for part in reversed(target.split("/")) if part not in ("", ".")]
            elif names:
                check_directory(fd, step)
                steps.append(step)
            else:
                return open_checked(fd, step, forbidden)
        raise UnreadableFileError(f"{path}: found a directory, expected a regular file")
    finally:
        for fd in directories:
            os.close(fd)


def check_directory(fd: int, step: str) -> None:
    status = os.fstat(fd)
    if not stat.S_ISDIR(status.st_mode):
        raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), step)
    check_owner(status, step)
    check_mode(status, step, 0o022)


def open_checked(pinned: int, step: str, forbidden: int) -> int:
    """Turn an O_PATH descriptor into one that can be read. Never opens a FIFO or a device."""
    status = os.fstat(pinned)
    if not stat.S_ISREG(status.st_mode):
        raise UnreadableFileError(
            f"{step}: found {kind_of(status.st_mode)}, expected a regular file"
        )
    check_owner(status, step)
    check_mode(status, step, forbidden)
    return os.open(f"/proc/self/fd/{pinned}", os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY)


def kind_of(mode: int) -> str:
    for test, word in (
        (stat.S_ISDIR, "a directory"),
        (stat.S_ISFIFO, "a FIFO"),
        (stat.S_ISSOCK, "a socket"),
        (stat.S_ISBLK, "a block device"),
        (stat.S_ISCHR, "a character device"),
    ):
        if test(mode):
            return word
    return "no regular file"


def read_text(path: str | Path, forbidden: int = 0o7177) -> str:
    """Read a trusted text file of at most 1 MiB. Raises as open_trusted and text_of."""
    fd = open_trusted(path, forbidden)
    with open(fd, "rb") as file:
        return text_of(file, path)


def text_of(file: BinaryIO, path: str | Path) -> str:
    """Raises UnreadableFileError for more than 1 MiB and for what is not UTF-8 text."""
    data = file.read(MAX_BYTES + 1)
    if len(data) > MAX_BYTES:
        raise UnreadableFileError(
            f"{path}: found more than {MAX_BYTES} bytes, expected at most 1 MiB"
        )
    for mark, encoding in ((b"\xff\xfe", "UTF-16"), (b"\xfe\xff", "UTF-16")):
        if data.startswith(mark):
            raise UnreadableFileError(f"{path}: found {encoding} text, expected UTF-8")
    try:
        text = data.decode("utf-8-sig")  # a byte order mark is harmless: Windows editors write it
    except UnicodeDecodeError as e:
        raise UnreadableFileError(
            f"{path}: found byte 0x{data[e.start]:02x} at offset {e.start}, expected UTF-8 text"
        ) from None
    if "\0" in text:
        raise UnreadableFileError(f"{path}: found a NUL byte, expected text")
    return text
