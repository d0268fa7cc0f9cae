# SPDX-License-Identifier: Apache-2.0
"""A session as vmsnap-session.service: starting freezes, running holds, stopping thaws.

This is the unit's main process. It says READY=1 when everything is frozen and then waits for
SIGTERM, which comes from `vmsnap thaw` or `systemctl stop`: whoever stops the unit says that the
snapshot has been taken. Nobody has to: the guard thaws at the end of the hold. If this process is
killed the guard thaws too, the supervisors run the post-scripts, and ExecStopPost= (aftermath.py)
does what all of them left undone and gives the session its result.
"""

from __future__ import annotations

import signal
import time
from pathlib import Path

from vmsnap import lock
from vmsnap.aftermath import conclude
from vmsnap.errors import Failure, Kind
from vmsnap.events import Waiter
from vmsnap.notify import Manager, verdict
from vmsnap.process import output_of
from vmsnap.request import disowned, take
from vmsnap.result import Result, new_session_id
from vmsnap.session import Options, Session


class HeldSession(Session):
    """A session whose snapshot is taken by whoever started the unit."""

    held = True
    manager: Manager

    def snapshot(self) -> None:
        """Hold until the unit is stopped, and thaw."""
        self.record.mark("snapshot")
        self.record.phase = "snapshot"
        self.hold_ends = time.monotonic() + self.hold_seconds
        self.publish("snapshot")
        if self.may_go_on():  # else it was stopped before anybody knew that it holds
            self.manager.ready(self)
            self.hold()
        self.record.mark("snapshot-ended")
        self.thaw()
        # Who comes too late may have a snapshot, but nobody knows whether it was taken in time.
        self.taken = self.stopped and not any(
            failure.kind in (Kind.HOLD_EXPIRED, Kind.SNAPSHOT_FAILED)
            for failure in self.record.failures
        )
        message = ""
        if disowned(self.options.run, self.id):
            message = "whoever held the session says that the snapshot has not been taken"
        elif self.taken and machine_stops():
            message = "the machine is being shut down, which ended the hold"
        if message:
            self.taken = False
            self.record.fail(Failure(Kind.SNAPSHOT_FAILED, "snapshot", "", message))

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


def machine_stops() -> bool:
    """Whether systemd is stopping all units, and not somebody this one."""
    try:
        return output_of(["systemctl", "is-system-running"])[1].strip() == "stopping"
    except OSError:
        return False


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
    conclude(options.run, options.state, descriptor, waiter)
    holding = HeldSession(options, descriptor, waiter, session=session)
    holding.manager = Manager()
    holding.manager.follow(holding)
    result = holding.take()
    holding.manager.tell(f"STATUS={verdict(result)}")
    return result
