# SPDX-License-Identifier: Apache-2.0
"""What the agents of the platforms call: `vmsnap hook AGENT EVENT`.

Each event begins a held session, ends it, or only asks whether one could begin. The session is
vmsnap-session.service, so it outlives the agent and has none of its descriptors. What each agent
says, waits for and understands is in the module of its platform.
"""

from __future__ import annotations

import contextlib
import glob
import signal
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import NoReturn

from vmsnap.config import checks
from vmsnap.errors import Kind
from vmsnap.platforms.agent import Act, Agent, HookOutcome
from vmsnap.platforms.registry import agents
from vmsnap.progress import Progress
from vmsnap.result import Result, new_session_id
from vmsnap.service import client
from vmsnap.service.client import CallerTimeout
from vmsnap.session.lock import SessionInProgressError
from vmsnap.session.options import Options
from vmsnap.system.files import write_atomically

REMEMBERED = "hook-"  # and the agent's name, in the run directory: the session that it has begun
ENDS = (signal.SIGALRM, signal.SIGTERM, signal.SIGHUP, signal.SIGINT)


def call(
    name: str,
    event: str,
    rest: tuple[str, ...],
    options: Options,
    within: float | None = None,
) -> tuple[HookOutcome, Result | None]:
    """Do what this event of this agent asks for, `within` seconds if not those of its module.
    Return how that ended, and the session's result if it has one. `rest`: what else the agent has
    said, which is the same for both ends of a session. Raises CommandError, OSError and
    lock.RunDirectoryError."""
    agent = replace(agents()[name], patience=within or agents()[name].patience)
    act = agent.events[event]
    if act is Act.TRY:
        found = checks.inspect(options.etc)
        return (HookOutcome.NOT_READY if found.errors else HookOutcome.DONE), None
    remembered = options.run_dir / (REMEMBERED + name)
    if act is Act.BEGIN:
        return begin(agent, options, remembered, rest)
    return end(agent, options, remembered, rest, act is Act.ABANDON)


def begin(
    agent: Agent, options: Options, remembered: Path, rest: tuple[str, ...]
) -> tuple[HookOutcome, Result | None]:
    """Begin a session within the time that the agent waits. It is remembered before it begins: so
    whatever becomes of this process, the agent's next event ends it."""
    session = new_session_id()
    began: Progress | Result | None = None
    try:
        with limited(agent.patience):
            began = client.freeze(
                options_of(agent, options),
                session,
                lambda: remember(remembered, session, *rest),
            )
    except CallerTimeout:
        now = client.progress_of(session, options.run_dir)
        if began is None and now and now.hold_ends is not None:  # it has just begun to hold
            client.abandon(session, options.run_dir)
    except SessionInProgressError:
        return HookOutcome.ANOTHER, None
    finally:
        if not isinstance(began, Progress):
            forget(remembered, session)
    if isinstance(began, Progress):
        return HookOutcome.DONE, None
    return HookOutcome.NOT_BEGUN, began


def options_of(agent: Agent, options: Options) -> Options:
    exclude = tuple(map(glob.escape, agent.unfrozen))
    return replace(options, fsfreeze=not agent.freezes, exclude=exclude)


def end(
    agent: Agent, options: Options, remembered: Path, rest: tuple[str, ...], failed: bool
) -> tuple[HookOutcome, Result | None]:
    """End the session that the agent has begun, and no other. One that does not hold any more is no
    success, however it went: what has been taken since is not what its result speaks of."""
    session, *arguments = recalled(remembered)
    if not session or tuple(arguments) != rest:
        return HookOutcome.NONE, None
    run, state = options.run_dir, options.state
    now = client.progress_of(session, run)
    holds = now is not None and now.hold_ends is not None
    result = None
    with (
        contextlib.suppress(CallerTimeout, client.NoSessionError, SessionInProgressError),
        limited(agent.patience),
    ):
        if now and now.held:
            result = client.thaw(run, state, session, failed or not holds)
        else:
            if now:  # its engine was killed; what undoes it is part of the unit
                client.systemctl("stop", client.UNIT)
            result = client.result_of(session, run, state)
    forget(remembered, session)
    if failed:
        return HookOutcome.DONE, result
    expired = result and any(error.name == Kind.HOLD_EXPIRED.label for error in result.errors)
    if expired or not holds:
        return HookOutcome.EXPIRED, result
    return (HookOutcome.DONE if result and result.ok else HookOutcome.FAILED), result


def remember(path: Path, *words: str) -> None:
    write_atomically(path, "\n".join(words).encode(), 0o600)


def recalled(path: Path) -> list[str]:
    """The session, and what the agent said besides when it began."""
    with contextlib.suppress(FileNotFoundError):
        return path.read_text(encoding="utf-8").split("\n")
    return [""]


def forget(path: Path, session: str) -> None:
    if recalled(path)[0] == session:
        path.unlink(missing_ok=True)


@contextlib.contextmanager
def limited(seconds: float | None) -> Iterator[None]:
    """Raise CallerTimeout after this time, or at a signal to end."""

    def give_up(*_: object) -> NoReturn:
        raise CallerTimeout

    before = {number: signal.signal(number, give_up) for number in ENDS}
    signal.setitimer(signal.ITIMER_REAL, seconds or 0.0)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0.0)
        for number, handler in before.items():
            signal.signal(number, handler)
