# SPDX-License-Identifier: Apache-2.0
"""A session as vmsnap-session.service: starting freezes, running holds, stopping thaws.

This is the unit's main process. It says READY=1 when everything is frozen and then waits for
SIGTERM. If that comes with the word of `vmsnap thaw`, or from a plain `systemctl stop`, the
snapshot has been taken; nothing else says so. Nobody has to come: the guard thaws at the end of the
hold. If this process is killed the guard thaws too, the supervisors run the post-scripts, and
ExecStopPost= (session/recovery.py) does what all of them left undone and gives the session its
result.
"""

from __future__ import annotations

import signal
import time
from pathlib import Path

from vmsnap.errors import Failure, Kind
from vmsnap.result import Result, new_session_id
from vmsnap.service.client import UNIT
from vmsnap.service.messages import take
from vmsnap.service.vouch import FAILED, TAKEN, forget, said
from vmsnap.session import lock
from vmsnap.session.notify import Manager, verdict
from vmsnap.session.options import Options
from vmsnap.session.recovery import conclude
from vmsnap.session.session import Session
from vmsnap.system.process import output_of
from vmsnap.system.waiter import Waiter


class HeldSession(Session):
    """A session whose snapshot is taken by whoever started the unit."""

    held = True
    manager: Manager

    def snapshot(self) -> None:
        """Hold until the unit is stopped, and thaw."""
        self.record.mark("snapshot")
        self.record.phase = "snapshot"
        self.hold_ends = time.monotonic() + self.hold_seconds
        if not self.publish("snapshot"):
            message = (
                f"found no room in {self.options.run}, by which `vmsnap thaw` finds the session"
            )
            self.record.fail(Failure(Kind.SNAPSHOT_FAILED, "snapshot", "", message))
        if self.may_go_on():  # else it was stopped before anybody knew that it holds
            self.manager.ready(self)
            self.hold()
        word = said(self.options.run, self.id)  # before the thaw: a later one is too late
        self.record.mark("snapshot-ended")
        self.thaw()
        # Who comes too late may have a snapshot, but nobody knows whether it was taken in time.
        if self.stopped and not any(
            failure.kind in (Kind.HOLD_EXPIRED, Kind.SNAPSHOT_FAILED)
            for failure in self.record.failures
        ):
            doubt = "" if word == TAKEN else doubts(word, self.waiter.interrupted)
            self.taken = not doubt
            if doubt:
                self.record.fail(Failure(Kind.SNAPSHOT_FAILED, "snapshot", "", doubt))

    def dismiss(self) -> None:
        forget(self.options.run, self.id)

    @property
    def stopped(self) -> bool:
        return bool(self.waiter.interrupted)

    def hold(self) -> None:
        """Wait for the word to thaw. The guard watches the time if anything is frozen; if nothing
        is, the time is watched here, since the applications are held all the same."""
        freezer = self.freezer
        if freezer and freezer.holding:
            while freezer.holding and not self.stopped:
                self.waiter.wait(freezer.fds(), freezer.deadline())
                freezer.hear_or_replace()
            return
        while not self.stopped:
            self.waiter.wait([], self.hold_ends)
            if time.monotonic() >= (self.hold_ends or 0.0):
                message = f"nobody ended the session within {self.hold_seconds:g} s"
                self.record.fail(Failure(Kind.HOLD_EXPIRED, "snapshot", "", message))
                return


def doubts(word: str, signalled: str) -> str:
    """Why a signal that ends the hold does not mean that the snapshot has been taken, if `vmsnap
    thaw` has not said so. "" if it does, since it is from a plain `systemctl stop`."""
    if word == FAILED:
        return "whoever held the session says that the snapshot has not been taken"
    if signalled != "SIGTERM":
        return f"the session was interrupted by {signalled}"
    try:
        listed = output_of(["systemctl", "list-jobs", "--plain", "--no-legend"])[1]
    except OSError:
        listed = ""
    jobs = [line.split()[1:3] for line in listed.splitlines()]
    if ["shutdown.target", "start"] in jobs:
        return "the machine is being shut down, which ended the hold"
    if [UNIT, "stop"] in jobs:
        return ""
    return "the hold was ended without a word that the snapshot has been taken"


def serve(run: Path) -> Result:
    """The unit's main process: take one session to its end.

    Raises request.Unanswerable, lock.InProgress and lock.RunDirectoryUnusable.
    """
    lock.prepare(run)
    request = take(run)
    session = request.session if request else new_session_id()
    options = request.options(run) if request else Options(run=run)
    descriptor = lock.acquire(run, session)
    waiter = Waiter((signal.SIGTERM, signal.SIGINT, signal.SIGHUP))
    manager = Manager()
    conclude(options.run, options.state, descriptor, waiter, manager)
    holding = HeldSession(options, descriptor, waiter, session=session)
    holding.manager = manager
    manager.follow(holding)
    result = holding.take()
    manager.tell(f"STATUS={verdict(result)}")
    return result
