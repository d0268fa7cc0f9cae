# SPDX-License-Identifier: Apache-2.0
"""Waits for what a killed vmsnap leaves running: its guard, a post-script, the copy.

They become children of the demo, which clears nothing away under their feet.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import select
import signal
import time
from collections.abc import Iterator
from pathlib import Path

PR_SET_CHILD_SUBREAPER = 36  # linux/prctl.h


def adopt() -> None:
    """From now on orphans among our descendants become our children."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_CHILD_SUBREAPER)")


def children() -> frozenset[int]:
    listed = Path("/proc/thread-self/children").read_text()
    return frozenset(map(int, listed.split()))


@contextlib.contextmanager
def outlived(patience_s: float) -> Iterator[None]:
    """Leave no process behind that was started inside; what does not end in time is killed."""
    before = children()
    try:
        yield
    finally:
        until = time.monotonic() + patience_s
        while survivors := children() - before:
            for process in survivors:
                bury(process, until)


def bury(process: int, until: float) -> None:
    descriptor = os.pidfd_open(process)
    try:
        ended = select.poll()
        ended.register(descriptor, select.POLLIN)
        if not ended.poll(max(0.0, until - time.monotonic()) * 1000):
            signal.pidfd_send_signal(descriptor, signal.SIGKILL)
        os.waitpid(process, 0)
    finally:
        os.close(descriptor)
