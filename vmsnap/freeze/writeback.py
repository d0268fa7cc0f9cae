# SPDX-License-Identifier: Apache-2.0
"""Writeback of dirty pages in small pieces, before syncfs writes back the rest.

One syncfs of 50 MiB queues all of it ahead of other writers and stalls them longer than the freeze
does. This requests one MiB, waits until it is on the disk, and requests the next, so that other
writes get their turn. sync_file_range needs files: those that any process has open. It changes
nothing and opens nothing; what it cannot reach is left to syncfs.

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
import threading
from collections.abc import Collection, Iterator
from dataclasses import dataclass

from vmsnap.system.process import in_child, libc
from vmsnap.system.waiter import Waiter

SYS_PIDFD_GETFD = 438  # asm-generic/unistd.h; the same on all architectures (Linux 5.6)
SYNC_FILE_RANGE_WRITE_AND_WAIT = 7  # linux/fs.h: WAIT_BEFORE | WRITE | WAIT_AFTER
WIDTH = 2  # filesystems at the same time
PIECE, LARGE_PIECE = 1 << 20, 4 << 20  # bytes; larger ones if many filesystems wait for their turn
LONGEST = 5.0  # seconds, in which applications are quiesced


@dataclass(frozen=True)
class OpenFile:
    """A regular file by one of the descriptors under which a process has it open."""

    pid: int
    descriptor: int
    device: int
    inode: int
    size: int


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
    by_device: dict[int, list[OpenFile]] = {}
    for file in open_files(devices):
        by_device.setdefault(file.device, []).append(file)
    work: queue.SimpleQueue[list[OpenFile]] = queue.SimpleQueue()
    for files in by_device.values():
        work.put(files)
    piece = PIECE if len(by_device) <= WIDTH else LARGE_PIECE
    threads = [threading.Thread(target=write_out, args=(work, piece)) for _ in range(WIDTH)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def write_out(work: queue.SimpleQueue[list[OpenFile]], piece: int) -> None:
    with contextlib.suppress(queue.Empty):
        while True:
            for file in work.get_nowait():
                with contextlib.suppress(OSError), duplicate(file) as fd:
                    for offset in range(0, file.size, piece):
                        libc.sync_file_range(fd, offset, piece, SYNC_FILE_RANGE_WRITE_AND_WAIT)


def open_files(devices: Collection[int]) -> Iterator[OpenFile]:
    """Every regular file on `devices` that any process has open, once."""
    seen: set[tuple[int, int]] = set()
    for pid in filter(str.isdigit, os.listdir("/proc")):
        with contextlib.suppress(OSError):  # it has ended
            for number in os.listdir(f"/proc/{pid}/fd"):
                try:
                    status = os.stat(f"/proc/{pid}/fd/{number}")  # noqa: PTH116 - a million times
                except OSError:
                    continue
                identity = (status.st_dev, status.st_ino)
                if (
                    status.st_dev in devices
                    and stat.S_ISREG(status.st_mode)
                    and identity not in seen
                ):
                    seen.add(identity)
                    yield OpenFile(int(pid), int(number), *identity, status.st_size)


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
            status = os.fstat(fd)
            if (status.st_dev, status.st_ino) != (file.device, file.inode):
                raise OSError(errno.ESTALE, "another file has that descriptor by now")
            yield fd
        finally:
            os.close(fd)
    finally:
        os.close(process)
