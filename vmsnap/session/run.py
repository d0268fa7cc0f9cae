# SPDX-License-Identifier: Apache-2.0
"""`vmsnap run`: a session around a command that takes the snapshot.

The hold lasts until the command has ended, with one eye on the guard, the clock and signals.
"""

from __future__ import annotations

import time

from vmsnap.errors import Failure, Kind
from vmsnap.result import SnapshotResult
from vmsnap.scripts.snapshot_command import AFTER_EXPIRY, OUTPUT_BYTES, Command, find
from vmsnap.session.session import Session


class Run(Session):
    """A session around `options.command`."""

    command: Command | None = None

    def prepare(self) -> None:
        name = self.options.command[0]
        path = find(name)
        if path is None:
            message = f"found no program {name!r}, expected one that can be run"
            self.record.fail(Failure(Kind.SNAPSHOT_FAILED, "check", name, message))
            return
        grace = self.found.settings.kill_grace
        self.command = Command(path, self.options.command, self.options.run, grace, self.lock)

    def snapshot(self) -> None:
        """Run the command, and thaw as soon as it has ended."""
        command = self.command
        assert command
        self.record.mark("snapshot")
        self.record.phase = "snapshot"
        env = {
            "VMSNAP_SESSION": self.id,
            "VMSNAP_CONSISTENCY": self.level.word,
            "TMPDIR": str(self.temporary),  # /tmp may be frozen
        }
        command.start(self.hold_seconds, env)
        self.hold_ends = time.monotonic() + self.hold_seconds
        self.publish("snapshot")
        ended = self.hold(command)
        self.record.mark("snapshot-ended")
        self.thaw()
        command.collect()
        assert command.ending
        self.taken = command.ending.ok
        if ended == "expired":
            message = f"found the hold still going on after {self.hold_seconds:g} s"
            self.record.fail(Failure(Kind.HOLD_EXPIRED, "snapshot", "", message))
        if ended == "interrupted":
            self.may_go_on()
        elif not command.ending.ok:
            self.failed(command.ending.words)
        elif command.lost:
            self.failed(
                f"wrote {command.lost} bytes more than the {OUTPUT_BYTES >> 20} MiB that are kept "
                "in memory while frozen, so its output is not whole"
            )

    def hold(self, command: Command) -> str:
        """Wait until the command has ended. Return "expired" if that took longer than the hold with
        nothing frozen, "interrupted" if a signal came before, else "".

        If filesystems are frozen the guard thaws them at its own deadline; if none are, the same
        time is watched here, since the applications are held all the same. After it the command has
        a little longer to end before it is stopped. An interruption thaws at once and stops the
        command.
        """
        freezer, expires = self.freezer, self.hold_ends or 0.0
        frozen = freezer is not None and freezer.holding
        stop_at: float | None = None
        interrupted = False
        while command.ending is None:
            holding = freezer is not None and freezer.holding
            fds = [*command.fds(), *(freezer.fds() if freezer else ())]
            deadline = freezer.deadline() if freezer and holding else expires
            ready = self.waiter.wait(fds, command.deadline() or stop_at or deadline)
            command.hear(ready)
            if freezer:
                freezer.hear_or_replace()
            if command.ending is not None:
                break
            if self.waiter.interrupted:
                # Also if it then ends well: what it did since the thaw is no snapshot of anything.
                interrupted = True
                self.thaw()
                command.stop()
            elif stop_at is not None:
                if time.monotonic() >= stop_at:
                    command.stop()
            elif not (freezer and freezer.holding) if frozen else time.monotonic() >= expires:
                stop_at = time.monotonic() + AFTER_EXPIRY
        if interrupted:
            return "interrupted"
        return "expired" if stop_at is not None and not frozen else ""

    def failed(self, words: str) -> None:
        name = self.options.command[0]
        self.record.fail(Failure(Kind.SNAPSHOT_FAILED, "snapshot", name, f"{name} {words}"))

    def dismiss(self) -> None:
        if self.command:
            self.command.finish(self.waiter)

    def snapshot_result(self) -> SnapshotResult | None:
        command = self.command
        if command is None or command.ending is None:
            return None
        return SnapshotResult(tuple(command.argv), command.ending.exit, round(command.seconds, 6))
