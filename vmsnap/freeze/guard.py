# SPDX-License-Identifier: Apache-2.0
"""The guard: freezes filesystems, and thaws them whatever happens to everybody else.

A program of its own: it imports nothing of vmsnap, is started before anything is frozen, and
after its "ready" opens no file on a disk and starts no thread; its memory is locked. It writes to
its pipe, and into LIST, where the engine wrote what may be frozen: one letter for each filesystem,
before its FIFREEZE and after it, and one for the kernel's switch (states.py). When nothing is
frozen any more it removes LIST.

    guard.py TIMEOUT HOLD LIST LIST_FD FD:STEP:ACTION[:optional]...
                          ACTION is freeze or sync; low steps go first; the failure of an
                          optional one, and what is DAMAGED, is reported, and ends nothing

Each FD is a directory or file on one filesystem, opened by the engine and inherited: both processes
hold it, so that no umount hides a frozen superblock and either can thaw when the other is gone.

engine -> guard (stdin), a word a line:  presync, freeze, thaw; end of file means thaw
guard -> engine (stdout), a line each:   EVENT FD SECONDS VALUE   (SECONDS on CLOCK_MONOTONIC)
    ready -1 . ERRNO      everything is in place; ERRNO says whether memory could not be locked
    unwritten FD . ERRNO  syncfs before the freeze: something written has not reached the disk
    presynced -1 . ROUNDS
    freezing FD . 0       from here on FD may be frozen, whether or not more is said of it
    frozen FD . ERRNO     FIFREEZE returned; 0 means frozen
    synced FD . ERRNO     syncfs returned, where the filesystem knows no freeze
    held -1 . 0           all that can be frozen are: the hold begins
    thawing -1 . CAUSE    asked, abandoned, signal, expired, timeout, failed or broken
    thawed FD . ERRNO     FITHAW returned; EINVAL means that somebody else had thawed it
    done -1 . 0           nothing is frozen nor will be, but by a call that did not return for 5 s

One thread owns one filesystem and does FIFREEZE and FITHAW on it, so a call that never returns
blocks nobody else, and one that returns too late finds its order to thaw waiting. The main thread
only decides. It decides to thaw when told to, when the engine's pipe closes (the engine died), on
SIGTERM, SIGINT and SIGHUP, when a filesystem fails that counts, and at its own two deadlines:
TIMEOUT seconds for the freeze, HOLD seconds from "held". It ends when every thread has ended, hence
never inside FIFREEZE. If the guard itself is killed, the engine thaws; if both are, a supervisor
does.
"""

from __future__ import annotations

import collections
import contextlib
import ctypes
import errno
import fcntl
import functools
import math
import os
import queue
import select
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator

FIFREEZE = 0xC0045877  # linux/fs.h: _IOWR('X', 119, int)
FITHAW = 0xC0045878  # linux/fs.h: _IOWR('X', 120, int)
MCL_CURRENT, MCL_FUTURE, MCL_ONFAULT = (
    (0x2000, 0x4000, 0x8000) if os.uname().machine.startswith("ppc") else (1, 2, 4)
)  # asm-generic/mman.h, powerpc's asm/mman.h
PR_SET_DUMPABLE, PR_SET_NAME, PR_SET_IO_FLUSHER = 4, 15, 57  # linux/prctl.h

RCU_EXPEDITED = "/sys/kernel/rcu_expedited"

# The letters in the list, and where they begin: states.py.
NOT_FROZEN, ASKED, FROZEN = "-", "a", "f"
STATES_AT = len('{"states": "')

# FIFREEZE answers so if nothing can be written to a filesystem any more: it was shut down, is
# damaged (EUCLEAN and EBADMSG are EFSCORRUPTED and EFSBADCRC), or its disk fails (block/blk-core.c,
# blk_errors). It is not frozen then (fs/super.c, freeze_super).
DAMAGED = {
    *(errno.EIO, errno.EROFS, errno.ESHUTDOWN, errno.EUCLEAN, errno.EBADMSG, errno.ENODEV),
    *(errno.ENXIO, errno.ENOSPC, errno.ENOLINK, errno.EREMOTEIO, errno.EBADE, errno.ENODATA),
    *(errno.EILSEQ, errno.ETIMEDOUT),
}

STACK_BYTES = 256 * 1024
THAW_PATIENCE = 5.0  # seconds a step of the thaw may take before the next one starts
PRESYNC_ROUNDS = 5
PRESYNC_WORTH = 0.7  # another round helps while it took less than this part of the one before
PRESYNC_DONE = 0.010  # seconds; a round this short has nothing left to write

