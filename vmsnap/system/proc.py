# SPDX-License-Identifier: Apache-2.0
"""What the kernel says of other processes (proc(5), pidfd_open(2)): which one is meant, whether it
is alive, who is below whom, and what it keeps from being read.

Runs in: engine, supervisor, caller. While frozen: no file but /proc, no journal, no import.
"""

from __future__ import annotations

import contextlib
import errno
import json
import math
import os
import select
import signal
import time
from collections.abc import Callable, Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vmsnap.system.process import READ_BYTES, fork

DEAD = (b"Z", b"X")  # proc(5), stat: of a zombie, and of what is left for a moment
ANSWER_PATIENCE, ALL_PATIENCE = 1.0, 5.0  # seconds for one process, and for all


@dataclass(frozen=True)
class ProcessId:
    """A process that no later one is mistaken for: its pid, and when it was started, in clock ticks
    since the boot (proc(5), stat)."""

    pid: int
    started: int

    def open(self) -> int | None:
        """A pidfd; None if nothing is left of the process."""
        try:
            process = os.pidfd_open(self.pid)
        except OSError as e:
            if e.errno in (errno.ESRCH, errno.ENOENT, errno.EINVAL):  # or a thread's by now
                return None
            raise
        if started(self.pid) == self.started:
            return process
        os.close(process)
        return None


def started(pid: int) -> int:
    """When a process was started, as in ProcessId; 0 if there is none."""
    try:
        return int(stat(pid)[19])
    except OSError:
        return 0


def is_alive(pid: int) -> bool:
    """Zombies are dead."""
    try:
        return stat(pid)[0] not in DEAD
    except OSError:
        return False


def stat(pid: int) -> list[bytes]:
    """The fields of proc(5), stat, from the state on: the name in parentheses before it may hold
    anything, also parentheses. Raises OSError."""
    line = Path("/proc", str(pid), "stat").read_bytes()
    return line[line.rindex(b")") + 2 :].split()


def descendants(*ancestors: int) -> set[int]:
    """All living processes below `ancestors`."""
    if not ancestors:
        return set()
    children: dict[int, list[int]] = {}
    for name in os.listdir("/proc"):
        if name.isdigit():
            with contextlib.suppress(OSError):
                state, parent = stat(int(name))[:2]
                if state not in DEAD:
                    children.setdefault(int(parent), []).append(int(name))
    found: set[int] = set()
    queue = list(ancestors)
    while queue:
        for child in children.get(queue.pop(), ()):
            found.add(child)
            queue.append(child)
    return found


def started_by(dead: int) -> int:
    """The pid of what a child of ours had started in its session before it died, the last of it;
    dead or alive, it is our child now, if we are a subreaper. 0 if there is none."""
    found: dict[int, int] = {}
    for name in os.listdir("/proc"):
        if name.isdigit() and int(name) != dead:
            with contextlib.suppress(OSError):
                fields = stat(int(name))
                parent, group, session = map(int, fields[1:4])
                # fork() has made the dead one the leader of a session, whose pid is not used
                # again as long as anything is left of it.
                if (parent, group, session) == (os.getpid(), int(name), dead):
                    found[int(fields[19])] = int(name)
    return found[max(found)] if found else 0


def has_ended(process: int, patience: float | None) -> bool:
    """Wait for the end of all threads of a process, of which this is a pidfd; without limit if
    `patience` is None."""
    poll = select.poll()  # select(2) knows no descriptor above 1023
    poll.register(process, select.POLLIN)
    return bool(poll.poll(None if patience is None else math.ceil(patience * 1000)))


# --- what a process can keep from being read ------------------------------------------------------


def having_environment(wanted: Collection[bytes]) -> set[int]:
    """All living processes that were started with all of these, as in b"NAME=value"."""

    def has(pid: int) -> bool:
        return set(wanted) <= set(Path(f"/proc/{pid}/environ").read_bytes().split(b"\0"))

    return {pid for pid, found in ask_each(has).items() if found}


def ask_each(ask: Callable[[int], Any]) -> dict[int, Any]:
    """What `ask` says of each process, in JSON. Whoever does not answer in time is left out, as is
    one that has ended.

    A process can hold the locks that such a question needs for as long as it likes. The kernel
    waits for them so that a kill ends it; so a child asks, which an alarm ends, and the next one
    goes on behind. Processes of root are asked first. Without room for a child, all are asked here.
    """
    pids = sorted((int(name) for name in os.listdir("/proc") if name.isdigit()), key=owner)
    answers: dict[int, Any] = {}
    deadline = time.monotonic() + ALL_PATIENCE
    while pids and time.monotonic() < deadline:
        try:
            answered = asked_in_child(ask, pids)
        except OSError:
            answered = [answer_of(ask, pid) for pid in pids]
        answers.update(zip(pids, answered))
        pids = pids[len(answered) + 1 :]
    return {pid: answer for pid, answer in answers.items() if answer is not None}


def owner(pid: int) -> int:
    try:
        return Path(f"/proc/{pid}").stat().st_uid
    except OSError:
        return 0


def answer_of(ask: Callable[[int], Any], pid: int) -> Any:
    with contextlib.suppress(OSError, ValueError, IndexError):  # it has ended
        return ask(pid)
    return None


def asked_in_child(ask: Callable[[int], Any], pids: Collection[int]) -> list[Any]:
    """The answers up to the first that did not come. Raises OSError."""
    read, write = os.pipe()

    def body() -> None:
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        for pid in pids:
            signal.setitimer(signal.ITIMER_REAL, ANSWER_PATIENCE)
            os.write(write, json.dumps(answer_of(ask, pid)).encode() + b"\n")

    try:
        child = fork(body, "vmsnap-ask", {2, write})
    except OSError:
        os.close(read)
        raise
    finally:
        os.close(write)
    received = b""
    poll = select.poll()
    poll.register(read, select.POLLIN)
    while poll.poll(2000 * ANSWER_PATIENCE):  # twice, for a wait that no alarm ends
        data = os.read(read, READ_BYTES)
        if not data:
            break
        received += data
    os.close(read)
    with contextlib.suppress(ChildProcessError):
        os.waitpid(child, os.WNOHANG)
    return [json.loads(line) for line in received.split(b"\n")[:-1]]
