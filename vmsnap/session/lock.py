# SPDX-License-Identifier: Apache-2.0
"""One session at a time: the lock in the run directory, and the directory itself.

The guard and the scripts' supervisors inherit the lock, so a new session cannot start before
those of a killed one have thawed and resumed everything.

Runs in: engine, caller. Not in the engine while frozen.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import NoReturn

from vmsnap.errors import VmsnapError

LOCK = "lock"


class SessionInProgressError(VmsnapError):
    """Another session holds the lock."""


class RunDirectoryError(VmsnapError):
    """The run directory cannot be made, or others than root can write to it."""


def prepare(run_dir: Path) -> None:
    """Make sure that the run directory exists and is root's alone."""
    try:
        run_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
        status = run_dir.stat()
    except OSError as e:
        raise RunDirectoryError(f"{run_dir}: {e.strerror}") from None
    if status.st_uid != 0 or status.st_mode & 0o022:
        raise RunDirectoryError(
            f"{run_dir}: found owner uid {status.st_uid} and mode {status.st_mode & 0o7777:04o}, "
            "expected owner root and mode 0700"
        )


def acquire(run_dir: Path, session: str) -> int:
    """Take the lock and return its descriptor; closing it gives it back. Raises
    SessionInProgressError."""
    try:
        fd = os.open(run_dir / LOCK, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600)
    except OSError as e:
        raise RunDirectoryError(f"{run_dir / LOCK}: {e.strerror}") from None
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        holder = os.pread(fd, 200, 0).decode("ascii", "replace").strip()
        os.close(fd)
        raise SessionInProgressError(
            f"found session {holder or 'of an unknown process'} in progress"
        ) from None
    with contextlib.suppress(OSError):  # a full tmpfs costs the name, not the lock
        os.ftruncate(fd, 0)
        os.pwrite(fd, holder_text(session, os.getpid()).encode(), 0)
    return fd


@contextlib.contextmanager
def held(run_dir: Path, whose: str, patience: float) -> Iterator[int]:
    """For work that no session may run into; one in progress may end within `patience` seconds.
    What is yielded is the lock. Raises as prepare and acquire do."""
    prepare(run_dir)
    with contextlib.suppress(OSError, SessionInProgressError):
        wait_for_end(run_dir, patience)
    fd = acquire(run_dir, whose)
    try:
        yield fd
    finally:
        with contextlib.suppress(OSError):
            os.ftruncate(fd, 0)
        os.close(fd)


def wait_for_end(run_dir: Path, patience: float) -> None:
    """Wait until the lock is free. Raises SessionInProgressError, and OSError if it was never
    taken."""

    def give_up(*_: object) -> NoReturn:
        raise SessionInProgressError

    before = signal.signal(signal.SIGALRM, give_up)
    signal.setitimer(signal.ITIMER_REAL, patience, 1.0)  # again, should it come just before flock
    try:
        with open(run_dir / LOCK, "rb") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def holder_text(session: str, process: int) -> str:
    return f"{session} of process {process}"


def holder(run_dir: Path) -> str | None:
    """Who holds the lock, as text; None if it is free. Never takes it, be it for an instant."""
    path = run_dir / LOCK
    try:
        status = path.stat()
        found = path.read_text(encoding="ascii", errors="replace").strip()
    except OSError:
        return None
    device = f"{os.major(status.st_dev):02x}:{os.minor(status.st_dev):02x}:{status.st_ino}"
    for line in Path("/proc/locks").read_text().splitlines():
        if " FLOCK " in line and device in line.split():
            return found or "unknown"
    return None
