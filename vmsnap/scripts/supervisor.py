# SPDX-License-Identifier: Apache-2.0
"""Supervisors: forks of the engine that own everything which a script or the command starts.

A supervisor is the subreaper (PR_SET_CHILD_SUBREAPER, prctl(2)) of what it runs. Descendants that
changed session or lost their parent are still its descendants, so ending them needs no guessing,
and what one app's script left behind is never taken for another's.

It talks with the engine in JSON messages over a socket. If the engine dies, the supervisor reads
end of file, makes sure that everything is thawed, and ends what it runs; if the supervisor dies,
the engine reads end of file.

Runs in: engine (Link), supervisor. While frozen: no file but /proc, the list in the run directory
and the ways to what it has to thaw; no journal, no import.
"""

from __future__ import annotations

import collections
import contextlib
import json
import os
import signal
import socket
import time
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

from vmsnap.freeze.frozen_list import go_on, thaw_after_death
from vmsnap.system.proc import descendants, has_ended, started_by
from vmsnap.system.process import (
    PIPE_READS,
    ExitStatus,
    become_subreaper,
    drain,
    exit_status,
    fork,
)
from vmsnap.system.waiter import STOP_SIGNALS, Waiter

# Seconds for SIGKILL to take effect: not in uninterruptible sleep (D state), waiting for a disk.
KILL_PATIENCE = 5.0
AGAIN = 0.2  # seconds until a thaw is tried again
MESSAGE_BYTES = 1 << 17


class Link:
    """The engine's side of a supervisor: send orders, receive answers. Has a fileno to wait for."""

    def __init__(self, pid: int, channel: socket.socket) -> None:
        self.pid = pid
        self._channel = channel

    def fileno(self) -> int:
        return self._channel.fileno()

    def send(self, **message: object) -> None:
        with contextlib.suppress(ConnectionError):  # it died: receive() says so
            self._channel.send(json.dumps(message).encode())

    def watch(self, seconds: float) -> None:
        """Set the fallback watchdog: after this time the supervisor thaws what is still frozen, for
        when engine and guard are both stopped. The last one set counts."""
        self.send(watch=seconds)

    def receive(self) -> dict[str, Any] | None:
        """The next message, to be called when there is one; None if the supervisor is gone."""
        return receive(self._channel)

    def orphan(self) -> int:
        """After its death: the pid of the program it ran; 0 if there was none."""
        with pidfds([self.pid]) as ends:  # its socket was closed before its children became ours
            for end in ends:
                has_ended(end, KILL_PATIENCE)
        return started_by(self.pid)

    def finish(self, waiter: Waiter, patience: float) -> None:
        """Say that no more orders come, and let the supervisor clean up and end."""
        self.send(finish=True)
        deadline = time.monotonic() + patience
        while time.monotonic() < deadline:
            if self.fileno() in waiter.wait([self.fileno()], deadline) and self.receive() is None:
                break
        self._channel.close()
        with contextlib.suppress(ChildProcessError):
            os.waitpid(self.pid, os.WNOHANG)


def receive(channel: socket.socket) -> dict[str, Any] | None:
    try:
        data = channel.recv(MESSAGE_BYTES)
    except OSError:
        return None
    message: dict[str, Any] | None = json.loads(data) if data else None
    return message


def supervise(
    body: Callable[[Supervisor], None], name: str, run_dir: Path, keep: Iterable[int]
) -> Link:
    """Fork a supervisor that runs `body` and keeps the descriptors `keep`. Return our side."""
    here, there = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    keep = {0, 1, 2, there.fileno(), *keep}

    def serve() -> None:
        supervisor = Supervisor(there, run_dir)
        body(supervisor)
        while supervisor.unthawed:
            supervisor.wait(None)
        for wait in supervisor.thaws:
            wait()

    pid = fork(serve, name, keep)
    there.close()
    return Link(pid, here)


