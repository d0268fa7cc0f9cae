# SPDX-License-Identifier: Apache-2.0
"""One session at a time: the lock in the run directory, and the directories that are vmsnap's own.

The run directory is emptied after a session that was killed, and files in the state directory are
replaced. So both must be known to be vmsnap's: by their names, which are those that the packages
know, or by a mark, which they get when they are made or found empty.

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
from vmsnap.system.files import make_private
from vmsnap.system.trusted import (
    InsecurePathError,
    UnreadableFileError,
    check_mode,
    check_owner,
    is_directory,
    walk,
)

LOCK = "lock"


class SessionInProgressError(VmsnapError):
    """Another session holds the lock."""


MARK = ".vmsnap"  # empty: a full tmpfs has room for it, if it has for the lock
RUN, STATE = Path("/run/vmsnap"), Path("/var/lib/vmsnap")  # vmsnap's by their names


class RunDirectoryError(VmsnapError):
    """The run or the state directory cannot be made, is not vmsnap's, or others than root can
    change it."""


def prepare(run_dir: Path) -> None:
    """Make sure that the run directory exists and is vmsnap's. Raises RunDirectoryError."""
    claim(run_dir)


def prepare_state(state: Path) -> None:
    """The same for the state directory. It may lie on a frozen disk, which blocks this."""
    claim(state)


def check_state(state: Path) -> None:
    """Without writing: that prepare_state() would not refuse it."""
    with refusing(state), contextlib.suppress(FileNotFoundError):
        is_ours(state)


def claim(directory: Path) -> None:
    with refusing(directory):
        try:
            ours = is_ours(directory)
        except FileNotFoundError:
            make_private(directory)
            ours = is_ours(directory)
        if not ours:
            os.close(os.open(directory / MARK, os.O_WRONLY | os.O_CREAT | os.O_NOFOLLOW, 0o600))


def is_ours(directory: Path) -> bool:
    """Whether the directory is vmsnap's by its name or its mark; False if it is empty. Raises
    InsecurePathError if others could change it, also by its path; RunDirectoryError if it may be
    somebody else's; and OSError."""
    by_name = directory in (RUN, STATE)
    with walk(directory) as (pinned, step):
        is_directory(pinned, step)
        status = os.fstat(pinned)
        check_owner(status, step)
        check_mode(status, step, 0o022 if by_name else 0o077)
        names = os.listdir(f"/proc/self/fd/{pinned}")
    if by_name or MARK in names:
        return True
    if set(names) - {"lost+found"}:
        raise RunDirectoryError(
            f"{directory}: found files and no {MARK}, expected a directory that vmsnap has made, "
            "or an empty one"
        )
    return False


@contextlib.contextmanager
def refusing(directory: Path) -> Iterator[None]:
    """What is wrong with it becomes a RunDirectoryError."""
    try:
        yield
    except (InsecurePathError, UnreadableFileError) as e:
        raise RunDirectoryError(str(e)) from None
    except OSError as e:
        raise RunDirectoryError(f"{directory}: {e.strerror}") from None


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
