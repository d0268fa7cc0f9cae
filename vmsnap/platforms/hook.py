# SPDX-License-Identifier: Apache-2.0
"""What the agents of the platforms call: `vmsnap hook AGENT EVENT`.

Each event begins a held session, ends it, or only asks whether one could begin. The session is
vmsnap-session.service, so it outlives the agent and has none of its descriptors. What each agent
says, waits for and understands is in one table.
"""

from __future__ import annotations

import contextlib
import glob
import signal
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from enum import Enum
from pathlib import Path
from typing import NoReturn

from vmsnap.config import checks
from vmsnap.errors import Kind
from vmsnap.progress import Progress
from vmsnap.result import Result, new_session_id
from vmsnap.service import client
from vmsnap.service.client import Cut
from vmsnap.session.lock import InProgress
from vmsnap.session.options import Options
from vmsnap.system.files import write_atomically


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
    EXPIRED = "the session did not hold until the snapshot was taken"
    ANOTHER = "another session is in progress"
    NONE = "there is no session to end"
    NOT_READY = "vmsnap is not in order"


@dataclass(frozen=True)
class Agent:
    """`freezes`: the agent freezes and thaws by itself. `patience`: seconds that it waits for an
    answer, None if without limit. `codes`: of endings that are not 0 or 1. `writes`: where the
    agent itself writes before it has told anybody of our answer, so that is not frozen."""

    events: Mapping[str, Act]
    freezes: bool
    patience: float | None = None
    codes: Mapping[Ending, int] = field(default_factory=dict)
    writes: tuple[str, ...] = ()


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
        # agent/framework/processor, common/filewatcherbasedipc: its parts talk through files.
        ("/var/lib/amazon/ssm", "/var/log/amazon/ssm", "/var/snap/amazon-ssm-agent"),
    ),
    # Nutanix Guest Tools
    "nutanix": Agent({"pre_freeze": Act.BEGIN, "post_thaw": Act.END}, True, 55, {Ending.NONE: 0}),
    # The extension waits for timeoutInSeconds (agent.py), and goes on without killing us.
    "azure": Agent({"pre": Act.BEGIN, "post": Act.END}, True, 1770),
}


REMEMBERED = "hook-"  # and the agent's name, in the run directory: the session that it has begun
ENDS = (signal.SIGALRM, signal.SIGTERM, signal.SIGHUP, signal.SIGINT)


def call(
    name: str,
    event: str,
    rest: tuple[str, ...],
    options: Options,
    within: float | None = None,
) -> tuple[Ending, Result | None]:
    """Do what this event of this agent asks for, `within` seconds if not those of the table. Return
    how that ended, and the session's result if it has one. `rest`: what else the agent has said,
    which is the same for both ends of a session. Raises Impossible, OSError and
    lock.RunDirectoryUnusable."""
    agent = replace(AGENTS[name], patience=within or AGENTS[name].patience)
    act = agent.events[event]
    if act is Act.TRY:
        found = checks.inspect(options.etc)
        return (Ending.NOT_READY if found.errors else Ending.DONE), None
    remembered = options.run / (REMEMBERED + name)
    if act is Act.BEGIN:
        return begin(agent, options, remembered, rest)
    return end(agent, options, remembered, rest, act is Act.ABANDON)


def begin(
    agent: Agent, options: Options, remembered: Path, rest: tuple[str, ...]
) -> tuple[Ending, Result | None]:
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
    except Cut:
        now = client.progress_of(session, options.run)
        if began is None and now and now.hold_ends is not None:  # it has just begun to hold
            client.abandon(session, options.run)
    except InProgress:
        return Ending.ANOTHER, None
    finally:
        if not isinstance(began, Progress):
            forget(remembered, session)
    if isinstance(began, Progress):
        return Ending.DONE, None
    return Ending.NOT_BEGUN, began


def options_of(agent: Agent, options: Options) -> Options:
    exclude = tuple(map(glob.escape, unfrozen(agent)))
    return replace(options, fsfreeze=not agent.freezes, exclude=exclude)


def unfrozen(agent: Agent) -> list[str]:
    """Where the filesystems are mounted that are left out for the agent's sake."""
    return sorted({mount_point(Path(path)) for path in agent.writes})


def mount_point(path: Path) -> str:
    """Of the filesystem on which this is, or would be."""
    path = path.resolve()
    while not path.is_mount():
        path = path.parent
    return str(path)


def end(
    agent: Agent, options: Options, remembered: Path, rest: tuple[str, ...], failed: bool
) -> tuple[Ending, Result | None]:
    """End the session that the agent has begun, and no other. One that does not hold any more is no
    success, however it went: what has been taken since is not what its result speaks of."""
    session, *arguments = recalled(remembered)
    if not session or tuple(arguments) != rest:
        return Ending.NONE, None
    run, state = options.run, options.state
    now = client.progress_of(session, run)
    holds = now is not None and now.hold_ends is not None
    result = None
    with contextlib.suppress(Cut, client.NoSession, InProgress), limited(agent.patience):
        if now and now.held:
            result = client.thaw(run, state, session, failed or not holds)
        else:
            if now:  # its engine was killed; what undoes it is part of the unit
                client.systemctl("stop", client.UNIT)
            result = client.result_of(session, run, state)
    forget(remembered, session)
    if failed:
        return Ending.DONE, result
    expired = result and any(error.name == Kind.HOLD_EXPIRED.label for error in result.errors)
    if expired or not holds:
        return Ending.EXPIRED, result
    return (Ending.DONE if result and result.ok else Ending.FAILED), result


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
    """Raise Cut after this time, or at a signal to end."""

    def cut(*_: object) -> NoReturn:
        raise Cut

    before = {number: signal.signal(number, cut) for number in ENDS}
    signal.setitimer(signal.ITIMER_REAL, seconds or 0.0)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0.0)
        for number, handler in before.items():
            signal.signal(number, handler)
