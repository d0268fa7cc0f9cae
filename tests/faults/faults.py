# SPDX-License-Identifier: Apache-2.0
"""What can be done to a session, each at a random moment, and how it is undone.

A fault is planned before its round and knows no pids: whom it hits is found when it happens.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import os
import random
import resource
import select
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from tests.fs import kernel
from tests.fs.lab import Filesystem
from tests.fs.stuck import SPLICE
from vmsnap.session.lock import MARK

if TYPE_CHECKING:
    from .rounds import Round

HUNT = 0.3  # seconds
ROLES = ("engine", "guard", "scripts", "command", "program", "thaw", "result")
LIMITS = {"nofile": resource.RLIMIT_NOFILE, "memory": resource.RLIMIT_AS}
SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
PIDS, UNIFIED = Path("/sys/fs/cgroup/pids"), Path("/sys/fs/cgroup/unified")
BIG = b"x" * (24 << 20)


@dataclass(frozen=True)
class Fault:
    """`kind` at `delay` seconds after `moment`, to `who` (roles of processes, or the names of
    filesystems), for `seconds`, or until everything is let go. `choice` decides the rest."""

    kind: str
    moment: str
    delay: float
    who: tuple[str, ...]
    seconds: float | None
    choice: int

    def __str__(self) -> str:
        duration = "" if self.seconds is None else f" for {self.seconds:.3f} s"
        return f"{self.kind} {','.join(self.who)}{duration} ({self.moment} + {self.delay:.4f} s)"

    def happen(self, round_: Round) -> None:
        round_.story.count(self.kind)
        round_.story.tell(str(self))
        KINDS[self.kind](round_, self)


# --- processes -----------------------------------------------------------------------------------


def kill(round_: Round, fault: Fault) -> None:
    """At once, so that none of them can see another die; or one after the other."""
    pids = round_.find(fault.who, fault.choice)
    together, number = fault.choice % 2, signal.SIGKILL
    if together:
        for pid in pids:
            send(pid, signal.SIGSTOP)
    elif fault.choice % 16 == 0:
        number = signal.SIGSEGV  # a crash, with or without a core dump
    for pid in pids:
        round_.killed(pid)
        send(pid, number)


def hunt(round_: Round, fault: Fault, since: float | None = None) -> None:
    """Kill who lives for a moment only, as soon as it is there."""
    since = since or time.monotonic()
    pids = round_.find(fault.who, fault.choice)
    for pid in pids:
        round_.killed(pid)
        send(pid, signal.SIGKILL)
    if not pids and time.monotonic() < since + HUNT:
        round_.at(0.0003, partial(hunt, round_, fault, since))


def stop(round_: Round, fault: Fault) -> None:
    pids = round_.find(fault.who, fault.choice)
    for pid in pids:
        round_.stopped_program |= round_.roles.get(pid) == "program"
        send(pid, signal.SIGSTOP)
    round_.undo(fault.seconds, partial(go_on, pids))


def go_on(pids: list[int]) -> None:
    for pid in pids:
        send(pid, signal.SIGCONT)


def interrupt(round_: Round, fault: Fault) -> None:
    number = SIGNALS[fault.choice % 3]
    for pid in round_.find(fault.who, fault.choice):
        round_.story.tell(f"{number.name} to {pid}")
        if round_.roles.get(pid) == "program":
            round_.killed(pid)
        round_.interrupted = True
        send(pid, number)


def send(pid: int, number: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, number)


# --- resources -----------------------------------------------------------------------------------


def limit(round_: Round, fault: Fault, what: str, value: Callable[[int], int]) -> None:
    for pid in round_.find(fault.who, fault.choice):
        round_.limited.add(pid)
        with contextlib.suppress(OSError):
            before = resource.prlimit(pid, LIMITS[what])
            resource.prlimit(pid, LIMITS[what], (value(pid), before[1]))
            round_.undo(fault.seconds, partial(relax, pid, what, before))


def relax(pid: int, what: str, before: tuple[int, int]) -> None:
    with contextlib.suppress(OSError):
        resource.prlimit(pid, LIMITS[what], before)


def few_descriptors(round_: Round, fault: Fault) -> None:
    limit(round_, fault, "nofile", lambda _: 3 + fault.choice % 20)


def little_memory(round_: Round, fault: Fault) -> None:
    limit(round_, fault, "memory", lambda pid: address_space(pid) + (fault.choice % 4 << 18))


def address_space(pid: int) -> int:
    return int(Path(f"/proc/{pid}/statm").read_text().split()[0]) * resource.getpagesize()


def no_processes(round_: Round, fault: Fault) -> None:
    """Whoever forks gets EAGAIN: pids.max."""
    made = cgroup(PIDS)
    if not made:
        return
    pids = round_.find(fault.who, fault.choice)
    (made / "pids.max").write_text("0")
    move(pids, made)
    round_.undo(fault.seconds, lambda: remove(made, PIDS, ("pids.max", "max")))


def frozen_cgroup(round_: Round, fault: Fault) -> None:
    """No signal wakes them, and SIGKILL waits as well (on cgroup v2 it does not)."""
    made = cgroup(UNIFIED)
    if not made:
        return
    move(round_.find(fault.who, fault.choice), made)
    (made / "cgroup.freeze").write_text("1")
    round_.undo(fault.seconds, lambda: remove(made, UNIFIED, ("cgroup.freeze", "0")))


def cgroup(root: Path) -> Path | None:
    """None if the machine has none of this kind, or somebody takes them all."""
    made = root / f"vmsnap-faults-{os.getpid()}-{time.monotonic_ns()}"
    try:
        made.mkdir()
    except OSError:
        return None
    return made


def move(pids: list[int], to: Path) -> None:
    for pid in pids:
        with contextlib.suppress(OSError):
            (to / "cgroup.procs").write_text(str(pid))


def remove(made: Path, root: Path, release: tuple[str, str]) -> None:
    (made / release[0]).write_text(release[1])
    deadline = time.monotonic() + 5.0
    while time.monotonic() < deadline:
        move([int(pid) for pid in (made / "cgroup.procs").read_text().split()], root)
        try:
            made.rmdir()
            return
        except OSError as e:  # another has been forked, or is not yet counted out
            if e.errno != errno.EBUSY:
                raise
        os.sched_yield()


# --- the run directory, the terminal -------------------------------------------------------------


def full(round_: Round, fault: Fault) -> None:
    round_.spoiled = True
    path = round_.world.run_directory / "full"
    assert path.parent.is_mount(), "this would fill the disk of the machine"
    with contextlib.suppress(OSError), path.open("wb", buffering=0) as file:
        for size in (1 << 20, 4096, 1):
            with contextlib.suppress(OSError):
                while file.write(b"x" * size) == size:
                    pass
    round_.undo(fault.seconds, lambda: path.unlink(missing_ok=True))


def vanished(round_: Round, fault: Fault) -> None:
    """All that lies there but its mark is removed, or another directory is mounted in its
    place."""
    round_.vanished = round_.spoiled = True
    there = round_.world.run_directory
    if fault.choice % 2:
        kernel.check(kernel.libc.umount2(os.fsencode(there), kernel.MNT_DETACH))
        round_.world.mount_run_directory()
        return
    for path in sorted({*there.rglob("*")} - {there / MARK}, reverse=True):
        with contextlib.suppress(OSError):
            if path.is_dir() and not path.is_symlink():
                path.rmdir()
            else:
                path.unlink()


def hang_up(round_: Round, _: Fault) -> None:
    round_.interrupted = True
    round_.terminal.hang_up()


def flow_stop(round_: Round, fault: Fault) -> None:
    round_.terminal.type(b"\x13")  # ^S
    round_.undo(fault.seconds, lambda: round_.terminal.type(b"\x11"))


# --- other programs on the same filesystems ------------------------------------------------------


def thaw(round_: Round, fault: Fault) -> None:
    for f in round_.named(fault.who):
        round_.world.fork(partial(ask, round_, f, kernel.FITHAW))


def freeze(round_: Round, fault: Fault) -> None:
    """By another program, which thaws later what is its own."""
    for f in round_.named(fault.who):
        foreign_freeze(round_, f, fault.seconds)


def thaw_and_freeze(round_: Round, fault: Fault) -> None:
    for f in round_.named(fault.who):
        foreign_freeze(round_, f, fault.seconds, thaw_first=True)


def foreign_freeze(
    round_: Round, f: Filesystem, seconds: float | None, thaw_first: bool = False
) -> None:
    read, write = os.pipe()

    def body() -> None:
        if thaw_first:
            ask(round_, f, kernel.FITHAW)
        if ask(round_, f, kernel.FIFREEZE) == 0:
            select.select([read], [], [], seconds)
            ask(round_, f, kernel.FITHAW, own=True)

    round_.world.fork(body, keep=[read])
    os.close(read)
    round_.undo(None, partial(os.close, write))


def ask(round_: Round, f: Filesystem, request: int, own: bool = False) -> int:
    """In a fork: say when it began, when it ended, and how."""
    error, fd = 0, os.open(f.mount, os.O_RDONLY)
    began = time.monotonic()
    try:
        fcntl.ioctl(fd, request, 0)
    except OSError as e:
        error = e.errno or errno.EIO
    word = "froze" if request == kernel.FIFREEZE else "own-thaw" if own else "thawed"
    round_.world.send(f"{word} {f.mount.name} {began} {time.monotonic()} {error}")
    return error


def held_write(round_: Round, fault: Fault) -> None:
    """splice(2) from an empty pipe holds write access to its file, and every FIFREEZE off."""
    for f in round_.named(fault.who):
        read, write = os.pipe()

        def body(f: Filesystem = f, read: int = read) -> None:
            target = os.open(f.mount / "held", os.O_WRONLY | os.O_CREAT)
            kernel.libc.syscall(SPLICE, read, None, target, None, ctypes.c_size_t(1), 0)

        pid = round_.world.fork(body, keep=[read])
        os.close(read)
        if fault.moment == "before":
            round_.wait_until(partial(is_splicing, pid))
        round_.undo(fault.seconds, partial(os.close, write))


def is_splicing(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/syscall").read_text().split()[0] == str(SPLICE)
    except OSError:
        return True


def big_write(round_: Round, fault: Fault) -> None:
    """Which holds a FIFREEZE off for some milliseconds."""
    for f in round_.named(fault.who):

        def body(f: Filesystem = f) -> None:
            fd = os.open(f.mount / "big", os.O_WRONLY | os.O_CREAT)
            os.pwrite(fd, BIG, 0)

        round_.world.fork(body)


KINDS: dict[str, Callable[[Round, Fault], None]] = {
    "kill": kill,
    "hunt": hunt,
    "stop": stop,
    "interrupt": interrupt,
    "few-descriptors": few_descriptors,
    "little-memory": little_memory,
    "no-processes": no_processes,
    "cgroup-freeze": frozen_cgroup,
    "full": full,
    "vanished": vanished,
    "hang-up": hang_up,
    "flow-stop": flow_stop,
    "thaw": thaw,
    "freeze": freeze,
    "thaw-and-freeze": thaw_and_freeze,
    "held-write": held_write,
    "big-write": big_write,
}
ON_FILESYSTEMS = ("thaw", "freeze", "thaw-and-freeze", "held-write", "big-write")
WEIGHTS = {
    **dict.fromkeys(KINDS, 3),
    "kill": 40,
    "hunt": 6,
    "stop": 12,
    "thaw": 6,
    "freeze": 6,
    "held-write": 8,
    "big-write": 6,
    "vanished": 1,
    "thaw-and-freeze": 1,
}


# --- planning ------------------------------------------------------------------------------------

MOMENTS = {
    "before": 1,
    "start": 1,
    "check": 1,
    "pre": 2,
    "pre-start": 4,
    "pre-end": 3,
    "presync": 5,
    "freeze": 5,
    "listed": 8,
    "state": 16,
    "held": 14,
    "snapshot": 5,
    "release": 14,
    "thaw": 4,
    "unlisted": 5,
    "post": 5,
    "post-start": 5,
    "post-end": 3,
    "report": 3,
    "fault": 20,
}
HOT = ("listed", "state", "state", "held", "release", "unlisted", "post", "post-start", "pre-end")
DELAYS = (0.0, 0.0, 0.001, 0.005, 0.02, 0.1, 0.5)


def plan(rng: random.Random, filesystems: tuple[str, ...], terminal: bool) -> Fault:
    kinds = [k for k in KINDS if terminal or k not in ("hang-up", "flow-stop")]
    weights = [WEIGHTS[k] * (5 if k in ("hang-up", "flow-stop") else 1) for k in kinds]
    (kind,) = rng.choices(kinds, weights)
    (moment,) = rng.choices(list(MOMENTS), list(MOMENTS.values()))
    if moment == "state":
        moment = f"state-{rng.randint(1, 4 * len(filesystems))}"
    if moment == "before" and kind not in ON_FILESYSTEMS:
        moment = "start"
    delay = rng.uniform(0, rng.choice(DELAYS))
    seconds = rng.choice([None, rng.uniform(0, 0.05), rng.uniform(0, 0.5), rng.uniform(0, 2.5)])
    choice = rng.randrange(1 << 20)
    who = whom(rng, kind, filesystems)
    return Fault(kind, moment, delay, who, seconds, choice)


def volley(
    rng: random.Random, filesystems: tuple[str, ...], moments: tuple[str, ...] = HOT
) -> tuple[Fault, ...]:
    """Kills in short order, of whoever lives and of whoever comes in their place."""
    moment = rng.choice(moments)
    if moment == "state":
        moment = f"state-{rng.randint(1, 4 * len(filesystems))}"
    found = []
    for n in range(rng.randint(2, 6)):
        when, delay = ("fault", rng.uniform(0, 0.012)) if n else (moment, rng.uniform(0, 0.003))
        kind = rng.choice(["kill", "kill", "kill", "hunt"]) if n else "kill"
        who = whom(rng, kind, filesystems)
        found.append(Fault(kind, when, delay, who, None, rng.randrange(1 << 20)))
    return tuple(found)


def not_alone(rng: random.Random, filesystems: tuple[str, ...]) -> tuple[Fault, ...]:
    """The same while a write holds the freeze off, or another program has frozen, or does later."""
    kind = rng.choice(["held-write", "held-write", "big-write", "freeze"])
    moment = rng.choice(["before", "before", "presync", "listed", "fault"])
    seconds = rng.choice([None, rng.uniform(0, 0.1), rng.uniform(0, 1.5)])
    name, delay = (rng.choice(filesystems),), rng.uniform(0, rng.choice(DELAYS[:5]))
    other = Fault(kind, moment, delay, name, seconds, rng.randrange(1 << 20))
    return (other, *volley(rng, filesystems, ("presync", "freeze", "listed", "state", "state")))


def stopped_for_good(rng: random.Random) -> tuple[Fault, ...]:
    """Nobody goes on, or dies, until a watchdog has thawed: the engine, with or without its guard,
    in the kinds of sleep that there are; and perhaps one of the supervisors is killed."""
    moment = rng.choice(["listed", "held", "snapshot", f"state-{rng.randint(1, 6)}"])
    kinds = [("stop", ("engine",)), ("stop", ("engine", "guard"))]
    kinds += [("cgroup-freeze", ("engine",)), ("cgroup-freeze", ("engine", "guard"))]
    kind, who = rng.choice(kinds)
    delay = rng.uniform(0, rng.choice(DELAYS[:4]))
    found = [Fault(kind, moment, delay, who, None, rng.randrange(1 << 20))]
    if rng.random() < 0.3:
        found.append(Fault("kill", moment, delay, ("scripts",), None, rng.randrange(1 << 20)))
    return tuple(found)


def whom(rng: random.Random, kind: str, filesystems: tuple[str, ...]) -> tuple[str, ...]:
    if kind in ON_FILESYSTEMS:
        return (rng.choice(filesystems),)
    if kind in ("full", "vanished", "hang-up", "flow-stop"):
        return ()
    if kind == "hunt":
        return (rng.choice(["thaw", "thaw", "guard", "command", "scripts", "result"]),)
    some = tuple(rng.sample(ROLES, rng.randint(1, 4)))
    one = (rng.choice(ROLES),)
    if kind != "kill":
        return rng.choice([one, some])
    everything = ("engine", "guard", "scripts", "command", "thaw")
    return rng.choice([one, ("engine", "guard"), ("guard", "engine"), some, everything, ("any",)])
