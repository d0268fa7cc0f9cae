# SPDX-License-Identifier: Apache-2.0
"""Waiting for the end of another program's freeze, before our own begins.

The kernel tells nobody of a thaw, and a FIFREEZE that asks is one that may succeed. But whoever
takes write access to a frozen filesystem sleeps until it is thawed, whoever does that. So a child
does (the witness), changes nothing, and tells by its end. It cannot be killed before, so it is left
behind if that takes too long.

Runs in: engine, a fork of it. Not while this session has anything frozen.
"""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Collection

from vmsnap.system.left_behind import in_child
from vmsnap.system.process import libc
from vmsnap.system.waiter import Waiter

# asm-generic/unistd.h; the same on all architectures (Linux 5.14; before, nothing is waited for).
SYS_QUOTACTL_FD = 443
# A command that does not exist counts as one that writes (fs/quota/quota.c, quotactl_cmd_write). It
# takes write access and no lock of an inode, which others could hold.
NO_COMMAND = 0


def await_thaw_by_others(fds: Collection[int], seconds: float, waiter: Waiter) -> None:
    """Return when each of these filesystems has been writable, after `seconds`, or when
    interrupted. Which of them are frozen, FIFREEZE tells."""
    with contextlib.suppress(OSError):  # no process available
        in_child(
            lambda told: witness(fds), "vmsnap-witness", fds, waiter, seconds, interruptible=True
        )


def witness(fds: Collection[int]) -> None:
    # Whoever reads what we print would wait for its end as well. Nothing is opened here.
    os.close(2)
    threads = [threading.Thread(target=take_write_access, args=(fd,)) for fd in fds]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def take_write_access(fd: int) -> None:
    libc.syscall(SYS_QUOTACTL_FD, fd, NO_COMMAND, 0, None)
    os.close(fd)  # the others can be unmounted, while one of them stays frozen
