# SPDX-License-Identifier: Apache-2.0
"""Writing out what is dirty little by little, before syncfs writes out all that is left.

One syncfs of 50 MiB puts all of it in front of every write of everybody else, and stalls them
longer than the freeze does. This asks for a MiB, waits until it is on the disk, and asks for the
next, so that others get their turn in between. It needs to know files for that: those that any
process has open. It changes nothing and opens nothing; what cannot be had is left to syncfs.
"""

from __future__ import annotations

import contextlib
import ctypes
import math
import os
import signal
import stat
from collections.abc import Collection, Iterator

from vmsnap.events import Waiter
from vmsnap.process import in_child, libc

SYS_PIDFD_GETFD = 438  # asm-generic/unistd.h; the same on all architectures (Linux 5.6)
SYNC_FILE_RANGE_WRITE_AND_WAIT = 7  # linux/fs.h: WAIT_BEFORE | WRITE | WAIT_AFTER
PIECE = 1 << 20  # bytes
LONGEST = 5.0  # seconds, in which applications are quiesced


def flush_gently(devices: Collection[int], waiter: Waiter) -> None:
    """Write out the open files on these devices (st_dev), for a few seconds at most.

    In a child, which may hang on a broken disk or a dead server without harm to us.
    """
    in_child(lambda told: flush(devices), "vmsnap-flush", (), waiter, LONGEST, heed=True)


def flush(devices: Collection[int]) -> None:
    signal.alarm(math.ceil(LONGEST))  # nobody waits any longer
    libc.sync_file_range.argtypes = (
        ctypes.c_int,
        ctypes.c_int64,
        ctypes.c_int64,
        ctypes.c_uint,
    )
    for fd, size in open_files(devices):
        for offset in range(0, size, PIECE):
            libc.sync_file_range(fd, offset, PIECE, SYNC_FILE_RANGE_WRITE_AND_WAIT)


def open_files(devices: Collection[int]) -> Iterator[tuple[int, int]]:
    """(descriptor, size) of every regular file on `devices` that a process has open.

    The descriptors are duplicates (pidfd_getfd(2)), for opening a file can be noticed: by leases,
    by fanotify. Each is closed before the next, for as long as it is open the file's locks are.
    """
    seen: set[tuple[int, int]] = set()
    for pid in filter(str.isdigit, os.listdir("/proc")):
        with contextlib.suppress(OSError):  # it has ended, or is nobody's to look into
            process = os.pidfd_open(int(pid))
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
                    fd = libc.syscall(SYS_PIDFD_GETFD, process, int(number), 0)
                    if fd >= 0:
                        yield fd, status.st_size
                        os.close(fd)
            os.close(process)
