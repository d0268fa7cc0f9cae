# SPDX-License-Identifier: Apache-2.0
"""Starting processes: the administrator's programs by launch, our own by spawn, pieces of vmsnap
itself by fork. All are started here.

Runs in: engine, supervisor, caller. While frozen: no file, no journal, no import, and so no
output_of.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import json
import os
import signal
import sys
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import NoReturn

from vmsnap.system.waiter import STOP_SIGNALS

PR_SET_DUMPABLE, PR_SET_NAME, PR_SET_CHILD_SUBREAPER = 4, 15, 36  # linux/prctl.h
CATCHABLE = signal.valid_signals() - {signal.SIGKILL, signal.SIGSTOP}
SHORTAGE = (errno.EAGAIN, errno.ENOMEM, errno.EMFILE, errno.ENFILE)  # that may soon be over
NOT_FOUND = 127  # the exit code of a shell whose program cannot be started
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
    """Start a program of ours in a session of its own, and return its pid when it has begun. Raises
    OSError.

    It inherits the three descriptors given, those of `inherit` under their own numbers and no
    others; all signals are back to their defaults.
    """
    actions = [(os.POSIX_SPAWN_DUP2, fd, n) for n, fd in enumerate((stdin, stdout, stderr))]
    # Duplicating a descriptor onto itself makes it survive the exec (glibc 2.29).
    actions += [(os.POSIX_SPAWN_DUP2, fd, fd) for fd in inherit]
    return os.posix_spawn(
        argv[0],
        list(argv),
        env,
        file_actions=actions,
        setsid=True,
        setsigmask=(),
        setsigdef=CATCHABLE,
    )


# --- the administrator's programs ---------------------------------------------------------------


def launch(
    argv: Sequence[str],
    env: Mapping[str, str],
    streams: tuple[int, int, int],
    first: Callable[[], None] = lambda: None,
    in_our_session: bool = False,
) -> tuple[int, int]:
    """Start an administrator's program in a session of its own, or in ours, as the leader of a
    process group. Return its pid at once, and a pipe for launched(). Raises OSError.

    Nobody waits for the start, as posix_spawn(3) does: the program, its interpreter or that one's
    loader may lie on a server that does not answer. `first` is done by the new process, right
    before it becomes the program. That inherits nothing but the three `streams`; all signals are
    back to their defaults. A script without #! is run by /bin/sh, as a shell does it.
    """
    failure, tell = os.pipe()
    os.set_blocking(failure, False)
    # So that a SIGTERM ends the child from its beginning on; ours has been told to ignore it.
    masked = signal.pthread_sigmask(signal.SIG_BLOCK, CATCHABLE)
    try:
        pid = os.fork()
        if not pid:
            become(argv, env, streams, first, in_our_session, tell)
    except OSError:
        os.close(failure)
        raise
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, masked)
        os.close(tell)
    return pid, failure


def become(
    argv: Sequence[str],
    env: Mapping[str, str],
    streams: tuple[int, int, int],
    first: Callable[[], None],
    in_our_session: bool,
    tell: int,
) -> NoReturn:
    """In the child. The pipe `tell` ends when it has become the program."""
    try:
        signal.set_wakeup_fd(-1)
        if in_our_session:
            os.setpgid(0, 0)
        else:
            os.setsid()
        for number in CATCHABLE:
            signal.signal(number, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_SETMASK, ())
        for n, fd in enumerate(streams):
            os.dup2(fd, n)
            os.set_inheritable(n, True)
        close_all_but({0, 1, 2, tell})  # they would be held as long as the start takes
        first()
        try:
            os.execve(argv[0], list(argv), env)
        except OSError as e:
            if e.errno != errno.ENOEXEC:
                raise
        os.execve("/bin/sh", ["/bin/sh", *argv], env)
    except BaseException as e:
        why = (e.errno, e.strerror) if isinstance(e, OSError) else (0, str(e))
        os.write(tell, json.dumps(why).encode())
    finally:
        os._exit(NOT_FOUND)


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
        if self.error:
            return self.error
        if self.timed_out:
            return "did not end in time"
        if self.stopped:
            return "was stopped"
        if self.signal is not None:
            return f"was killed by {signal.Signals(self.signal).name}"
        return f"ended with exit code {self.exit}"


def not_started(error: OSError) -> ExitStatus:
    return ExitStatus(error=f"could not be started: {error.strerror or error}")


def launched(failure: int, ending: ExitStatus) -> ExitStatus:
    """The end of a program of launch(), as far as one has waited for it. To be asked once. Raises
    OSError if the program could not be started."""
    with open(failure, "rb", buffering=0) as pipe:
        said = pipe.read()
    if said:
        raise OSError(*json.loads(said))
    if said is None and ending.timed_out:
        where = "the program, its interpreter or that one's loader lies on what does not answer"
        return replace(ending, error=f"could not be started in time: {where}")
    return ending


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
        close_all_but(keep)
        libc.prctl(PR_SET_NAME, name.encode()[:15], 0, 0, 0)
        body()
        code = 0
    except BaseException:
        sys.excepthook(*sys.exc_info())
    finally:
        os._exit(code)


def close_all_but(keep: Collection[int]) -> None:
    for word in os.listdir("/proc/self/fd"):
        if int(word) not in keep:
            with contextlib.suppress(OSError):
                os.close(int(word))


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
