# SPDX-License-Identifier: Apache-2.0
"""The snapshot command: started while everything is frozen, its output kept in memory meanwhile.

Everything that can be done before the freeze is: the command is looked up, its supervisor forked
and its pipes made, so that inside the write stall there is a message, a spawn and the command
itself.

Runs in: engine, supervisor. While frozen: no file, no journal, no import.
"""

from __future__ import annotations

import os
import select
import shutil
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

from vmsnap.scripts.supervisor import Link, Supervisor, supervise
from vmsnap.system.process import PIPE_READS, READ_BYTES, ExitStatus, launch, launched, not_started
from vmsnap.system.waiter import Waiter

OUTPUT_BYTES = 64 << 20
AFTER_EXPIRY = 10.0  # seconds that the command may go on after the hold has expired
SUPERVISOR_PATIENCE = 10.0  # seconds for a supervisor to send how the command ended


class Stream:
    """One output pipe of the command and what came out of it, up to OUTPUT_BYTES."""

    def __init__(self) -> None:
        self.read, self.write = os.pipe()
        os.set_blocking(self.read, False)
        self.chunks: list[bytes] = []
        self.size = 0
        self.lost = 0
        self.open = True

    def take(self) -> None:
        """Read once. What does not fit is counted."""
        try:
            data = os.read(self.read, READ_BYTES)
        except BlockingIOError:
            return
        self.open = bool(data)
        room = data[: OUTPUT_BYTES - self.size]
        if room:
            self.chunks.append(room)
            self.size += len(room)
        self.lost += len(data) - len(room)


def run(
    supervisor: Supervisor, argv: Sequence[str], env: Mapping[str, str], writers: Sequence[int]
) -> ExitStatus:
    """Run a command to its end; it alone is left to write to the pipes `writers`."""
    try:
        pid, failure = launch(argv, env, (0, writers[0], writers[1]))
    except OSError as e:
        return not_started(e)
    finally:
        for fd in writers:
            os.close(fd)
    ending = supervisor.run(pid, None)
    try:
        return launched(failure, ending)
    except OSError as e:
        return not_started(e)


class Command:
    """The engine's side. `ending` is set once the command has ended."""

    def __init__(
        self, path: str, argv: Sequence[str], run_dir: Path, grace: float, lock: int
    ) -> None:
        self.argv = argv
        self._grace = grace
        self.ending: ExitStatus | None = None
        self.seconds = 0.0
        self.streams = (Stream(), Stream())
        self._began = 0.0
        self._stop_at: float | None = None
        writers = [stream.write for stream in self.streams]

        def serve(supervisor: Supervisor) -> None:
            order = supervisor.order()
            if order is None:
                return
            environment = {**os.environ, **order["env"]}
            ending = run(supervisor, [path, *argv[1:]], environment, writers)
            # At once: everything is frozen until this is received.
            supervisor.send(**asdict(ending))
            supervisor.forget()
            if not ending.ok:
                supervisor.end_everything(grace)
            supervisor.order()

        self._link: Link = supervise(serve, "vmsnap-command", run_dir, keep=[lock, *writers])
        for fd in writers:
            os.close(fd)

    def watch(self, seconds: float) -> None:
        self._link.watch(seconds)

    def start(self, env: Mapping[str, str]) -> None:
        """`env` is added to the environment of this process."""
        self._began = time.monotonic()
        self._link.send(env=dict(env))

    def stop(self) -> None:
        """Ask for its end, once."""
        if self._stop_at is None:
            self._stop_at = time.monotonic() + SUPERVISOR_PATIENCE
            self._link.send(stop=True)

    def fds(self) -> list[int]:
        return [self._link.fileno(), *(s.read for s in self.streams if s.open)]

    def deadline(self) -> float | None:
        """When to stop waiting for the end of a command that was stopped."""
        return self._stop_at

    def receive(self, ready: set[int]) -> None:
        for stream in self.streams:
            if stream.read in ready:
                stream.take()
        given_up = self._stop_at is not None and time.monotonic() >= self._stop_at
        if self._link.fileno() in ready or given_up:
            message = None if given_up else self._link.receive()
            self.ending = (
                ExitStatus(**message)
                if message
                else ExitStatus(error="cannot be watched: its supervisor was killed")
            )
            self.seconds = time.monotonic() - self._began

    def collect(self) -> None:
        """Take what the pipes still hold after the end."""
        for stream in self.streams:
            for _ in range(PIPE_READS):
                if stream.open:
                    stream.take()

    @property
    def lost(self) -> int:
        """Bytes of stdout that were too many to keep."""
        return self.streams[0].lost

    def pass_on(self, to_stderr: bool) -> OSError | None:
        """Write the output where the caller expects it, unchanged. Return why that of stdout could
        not be written, unless just its reader has gone."""
        lost: OSError | None = None
        for stream, fd in zip(self.streams, (2 if to_stderr else 1, 2)):
            try:
                for chunk in stream.chunks:
                    write_all(fd, chunk)
            except BrokenPipeError:
                pass
            except OSError as e:
                lost = lost or (e if stream is self.streams[0] else None)
        return lost

    def finish(self, waiter: Waiter) -> None:
        self._link.finish(waiter, self._grace + SUPERVISOR_PATIENCE)


def write_all(fd: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        try:
            view = view[os.write(fd, view) :]
        except BlockingIOError:  # the caller gave us a non-blocking pipe
            select.select([], [fd], [])


def find(command: str) -> str | None:
    """Where the command is, as a shell would find it."""
    found = shutil.which(command)
    return None if found is None else str(Path(found).absolute())
