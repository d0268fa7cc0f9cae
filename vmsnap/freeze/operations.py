# SPDX-License-Identifier: Apache-2.0
"""Operations that hold a FIFREEZE off for as long as they last, which can be hours.

They keep write access to the filesystem in one long ioctl(2) (mnt_want_write_file in the kernel's
sources), or, if btrfs has resumed them by itself, in a thread of its own, which sysfs shows. Once
begun, a FIFREEZE cannot be taken back: all writers wait with it. Hence this question before.

Runs in: engine, caller, forks of them. Not while anything is frozen.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from sys import byteorder
from typing import Any

from vmsnap.errors import Kind, Problem, Severity
from vmsnap.freeze.filesystem import Opened
from vmsnap.freeze.mountinfo import parse
from vmsnap.freeze.plan import Entry
from vmsnap.freeze.stacking import block_devices, entries, text
from vmsnap.system.proc import ask_each

# asm/unistd_64.h of x86, asm-generic/unistd.h of the others
IOCTL = 16 if os.uname().machine == "x86_64" else 29
SCRUB = 0xC400941B
# What may last. Others have write access as well, but only for moments (FICLONE, e4defrag), or do
# without it (FITRIM of ext4 and xfs, a btrfs that replaces a device).
OPERATIONS = {
    # linux/btrfs.h
    SCRUB: "btrfs scrub",
    0xC4009420: "btrfs balance",
    0x5000940C: "btrfs balance",
    0x5000940A: "btrfs device add",
    0x5000940B: "btrfs device remove",
    0x5000943A: "btrfs device remove",
    0x50009403: "btrfs resize",
    0x50009402: "btrfs defragment",
    0x40309410: "btrfs defragment",
    # fs/ext4/ext4.h
    0x40086610: "resize2fs",
    # fs/xfs/libxfs/xfs_fs.h
    0x4010586E: "xfs_growfs",
    0x40105870: "xfs_growfs",
    # linux/f2fs.h
    0x4008F510: "f2fs resize",
    0x4004F506: "f2fs garbage collection",
    0x4018F50B: "f2fs garbage collection",
    0xC010F508: "f2fs defragment",
    0x4008F50A: "f2fs flush of a device",
}
READ_ONLY = (24, 1)  # linux/btrfs.h: where a scrub has its flags, and that it writes nothing
EXCLUSIVE = {"balance", "device add", "device remove", "resize"}  # sysfs, exclusive_operation
TRIES = 3  # of a thread that computes just then, which shows no call


def leave_out_busy(opened: Opened, severity: Severity = Severity.ERROR) -> list[Problem]:
    """Close what is in the middle of such an operation, and say so."""
    if not opened.filesystems:
        return []
    busy = in_ioctls()
    problems = []
    for filesystem in tuple(opened.filesystems):
        entry = filesystem.entry
        operation = (
            busy.get(entry.device)
            or busy.get(number_of(os.fstat(filesystem.fd)))
            or exclusive_operation(entry, Path("/sys"))
        )
        if operation:
            opened.filesystems.remove(filesystem)
            os.close(filesystem.fd)
            message = (
                f"{entry.mount}: left out, as {operation} is running on it, until whose end a "
                "freeze would block all its writers; wait until it has ended, or pause or cancel "
                "it, at best at another time than snapshots are taken"
            )
            foreign = Severity.WARNING if entry.foreign else severity
            found = Problem(Kind.FREEZE_FAILED, message, "freeze", entry.mount, severity=foreign)
            problems.append(found)
    return problems


def exclusive_operation(entry: Entry, sys: Path) -> str:
    """That of a btrfs, also if it is the kernel that has resumed it after a mount."""
    mount = entry.mounts[0]
    if mount.fstype != "btrfs":
        return ""
    devices = set(block_devices(mount, sys))
    for pool in entries(sys / "fs/btrfs"):
        if devices & {text(member / "dev") for member in entries(pool / "devices")}:
            operation = text(pool / "exclusive_operation")  # Linux 5.11
            return f"btrfs {operation}" if operation in EXCLUSIVE else ""
    return ""


def in_ioctls() -> dict[str, str]:
    """The operation that some process is in, and which process, by device of the superblock."""

    def ask(pid: int) -> list[Any] | None:
        return [*operations_of(Path(f"/proc/{pid}"))] or None

    return {
        device: f"{operation} (process {pid})"
        for pid, found in ask_each(ask).items()
        for device, operation in found
    }


def operations_of(process: Path) -> Iterator[tuple[str, str]]:
    for task in (process / "task").iterdir():
        with contextlib.suppress(OSError, ValueError):  # it has ended
            number, *words = current_call(task)
            if int(number) != IOCTL or len(words) < 3:
                continue
            fd, command, argument = (int(word, 16) for word in words[:3])
            operation = OPERATIONS.get(command & 0xFFFFFFFF)
            if operation and not (command == SCRUB and only_reads(process, argument)):
                yield device_of(process, fd), operation


def current_call(task: Path) -> list[str]:
    """Number and arguments of the call that a thread is in (proc(5))."""
    for _ in range(TRIES):
        words = (task / "syscall").read_text().split()
        if words != ["running"]:
            return words
    return ["-1"]


def only_reads(process: Path, argument: int) -> bool:
    offset, read_only = READ_ONLY
    with open(process / "mem", "rb", buffering=0) as memory:
        memory.seek(argument + offset)
        flags = int.from_bytes(memory.read(8), byteorder)  # 0 if its memory ends before
    return bool(flags & read_only)


def device_of(process: Path, fd: int) -> str:
    """The superblock's, by the mount through which a process has opened a file: stat(2) would give
    the number of a btrfs's subvolume, and may have to ask a server. It is all that there is of a
    mount that is in no table."""
    lines = (process / "fdinfo" / str(fd)).read_text().splitlines()
    mount_id = next(int(line.split()[1]) for line in lines if line.startswith("mnt_id:"))
    with open(process / "mountinfo", errors="surrogateescape") as table:
        found = next((mount.device for mount in parse(table) if mount.id == mount_id), "")
    return found or number_of((process / "fd" / str(fd)).stat())


def number_of(status: os.stat_result) -> str:
    return f"{os.major(status.st_dev)}:{os.minor(status.st_dev)}"
