# SPDX-License-Identifier: Apache-2.0
"""Messages between a client and vmsnap-session.service, as files in the run directory.

The request is how the options of `vmsnap freeze` reach the unit. The client locks the file, writes
what it wants into it, starts the unit, and keeps the lock until it has its answer. So there is one
client at a time, and a request counts only while its client lives. What a killed client left is
never mistaken for the request of the next one, nor for the defaults: the unit clears it away and
refuses that one start.

The confirmation says whether the snapshot of a held session has been taken. It is an
empty file, named after its meaning and the session, that is there before the engine is signalled to
thaw. An end of the hold without it confirms nothing, unless it comes from a plain `systemctl stop`
(main.py).

Runs in: caller, engine. While frozen: no file but in the run directory, no journal, no import.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from vmsnap.consistency import Level
from vmsnap.errors import CommandError
from vmsnap.session.lock import RunDirectoryError, SessionInProgressError
from vmsnap.session.options import Options

REQUEST = "request"
TAKEN, FAILED = "taken", "failed"


class RequestError(CommandError):
    """There is a request, but its caller is gone, or it cannot be read."""


@dataclass(frozen=True)
class Request:
    """A caller's request for a session with this UUID."""

    session: str
    etc: str
    state: str
    hold: float | None
    require: int | None
    only: tuple[str, ...]
    exclude: tuple[str, ...]
    fsfreeze: bool

    def options(self, run_dir: Path) -> Options:
        return Options(
            etc=Path(self.etc),
            run_dir=run_dir,
            state=Path(self.state),
            hold=self.hold,
            require=None if self.require is None else Level(self.require),
            only=tuple(self.only),
            exclude=tuple(self.exclude),
            fsfreeze=self.fsfreeze,
        )


def request_of(options: Options, session: str) -> Request:
    return Request(
        session,
        str(options.etc),
        str(options.state),
        options.hold,
        options.require,
        options.only,
        options.exclude,
        options.fsfreeze,
    )


def place(run_dir: Path, request: Request) -> int:
    """The caller's side. Return the descriptor that keeps the request valid, until withdraw().
    Raises SessionInProgressError if another caller is waiting, and RunDirectoryError."""
    fd = open_locked(run_dir)
    if fd is None:
        raise SessionInProgressError(
            "found another `vmsnap freeze` that waits for its session to begin"
        )
    try:
        os.ftruncate(fd, 0)
        os.pwrite(fd, json.dumps(asdict(request)).encode(), 0)
    except OSError as e:
        os.close(fd)
        raise RunDirectoryError(f"{run_dir / REQUEST}: {e.strerror}") from None
    return fd


def withdraw(fd: int) -> None:
    os.ftruncate(fd, 0)
    os.close(fd)


def take(run_dir: Path) -> Request | None:
    """The unit's side: the request of a caller that waits; None if there is none.
    Raises RequestError. The file is empty afterwards."""
    fd = open_locked(run_dir)
    abandoned = fd is not None
    if fd is None:
        fd = os.open(run_dir / REQUEST, os.O_RDWR | os.O_NOFOLLOW)
    try:
        text = os.pread(fd, 1 << 20, 0)
        os.ftruncate(fd, 0)
        if not text:
            return None
        if abandoned:
            raise RequestError("found a request whose `vmsnap freeze` is gone; it was cleared away")
        fields: dict[str, Any] = json.loads(text)
        request = Request(**fields)
        request.options(run_dir)
        return request
    except (ValueError, TypeError, RecursionError) as e:
        raise RequestError(f"found a request that cannot be read: {e}") from None
    finally:
        os.close(fd)


def open_locked(run_dir: Path) -> int | None:
    """None if the lock is held."""
    fd = os.open(run_dir / REQUEST, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(fd)
        return None
    return fd


# --- the confirmation -----------------------------------------------------------------------------


def confirm(run_dir: Path, session: str, word: str) -> None:
    """Before the engine is signalled to thaw: whether the snapshot has been taken."""
    with contextlib.suppress(OSError):  # a full tmpfs: then the session fails, and reports it
        os.close(
            os.open(
                confirmation_path(run_dir, session, word),
                os.O_WRONLY | os.O_CREAT | os.O_NOFOLLOW,
                0o600,
            )
        )


def confirmation(run_dir: Path, session: str) -> str:
    """TAKEN, FAILED or "" without one. If there are both it was not taken."""
    meanings = (FAILED, TAKEN)
    return next((m for m in meanings if confirmation_path(run_dir, session, m).exists()), "")


def forget(run_dir: Path, session: str) -> None:
    for word in (TAKEN, FAILED):
        with contextlib.suppress(OSError):
            confirmation_path(run_dir, session, word).unlink()


def confirmation_path(run_dir: Path, session: str, word: str) -> Path:
    return run_dir / f"{word}-{session}"
