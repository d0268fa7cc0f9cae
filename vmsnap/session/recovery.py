# SPDX-License-Identifier: Apache-2.0
"""After an engine was killed: what it can no longer do for its session.

Its guard thaws and its supervisors run the post-scripts by themselves. This is for what they did
not do, having been killed too, and for the result of the session. It is called by ExecStopPost= of
a unit, which leaves the sessions of others alone, by the next session, and by `vmsnap thaw
--force`. Which post-scripts are pending is on record in the run directory (scripts/pending.py).

Runs in: engine, caller (`vmsnap thaw --force`), forks of both that thaw. What a killed session has
left frozen may stay so; nothing but such a fork waits for it.
"""

from __future__ import annotations

import collections
import contextlib
import datetime
import json
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from vmsnap import progress
from vmsnap.config import checks
from vmsnap.consistency import Level
from vmsnap.errors import Kind, Problem
from vmsnap.freeze import reopen
from vmsnap.freeze.frozen_list import (
    FROZEN_LIST,
    IN_PROGRESS,
    FrozenList,
    FrozenListError,
    discard,
    opened,
    rest_is_guards,
    thaw_after_death,
    thaw_listed,
)
from vmsnap.freeze.thaw import STEP_PATIENCE
from vmsnap.journal.sender import Event, Journal, Priority
from vmsnap.progress import Progress
from vmsnap.result import Phase, Result, SnapshotResult
from vmsnap.scripts.engine import SUPERVISOR
from vmsnap.scripts.pending import SCRIPTS, Pending, forget_the_rest, pending_in
from vmsnap.session import lock
from vmsnap.session.notify import Manager, outcome_line
from vmsnap.session.options import Options
from vmsnap.session.session import TEMPORARY, Session
from vmsnap.system.files import remove_tree
from vmsnap.system.left_behind import in_child, send_once
from vmsnap.system.waiter import Waiter


@dataclass(frozen=True)
class NoTaker:
    """Of a session that takes no snapshot any more."""

    held: bool

    def prepare(self, session: Session) -> None: ...

    def watch(self, seconds: float) -> None: ...

    def take(self, session: Session) -> bool:
        return False

    def dismiss(self, session: Session) -> None: ...

    def result(self) -> SnapshotResult | None:
        return None


def end_lost(
    lost: Progress, run_dir: Path, state: Path, lock: int, waiter: Waiter, manager: Manager | None
) -> Result:
    """Do what is left of a session: pending post-scripts, and a result."""
    options = Options(etc=Path(lost.etc), run_dir=run_dir, state=state)
    # ExecStopPost= is waited for by a caller as the engine was, but is no engine to be signalled.
    taker = NoTaker(lost.held and lost.invocation == os.environ.get("INVOCATION_ID", ""))
    session = Session(options, lock, waiter, taker, session=lost.session)
    session.engine = lost.engine
    session.required = Level[lost.required.upper()]
    session.started = datetime.datetime.fromisoformat(lost.started)
    if manager:
        manager.follow(session)
    message = f"the process of session {session.id} was killed"
    message += f" in phase {lost.phase}" if lost.phase else f"; its {progress.PROGRESS} is lost"
    session.record.fail(Problem(Kind.ENGINE_LOST, message, lost.phase))
    session.found = checks.inspect(options.etc)
    if lock >= 0 or not supervised():  # only then is what is pending certain
        session.supervise(
            [x for x in session.found.runnable if Pending(run_dir, session.id, x.name).post]
        )
    if session.scripts:
        for scripts in session.scripts:
            scripts.pre_started = True
        session.post()
        session.clean_up()
    return session.report(partial(known_of, lost, session))


def known_of(lost: Progress, session: Session, result: Result) -> Result:
    """Nothing is claimed that is not known: of the pre-scripts nothing is, and the stall is the
    longest that it can have been."""
    stall = 0.0
    if lost.phase in (Phase.FREEZE, Phase.SNAPSHOT):
        stall = session.record.began - lost.since
    age = datetime.datetime.now(datetime.timezone.utc) - session.started.astimezone()
    return replace(
        result,
        seconds=max(0.0, round(age.total_seconds(), 6)),
        frozen_seconds=max(0.0, round(stall, 6)),
        apps=tuple(app for app in result.apps if app.post),
    )


def conclude(
    etc: Path,
    run_dir: Path,
    state: Path,
    lock: int,
    waiter: Waiter,
    manager: Manager | None = None,
) -> Result | None:
    """With the lock in hand: end a session whose engine, guard and supervisors were all killed, and
    remove what is left of it. Return its result, None if there is no such session."""
    if (run_dir / FROZEN_LIST).exists():
        thaw_left(run_dir, waiter)
    lost = progress.read(run_dir)
    result = end_lost(lost, run_dir, state, lock, waiter, manager) if lost else None
    for unrecorded in sessions_without_progress(run_dir, etc, lost):
        result = end_lost(unrecorded, run_dir, state, lock, waiter, manager)
    forget_the_rest(run_dir)
    remove_tree(run_dir / TEMPORARY)
    discard(run_dir)
    progress.discard(run_dir)
    return result


def sessions_without_progress(run_dir: Path, etc: Path, known: Progress | None) -> list[Progress]:
    """Sessions of which a post-script is pending that can be run, but whose session.json is lost.
    Not the one that is `known`."""
    left = pending_in(run_dir)
    if known:
        left.pop(known.session, None)
    runnable = {app.name for app in checks.inspect(etc).runnable} if left else set()
    return [
        without_progress(run_dir, etc, session, apps)
        for session, apps in left.items()
        if runnable.intersection(apps)
    ]


