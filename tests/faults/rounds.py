# SPDX-License-Identifier: Apache-2.0
"""One round: a session, faults at their moments, everything let go, what an administrator does
afterwards, and the verdict. Its plan is made of its seed alone; its course is the kernel's.
"""

from __future__ import annotations

import contextlib
import heapq
import itertools
import json
import os
import random
import select
import shutil
import signal
import struct
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from tests.fs import kernel
from tests.fs.lab import VMSNAP, Filesystem
from tests.fs.processes import look_at
from tests.fs.running import Session

from . import faults
from .faults import Fault
from .story import Story
from .terminal import Terminal
from .verdict import judge, thawed_by_watchdog
from .world import APPS, FSTYPES, World, children

LONGEST = 4.0  # seconds after which everything is let go, whatever has not happened yet
WATCHDOG = 5.0  # seconds by which a supervisor's is later than the guard's own deadline
PATIENCE = 30.0  # seconds for what was let go to end
IN_MODIFY, IN_MOVED_TO, IN_CREATE, IN_DELETE = 0x2, 0x80, 0x100, 0x200  # linux/inotify.h
EVENT = struct.Struct("iIII")
VMSNAP_NAMES = {
    "vmsnap-guard": "guard",
    "vmsnap-scripts": "scripts",
    "vmsnap-command": "command",
    "vmsnap-thaw": "thaw",
    "vmsnap-result": "result",
}


@dataclass(frozen=True)
class Plan:
    """`timeout` and `hold` are settings of vmsnap; `words` are the exit codes of scripts and
    command, `pauses` how long they take."""

    seed: str
    filesystems: tuple[str, ...]
    apps: tuple[str, ...]
    timeout: float
    hold: float
    terminal: bool
    faults: tuple[Fault, ...]
    patient: bool  # nothing is let go before the watchdogs must have thawed
    words: dict[str, int]
    pauses: dict[str, float]
    next_session: bool  # else vmsnap thaw --force
    recovery_killed: float | None  # after so many seconds, once
    recovery_hunted: bool  # its child that thaws is killed as soon as it is there


def make_plan(seed: str) -> Plan:
    rng = random.Random(seed)
    names = tuple(rng.sample(list(FSTYPES), rng.choice([1, 2, 2, 3, 4])))
    terminal, patient = rng.random() < 0.1, rng.random() < 0.04
    count = rng.choice([0, *[1, 2, 3] * 4, 5, 7])
    gates = ["release", *(f"{phase}-{app}" for phase in ("pre", "post") for app in APPS)]
    dice = rng.random()
    if patient:
        chosen = faults.stopped_for_good(rng)
    elif dice < 0.3:
        chosen = faults.volley(rng, names)
    elif dice < 0.5:
        chosen = faults.not_alone(rng, names)
    else:
        chosen = tuple(faults.plan(rng, names, terminal) for _ in range(count))
    return Plan(
        seed=seed,
        filesystems=names,
        apps=APPS[: rng.choice([0, 1, 1, 2])],
        timeout=rng.choice([0.5, 1.0, 2.0]),
        hold=rng.choice([0.2, 1.0, 2.0, 2.0]),
        terminal=terminal,
        faults=chosen,
        patient=patient,
        words={gate: rng.choice([0] * 12 + [1]) for gate in gates},
        pauses={gate: rng.uniform(0, rng.choice([0.01, 0.1, 0.4])) for gate in gates},
        next_session=rng.random() < 0.3,
        recovery_killed=rng.uniform(0, 0.4) if rng.random() < 0.15 else None,
        recovery_hunted=rng.random() < 0.1,
    )


