# SPDX-License-Identifier: Apache-2.0
"""Starting processes, and ending everything that they started. Nothing else here starts one.

Scripts and the snapshot command do not run below the engine itself but below a supervisor: a fork
of the engine that is the subreaper (PR_SET_CHILD_SUBREAPER, prctl(2)) of what it runs.
Descendants that changed session or lost their parent are still its descendants, so ending them
needs no guessing, and what one app's script left behind is never taken for another's. The engine
and a supervisor talk in JSON messages over a socket. If the engine dies, the supervisor reads end
of file, thaws what may be frozen in case the guard died too, and ends what it runs; if the
supervisor dies, the engine reads end of file.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import json
import os
import signal
import socket
import sys
import time
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vmsnap.events import Waiter
from vmsnap.thaw import ListUnreadable, thaw_listed

PR_SET_NAME, PR_SET_CHILD_SUBREAPER = 15, 36  # linux/prctl.h
KILL_PATIENCE = (
    5.0  # seconds for SIGKILL to take effect; a process that waits for a disk has no ears
)
MESSAGE_BYTES = 1 << 17
READ_BYTES = 1 << 16
PIPE_READS = 4  # more than a pipe holds: the rest is from a child that writes without end

libc = ctypes.CDLL(None, use_errno=True)


def spawn(
    argv: Sequence[str],
    env: Mapping[str, str],
    *,
    stdin: int,
    stdout: int,
    stderr: int,
    inherit: Iterable[int] = (),
) -> int:
    """Start a program in a session of its own and return its pid. Raises OSError.

    It inherits the three descriptors given, those of `inherit` under their own numbers and no
    others; all signals are back to their defaults. A script without #! is run by /bin/sh, as a
    shell does it.
    """
    actions = [(os.POSIX_SPAWN_DUP2, fd, n) for n, fd in enumerate((stdin, stdout, stderr))]
    # Duplicating a descriptor onto itself makes it survive the exec (glibc 2.29).
    actions += [(os.POSIX_SPAWN_DUP2, fd, fd) for fd in inherit]
    uncatchable = {signal.SIGKILL, signal.SIGSTOP}

    def start(command: list[str]) -> int:
        return os.posix_spawn(
            command[0],
            command,
            env,
            file_actions=actions,
            setsid=True,
            setsigmask=(),
            setsigdef=signal.valid_signals() - uncatchable,
        )

    try:
        return start(list(argv))
    except OSError as e:
        if e.errno != errno.ENOEXEC:
            raise
    return start(["/bin/sh", *argv])


@dataclass(frozen=True)
class Ending:
    """How a program ended: by `exit` or by `signal`; or, in words, why nobody knows: `error`."""

    exit: int | None = None
    signal: int | None = None
    error: str = ""
    timed_out: bool = False
    stopped: bool = False

    @property
    def ok(self) -> bool:
        return self.exit == 0 and not (self.timed_out or self.stopped)

    @property
    def words(self) -> str:
        if self.timed_out:
            return "did not end in time"
        if self.stopped:
            return "was stopped"
        if self.error:
            return self.error
        if self.signal is not None:
            return f"was killed by {signal.Signals(self.signal).name}"
        return f"ended with exit code {self.exit}"


class Link:
    """The engine's side of a supervisor: send orders, hear answers. Has a fileno to wait for."""

    def __init__(self, pid: int, channel: socket.socket) -> None:
        self.pid = pid
        self._channel = channel

    def fileno(self) -> int:
        return self._channel.fileno()

    def send(self, **message: object) -> None:
        with contextlib.suppress(OSError):  # it died: hear() says so
            self._channel.send(json.dumps(message).encode())

    def hear(self) -> dict[str, Any] | None:
        """The next message; None if the supervisor is gone."""
        return receive(self._channel)

    def alive(self) -> bool:
        try:
            return bool(self._channel.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT))
        except BlockingIOError:
            return True
        except OSError:
            return False

    def finish(self, waiter: Waiter, patience: float) -> None:
        """Say that no more orders come, and let the supervisor clean up and end."""
        self.send(finish=True)
        deadline = time.monotonic() + patience
        while waiter.wait([self.fileno()], deadline) or time.monotonic() < deadline:
            if self.hear() is None:
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
    body: Callable[[Supervisor], None], name: str, run: Path, keep: Iterable[int]
) -> Link:
    """Fork a supervisor that runs `body` and keeps the descriptors `keep`. Return our side."""
    here, there = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    keep = {0, 1, 2, there.fileno(), *keep}
    pid = fork(lambda: body(Supervisor(there, run)), name, keep)
    there.close()
    return Link(pid, here)


def fork(body: Callable[[], None], name: str, keep: Collection[int]) -> int:
    """Run `body` in a child of a session of its own, with no descriptors but `keep`.

    Closing the others matters above all for our ends of other children's pipes and sockets: their
    end of file is how these hear of our death.
    """
    pid = os.fork()
    if pid:
        return pid
    code = 1
    try:
        os.setsid()
        for word in os.listdir("/proc/self/fd"):
            if int(word) not in keep:
                with contextlib.suppress(OSError):
                    os.close(int(word))
        libc.prctl(PR_SET_NAME, name.encode()[:15], 0, 0, 0)
        body()
        code = 0
    except BaseException:
        sys.excepthook(*sys.exc_info())
    finally:
        os._exit(code)


