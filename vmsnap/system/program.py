# SPDX-License-Identifier: Apache-2.0
"""Programs as execve(2) sees them: what it finds at a path, and which ELF files it can load.

Nothing is executed, and no FUSE is asked. Scripts are not known here: config/startable.py.
"""

from __future__ import annotations

import errno
import os
import stat
import struct
from collections.abc import Iterator
from typing import NamedTuple

from vmsnap.system.files import mount_id
from vmsnap.system.trusted import (
    InsecurePathError,
    MayWaitError,
    UnreadableFileError,
    fstype_of,
    is_directory,
    kind_of,
    reopened,
    walk,
)

ELF = b"\x7fELF"
HEAD_BYTES = 256  # of a file, by which the kernel tells what it is: BINPRM_BUF_SIZE
ET_EXEC, ET_DYN, PT_LOAD, PT_INTERP = 2, 3, 1, 3  # elf.h
MOST_SEGMENTS, LONGEST_LOADER = 1024, 4096  # fs/binfmt_elf.c takes 64 KiB of them, and PATH_MAX
MACHINES = {3: "i386", 21: "ppc64", 22: "s390", 40: "arm", 62: "amd64", 183: "arm64", 243: "riscv"}
ALSO_RUN = {62: {3}, 183: {40}, 21: {20}}  # the 32 bits of a machine of 64
BINFMT_MISC = "/proc/sys/fs/binfmt_misc"


class NotExecutableError(Exception):
    """The kernel would not start a program. Its text says what was found."""


class NotJudgedError(Exception):
    """Whether it would cannot be told: not by this user, for example."""


def open_program(path: str) -> int:
    """Open what execve(2) finds at a path, seen from `/`, and return its descriptor. Raises
    FileNotFoundError, NotExecutableError and NotJudgedError."""
    try:
        with walk(from_root(path), is_directory) as (pinned, _):
            mode = os.fstat(pinned).st_mode
            if not stat.S_ISREG(mode):
                raise NotExecutableError(f"found {kind_of(mode)}, expected a program")
            if not mode & 0o111:
                raise NotExecutableError(
                    f"found mode {stat.S_IMODE(mode):04o}, expected an executable file"
                )
            return reopened(pinned)
    except (FileNotFoundError, MayWaitError):
        raise
    except InsecurePathError as e:
        if e.found.startswith("owner"):  # of a link, which others can change; the kernel follows it
            raise NotJudgedError from None
        raise NotExecutableError(str(e)) from None
    except UnreadableFileError as e:
        raise NotExecutableError(str(e)) from None
    except PermissionError:
        raise NotJudgedError from None
    except OSError as e:
        if e.errno == errno.ENOTDIR:
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), path) from None
        raise NotExecutableError(e.strerror or str(e)) from None


def from_root(path: str) -> str:
    """Scripts are started in `/`."""
    return path if path.startswith("/") else f"/{path}"


def check_mount(fd: int) -> None:
    """Raises NotExecutableError if its mount runs no programs."""
    if os.fstatvfs(fd).f_flag & os.ST_NOEXEC:
        raise NotExecutableError("found a filesystem mounted noexec, expected one mounted exec")


# --- ELF ---------------------------------------------------------------------------------------


class Header(NamedTuple):
    """What an ELF file says of itself."""

    wide: bool  # 64 bits
    order: str  # of bytes, for struct
    kind: int
    machine: int
    table: int  # where its segments are listed
    entry_size: int
    segments: int


def header(head: bytes) -> Header:
    """Raises struct.error if it is cut off."""
    wide, order = head[4:5] == b"\x02", ">" if head[5:6] == b"\x02" else "<"
    kind, machine = struct.unpack_from(f"{order}HH", head, 16)
    table = struct.unpack_from(f"{order}{'Q' if wide else 'I'}", head, 32 if wide else 28)[0]
    entry_size, segments = struct.unpack_from(f"{order}HH", head, 54 if wide else 42)
    return Header(wide, order, kind, machine, table, entry_size, segments)


