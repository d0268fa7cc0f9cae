# SPDX-License-Identifier: Apache-2.0
"""Killing and stopping parts of vmsnap, and keeping it from hearing of that."""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Iterator
from pathlib import Path

from .processes import children, wait_until
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


def kill_all(session: Session, spare: int = 0) -> None:
    """Everything of vmsnap, as the end of a cgroup does, but the process to `spare`."""
    pids = [session.pid, *(child.pid for child in children(session.pid))]
    for pid in stop(*(pid for pid in pids if pid != spare)):
        os.kill(pid, signal.SIGKILL)
    session.process.wait()


@contextlib.contextmanager
def cgroup_frozen(pid: int) -> Iterator[None]:
    """cgroup v2, cgroup.freeze: no signal is acted on until it is taken back. Of this process only,
    in a cgroup of its own below that of its unit, if it is in one."""
    mounts = [line.split() for line in Path("/proc/mounts").read_text().splitlines()]
    root = next(Path(path) for _, path, fstype, *_ in mounts if fstype == "cgroup2")
    before = root / Path(f"/proc/{pid}/cgroup").read_text().rpartition("0::/")[2].strip()
    made = before / f"vmsnap-test-{pid}"
    made.mkdir()
    try:
        (made / "cgroup.procs").write_text(str(pid))
        (made / "cgroup.freeze").write_text("1")
        wait_until(lambda: "frozen 1" in (made / "cgroup.events").read_text())
        yield
    finally:
        (made / "cgroup.freeze").write_text("0")
        with contextlib.suppress(
            OSError
        ):  # it has ended, and systemd has removed the unit's cgroup
            (before / "cgroup.procs").write_text(str(pid))
        with contextlib.suppress(FileNotFoundError):
            wait_until(lambda: "populated 0" in (made / "cgroup.events").read_text())
            made.rmdir()
