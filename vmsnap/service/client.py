# SPDX-License-Identifier: Apache-2.0
"""The caller's side of a held session: `vmsnap freeze` and `vmsnap thaw`.

Both start or stop vmsnap-session.service, wait, and look up what became of it. Neither owns
anything, so nothing ends with them: what a killed caller began is thawed at the end of its hold.

Runs in: caller. While frozen: writes no file but in the run directory.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from vmsnap import progress
from vmsnap.errors import CommandError, VmsnapError
from vmsnap.progress import Progress
from vmsnap.result import Result, last_result
from vmsnap.service.messages import FAILED, TAKEN, confirm, forget
from vmsnap.session import lock
from vmsnap.session.lock import SessionInProgressError
from vmsnap.system import systemd

if TYPE_CHECKING:
    from vmsnap.session.options import Options

UNIT = "vmsnap-session.service"
IN_PROGRESS = str(os.EX_TEMPFAIL)  # how the unit ends when it finds another session


class SystemdUnavailableError(CommandError):
    """There is no systemd to ask, or it could not do what it was asked to."""


class NoSessionError(VmsnapError):
    """There is nothing to thaw. `last` is how the last session ended, None if there was none."""

    def __init__(self, last: Result | None) -> None:
        super().__init__("found no session in progress, expected one that holds")
        self.last = last


class CallerTimeout(BaseException):
    """The caller waits no longer, and not for the end of the session either."""


def freeze(
    options: Options, session: str = "", beginning: Callable[[], None] | None = None
) -> Progress | Result:
    """Begin a session, with this UUID if any. Return its Progress once it holds, or else the Result
    that says why it does not. Raises SessionInProgressError, SystemdUnavailableError and
    lock.RunDirectoryError; a KeyboardInterrupt ends the session first, and CallerTimeout has it
    end. `beginning` is called once no other can begin, and may raise."""
    from vmsnap.result import new_session_id
    from vmsnap.service.messages import place, request_of, withdraw  # `vmsnap thaw` must start fast

    refuse_without_systemd()
    run = options.run_dir
    lock.prepare(run)
    lock.check_state(options.state)
    session = session or new_session_id()
    request = place(run, request_of(options, session))
    try:
        refuse_another(run)
        if beginning:
            beginning()
        code, error = systemctl("start", UNIT)
        now = progress_of(session, run)
        if now and now.hold_ends is not None:
            return now
        if now:  # it is over already; wait for its result
            end(run, now, FAILED)
    except KeyboardInterrupt:
        end(run, progress_of(session, run), FAILED)
        raise
    except CallerTimeout:
        abandon(session, run)
        raise
    finally:
        withdraw(request)
    result = result_of(session, run, options.state)
    if result:
        return result
    refuse_another(run)
    if code == 0 or systemd.show(UNIT, "ExecMainStatus") == IN_PROGRESS:
        raise SessionInProgressError("found that another session was in progress")
    raise SystemdUnavailableError(f"{UNIT} could not be started: {error}")


def thaw(run_dir: Path, state: Path, wanted: str = "", failed: bool = False) -> Result:
    """End the session that holds, and return its result; with `failed`, one without a snapshot.

    With `wanted`, the beginning of a UUID, no other session is ended, and one that has ended
    already is just looked up. Raises SessionInProgressError if another session is in progress, or
    one that does not hold; NoSessionError and SystemdUnavailableError."""
    refuse_without_systemd()
    now = progress.read(run_dir)
    holder = lock.holder(run_dir)
    if now and now.held and now.session.startswith(wanted):
        error = end(run_dir, now, FAILED if failed else TAKEN)
        result = result_of(now.session, run_dir, state)
        if result:
            return result
        reason = error or "its process was killed; see `vmsnap thaw --force`"
        raise SystemdUnavailableError(f"session {now.session} left no result: {reason}")
    last = last_result(run_dir, state)
    if last and wanted and last.session.startswith(wanted):
        return last
    if last and holder and now is None and holder.startswith(last.session):
        return last  # its engine was killed, and its supervisors are not done yet
    refuse_another(run_dir)
    raise NoSessionError(None if wanted else last)


def abandon(session: str, run_dir: Path) -> None:
    """Have a session end without a snapshot, be it before it has begun, and do not wait for that.
    Only while no other can begin one: what is about to start is ours."""
    now = progress_of(session, run_dir)
    if now is None:
        holder = lock.holder(run_dir)
        if holder is None or holder.startswith(session):
            systemctl("stop", "--no-block", UNIT)
        return
    confirm(run_dir, session, FAILED)
    engine = engine_of(run_dir, now)
    if engine is not None:
        with contextlib.suppress(ProcessLookupError):
            signal.pidfd_send_signal(engine, signal.SIGTERM)
        os.close(engine)


def end(run_dir: Path, now: Progress | None, word: str) -> str:
    """End the session in progress and wait until its unit has stopped. Return what systemd
    complained of. `word`: whether its snapshot has been taken.

    The engine is signalled directly. systemd could not, if its own process waits for a frozen disk:
    it makes the directories of a PrivateTmp= and touches the stamp of a Persistent= timer itself.
    """
    if now is None:
        return systemctl("stop", UNIT)[1]
    confirm(run_dir, now.session, word)
    engine = engine_of(run_dir, now)
    try:
        if engine is not None:
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(engine, signal.SIGTERM)
            select.select([engine], [], [])
            os.close(engine)
        # Another session's unit, which has begun since, must not be stopped.
        ours = systemd.show(UNIT, "InvocationID") == now.invocation
        return systemctl("stop", UNIT)[1] if ours else ""
    finally:
        forget(run_dir, now.session)


def engine_of(run_dir: Path, now: Progress) -> int | None:
    """A pidfd of the engine, if it lives and is one."""
    try:
        engine = os.pidfd_open(now.engine)
    except ProcessLookupError:
        return None
    with contextlib.suppress(OSError):
        command = Path(f"/proc/{now.engine}/cmdline").read_bytes()
        if b"vmsnap" in command and lock.holder(run_dir) == lock.holder_text(
            now.session, now.engine
        ):
            return engine
    os.close(engine)
    return None


def refuse_another(run_dir: Path) -> None:
    holder = lock.holder(run_dir)
    if holder:
        raise SessionInProgressError(f"found session {holder} in progress")


def progress_of(session: str, run_dir: Path) -> Progress | None:
    now = progress.read(run_dir)
    return now if now and now.session == session else None


def result_of(session: str, *directories: Path) -> Result | None:
    """The result of this session, if it is the last one anywhere."""
    found = (last_result(directory) for directory in directories)
    return next((result for result in found if result and result.session == session), None)


def refuse_without_systemd() -> None:
    if not systemd.booted():
        raise SystemdUnavailableError(
            "found no systemd running here, expected it to hold the session; there are "
            "`vmsnap run -- COMMAND` and `vmsnap thaw --force`"
        )


def systemctl(*arguments: str) -> tuple[int, str]:
    """Return systemctl's exit code and what it complained of. Raises SystemdUnavailableError."""
    try:
        return systemd.systemctl(*arguments)
    except OSError as e:
        raise SystemdUnavailableError(f"systemctl: {e.strerror}") from None