class Supervisor:
    """Inside the fork: runs programs one after the other and owns everything below itself."""

    def __init__(self, channel: socket.socket, run_dir: Path) -> None:
        self.channel = channel
        self.alone = False  # the engine is dead
        self.discard: set[int] = set()  # pipes that outlived their program: read, so nobody blocks
        self.thawed_by: float | None = None  # monotonic; see Link.watch
        self.unthawed = False  # by us, who should have
        self.thaws: list[Callable[[], object]] = []  # each waits for one that was begun here
        self._run_directory = run_dir
        self._running = 0  # the pid of what run() has started to wait for
        self._ended: ExitStatus | None = None
        self._orders: list[dict[str, Any]] = []
        become_subreaper()
        # What an administrator's program allocates must not be spared by the kernel on our account.
        with contextlib.suppress(OSError):
            Path("/proc/self/oom_score_adj").write_text("0")
        self.waiter = Waiter(stop_signals=())
        for number in STOP_SIGNALS:
            signal.signal(number, signal.SIG_IGN)  # the engine decides; a terminal reaches only it

    def send(self, **message: object) -> None:
        with contextlib.suppress(OSError):
            self.channel.send(json.dumps(message).encode())

    def order(self) -> dict[str, Any] | None:
        """The engine's next order; None when no more come, with `alone` set if the engine died
        before it said so. Children are reaped meanwhile."""
        while not self.alone:
            if self._orders:
                order = self._orders.pop(0)
                if "finish" in order:
                    return None
                if "stop" not in order:  # a stop that came after the end
                    return order
            else:
                self.wait(None)
        return None

    def wait(self, deadline: float | None, *sources: int) -> set[int]:
        """Sleep; then reap, receive orders, and drain discarded pipes."""
        fds = [*sources, *self.discard]
        if not self.alone:
            fds.append(self.channel.fileno())
        times = [at for at in (deadline, self.thawed_by) if at is not None]
        ready = self.waiter.wait(fds, min(times, default=None))
        self._reap()
        for fd in ready & self.discard:
            if not drain(fd, lambda _: None, reads=1):
                self.discard.remove(fd)
                os.close(fd)
        if self.channel.fileno() in ready:
            message = receive(self.channel)
            if message is None:
                self.alone = True
                self._thaw(thaw_after_death(self._run_directory, end_patience=0.0))
            elif "watch" in message:
                self.thawed_by = time.monotonic() + message["watch"]
            else:
                self._orders.append(message)
        if self.thawed_by is not None and time.monotonic() >= self.thawed_by:
            self.thawed_by = None
            run_dir = self._run_directory
            self._thaw(thaw_after_death(run_dir, patience=0.0, end_patience=0.0))
        return ready

    def _thaw(self, thaw: Iterator[bool]) -> None:
        """Thaw what the guard does not. What can only be thawed when a FIFREEZE has returned keeps
        no application quiesced. A shortage of descriptors, for one, is waited for."""
        try:
            next(thaw, None)
        except OSError:
            self.thawed_by = time.monotonic() + AGAIN
            self.unthawed = True
            return
        self.unthawed = False
        try:
            self.thaws.append(go_on(thaw).join)
        except RuntimeError:  # no more threads: in the end
            self.thaws.append(partial(collections.deque, thaw, 0))

    def _reap(self) -> None:
        """All but what run() waited for: if we are killed before its end is on record, the engine,
        who is its parent then, has to see how it ended."""
        with contextlib.suppress(ChildProcessError):
            while dead := os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT):
                if dead.si_pid == self._running:
                    self._ended = exit_status(dead)
                    return
                os.waitpid(dead.si_pid, 0)

    def forget(self) -> None:
        """What run() waited for is on record."""
        self._running = 0
        self._reap()

    def run(
        self,
        pid: int,
        deadline: float | None,
        output: int | None = None,
        take: Callable[[bytes], None] = lambda _: None,
        survive: bool = False,
    ) -> ExitStatus:
        """Wait for the end of a program, the deadline (monotonic) or the engine's order to stop.

        The death of the engine is such an order too, unless the program is to `survive` it.
        Whatever it writes to the pipe `output` is given to `take` as it comes. Its end counts, not
        the pipe's: a child that keeps the pipe open delays nothing. forget() it then.
        """
        self._running, self._ended = pid, None
        sources = () if output is None else (output,)
        while True:
            ready = self.wait(deadline, *sources)
            if output in sources and output in ready and not drain(output, take, reads=1):
                sources = ()
            if self._ended:
                if output is not None:
                    drain(output, take, reads=PIPE_READS)
                return self._ended
            if self._stopped(survive):
                return ExitStatus(stopped=True)
            if deadline is not None and time.monotonic() >= deadline:
                return ExitStatus(timed_out=True)

    def pause(self, seconds: float, survive: bool = False) -> bool:
        """Wait; False if what runs is to stop meanwhile (see run)."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            if self._stopped(survive):
                return False
            self.wait(deadline)
        return True

    def _stopped(self, survive: bool) -> bool:
        ordered = any("stop" in order for order in self._orders)
        self._orders = [order for order in self._orders if "stop" not in order]
        return ordered or (self.alone and not survive)

    def end_everything(
        self,
        grace: float,
        spare: Iterable[int] = (),
        output: int | None = None,
        take: Callable[[bytes], None] = lambda _: None,
    ) -> None:
        """End all descendants but `spare`, as end() does."""
        spared = set(spare)

        def left() -> set[int]:
            return descendants(os.getpid()) - spared - descendants(*spared)

        self.end(left, grace, output, take)

    def end(
        self,
        left: Callable[[], set[int]],
        grace: float,
        output: int | None = None,
        take: Callable[[bytes], None] = lambda _: None,
    ) -> None:
        """SIGTERM to the processes that are `left`, SIGKILL after `grace` seconds. Their last
        output is still read."""
        sources = () if output is None else (output,)
        for number, patience in ((signal.SIGTERM, grace), (signal.SIGKILL, KILL_PATIENCE)):
            deadline = time.monotonic() + patience
            signalled: set[int] = set()
            while pids := left():
                for pid in pids - signalled:
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(pid, number)
                        if number == signal.SIGTERM:
                            os.kill(pid, signal.SIGCONT)  # a stopped process gets nothing else
                signalled |= pids
                if time.monotonic() >= deadline:
                    break
                with pidfds(pids) as ends:  # of some we are not the parent, who gets SIGCHLD
                    ready = self.wait(deadline, *sources, *ends)
                if output in ready and output is not None:
                    sources = sources if drain(output, take, reads=1) else ()
            self._reap()
        if output is not None:
            drain(output, take, reads=PIPE_READS)

    def outlast(self, left: Callable[[], set[int]], deadline: float) -> bool:
        """Wait for the end of processes that need not be ours. False at the deadline."""
        while pids := left():
            if time.monotonic() >= deadline:
                return False
            with pidfds(pids) as ends:
                self.wait(deadline, *ends)
        return True

    def living(self) -> set[int]:
        """All descendants; without the cost of looking if there are no children at all."""
        try:
            os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
        except ChildProcessError:
            return set()
        return descendants(os.getpid())


@contextlib.contextmanager
def pidfds(pids: Iterable[int]) -> Iterator[list[int]]:
    """One for each process that is still there, as far as descriptors are."""
    opened: list[int] = []
    try:
        with contextlib.suppress(OSError):
            for pid in pids:
                with contextlib.suppress(ProcessLookupError):
                    opened.append(os.pidfd_open(pid))
        yield opened
    finally:
        for fd in opened:
            os.close(fd)