libc = ctypes.CDLL(None, use_errno=True)
wake_read, wake_write = -1, -1
news: collections.deque[tuple[str, int, float, int]] = collections.deque()


def send(event: str, fd: int = -1, value: int | str = 0) -> None:
    """Send the engine what the threads did, and then this."""
    while news:
        write_line(*news.popleft())
    write_line(event, fd, time.monotonic(), value)


def write_line(event: str, fd: int, at: float, value: int | str) -> None:
    """Never blocks: a pipe that is full or broken has no reader left to serve."""
    with contextlib.suppress(OSError):
        os.write(1, f"{event} {fd} {at:.6f} {value}\n".encode())


def wake() -> None:
    """Let the main thread look again. A full pipe wakes it just as well."""
    with contextlib.suppress(OSError):
        os.write(wake_write, b"\0")


class Filesystem:
    """One filesystem and the thread that owns it: no other touches its descriptor.

    The thread puts what it did into `news`, and wakes the main thread only when there is something
    to decide: with many threads on few processors, every wake costs more than the ioctl.
    """

    def __init__(self, word: str, list_fd: int, index: int) -> None:
        fd, step, self.action, *optional = word.split(":")
        self.fd, self.step, self.optional = int(fd), int(step), bool(optional)
        self.list_fd, self.index = list_fd, index
        self.peers: list[Filesystem] = []  # those that got the same order at the same time
        self.orders: queue.SimpleQueue[str] = queue.SimpleQueue()
        self.given = self.done = 0  # the main thread writes the one, this thread the other
        self.frozen = self.failed = self.unthawed = self.too_late = False
        self.thread = threading.Thread(target=self.obey)

    def settled(self) -> bool:
        return self.given == self.done

    def obey(self) -> None:
        """Carry out orders until one says thaw."""
        while True:
            word = self.orders.get()
            if word == "presync":
                if libc.syncfs(self.fd):
                    news.append(("unwritten", self.fd, time.monotonic(), ctypes.get_errno()))
            elif word == "freeze":
                if self.too_late:  # it may have waited long behind a presync
                    self.mark(NOT_FROZEN)
                else:
                    self.freeze()
            elif self.frozen:
                self.thaw()
            self.done += 1
            if word == "thaw" or self.failed or all(f.settled() for f in self.peers):
                wake()
            if word == "thaw":
                return

    def freeze(self) -> None:
        set_realtime_priority()
        event, error = "synced", errno.EOPNOTSUPP
        if self.action == "freeze":
            error = self.ioctl(FIFREEZE)
            self.frozen = error == 0
            self.mark(FROZEN if self.frozen else NOT_FROZEN)
            event = "frozen"
        if error == errno.EOPNOTSUPP:
            event, error = "synced", ctypes.get_errno() if libc.syncfs(self.fd) else 0
        self.failed = error != 0 and error not in DAMAGED and not self.optional
        news.append((event, self.fd, time.monotonic(), error))

    def thaw(self) -> None:
        # Who thawed in our place has noted it; since then another program may have frozen it.
        error = errno.EINVAL if self.was_thawed() else self.ioctl(FITHAW)
        self.unthawed = error not in (0, errno.EINVAL)
        if not self.unthawed:
            self.mark(NOT_FROZEN)
        news.append(("thawed", self.fd, time.monotonic(), error))
        self.frozen = False  # last: the main thread may go on from here

    def was_thawed(self) -> bool:
        with contextlib.suppress(OSError):
            return os.pread(self.list_fd, 1, STATES_AT + self.index) == NOT_FROZEN.encode()
        return False

    def mark(self, state: str) -> None:
        mark(self.list_fd, self.index, state)

    def ioctl(self, request: int) -> int:
        try:
            fcntl.ioctl(self.fd, request, 0)
        except OSError as e:
            return e.errno or errno.EIO
        return 0


def mark(list_fd: int, index: int, state: str) -> None:
    """In the list, for whoever has to thaw should we be killed."""
    with contextlib.suppress(OSError):
        os.pwrite(list_fd, state.encode(), STATES_AT + index)


def set_realtime_priority() -> None:
    """From the freeze on, run before all other threads: they wait for the thaw."""
    with contextlib.suppress(OSError):
        os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(1))


def settled(filesystems: list[Filesystem]) -> bool:
    return all(f.settled() for f in filesystems)


def settled_or_failed(step: list[Filesystem]) -> bool:
    return settled(step) or any(f.failed for f in step)


def none_frozen(step: list[Filesystem]) -> bool:
    return not any(f.frozen for f in step)