def segments(fd: int, elf: Header) -> Iterator[tuple[int, int, int]]:
    """Type, offset and size in the file of each. Raises struct.error if the list is cut off."""
    size = 56 if elf.wide else 32
    if elf.entry_size != size or not 0 < elf.segments <= MOST_SEGMENTS:
        raise struct.error
    data = os.pread(fd, size * elf.segments, elf.table)
    word = "Q" if elf.wide else "I"
    for start in range(0, size * elf.segments, size):
        kind = struct.unpack_from(f"{elf.order}I", data, start)[0]
        offset = struct.unpack_from(f"{elf.order}{word}", data, start + (8 if elf.wide else 4))[0]
        length = struct.unpack_from(f"{elf.order}{word}", data, start + (32 if elf.wide else 16))[0]
        yield kind, offset, length


def check_elf(fd: int, head: bytes) -> str:
    """Return the path of the loader that it needs, "" if none. Raises NotExecutableError."""
    broken = NotExecutableError(
        "found an ELF file that is damaged or cut off, expected a whole one"
    )
    try:
        elf, ours = header(head), our_header()
        runs = {ours.machine, *ALSO_RUN.get(ours.machine, ())}
        if elf.machine not in runs or elf.order != ours.order:
            raise NotExecutableError(
                f"found a program for another machine ({machine(elf)}), expected one for this "
                f"({machine(ours)})"
            )
        if elf.kind not in (ET_EXEC, ET_DYN):
            raise NotExecutableError("found an ELF file that is no program, expected one that is")
        loader, end = "", os.fstat(fd).st_size
        for kind, offset, length in segments(fd, elf):
            if kind in (PT_LOAD, PT_INTERP) and offset + length > end:
                raise broken
            if kind == PT_INTERP and not loader:
                if length > LONGEST_LOADER:
                    raise broken
                loader = os.fsdecode(os.pread(fd, length, offset).partition(b"\0")[0])
    except struct.error:
        raise broken from None
    return loader


def our_header() -> Header:
    with open("/proc/self/exe", "rb") as file:
        return header(file.read(HEAD_BYTES))


def machine(elf: Header) -> str:
    return MACHINES.get(elf.machine, f"number {elf.machine} of elf.h")


# --- what the administrator has registered -----------------------------------------------------


def is_registered(head: bytes, path: str) -> bool:
    """Whether binfmt_misc hands such a file to a program: one of another machine to an emulator,
    for example. Not asked if nothing is mounted there: that may be an automount."""
    try:
        with walk(BINFMT_MISC, is_directory) as (fd, _):
            if fstype_of(mount_id(fd)) != "binfmt_misc":
                return False
            directory = f"/proc/self/fd/{fd}"
            entries = {}
            for name in sorted({*os.listdir(directory)} - {"register"}):
                with open(f"{directory}/{name}", encoding="utf-8", errors="replace") as file:
                    entries[name] = file.read()
    except (InsecurePathError, UnreadableFileError, OSError):
        return False
    if not entries.pop("status", "").startswith("enabled"):
        return False
    return any(matches(entry, head, path) for entry in entries.values())


def matches(entry: str, head: bytes, path: str) -> bool:
    """The form of an entry: Documentation/admin-guide/binfmt-misc.rst."""
    if not entry.startswith("enabled"):
        return False
    words = dict(line.partition(" ")[::2] for line in entry.splitlines())
    if "extension" in words:
        return path.endswith(words["extension"])
    magic = bytes.fromhex(words.get("magic", ""))
    mask = bytes.fromhex(words.get("mask", "")) or b"\xff" * len(magic)
    start = int(words.get("offset", "0"))
    found = head[start : start + len(magic)]
    return len(found) == len(magic) > 0 and all(
        a & m == b & m for a, b, m in zip(found, magic, mask)
    )