class Round:
    """The course of a round. Everything here is one loop that waits for events and for the time."""

    def __init__(self, world: World, plan: Plan) -> None:
        self.world, self.plan = world, plan
        self.story = Story(plan.seed)
        self.roles: dict[int, str] = {}  # of every process of vmsnap that was looked for
        self.killed_pids: dict[int, str] = {}  # with its role, and the phase of a script
        self.kills: list[tuple[float, str]] = []  # the same, with the time of each
        self.limited: set[int] = set()
        self.interrupted = self.spoiled = self.vanished = self.stopped_program = False
        self.over = self.let_gone = False
        self.words: list[tuple[float, list[str]]] = []
        self.phase = ""
        self.held_at: float | None = None
        self.released_at: float | None = None
        self.terminal = Terminal()
        self.ended_by: int | None = None
        self.result: dict[str, Any] | None = None
        self.recoveries: list[str] = []
        self._agenda: list[tuple[float, int, Callable[[], object]]] = []
        self._number = itertools.count()
        self._waiting = list(plan.faults)
        self._undo: list[Callable[[], object]] = []
        self._states = 0
        self._heard = 0
        self._inotify = kernel.libc.inotify_init1(os.O_CLOEXEC | os.O_NONBLOCK)
        self.session: Session | None = None

    def run(self) -> Story:
        try:
            self._run()
        finally:
            self.let_go()
            os.close(self._inotify)
            self.terminal.hang_up()
        self.story.seconds = time.monotonic() - self.story.began
        return self.story

    def _run(self) -> None:
        world, plan = self.world, self.plan
        world.reset()
        world.configure(plan.apps, plan.timeout, plan.hold)
        self.watch()
        self.story.tell(
            f"{plan.filesystems} with {plan.apps}, freeze {plan.timeout}, hold {plan.hold}"
        )
        self.happened("before")
        self.turn_until(lambda: not self._agenda, 1.0)
        session = self.session = self.start()
        self.happened("start")
        watchdogs = plan.timeout + plan.hold + WATCHDOG if plan.patient else 0.0
        self.turn_until(self.is_over, LONGEST + watchdogs)
        if plan.patient and not self.over:
            thawed_by_watchdog(self)
        self.story.tell("everything is let go" + ("" if self.over else "; the engine lives"))
        self.let_go()
        if not self.turn_until(lambda: self.engine_ended() and world.is_alone(), PATIENCE):
            for process in world.processes():
                self.story.violations.append(f"left running: {process}")
                self.story.tell(where(process.pid))
            self.kill_rest()
        self.ended_by = session.process.poll()
        self.result = self.read_result()
        self.story.tell(f"the engine ended with {self.ended_by}")
        judge(self, recovered=False)
        self.recover()
        judge(self, recovered=True)
        self.clean_up()

    def start(self) -> Session:
        world = self.world
        argv = [str(VMSNAP), "run", *world.places()]
        argv += [f"--only={f.mount}" for f in self.named(self.plan.filesystems)]
        argv += [] if self.plan.terminal else ["--json"]
        argv += ["--", "/bin/sh", "-c", world.command()]
        more: dict[str, Any] = {}
        if self.plan.terminal:
            argv, more = self.terminal.open(argv)
        session = Session(world.directory, argv, world.environment(), **more)
        self.terminal.started()
        world.sessions.append(session)
        return session

    # --- the loop --------------------------------------------------------------------------------

    def turn_until(self, condition: Callable[[], object], seconds: float) -> bool:
        deadline = time.monotonic() + seconds
        while not condition():
            now = time.monotonic()
            if now >= deadline:
                return False
            until = min(deadline, self._agenda[0][0] if self._agenda else deadline)
            self.turn(max(0.0, until - now))
        return True

    def wait_until(self, condition: Callable[[], object]) -> None:
        self.turn_until(condition, 5.0)

    def turn(self, seconds: float) -> None:
        waited_for = [self.session.pid] if self.session else []
        if not waited_for or self.over:
            waited_for = [p.pid for p in self.world.processes()[:50]]
        pidfds = []
        for pid in waited_for:
            with contextlib.suppress(OSError):
                pidfds.append(os.pidfd_open(pid))
        poll = select.poll()
        for fd in (self.world.events.fd, self._inotify, *pidfds, *self.terminal.fds):
            poll.register(fd, select.POLLIN)
        poll.poll(min(seconds, 0.25) * 1000 + 0.01)
        for fd in pidfds:
            os.close(fd)
        self.terminal.drain()
        self.hear()
        self.look()
        while self._agenda and self._agenda[0][0] <= time.monotonic():
            heapq.heappop(self._agenda)[2]()

    def at(self, delay: float, action: Callable[[], object]) -> None:
        heapq.heappush(self._agenda, (time.monotonic() + delay, next(self._number), action))

    def undo(self, seconds: float | None, action: Callable[[], object]) -> None:
        """Do it once, after this time or when everything is let go."""

        def once() -> None:
            if once in self._undo:
                self._undo.remove(once)
                action()

        self._undo.append(once)
        if seconds is not None:
            self.at(seconds, once)

    def let_go(self) -> None:
        self.let_gone = True
        while self._undo:
            self._undo[-1]()
        self._waiting.clear()

    def happened(self, moment: str) -> None:
        due = [f for f in self._waiting if f.moment == moment]
        for fault in due:
            self._waiting.remove(fault)
            self.at(fault.delay, partial(self.inflict, fault))

    def inflict(self, fault: Fault) -> None:
        if self.let_gone and fault.moment != "recovery":
            return
        fault.happen(self)
        if fault.kind not in faults.ON_FILESYSTEMS:
            self.happened("fault")

    def is_over(self) -> bool:
        if not self.over and self.engine_ended():
            self.over = True
            for moment in {f.moment for f in self._waiting}:
                self.happened(moment)
        return self.over and not self._agenda

    def engine_ended(self) -> bool:
        assert self.session
        return self.session.process.poll() is not None

    # --- what happens ----------------------------------------------------------------------------

    def watch(self) -> None:
        mask = IN_MODIFY | IN_MOVED_TO | IN_CREATE | IN_DELETE
        path = os.fsencode(self.world.run_directory)
        kernel.libc.inotify_add_watch(self._inotify, path, mask)

    def look(self) -> None:
        """At what has changed in the run directory."""
        try:
            data = os.read(self._inotify, 65536)
        except OSError:
            return
        at = 0
        while at < len(data):
            _, mask, _, size = EVENT.unpack_from(data, at)
            name = data[at + EVENT.size : at + EVENT.size + size].rstrip(b"\0").decode()
            at += EVENT.size + size
            if name == "session.json" and mask & IN_MOVED_TO:
                with contextlib.suppress(OSError, ValueError):
                    text = (self.world.run_directory / name).read_text()
                    self.phase = str(json.loads(text)["phase"])
                self.story.tell(f"phase {self.phase}")
                self.happened(self.phase)
            elif name == "frozen.json" and mask & IN_MODIFY:
                self._states += 1
                self.happened(f"state-{self._states}")
            elif name == "frozen.json":
                moment = "listed" if mask & IN_MOVED_TO else "unlisted"
                self.story.tell(moment)
                self.happened(moment)

    def hear(self) -> None:
        """What scripts, the command and our own forks have said."""
        for line in self.world.events.heard[self._heard :]:
            self._heard += 1
            now, words = time.monotonic(), line.split(" ")
            self.words.append((now, words))
            self.story.tell(line)
            word = words[0]
            if word == "held":
                self.held_at = now
                self.at(self.plan.pauses["release"], self.release)
            elif word in ("pre-start", "post-start"):
                gate = f"{word[:-6]}-{words[1]}"
                self.at(self.plan.pauses[gate], partial(self.open, gate))
            self.happened(word)

    def release(self) -> None:
        self.released_at = self.released_at or time.monotonic()
        self.story.tell("release")
        self.open("release")
        self.happened("release")

    def open(self, gate: str) -> None:
        self.world.open(gate, str(self.plan.words[gate]))

    # --- whom it hits ----------------------------------------------------------------------------

    def named(self, names: tuple[str, ...]) -> list[Filesystem]:
        return [f for f in self.world.filesystems if f.mount.name in names]

    def find(self, who: tuple[str, ...], choice: int) -> list[int]:
        """The processes of these roles, in their order; of several supervisors of scripts, all or
        one."""
        by_role: dict[str, list[int]] = {}
        everyone = self.world.processes()
        names = {p.pid: p.name for p in everyone}
        for p in everyone:
            role = VMSNAP_NAMES.get(p.name, "program")
            if self.session and p.pid == self.session.pid:
                role = "engine"
            elif role in ("scripts", "command") and names.get(p.parent) == p.name:
                role = "program"  # which is just being started
            elif role == "program" and self.session and p.parent == self.session.pid:
                role = "young"  # a fork of the engine that has not got its name yet
            by_role.setdefault(role, []).append(p.pid)
            self.roles.setdefault(p.pid, role)
        found: list[int] = []
        for role in who:
            pids = by_role.get(role, [])
            if role == "any":
                pids = sorted(names)
            if pids and (role == "any" or (role in ("scripts", "program") and choice >> 1 & 1)):
                pids = [pids[(choice >> 2) % len(pids)]]
            found += pids
        return found

    def killed(self, pid: int) -> None:
        role = self.roles.get(pid, "program")
        phase = ""
        if role == "program":
            with contextlib.suppress(OSError):
                environ = open(f"/proc/{pid}/environ", "rb").read().split(b"\0")  # noqa: SIM115
                phase = next(
                    (e[13:].decode() for e in environ if e.startswith(b"VMSNAP_PHASE=")), "?"
                )
        self.story.tell(f"killed {pid}: {role} {phase}")
        self.story.count(f"killed {role}")
        self.killed_pids[pid] = f"{role} {phase}".strip()
        self.kills.append((time.monotonic(), self.killed_pids[pid]))

    def kill_rest(self) -> None:
        for _ in range(3):
            for process in self.world.processes():
                with contextlib.suppress(ProcessLookupError):
                    os.kill(process.pid, signal.SIGKILL)
            self.turn_until(self.world.is_alone, 2.0)

    # --- afterwards ------------------------------------------------------------------------------

    def read_result(self) -> dict[str, Any] | None:
        assert self.session
        texts = [] if self.plan.terminal else [self.session.out.read_bytes()]
        for directory in (self.world.run_directory, self.world.state):
            with contextlib.suppress(OSError):
                texts.append((directory / "last-result.json").read_bytes())
        for text in texts:
            with contextlib.suppress(ValueError):
                document: dict[str, Any] = json.loads(text)
                if self.session_id in ("", document.get("session")):
                    return document
        return None

    @property
    def session_id(self) -> str:
        """As far as its scripts have told."""
        return next((w[2] for _, w in self.words if w[0] in ("pre-start", "post-start")), "")

    @property
    def remains(self) -> list[str]:
        """What of a session is left in the run directory."""
        left = ("frozen.json", ".frozen.json.new", "session.json", "scripts", "tmp")
        return [name for name in left if (self.world.run_directory / name).exists()]

    def recover(self) -> None:
        """What an administrator does after a session that did not end as it should."""
        if not self.remains and self.ended_by in (0, 1):
            return
        if self.plan.recovery_killed is not None or self.plan.recovery_hunted:
            self.administrator(disturbed=True)
        code = self.administrator()
        if code:
            self.story.violations.append(f"the recovery ended with {code}: {self.recoveries[-1]}")

    def administrator(self, disturbed: bool = False) -> int:
        world = self.world
        argv = [str(VMSNAP), "thaw", *world.places(), "--force"]
        if self.plan.next_session:
            argv = [str(VMSNAP), "run", *world.places(), "--json"]
            argv += [f"--only={f.mount}" for f in self.named(self.plan.filesystems)]
            argv += ["--", "/bin/true"]
        self.story.tell(" ".join(["vmsnap", argv[1], argv[-1]]))
        started = Session(world.directory, argv, world.environment())
        world.sessions.append(started)
        if disturbed and self.plan.recovery_hunted:
            self.inflict(Fault("hunt", "recovery", 0.0, ("thaw",), None, 0))
        if disturbed and self.plan.recovery_killed is not None:
            self.at(self.plan.recovery_killed, lambda: self.kill_recovery(started))
        ended = self.turn_until(lambda: started.process.poll() is not None, PATIENCE)
        if not ended:
            self.story.violations.append("the recovery hangs")
            self.kill_rest()
        if not self.turn_until(world.is_alone, PATIENCE):
            self.story.violations.append(f"left by the recovery: {world.processes()}")
            self.kill_rest()
        self._agenda.clear()
        code = started.process.wait()
        self.recoveries.append(f"{started.out.read_text()[-3000:]} {started.words[-2000:]}")
        self.story.tell(f"it ended with {code}")
        return code

    def kill_recovery(self, started: Session) -> None:
        if started.process.poll() is not None:
            return
        pid = started.pid
        self.story.count("killed recovery")
        for victim in (pid, *children(pid)):
            process = look_at(victim)
            self.roles[victim] = VMSNAP_NAMES.get(process.name, "program") if process else ""
            if victim == pid:
                self.roles[victim] = "recovery"
            self.killed(victim)
            with contextlib.suppress(ProcessLookupError):
                os.kill(victim, signal.SIGKILL)

    def clean_up(self) -> None:
        """For the next round, whatever this one has left."""
        world = self.world
        for pid in world.helping - set(world.writers.values()):
            world.end_helper(pid)
        for f in world.filesystems:
            kernel.ioctl(f.mount, kernel.FITHAW)
        for f in world.filesystems:
            if any(write.error for write in world.writes(f.mount.name)[-1:]):
                self.story.tell(f"{f.mount.name} is read-only")
                self.story.count(f"{FSTYPES[f.mount.name]} read-only")
                world.renew(f)
        for path in world.run_directory.iterdir():
            if path.is_dir():
                shutil.rmtree(path)
            else:
                path.unlink()


def where(pid: int) -> str:
    """In the kernel, for somebody who has to find out why a process does not end."""
    found = [f"where {pid} is:"]
    for task in os.listdir(f"/proc/{pid}/task"):
        for name in ("stat", "syscall", "wchan", "stack"):
            with contextlib.suppress(OSError):
                found.append(Path(f"/proc/{pid}/task/{task}/{name}").read_text().strip())
    with contextlib.suppress(OSError):
        found += [f"{fd.name} -> {os.readlink(fd)}" for fd in Path(f"/proc/{pid}/fd").iterdir()]
    return "\n        ".join(found)