def order(word: str, filesystems: list[Filesystem]) -> None:
    for filesystem in filesystems:
        filesystem.peers = filesystems
        filesystem.given += 1
    for filesystem in filesystems:
        filesystem.orders.put(word)


class Guard:
    """The main thread: waits, decides, and gives each step of filesystems its orders."""

    def __init__(self, filesystems: list[Filesystem], list_path: str, list_fd: int) -> None:
        self.filesystems = filesystems
        self.list_path, self.list_fd = list_path, list_fd
        self.steps = [
            [f for f in filesystems if f.step == step]
            for step in sorted({f.step for f in filesystems})
        ]
        self.command = ""  # the engine's last word that is not "thaw"
        self.demand = ""  # why everything must be thawed, once anything says so
        self.poll = select.poll()
        self.poll.register(0, select.POLLIN)
        self.poll.register(wake_read, select.POLLIN)

    def wait(
        self,
        finished: Callable[[], bool],
        deadline: float | None = None,
        interruptible: bool = True,
    ) -> str:
        """Sleep until `finished()`. Return "" then, else what ended the wait: the demand to thaw
        (unless not `interruptible`), or "expired" at the deadline."""
        while not finished():
            if interruptible and self.demand:
                return self.demand
            left = None if deadline is None else deadline - time.monotonic()
            if left is not None and left <= 0:
                return "expired"
            for fd, _ in self.poll.poll(None if left is None else math.ceil(left * 1000)):
                self.receive(fd)
        return ""

    def receive(self, fd: int) -> None:
        try:
            words = os.read(fd, 4096)
        except OSError:  # as if the engine were gone: thawing is never wrong
            words = b""
        if fd == wake_read:
            if any(words):  # a signal's number; the threads write zeros
                self.demand = self.demand or "signal"
        elif not words:
            self.poll.unregister(fd)
            self.demand = self.demand or "abandoned"
        elif b"thaw" in words:
            self.demand = self.demand or "asked"
        else:
            self.command = words.decode().split()[-1]

    def run(self, timeout: float, hold: float) -> None:
        cause = "broken"  # unless the next line returns another
        try:
            cause = self.freeze_and_hold(timeout, hold)
        finally:
            self.thaw(cause)

    def freeze_and_hold(self, timeout: float, hold: float) -> str:
        """Return why the hold is over."""
        while not self.wait(lambda: bool(self.command)) and self.command == "presync":
            self.command = ""
            self.presync(time.monotonic() + timeout)
        return self.demand or self.freeze(time.monotonic() + timeout) or self.hold(hold)

    def presync(self, deadline: float) -> None:
        """Write out what is dirty, again while that leaves clearly less to freeze."""
        # Few at a time: other writers wait for everything that is on its way to the disk.
        width = os.cpu_count() or 1
        before, rounds = math.inf, 0
        while rounds < PRESYNC_ROUNDS:
            rounds += 1
            begin = time.monotonic()
            for first in range(0, len(self.filesystems), width):
                batch = self.filesystems[first : first + width]
                order("presync", batch)
                if self.wait(functools.partial(settled, batch), deadline):
                    send("presynced", value=rounds)
                    return
            took = time.monotonic() - begin
            if took < PRESYNC_DONE or took > before * PRESYNC_WORTH:
                break
            before = took
        send("presynced", value=rounds)

    def freeze(self, deadline: float) -> str:
        set_realtime_priority()
        with expedited_rcu(self.list_fd, len(self.filesystems)):
            for step in self.steps:
                for fd, _ in self.poll.poll(0):  # has the engine died since the last step?
                    self.receive(fd)
                if self.demand:
                    return self.demand
                if time.monotonic() >= deadline:  # we were stopped, and a supervisor may thaw now
                    return "timeout"
                for filesystem in step:
                    if filesystem.action == "freeze":
                        filesystem.mark(ASKED)
                        send("freezing", filesystem.fd)
                order("freeze", step)
                cause = self.wait(functools.partial(settled_or_failed, step), deadline)
                if cause:
                    return "timeout" if cause == "expired" else cause
                if any(f.failed for f in step):
                    return "failed"
        return ""

    def hold(self, seconds: float) -> str:
        send("held")
        return self.wait(lambda: False, time.monotonic() + seconds)

    def thaw(self, cause: str) -> None:
        """Backing filesystems first: thawing a loop filesystem may write to the one below it."""
        for filesystem in self.filesystems:
            filesystem.too_late = True
        send("thawing", value=cause)
        for step in reversed(self.steps):
            order("thaw", step)
            self.wait(
                functools.partial(none_frozen, step),
                time.monotonic() + THAW_PATIENCE,
                interruptible=False,
            )
        for filesystem in self.filesystems:
            if filesystem.frozen and not filesystem.thread.is_alive():  # a bug killed it
                filesystem.thaw()
        # A FIFREEZE that began before the order to thaw may yet succeed. Its thread then thaws at
        # once, but "done" ends the session, after which nothing may become frozen: so wait for it.
        everything = functools.partial(settled, self.filesystems)
        self.wait(everything, time.monotonic() + THAW_PATIENCE, interruptible=False)
        self.remove_list()
        send("done")
        for filesystem in self.filesystems:
            filesystem.thread.join()
        self.remove_list()

    def remove_list(self) -> None:
        """Remove the list, but only if nothing in it is or may yet be frozen."""
        if settled(self.filesystems) and not any(f.unthawed for f in self.filesystems):
            with contextlib.suppress(OSError):
                os.unlink(self.list_path)


