# SPDX-License-Identifier: Apache-2.0
"""The caller's side of a held session: `vmsnap freeze` and `vmsnap thaw`.

Both only ask systemd to start or stop vmsnap-session.service, wait, and look up what became of it.
Neither owns anything, so nothing ends with them: what a killed caller began is thawed at the end of
its hold.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

from vmsnap import lock, progress
from vmsnap.errors import Impossible
from vmsnap.lock import InProgress
from vmsnap.process import output_of
from vmsnap.progress import Progress
from vmsnap.result import LAST, Result, from_json, new_session_id

if TYPE_CHECKING:
    from vmsnap.session import Options

UNIT = "vmsnap-session.service"
BOOTED = Path("/run/systemd/system")  # sd_booted(3)
IN_PROGRESS = "75"  # how the unit ends when it finds another session


class Unavailable(Impossible):
    """There is no systemd to ask, or it could not do what it was asked to."""


class NoSession(Exception):
    """There is nothing to thaw. `last` is how the last session ended, None if there was none."""

    def __init__(self, last: Result | None) -> None:
        super().__init__("found no session in progress, expected one that holds")
        self.last = last


class ResultUnreadable(Impossible):
    """There is a result, but not one that this program can read."""


def freeze(options: Options) -> Progress | Result:
    """Begin a session. Return its Progress once it holds, or else the Result that says why it does
    not. Raises InProgress, Unavailable and lock.RunDirectoryUnusable; a KeyboardInterrupt ends the
    session first."""
    from vmsnap.request import place, request_of, withdraw  # `vmsnap thaw` must start fast

    refuse_without_systemd()
    lock.prepare(options.run)
    session = new_session_id()
    request = place(options.run, request_of(options, session))
    try:
        refuse_another(options.run)
        try:
            code, error = systemctl("start", UNIT)
        except KeyboardInterrupt:
            systemctl("stop", UNIT)
            raise
        now = progress.read(options.run)
        if now and now.session == session:
            if now.hold_ends is not None:
                return now
            systemctl("stop", UNIT)  # it is over already; wait for what it has to say
    finally:
        withdraw(request)
    result = last_result(options.run)
    if result and result.session == session:
        return result
    refuse_another(options.run)
    if code == 0 or systemctl_show("ExecMainStatus") == IN_PROGRESS:
        raise InProgress("found that another session was in progress")
    raise Unavailable(f"{UNIT} could not be started: {error}")


def thaw(run: Path, failed: bool = False) -> Result:
    """End the session that holds and return its result; with `failed`, one without a snapshot.
    Raises InProgress if the session in progress is none that holds, NoSession and Unavailable."""
    refuse_without_systemd()
    now = progress.read(run)
    holder = lock.holder(run)
    if holder and now is None:  # its engine was killed, and its supervisors are not done yet
        result = last_result(run)
        if result and holder.startswith(result.session):
            return result
    if holder and not (now and now.held):
        refuse_another(run)
    if now and failed:
        from vmsnap.request import disown

        disown(run, now.session)
    _, error = systemctl("stop", UNIT)  # also without a session: it may be just ending
    result = last_result(run)
    if now is None:
        raise NoSession(result)
    if result is None or result.session != now.session:
        reason = error or "its process was killed; see `vmsnap thaw --force`"
        raise Unavailable(f"session {now.session} left no result: {reason}")
    return result


def refuse_another(run: Path) -> None:
    holder = lock.holder(run)
    if holder:
        raise InProgress(f"found session {holder} in progress")


def last_result(*directories: Path) -> Result | None:
    """The last session's result, from the first directory that has one. Raises
    ResultUnreadable."""
    for directory in directories:
        path = directory / LAST
        try:
            return from_json(json.loads(path.read_text(encoding="utf-8")))
        except FileNotFoundError:
            continue
        except (ValueError, KeyError, TypeError, RecursionError) as e:
            raise ResultUnreadable(f"{path}: found no result that can be read: {e}") from None
    return None


def refuse_without_systemd() -> None:
    if not BOOTED.is_dir():
        raise Unavailable(
            "found no systemd running here, expected it to hold the session; there are "
            "`vmsnap run -- COMMAND` and `vmsnap thaw --force`"
        )


def systemctl(*words: str) -> tuple[int, str]:
    """Return systemctl's exit code and what it complained of."""
    try:
        code, _, error = output_of(["systemctl", *words])
    except OSError as e:
        raise Unavailable(f"systemctl: {e.strerror}") from None
    return code, " ".join(error.split())


def systemctl_show(name: str) -> str:
    return output_of(["systemctl", "show", "--value", f"--property={name}", UNIT])[1].strip()