def without_progress(run_dir: Path, etc: Path, session: str, apps: list[str]) -> Progress:
    began = (run_dir / SCRIPTS / session).stat().st_mtime
    return Progress(
        session=session,
        phase="",
        engine=0,
        invocation="",
        held=False,
        etc=str(etc),
        consistency=Level.NONE.word,
        required=Level.CRASH.word,
        started=datetime.datetime.fromtimestamp(began, datetime.timezone.utc).isoformat(),
        apps=tuple(apps),
        filesystems=(),
        hold_ends=None,
    )


def stopped(etc: Path, run_dir: Path, state: Path) -> bool:
    """ExecStopPost=: the unit's main process has ended. False if anything may stay frozen."""
    invocation = os.environ["INVOCATION_ID"]
    manager = Manager()
    waiter = Waiter(())
    waiter.pulse = manager.ask_for_time
    good = thaw_left(run_dir, waiter, invocation)
    lost = progress.read(run_dir)
    if lost and lost.invocation == invocation:
        try:
            descriptor = lock.acquire(run_dir, lost.session)
        except (lock.SessionInProgressError, lock.RunDirectoryError):
            # Supervisors are at work, the guard is still inside a freeze, or a new session has
            # begun, which then does all this.
            if not (lock.holder(run_dir) or lost.session).startswith(lost.session):
                return good
            descriptor = -1
        result = end_lost(lost, run_dir, state, descriptor, waiter, manager)
        manager.notify(f"STATUS={outcome_line(result)}")
    for unrecorded in [] if lost else sessions_without_progress(run_dir, etc, None):
        # Else supervisors are at work, or a new session is, which does this as well.
        with contextlib.suppress(lock.SessionInProgressError, lock.RunDirectoryError):
            descriptor = lock.acquire(run_dir, unrecorded.session)
            end_lost(unrecorded, run_dir, state, descriptor, waiter, manager)
            os.close(descriptor)
    return good


def supervised() -> bool:
    """Whether supervisors of scripts live: there are none but those of one session."""
    for name in os.listdir("/proc"):
        if name.isdigit():
            with contextlib.suppress(OSError):
                status = Path("/proc", name, "status").read_text(errors="replace")
                ours = status.startswith(f"Name:\t{SUPERVISOR}\n") and "\nUid:\t0\t" in status
                if ours and "\nState:\tZ" not in status:
                    return True
    return False


def thaw_in_child(
    thaw: Callable[[Callable[[str], None]], Iterator[bool]],
    seconds: float,
    waiter: Waiter,
    report: Callable[[str], None] | None = None,
) -> tuple[bool, list[str]] | None:
    """Thaw in a child, which goes on by itself while a FITHAW or a FIFREEZE has not returned.
    Return whether nothing stays frozen, and the messages, unless the child calls `report` for
    that; None if it was killed, or found no list any more."""

    def begin(pipe: int) -> None:
        messages: list[str] = []
        thaws = thaw(report or messages.append)
        with contextlib.suppress(OSError, FrozenListError, StopIteration):
            send_once(pipe, [next(thaws), messages])
            collections.deque(thaws, maxlen=0)

    received = in_child(begin, "vmsnap-thaw", (), waiter, seconds)
    if received is None:
        stuck = f"a filesystem is {IN_PROGRESS}"
        if report:
            report(stuck)
        return False, [stuck]
    if not received:
        return None
    good, messages = json.loads(received)
    return good, messages


def patience(listed: FrozenList) -> float:
    """For the ways in, each step, the end of a guard that was killed, and a moment more."""
    return reopen.PATIENCE + STEP_PATIENCE * (2 + len({item.step for item in listed.items}))


def thaw_left(run_dir: Path, waiter: Waiter, invocation: str | None = None) -> bool:
    """Thaw what the list in the run directory says may be frozen, unless the list is from another
    `invocation` of a unit. False if anything may stay frozen that no guard is left to thaw."""
    journal = Journal()

    def warn(message: str) -> None:
        journal.send(message, Event.NOTE.value, Priority.WARNING, VMSNAP_PHASE=Phase.THAW)

    try:
        with opened(run_dir) as listed:
            seconds = STEP_PATIENCE + patience(listed)  # the first is the guard's
    except FileNotFoundError:
        return True
    except FrozenListError as e:
        warn(str(e))
        return False
    if invocation not in (None, listed.invocation):
        return True
    journal.fields["VMSNAP_SESSION"] = listed.session

    def thaw(report: Callable[[str], None]) -> Iterator[bool]:
        return thaw_after_death(run_dir, report, listed.session)

    try:
        thawed = thaw_in_child(thaw, seconds, waiter, warn)
        good = bool(thawed and thawed[0])
    except OSError:  # no more processes: better to hang than to leave something frozen
        good = False
        with contextlib.suppress(OSError):
            good = any(thaw(warn))
    return good or rest_is_guards(run_dir)


def thaw_by_force(run_dir: Path, remove: bool) -> tuple[bool, list[str]]:
    """Thaw what the list says may be frozen, of whichever session, and `remove` the list. Return
    whether nothing stays frozen, and the messages."""
    nothing = True, [f"nothing to thaw: {run_dir} holds no list of frozen filesystems"]
    try:
        with opened(run_dir) as listed:
            seconds = patience(listed)
    except FileNotFoundError:
        return nothing
    except FrozenListError as e:
        return False, [str(e)]

    def thaw(report: Callable[[str], None]) -> Iterator[bool]:
        return thaw_listed(run_dir, report, remove)

    thawed = None
    with contextlib.suppress(OSError):  # no more processes, which is when things get killed
        thawed = thaw_in_child(thaw, seconds, Waiter(()))
    if thawed:
        return thawed
    messages: list[str] = []  # the child was killed: better to hang than to leave something frozen
    with contextlib.suppress(FileNotFoundError):
        *_, good = thaw(messages.append)
        return good, messages
    return nothing
