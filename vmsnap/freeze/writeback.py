# SPDX-License-Identifier: Apache-2.0
"""Writeback of dirty pages in small pieces, before syncfs writes back the rest.

One syncfs of 50 MiB queues all of it ahead of other writers and stalls them longer than the freeze
does. This requests one MiB, waits until it is on the disk, and requests the next, so that other
writes get their turn. sync_file_range needs files: those that any process has open. It changes
nothing and opens nothing; what it cannot reach is left to syncfs.

Whose the files are is not asked, so none may cost much: processes take turns, time spent on what is
not dirty is limited for each file and process, and nothing is asked of a FUSE server. Should one be
made to close a file of a FUSE after all (a descriptor that was exchanged in between), which waits
for the server, then only that thread waits, and holds nothing of others.

Runs in: a fork of the engine. Not while frozen.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import math
import os
import queue
import signal
import stat
import struct
import threading
import time
from collections import deque
from collections.abc import Collection, Iterator
from dataclasses import dataclass, field
from itertools import islice

from vmsnap.system.left_behind import in_child
from vmsnap.system.process import libc
from vmsnap.system.waiter import Waiter

SYS_PIDFD_GETFD = 438  # asm-generic/unistd.h; the same on all architectures (Linux 5.6)
SYNC_FILE_RANGE_WRITE_AND_WAIT = 7  # linux/fs.h: WAIT_BEFORE | WRITE | WAIT_AFTER
CLONE_FILES = 0x400  # linux/sched.h
AT_FDCWD, AT_EMPTY_PATH = -100, 0x1000  # linux/fcntl.h
# What the kernel knows without asking a server: FUSE's getattr sends nothing then, nor does that of
# an overlay over one, which asks as its mounter and not as root (fs/fuse/dir.c, fs/overlayfs).
AT_STATX_DONT_SYNC = 0x4000
STATX_MODE_INO_SIZE = 0x303  # linux/stat.h: TYPE | MODE | INO | SIZE
STATX = struct.Struct("=28xH2xQQ88xII")  # its mode, inode, size and device (major, minor)
STATX_BYTES = 256
WIDTH = 2  # filesystems at the same time
PIECE, LARGE_PIECE = 1 << 20, 4 << 20  # bytes; larger ones if many filesystems wait for their turn
LONGEST = 5.0  # seconds, in which applications are quiesced
TURN = 0.1  # seconds for one process, before it is another's turn
# Seconds in which nothing was found dirty: 0.2 are about 100 GiB of a file without data.
IDLE_OF_FILE, IDLE_OF_PROCESS = 0.2, 0.5
IDLE_CALL = 50e-6  # seconds; no piece is written to a disk in less
DESCRIPTORS_OF_PROCESS, FILES = 20_000, 100_000  # that are looked at, that are written back


@dataclass
class OpenFile:
    """A regular file by one of the descriptors under which a process has it open."""

    pid: int
    descriptor: int
    device: int
    inode: int
    size: int
    offset: int = 0  # up to which it is written back
    idle: float = 0.0  # seconds in which nothing of it was dirty


@dataclass
class Share:
    """What one process has open on one filesystem."""

    files: deque[OpenFile] = field(default_factory=deque)
    idle: float = 0.0


def write_back_open_files(devices: Collection[int], waiter: Waiter) -> None:
    """Write out the open files on these devices (st_dev), for a few seconds at most.

    In a child, which may hang on a broken disk or a dead server without harm to us.
    """
    with contextlib.suppress(OSError):  # no process available: syncfs does it all
        in_child(
            lambda told: flush(devices), "vmsnap-flush", (), waiter, LONGEST, interruptible=True
        )


def flush(devices: Collection[int]) -> None:
    signal.alarm(math.ceil(LONGEST))  # its caller waits no longer
    libc.sync_file_range.argtypes = (
        ctypes.c_int,
        ctypes.c_int64,
        ctypes.c_int64,
        ctypes.c_uint,
    )
    by_device: dict[int, dict[int, Share]] = {}
    for file in islice(open_files(devices), FILES):
        by_device.setdefault(file.device, {}).setdefault(file.pid, Share()).files.append(file)
    work: queue.SimpleQueue[deque[Share]] = queue.SimpleQueue()
    for shares in by_device.values():
        work.put(deque(shares.values()))
    piece = PIECE if len(by_device) <= WIDTH else LARGE_PIECE
    threads = [threading.Thread(target=write_out, args=(work, piece)) for _ in range(WIDTH)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def write_out(work: queue.SimpleQueue[deque[Share]], piece: int) -> None:
    # Descriptors of its own: else what this thread has open while the other one is inside a close
    # that does not return would stay open, though the process is killed.
    libc.unshare(CLONE_FILES)
    with contextlib.suppress(queue.Empty):
        while True:
            take_turns(work.get_nowait(), piece)


def take_turns(shares: deque[Share], piece: int) -> None:
    """Write out the files of one filesystem, those of every process in its turn."""
    while shares:
        share = shares.popleft()
        file = share.files.popleft()
        before = file.idle
        with contextlib.suppress(OSError), duplicate(file) as fd:
            write_for_a_turn(file, fd, piece)
            if file.offset < file.size and file.idle < IDLE_OF_FILE:
                share.files.append(file)
        share.idle += file.idle - before
        if share.files and share.idle < IDLE_OF_PROCESS:
            shares.append(share)


def write_for_a_turn(file: OpenFile, fd: int, piece: int) -> None:
    now = time.monotonic()
    end = now + TURN
    while file.offset < file.size and now < end and file.idle < IDLE_OF_FILE:
        begin = now
        libc.sync_file_range(fd, file.offset, piece, SYNC_FILE_RANGE_WRITE_AND_WAIT)
        now = time.monotonic()
        file.offset += piece
        if now - begin < IDLE_CALL:
            file.idle += now - begin


def open_files(devices: Collection[int]) -> Iterator[OpenFile]:
    """Every regular file on `devices` that any process has open, once."""
    seen: set[tuple[int, int]] = set()
    for pid in filter(str.isdigit, os.listdir("/proc")):
        with contextlib.suppress(OSError), os.scandir(f"/proc/{pid}/fd") as descriptors:
            for entry in islice(descriptors, DESCRIPTORS_OF_PROCESS):
                try:
                    mode, device, inode, size = look_at(AT_FDCWD, entry.path)
                except OSError:
                    continue
                if device in devices and stat.S_ISREG(mode) and (device, inode) not in seen:
                    seen.add((device, inode))
                    yield OpenFile(int(pid), int(entry.name), device, inode, size)


def look_at(fd: int, path: str = "") -> tuple[int, int, int, int]:
    """Mode, device, inode and size, as far as the kernel has them at hand (statx(2))."""
    found = ctypes.create_string_buffer(STATX_BYTES)
    flags = AT_STATX_DONT_SYNC | AT_EMPTY_PATH
    if libc.statx(fd, path.encode(), flags, STATX_MODE_INO_SIZE, found):
        raise OSError(ctypes.get_errno(), "statx", path)
    mode, inode, size, major, minor = STATX.unpack_from(found)
    return mode, os.makedev(major, minor), inode, size


@contextlib.contextmanager
def duplicate(file: OpenFile) -> Iterator[int]:
    """A duplicate of another process's descriptor (pidfd_getfd(2)), for opening the file could be
    noticed, by leases and by fanotify. Soon closed, since the file's locks live as long."""
    process = os.pidfd_open(file.pid)
    try:
        fd = libc.syscall(SYS_PIDFD_GETFD, process, file.descriptor, 0)
        if fd < 0:
            raise OSError(ctypes.get_errno(), "pidfd_getfd")
        try:
            _, device, inode, _ = look_at(fd)
            if (device, inode) != (file.device, file.inode):
                raise OSError(errno.ESTALE, "another file has that descriptor by now")
            yield fd
        finally:
            os.close(fd)
    finally:
        os.close(process)
