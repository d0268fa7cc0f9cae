# SPDX-License-Identifier: Apache-2.0
"""Killing and stopping parts of vmsnap."""

from __future__ import annotations

import os
import signal

from .processes import children
from .running import Session

INTERRUPTIONS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)


def stop(*pids: int) -> tuple[int, ...]:
    """Stopped first, none of them can see another die."""
    for pid in pids:
        os.kill(pid, signal.SIGSTOP)
    return pids


def kill_both(session: Session) -> None:
    """Engine and guard, as somebody might who looks for what hangs."""
    for pid in stop(session.pid, session.guard):
        os.kill(pid, signal.SIGKILL)
    session.process.wait()


def kill_all(session: Session) -> None:
    """Everything of vmsnap, as the end of a cgroup does."""
    for pid in stop(session.pid, *(child.pid for child in children(session.pid))):
        os.kill(pid, signal.SIGKILL)
    session.process.wait()
