# SPDX-License-Identifier: Apache-2.0
"""Writing to standard streams without ever waiting for who reads them.

Runs in: engine, supervisor, caller.
"""

from __future__ import annotations

import os
import stat


def nonblocking(fd: int) -> int:
    """The terminal or pipe that `fd` is, opened once more so that writing does not block: a
    terminal can be stopped (^S), and who reads a pipe may not. Else `fd` itself. The flag of `fd`
    stays as it is, since others share it."""
    if not (os.isatty(fd) or stat.S_ISFIFO(os.fstat(fd).st_mode)):
        return fd
    flags = os.O_WRONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
    try:
        return os.open(f"/proc/self/fd/{fd}", flags)
    except OSError:  # it has hung up, or its reader has gone
        return fd
