# SPDX-License-Identifier: Apache-2.0
"""What the agents of the platforms call: `vmsnap hook AGENT EVENT`.

Each event begins a held session, ends it, or only asks whether one could begin. The session is
vmsnap-session.service, so it outlives the agent and has none of its descriptors. What each agent
says, waits for and understands is in one table.
"""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from enum import Enum
from pathlib import Path
from typing import NoReturn

from vmsnap import caller, checks
from vmsnap.errors import Kind
from vmsnap.files import write_atomically
from vmsnap.lock import InProgress
from vmsnap.progress import Progress
from vmsnap.result import Result
from vmsnap.session import Options


class Act(Enum):
    """What an event asks for."""

    BEGIN = "begin a session"
    END = "end it: the snapshot has been taken"
    ABANDON = "end it: there is no snapshot"
    TRY = "say whether one could begin"


class Ending(Enum):
    """How the call of a hook ends, in the words of AWS Data Lifecycle Manager, which knows most."""

    DONE = "as asked"
    NOT_BEGUN = "no session may be held, or there was no time for it"
    FAILED = "the session has failed"
    EXPIRED = "the hold had expired before the snapshot was taken"
    ANOTHER = "another session is in progress"
    NONE = "there is no session to end"
    NOT_READY = "vmsnap is not in order"


@dataclass(frozen=True)
class Agent:
    """`freezes`: the agent freezes and thaws by itself. `patience`: seconds that it waits for a
    session to hold, None if without limit. `codes`: of endings that are not 0 or 1."""

    events: Mapping[str, Act]
    freezes: bool
    patience: float | None = None
    codes: Mapping[Ending, int] = field(default_factory=dict)


AGENTS = {
    # qga/commands-posix.c: no limit. It says thaw whether or not anything was frozen.
    "qemu": Agent({"freeze": Act.BEGIN, "thaw": Act.END}, True, None, {Ending.NONE: 0}),
    # services/plugins/vmbackup: 15 minutes for everything. It says freezeFail whatever has failed.
    "vmware": Agent(
        {"freeze": Act.BEGIN, "freezeFail": Act.ABANDON, "thaw": Act.END},
        True,
        840,
        {Ending.NONE: 0},
    ),
    # google_guest_agent: timeout_in_seconds = 60 for each of the two.
    "google": Agent({"pre": Act.BEGIN, "post": Act.END}, False, 55),
    # The codes of docs.aws.amazon.com/ebs/latest/userguide/automate-app-consistent-backups.html
    "aws": Agent(
        {"pre-script": Act.BEGIN, "post-script": Act.END, "dry-run": Act.TRY},
        False,
        8,  # ExecutionTimeout is 10 unless the policy says so; the document then says it to us
        {
            Ending.NOT_BEGUN: 201,
            Ending.FAILED: 202,
            Ending.EXPIRED: 203,
            Ending.ANOTHER: 204,
            Ending.NONE: 205,
            Ending.NOT_READY: 206,
        },
    ),
    # Nutanix Guest Tools
    "nutanix": Agent({"pre_freeze": Act.BEGIN, "post_thaw": Act.END}, True, 55, {Ending.NONE: 0}),
    "azure": Agent({"pre": Act.BEGIN, "post": Act.END}, True, None),
}


REMEMBERED = "hook-"  # and the agent's name, in the run directory: the session that it has begun


class Cut(KeyboardInterrupt):
    """The agent waits no longer; what has begun is ended, as if somebody had interrupted it."""


def call(
    name: str, event: str, etc: Path, run: Path, state: Path, within: float | None = None
) -> tuple[Ending, Result | None]:
    """Do what this event of this agent asks for, `within` seconds if not those of the table. Return
    how that ended, and the session's result if it has one. Raises Impossible and
    lock.RunDirectoryUnusable."""
    agent = replace(AGENTS[name], patience=within or AGENTS[name].patience)
    act = agent.events[event]
    if act is Act.TRY:
        found = checks.inspect(etc)
        return (Ending.NOT_READY if found.errors else Ending.DONE), None
    remembered = run / (REMEMBERED + name)
    if act is Act.BEGIN:
        ending, began = begin(
            agent, Options(etc=etc, run=run, state=state, fsfreeze=not agent.freezes)
        )
        if isinstance(began, Progress):
            write_atomically(remembered, began.session.encode(), 0o600)
            return ending, None
        return ending, began
    try:
        session = remembered.read_text(encoding="ascii")
    except FileNotFoundError:
        return Ending.NONE, None
    ending, result = end(run, state, session, act is Act.ABANDON)
    remembered.unlink(missing_ok=True)
    return ending, result


def begin(agent: Agent, options: Options) -> tuple[Ending, Progress | Result | None]:
    """Begin a session within the time that the agent waits. Return what became of it."""
    try:
        with limited(agent.patience):
            began = caller.freeze(options)
    except Cut:
        return Ending.NOT_BEGUN, caller.last_result(options.run, options.state)
    except InProgress:
        return Ending.ANOTHER, None
    return (Ending.DONE if isinstance(began, Progress) else Ending.NOT_BEGUN), began


def end(run: Path, state: Path, session: str, failed: bool) -> tuple[Ending, Result | None]:
    """End this session, and no other."""
    try:
        result = caller.thaw(run, state, session, failed)
    except caller.NoSession as e:
        return Ending.NONE, e.last
    except InProgress:
        return Ending.ANOTHER, None
    if any(error.name == Kind.HOLD_EXPIRED.label for error in result.errors):
        return Ending.EXPIRED, result
    return (Ending.DONE if result.ok or failed else Ending.FAILED), result


@contextlib.contextmanager
def limited(seconds: float | None) -> Iterator[None]:
    """Raise Cut after this time."""

    def cut(*_: object) -> NoReturn:
        raise Cut

    before = signal.signal(signal.SIGALRM, cut)
    signal.setitimer(signal.ITIMER_REAL, seconds or 0.0)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0.0)
        signal.signal(signal.SIGALRM, before)
