# SPDX-License-Identifier: Apache-2.0
"""`vmsnap run`: a session around a command that takes the snapshot.

Runs in: engine. While frozen: no file but in the run directory, no journal, no import.
"""

from __future__ import annotations

import time

from vmsnap.errors import Kind, Problem
from vmsnap.result import Phase, SnapshotResult
from vmsnap.scripts.snapshot_command import AFTER_EXPIRY, OUTPUT_BYTES, Command, find
from vmsnap.session.hold import Hold, HoldEnd
from vmsnap.session.session import Session


class CommandTaker:
    """Has `options.command` take the snapshot."""

    held = False

    def __init__(self) -> None:
        self.command: Command | None = None

    def prepare(self, session: Session) -> None:
        argv = session.options.command
        path = find(argv[0])
        if path is None:
            message = f"found no program {argv[0]!r}, expected one that can be run"
            problem = Problem(Kind.SNAPSHOT_FAILED, message, Phase.CHECK, argv[0])
            session.record.fail(problem)
            return
        grace = session.found.settings.kill_grace
        self.command = Command(path, argv, session.options.run_dir, grace, session.lock)

    def watch(self, seconds: float) -> None:
        if self.command:
            self.command.watch(seconds)

    def take(self, session: Session) -> bool:
        """Run the command, and thaw as soon as it has ended."""
        command = self.command
        assert command
        env = {
            "VMSNAP_SESSION": session.id,
            "VMSNAP_CONSISTENCY": session.level.word,
            "TMPDIR": str(session.temporary),  # /tmp may be frozen
        }
        hold = session.begin_hold()
        command.start(env)
        session.publish(Phase.SNAPSHOT)
        end = self.wait(session, command, hold)
        session.record.mark("snapshot-ended")
        session.thaw()
        command.collect()
        assert command.ending
        if end is HoldEnd.EXPIRED:
            session.record.fail(*hold.problems)
        if end is HoldEnd.INTERRUPTED:
            session.may_go_on()
        elif not command.ending.ok:
            self.fail(session, command.ending.reason)
        elif command.lost:
            self.fail(
                session,
                f"wrote {command.lost} bytes more than the {OUTPUT_BYTES >> 20} MiB that are kept "
                "in memory while frozen, so its output is not whole",
            )
        return command.ending.ok

    def wait(self, session: Session, command: Command, hold: Hold) -> HoldEnd:
        """Wait until the command has ended, which need not be the end of the hold.

        After an expired hold it has a little longer to end before it is stopped. An interruption
        thaws at once and stops the command.
        """
        end = HoldEnd.TAKEN
        stop_at: float | None = None
        while command.ending is None:
            ready = hold.wait(command.fds(), command.deadline() or stop_at)
            command.receive(ready)
            hold.receive()
            if command.ending is not None:
                break
            if session.waiter.interrupted:
                # Also if it then ends well: what it did since the thaw is no snapshot of anything.
                end = HoldEnd.INTERRUPTED
                session.thaw()
                command.stop()
            elif stop_at is not None:
                if time.monotonic() >= stop_at:
                    command.stop()
            elif hold.expired:
                end = HoldEnd.EXPIRED
                stop_at = time.monotonic() + AFTER_EXPIRY
        return end

    def fail(self, session: Session, message: str) -> None:
        name = session.options.command[0]
        problem = Problem(Kind.SNAPSHOT_FAILED, f"{name} {message}", Phase.SNAPSHOT, name)
        session.record.fail(problem)

    def dismiss(self, session: Session) -> None:
        if self.command:
            self.command.finish(session.waiter)

    def result(self) -> SnapshotResult | None:
        command = self.command
        if command is None or command.ending is None:
            return None
        return SnapshotResult(tuple(command.argv), command.ending.exit, round(command.seconds, 6))
