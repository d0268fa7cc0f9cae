# SPDX-License-Identifier: Apache-2.0
"""Looking at processes, and waiting for their end and their words, always with a deadline."""

from __future__ import annotations

import contextlib
import os
import select
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

PATIENCE = 60.0  # seconds after which a wait has failed; longer than the rescue takes


@dataclass(frozen=True)
class Process:
    pid: int
    name: str
    state: str
    parent: int


def look_at(pid: int) -> Process | None:
    """None if there is no such process, or if it is dead but not yet reaped."""
    try:
        stat = Path("/proc", str(pid), "stat").read_text(errors="replace")
    except OSError:
        return None
    # proc(5): the name in parentheses may hold anything.
    name = stat[stat.index("(") + 1 : stat.rindex(")")]
    state, parent = stat[stat.rindex(")") + 2 :].split()[:2]
    # The main thread of a process may be a zombie while another thread is inside the kernel.
    if state in "ZX" and len(threads(pid)) <= 1:
        return None
    return Process(pid, name, state, int(parent))


def threads(pid: int) -> list[int]:
    try:
        return [int(name) for name in os.listdir(f"/proc/{pid}/task")]
    except OSError:
        return []


def all_processes() -> list[Process]:
    found = [look_at(int(name)) for name in os.listdir("/proc") if name.isdigit()]
    return [process for process in found if process is not None]


def children(parent: int) -> list[Process]:
    return [process for process in all_processes() if process.parent == parent]


def wait_for_end(pid: int, seconds: float = PATIENCE) -> bool:
    """Whether the process, all of its threads, ended in time. Reaps nothing."""
    try:
        fd = os.pidfd_open(pid)
    except ProcessLookupError:
        return True
    try:
        return bool(select.select([fd], [], [], seconds)[0])
    finally:
        os.close(fd)


def reap(pid: int) -> None:
    with contextlib.suppress(ChildProcessError):
        os.waitpid(pid, os.WNOHANG)


def kernel_stack(pid: int) -> str:
    """Where its threads wait, for the message of a test that has waited in vain."""
    found = []
    for thread in threads(pid):
        with contextlib.suppress(OSError):
            found.append(Path(f"/proc/{pid}/task/{thread}/stack").read_text())
    return "\n".join(found)


def wait_until(condition: Callable[[], object]) -> None:
    """For what the kernel shows but does not announce, such as a process being in state D."""
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        os.sched_yield()


def is_stuck(pid: int, mount: Path | None = None, request: int | None = None) -> bool:
    """Whether any thread waits without hearing signals; if given, in a call on a descriptor of the
    filesystem mounted there; if given, in that ioctl. Without them it may go on in a moment.
    """
    for thread in threads(pid):
        with contextlib.suppress(OSError, ValueError, IndexError):  # gone, or running again
            stat = Path(f"/proc/{pid}/task/{thread}/stat").read_text(errors="replace")
            if stat[stat.rindex(")") + 2] != "D":
                continue
            if mount is None:
                return True
            call = Path(f"/proc/{pid}/task/{thread}/syscall").read_text().split()  # proc(5)
            fd = Path(f"/proc/{pid}/fd/{int(call[1], 16)}")
            if fd.stat().st_dev != mount.stat().st_dev:
                continue
            if request is None or int(call[2], 16) == request:
                return True
    return False