class Supervisor:
    """Inside the fork: runs programs one after the other and owns everything below itself."""

    def __init__(self, channel: socket.socket, run: Path) -> None:
        self.channel = channel
        self._run_directory = run
        self.alone = False  # the engine is gone
        self.discard: set[int] = set()  # pipes that outlived their program: read, so nobody blocks
        self._statuses: dict[int, int] = {}
        libc.prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
        # What an administrator's program allocates must not be spared by the kernel on our account.
        with contextlib.suppress(OSError):
            Path("/proc/self/oom_score_adj").write_text("0")
        self.waiter = Waiter(stop_signals=())
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            signal.signal(number, signal.SIG_IGN)  # the engine decides; a terminal reaches only it

    def say(self, **message: object) -> None:
        with contextlib.suppress(OSError):
            self.channel.send(json.dumps(message).encode())

    def order(self) -> dict[str, Any] | None:
        """The engine's next order; None when no more come, with `alone` set if the engine died
        before it said so. Children are reaped meanwhile."""
        while not self.alone:
            ready = self.waiter.wait([self.channel.fileno(), *self.discard])
            self.reap()
            for fd in ready & self.discard:
                if not drain(fd, lambda _: None, reads=1):
                    self.discard.remove(fd)
                    os.close(fd)
            if self.channel.fileno() in ready:
                message = receive(self.channel)
                if message is None:
                    self.outlive_engine()
                elif "finish" in message:
                    return None
                elif "stop" not in message:  # a stop that came after the end
                    return message
        return None

    def outlive_engine(self) -> None:
        """The engine is dead. The guard thaws then; should it have been killed too, this does."""
        self.alone = True
        with contextlib.suppress(OSError, ListUnreadable):
            thaw_listed(self._run_directory, lambda _: None)

    def reap(self) -> None:
        with contextlib.suppress(ChildProcessError):
            while True:
                pid, status = os.waitpid(-1, os.WNOHANG)
                if pid == 0:
                    return
                self._statuses[pid] = status

    def run(
        self,
        start: Callable[[], int],
        deadline: float | None,
        output: int | None = None,
        take: Callable[[bytes], None] = lambda _: None,
        survive: bool = False,
    ) -> Ending:
        """Run one program to its end, the deadline (monotonic) or the engine's order to stop.

        The death of the engine is such an order too, unless the program is to `survive` it.
        Whatever it writes to the pipe `output` is given to `take` as it comes. Its end counts, not
        the pipe's: a child that keeps the pipe open delays nothing.
        """
        self._statuses.clear()
        try:
            pid = start()
        except OSError as e:
            return Ending(error=f"could not be started: {e.strerror or e}")
        sources = [self.channel.fileno()] + ([] if output is None else [output])
        while True:
            if self.alone and self.channel.fileno() in sources:
                sources.remove(self.channel.fileno())
            ready = self.waiter.wait(sources, deadline)
            if output in ready and output is not None and not drain(output, take, reads=1):
                sources.remove(output)
            self.reap()
            if pid in self._statuses:
                if output is not None:
                    drain(output, take, reads=PIPE_READS)
                return ending_of(self._statuses[pid])
            if self.channel.fileno() in ready:
                if receive(self.channel) is None:
                    self.outlive_engine()
                if not (self.alone and survive):
                    return Ending(stopped=True)
            if deadline is not None and time.monotonic() >= deadline:
                return Ending(timed_out=True)

    def end_everything(self, grace: float) -> None:
        """SIGTERM to all descendants, SIGKILL after `grace` seconds to those that are left."""
        for number, patience in ((signal.SIGTERM, grace), (signal.SIGKILL, KILL_PATIENCE)):
            deadline = time.monotonic() + patience
            signalled: set[int] = set()
            while left := descendants(os.getpid()):
                for pid in left - signalled:
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(pid, number)
                        if number == signal.SIGTERM:
                            os.kill(pid, signal.SIGCONT)  # a stopped process hears nothing else
                signalled |= left
                if time.monotonic() >= deadline:
                    break
                self.waiter.wait([], deadline)
                self.reap()
            self.reap()


def ending_of(status: int) -> Ending:
    if os.WIFSIGNALED(status):
        return Ending(signal=os.WTERMSIG(status))
    return Ending(exit=os.WEXITSTATUS(status))


def drain(fd: int, take: Callable[[bytes], None], reads: int) -> bool:
    """Pass on what a non-blocking pipe holds now. False once it has ended."""
    for _ in range(reads):
        try:
            data = os.read(fd, READ_BYTES)
        except BlockingIOError:
            return True
        if not data:
            return False
        take(data)
    return True


def descendants(ancestor: int) -> set[int]:
    """All living processes below `ancestor`. Zombies are dead."""
    children: dict[int, list[int]] = {}
    for name in os.listdir("/proc"):
        if name.isdigit():
            with contextlib.suppress(OSError):
                stat = Path("/proc", name, "stat").read_bytes()
                # proc(5): the name in parentheses may hold anything, also parentheses.
                state, parent = stat[stat.rindex(b")") + 2 :].split(b" ", 2)[:2]
                if state not in (b"Z", b"X"):
                    children.setdefault(int(parent), []).append(int(name))
    found: set[int] = set()
    queue = [ancestor]
    while queue:
        for child in children.get(queue.pop(), ()):
            found.add(child)
            queue.append(child)
    return found