@contextlib.contextmanager
def expedited_rcu(list_fd: int, index: int) -> Iterator[None]:
    """A freeze of a clean filesystem is three RCU grace periods and nothing else: 30 ms when they
    are normal, 1 ms when they are expedited, as the kernel has them while it boots and suspends.

    A guard that is killed in here leaves the switch on; the engine and `vmsnap thaw --force` put
    it back. (Documentation/admin-guide/kernel-parameters.txt, rcupdate.rcu_expedited)
    """
    fd = -1
    with contextlib.suppress(OSError):  # no such kernel, or a container
        fd = os.open(RCU_EXPEDITED, os.O_RDWR)
        if os.read(fd, 16).strip() == b"0":
            mark(list_fd, index, ASKED)
            os.pwrite(fd, b"1", 0)
        else:  # somebody wants it on, or is in here too and will switch it off
            os.close(fd)
            fd = -1
    try:
        yield
    finally:
        with contextlib.suppress(OSError):
            if fd >= 0:
                os.pwrite(fd, b"0", 0)
                mark(list_fd, index, NOT_FROZEN)
                os.close(fd)


def lock_memory() -> int:
    """Lock the memory and adjust the OOM score, so that neither a frozen disk nor a shortage of
    memory stops this process. Return an errno."""
    libc.prctl(PR_SET_NAME, b"vmsnap-guard", 0, 0, 0)
    libc.prctl(PR_SET_DUMPABLE, 0, 0, 0, 0)  # a core dump onto a frozen filesystem would not end
    # Memory that the kernel frees for us must not be freed by writing to a frozen filesystem
    # (Linux 5.6; prctl(2)).
    libc.prctl(PR_SET_IO_FLUSHER, 1, 0, 0, 0)
    with contextlib.suppress(OSError), open("/proc/self/oom_score_adj", "w") as file:
        file.write("-1000")
    # Locked as it is touched, or 64 threads' stacks would be; but all code is read in now.
    if libc.mlockall(MCL_CURRENT | MCL_FUTURE | MCL_ONFAULT):
        return ctypes.get_errno()
    with open("/proc/self/maps") as maps:
        for line in maps:
            span, mode = line.split(" ", 2)[:2]
            if mode == "r-xp":
                begin, end = (int(address, 16) for address in span.split("-"))
                libc.mlock(ctypes.c_void_p(begin), ctypes.c_size_t(end - begin))
    return 0


def main(argv: list[str]) -> None:
    global wake_read, wake_write  # noqa: PLW0603 - one per process, as the signals that write to it
    wake_read, wake_write = os.pipe()
    for fd in (0, 1, wake_read, wake_write):
        os.set_blocking(fd, False)
    signal.set_wakeup_fd(wake_write, warn_on_full_buffer=False)
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, lambda *_: None)

    timeout, hold, list_path, list_fd = float(argv[0]), float(argv[1]), argv[2], int(argv[3])
    filesystems = [Filesystem(word, list_fd, index) for index, word in enumerate(argv[4:])]
    guard = Guard(filesystems, list_path, list_fd)

    unlocked = lock_memory()
    threading.stack_size(STACK_BYTES)
    try:
        for filesystem in filesystems:
            filesystem.thread.start()
    except RuntimeError as e:
        # No more threads. Nothing is frozen, but those that were started would wait on.
        sys.stderr.write(f"{e}\n")
        sys.stderr.flush()
        os._exit(1)
    send("ready", value=unlocked)
    guard.run(timeout, hold)


if __name__ == "__main__":
    main(sys.argv[1:])
