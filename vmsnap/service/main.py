# SPDX-License-Identifier: Apache-2.0
"""A session as vmsnap-session.service: starting freezes, running holds, stopping thaws.

This is the unit's main process. It says READY=1 when everything is frozen and then waits for
SIGTERM. If that comes with the confirmation of `vmsnap thaw`, or from a plain `systemctl stop`, the
snapshot has been taken; nothing else says so. Without either, the guard thaws at the end of the
hold. If this process is killed the guard thaws too, the supervisors run the post-scripts, and
ExecStopPost= (session/recovery.py) does what all of them left undone and gives the session its
result.

Runs in: engine. While frozen: no file but in the run directory, no journal, no import.
"""

from __future__ import annotations

from pathlib import Path

from vmsnap.errors import Kind, Problem
from vmsnap.result import Phase, Result, SnapshotResult, new_session_id
from vmsnap.service.client import UNIT
from vmsnap.service.messages import FAILED, TAKEN, confirmation, forget, take
from vmsnap.session import lock
from vmsnap.session.notify import Manager, outcome_line
from vmsnap.session.options import Options
from vmsnap.session.recovery import conclude
from vmsnap.session.session import Session
from vmsnap.system import systemd
from vmsnap.system.waiter import STOP_SIGNALS, Waiter


class CallerTaker:
    """Holds until the unit is stopped; the caller that started it takes the snapshot."""

    held = True

    def __init__(self, manager: Manager) -> None:
        self.manager = manager

    def prepare(self, session: Session) -> None:
        """Nothing: the caller is ready."""

    def watch(self, seconds: float) -> None:
        """Nothing: systemd's watchdog ends an engine that is stopped."""

    def take(self, session: Session) -> bool:
        """Hold until the unit is stopped, and thaw."""
        hold = session.begin_hold()
        run = session.options.run_dir
        if not session.publish(Phase.SNAPSHOT):
            message = f"found no room in {run}, by which `vmsnap thaw` finds the session"
            session.record.fail(Problem(Kind.SNAPSHOT_FAILED, message, Phase.SNAPSHOT))
        if session.may_go_on():  # else it was stopped before it was known to hold
            self.manager.ready(session)
            while not session.waiter.interrupted and not hold.expired:
                hold.wait()
                hold.receive()
            session.record.fail(*hold.problems)
        confirmed = confirmation(run, session.id)  # before the thaw: a later one is too late
        session.record.mark("snapshot-ended")
        session.thaw()
        # A confirmation that is too late does not say whether the snapshot was taken in time.
        failed = {problem.kind for problem in session.record.failures}
        if not session.waiter.interrupted or failed & {Kind.HOLD_EXPIRED, Kind.SNAPSHOT_FAILED}:
            return False
        doubt = "" if confirmed == TAKEN else doubts(confirmed, session.waiter.interrupted)
        if doubt:
            session.record.fail(Problem(Kind.SNAPSHOT_FAILED, doubt, Phase.SNAPSHOT))
        return not doubt

    def dismiss(self, session: Session) -> None:
        forget(session.options.run_dir, session.id)

    def result(self) -> SnapshotResult | None:
        return None


def doubts(confirmed: str, signalled: str) -> str:
    """Why a signal that ends the hold does not mean that the snapshot has been taken, if `vmsnap
    thaw` has not confirmed it. "" if it does, since it is from a plain `systemctl stop`."""
    if confirmed == FAILED:
        return "`vmsnap thaw --failed`: the snapshot has not been taken"
    if signalled != "SIGTERM":
        return f"the session was interrupted by {signalled}"
    try:
        jobs = systemd.jobs()
    except OSError:
        jobs = []
    if ("shutdown.target", "start") in jobs:
        return "the machine is being shut down, which ended the hold"
    if (UNIT, "stop") in jobs:
        return ""
    return "the hold was ended without a confirmation that the snapshot has been taken"


def serve(run_dir: Path) -> Result:
    """The unit's main process: take one session to its end.

    Raises messages.RequestError, lock.SessionInProgressError and lock.RunDirectoryError.
    """
    lock.prepare(run_dir)
    request = take(run_dir)
    session = request.session if request else new_session_id()
    options = request.options(run_dir) if request else Options(run_dir=run_dir)
    descriptor = lock.acquire(run_dir, session)
    waiter = Waiter(STOP_SIGNALS)
    manager = Manager()
    conclude(options.etc, options.run_dir, options.state, descriptor, waiter, manager)
    holding = Session(options, descriptor, waiter, CallerTaker(manager), session=session)
    manager.follow(holding)
    result = holding.take()
    manager.notify(f"STATUS={outcome_line(result)}")
    return result
