# SPDX-License-Identifier: Apache-2.0
"""Starting processes: programs by spawn, pieces of vmsnap itself by fork. All are started here.

Runs in: engine, supervisor, caller. While frozen: no file, no journal, no import, and so neither
output_of nor written_in_child.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import json
import os
import signal
import sys
import time
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vmsnap.system.waiter import STOP_SIGNALS, Waiter

PR_SET_DUMPABLE, PR_SET_NAME, PR_SET_CHILD_SUBREAPER = 4, 15, 36  # linux/prctl.h
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
    empty: Path | None = None,
    in_our_session: bool = False,
) -> int:
    """Start a program in a session of its own, or in ours, as the leader of a process group. Return
    its pid. Raises OSError.

    It inherits the three descriptors given, those of `inherit` under their own numbers and no
    others; all signals are back to their defaults. The file `empty` is emptied by the new process,
    right before it becomes the program. A script without #! is run by /bin/sh, as a shell does it.
    """
    actions: list[tuple[Any, ...]] = []
    if empty:  # as its stdin, until the next action replaces that
        actions.append((os.POSIX_SPAWN_OPEN, 0, os.fspath(empty), os.O_WRONLY | os.O_TRUNC, 0))
    actions += [(os.POSIX_SPAWN_DUP2, fd, n) for n, fd in enumerate((stdin, stdout, stderr))]
    # Duplicating a descriptor onto itself makes it survive the exec (glibc 2.29).
    actions += [(os.POSIX_SPAWN_DUP2, fd, fd) for fd in inherit]
    session: dict[str, Any] = {"setpgroup": 0} if in_our_session else {"setsid": True}
    uncatchable = {signal.SIGKILL, signal.SIGSTOP}

    def start(command: list[str]) -> int:
        return os.posix_spawn(
            command[0],
            command,
            env,
            file_actions=actions,
            **session,
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
class ExitStatus:
    """How a program ended: by `exit` or by `signal`; or why that is not known: `error`."""

    exit: int | None = None
    signal: int | None = None
    error: str = ""
    timed_out: bool = False
    stopped: bool = False

    @property
    def ok(self) -> bool:
        return self.exit == 0 and not (self.timed_out or self.stopped)

    @property
    def reason(self) -> str:
        if self.timed_out:
            return "did not end in time"
        if self.stopped:
            return "was stopped"
        if self.error:
            return self.error
        if self.signal is not None:
            return f"was killed by {signal.Signals(self.signal).name}"
        return f"ended with exit code {self.exit}"


def not_started(error: OSError) -> ExitStatus:
    return ExitStatus(error=f"could not be started: {error.strerror or error}")


def fork(body: Callable[[], None], name: str, keep: Collection[int]) -> int:
    """Run `body` in a child of a session of its own, with no descriptors but `keep`.

    Closing the others matters above all for our ends of other children's pipes and sockets: their
    end of file is how these learn of our death.
    """
    pid = os.fork()
    if pid:
        return pid
    code = 1
    try:
        # Else a signal would write a byte to whatever gets the number of our waiter's pipe.
        signal.set_wakeup_fd(-1)
        for number in STOP_SIGNALS:
            signal.signal(number, signal.SIG_IGN)
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


def in_child(
    body: Callable[[int], None],
    name: str,
    keep: Collection[int],
    waiter: Waiter,
    seconds: float,
    interruptible: bool = False,
) -> bytes | None:
    """Run `body` in a child and return what it wrote to the descriptor that it is given.

    For calls that may hang: a process that is inside one cannot end. None if the child is not done
    within `seconds`, or when interrupted if `interruptible`; it is then left to itself.
    """
    read, write = os.pipe()
    try:
        pid = fork(lambda: body(write), name, {2, write, *keep})
    except OSError:
        os.close(read)
        raise
    finally:
        os.close(write)
    received = b""
    deadline = time.monotonic() + seconds
    try:
        while time.monotonic() < deadline and not (interruptible and waiter.interrupted):
            if read in waiter.wait([read], deadline):
                data = os.read(read, READ_BYTES)
                if not data:
                    return received
                received += data
        return None
    finally:
        os.close(read)
        with contextlib.suppress(ChildProcessError):
            os.waitpid(pid, os.WNOHANG)


def send_once(pipe: int, document: object) -> None:
    """What a child of in_child has to say, in JSON. Its parent waits no longer then."""
    with contextlib.suppress(BrokenPipeError):  # the parent was killed meanwhile
        os.write(pipe, json.dumps(document).encode())
    os.close(pipe)


def output_of(argv: Sequence[str]) -> tuple[int, str, str]:
    """Run a program of the system to its end; return its exit code, output and error output. Not
    for the administrator's programs, or while anything is frozen. Raises OSError."""
    import subprocess  # late: takes 10 ms

    done = subprocess.run(argv, stdin=subprocess.DEVNULL, capture_output=True, check=False)
    return (
        done.returncode,
        done.stdout.decode("utf-8", "replace"),
        done.stderr.decode("utf-8", "replace"),
    )


def exit_status(dead: os.waitid_result) -> ExitStatus:
    if dead.si_code == os.CLD_EXITED:
        return ExitStatus(exit=dead.si_status)
    return ExitStatus(signal=dead.si_status)


def ended_child(pid: int) -> ExitStatus | None:
    """How a child has ended, once; None while it runs. Raises ChildProcessError."""
    dead = os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG)
    return exit_status(dead) if dead else None


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


def become_subreaper() -> None:
    """Be the parent of all descendants whose parent dies, in init's place (prctl(2))."""
    libc.prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def forbid_core_dumps() -> None:
    """Of this process and its forks, until an exec: a dump onto a frozen filesystem would not end,
    and the process with it. RLIMIT_CORE would do the same to the programs that are run."""
    libc.prctl(PR_SET_DUMPABLE, 0, 0, 0, 0)


KEEP_PATIENCE = 10.0  # seconds for the result to be written
WRITTEN = b"."


def written_in_child(write: Callable[[], None], name: str, waiter: Waiter, lock: int) -> str:
    """Write a file that may lie on a filesystem that would not thaw, or that another program has
    frozen. Return an error message, or ""."""

    def attempt(pipe: int) -> None:
        try:
            write()
            os.write(pipe, WRITTEN)
        except OSError as e:
            os.write(pipe, (e.strerror or str(e)).encode())

    try:
        received = in_child(attempt, name, {lock}, waiter, KEEP_PATIENCE)
    except OSError as e:
        return f"cannot start a process for it: {e.strerror}"
    if received == WRITTEN:
        return ""
    if received is None:
        return "it takes too long"
    return received.decode() or "it was interrupted"
