# SPDX-License-Identifier: Apache-2.0
"""The engine's side of a freeze: opens the filesystems, starts the guard (guard.py), talks to it.

Who thaws: the guard, on command, at its deadlines and at the engine's death. If the guard is lost,
killed or without an answer, the engine thaws with its own descriptors. If both are killed a
supervisor does, by the list in the run directory, and after it `vmsnap thaw --force`.

Runs in: engine, a fork of it that thaws. While frozen: no file but in the run directory, no
journal, no import.
"""

from __future__ import annotations

import collections
import contextlib
import errno
import fcntl
import json
import os
import signal
import sys
import threading
import time
from pathlib import Path

from vmsnap.errors import Kind, Problem, Severity
from vmsnap.freeze import frozen_list
from vmsnap.freeze.blockers import blockers
from vmsnap.freeze.failures import (
    freeze_failures,
    guard_failures,
    thaw_failures,
)
from vmsnap.freeze.filesystem import Filesystem, Opened, open_plan
from vmsnap.freeze.frozen_list import FROZEN_LIST
from vmsnap.freeze.operations import leave_out_busy
from vmsnap.freeze.plan import Action, Plan
from vmsnap.freeze.reopen import Item, identify
from vmsnap.freeze.states import NOT_FROZEN, States
from vmsnap.freeze.thaw import (
    STEP_PATIENCE,
    Suspect,
    is_read_only,
    open_rcu,
    restore_rcu,
    thaw_for_guard,
)
from vmsnap.freeze.witness import await_thaw_by_others
from vmsnap.result import FilesystemResult
from vmsnap.system.left_behind import in_child, send_once
from vmsnap.system.proc import ProcessId, started
from vmsnap.system.process import spawn
from vmsnap.system.waiter import Waiter

F_SETPIPE_SZ = 1031  # linux/fcntl.h
PIPE_BYTES = 1 << 20
ANSWER = 2.0  # seconds within which a guard that lives answers
START = 15.0  # seconds for the guard to start
THAW_BY_OTHERS = 5.0  # seconds for which others' freezes are waited for: applications are quiesced

# Opened with the program, since the two must fit together: an upgrade may exchange the file, or a
# removal take it away, while pre-scripts run.
GUARD = os.open(Path(__file__).with_name("guard.py"), os.O_RDONLY | os.O_CLOEXEC)


class Freezer:
    """One freeze, from opening to thaw. Every method may be called whatever state the guard is
    in."""

    def __init__(
        self,
        run_dir: Path,
        session: str,
        timeout: float,
        hold: float,
        waiter: Waiter,
        kill_blockers: bool = False,
        after_scripts: bool = False,
    ) -> None:
        self.filesystems: list[Filesystem] = []
        self.held_at: float | None = None
        self.thawing_at: float | None = None
        self.cause = ""  # why the guard thawed
        self.lost = ""  # why the guard is no longer counted on
        self.unlocked = 0  # errno, if the guard could not lock its memory
        self._run, self._session = run_dir, session
        self._timeout, self._hold, self._waiter = timeout, hold, waiter
        self._kill_blockers = kill_blockers
        self._after_scripts = after_scripts  # pre-scripts have run, and may have frozen something
        self._by_fd: dict[int, Filesystem] = {}
        self._items: list[Item] = []  # as they are listed
        self._received: set[str] = set()
        self._buffer = b""
        self._guard: ProcessId | None = None
        self._states: States | None = None
        self._lock = self._list = self._process = -1
        self._rcu = open_rcu()
        self._rest: threading.Thread | None = None  # of a thaw that was not done in time
        self._commands = self._answers = self._stderr = -1

    # --- before the freeze ---

    def open(self, plan: Plan) -> Opened:
        """Pin the filesystems of the plan that can be frozen now."""
        opened = open_plan(plan, self._run)
        opened.left_out += leave_out_busy(opened)
        self.filesystems = opened.filesystems
        self._by_fd = {filesystem.fd: filesystem for filesystem in self.filesystems}
        return opened

    def start(self, lock: int) -> list[Problem]:
        """Start the guard. It shares the session's lock. Raises OSError."""
        self._lock = lock
        self._list = frozen_list.create(self._run)
        self._items = [identify(f.entry, f.fd) for f in self.filesystems]
        self._states = States(self._list, len(self.filesystems))
        guard_in, self._commands = os.pipe()
        self._answers, guard_out = os.pipe()
        with contextlib.suppress(OSError):  # else the default, enough for a thousand filesystems
            fcntl.fcntl(self._answers, F_SETPIPE_SZ, PIPE_BYTES)
        os.set_blocking(self._answers, False)
        # What the guard prints when it breaks must not need a filesystem.
        self._stderr = os.memfd_create("vmsnap-guard-stderr", 0)
        argv = [sys.executable, "-ISB", f"/proc/self/fd/{GUARD}"]
        argv += [str(self._timeout), str(self._hold), str(self._run / FROZEN_LIST), str(self._list)]
        for f in self.filesystems:
            optional = ":optional" if f.entry.optional else ""
            argv.append(f"{f.fd}:{f.step}:{f.entry.action.value}{optional}")
        try:
            pid = spawn(
                argv,
                {"PATH": os.defpath, "LC_ALL": "C"},
                stdin=guard_in,
                stdout=guard_out,
                stderr=self._stderr,
                inherit=[GUARD, lock, self._list, *self._by_fd],
            )
            self._guard = ProcessId(pid, started(pid))
            self._process = os.pidfd_open(pid)
        except OSError as e:
            self.lost = f"cannot start the guard: {e.strerror}"
        finally:
            os.close(guard_in)
            os.close(guard_out)
        self._await("ready", START)
        return list(guard_failures("", self.lost, self._hold))

    def _publish_list(self, guard: ProcessId) -> list[Problem]:
        try:
            frozen_list.publish(self._list, self._run, self._session, guard, self._items)
        except OSError as e:
            message = f"cannot write the list of what may be frozen into {self._run}: {e.strerror}"
            return [Problem(Kind.FREEZE_FAILED, message, "freeze", path=str(self._run))]
        return []

    # --- the freeze ---

    def presync(self) -> None:
        self._command("presync")
        self._await("presynced", self._timeout + ANSWER)
        frozen = [f.fd for f in self.filesystems if f.entry.action is Action.FREEZE]
        await_thaw_by_others(frozen, min(self._timeout, THAW_BY_OTHERS), self._waiter)

    def freeze(self) -> list[Problem]:
        """Freeze all. If anything fails that counts, everything is thawed again when this
        returns."""
        if self._guard and not self.lost:
            failures = self._publish_list(self._guard)
            if failures:
                return failures
        self._command("freeze")
        self._await("held", self._timeout + ANSWER)
        if self.held_at is not None:
            return list(freeze_failures(self.filesystems, "", self._timeout, self._after_scripts))
        if self.lost or self._waiter.interrupted:
            failures = self.thaw()
        else:
            self._find_blockers()
            self._await("done", self._patience())
            failures = [
                *freeze_failures(self.filesystems, self.cause, self._timeout, self._after_scripts),
                *self._what_went_wrong(),
            ]
        if all(failure.severity is Severity.WARNING for failure in failures):
            reason = f"the guard gave up: {self.cause or 'it was interrupted'}"
            failures.append(Problem(Kind.FREEZE_FAILED, reason, "freeze"))
        return failures

    def _find_blockers(self) -> None:
        """Whose writes keep filesystems from freezing; end them, if that is wanted."""
        if self.cause != "timeout":
            return
        for f in self.filesystems:
            if f.maybe_frozen and f.frozen_at is None:
                f.blockers = tuple(blockers(os.fstat(f.fd).st_dev))
                for blocker in f.blockers if self._kill_blockers else ():
                    blocker.kill()

    # --- the hold ---

    @property
    def holding(self) -> bool:
        return self.held_at is not None and not self.cause and not self.lost

    def fds(self) -> list[int]:
        """What to wait for during the hold, before receive_or_replace()."""
        return [self._answers] if self.holding else []

    def deadline(self) -> float:
        """When the guard must have thawed by itself, at the latest."""
        return (self.held_at or 0.0) + self._hold + ANSWER

    def overdue(self) -> None:
        self.cause = "expired"
        self._lose(f"the guard did not thaw after {self._hold:g} s")

    def receive_or_replace(self) -> None:
        """receive(), and do what the guard has failed to do by the deadline."""
        if self.holding:
            self.receive()
            if self.holding and time.monotonic() >= self.deadline():
                self.overdue()

    def receive(self) -> None:
        """Receive what the guard sends. When it is gone, thaw in its place."""
        while True:
            try:
                data = os.read(self._answers, 65536)
            except BlockingIOError:
                return
            if not data:
                if "done" not in self._received:
                    self._lose(f"the guard died{self._last_error()}")
                return
            *lines, self._buffer = (self._buffer + data).split(b"\n")
            for line in lines:
                self._note(*line.decode().split(" "))

    def _note(self, event: str, fd: str, at: str, value: str) -> None:
        self._received.add(event)
        now, f = float(at), self._by_fd.get(int(fd))
        if event == "held":
            self.held_at = now
        elif event == "thawing":
            self.cause, self.thawing_at = value, now
        elif event == "ready":
            self.unlocked = int(value)
        elif f is None:
            pass
        elif event == "unwritten":
            f.unwritten = int(value)
        elif event == "freezing":
            f.freezing_at = now
        elif event == "frozen":
            f.frozen_at, f.error = (None, int(value)) if int(value) else (now, 0)
        elif event == "synced":
            f.freezing_at, f.synced_at, f.error = None, now, int(value)
        elif event == "thawed":
            f.thaw_error = int(value)
            f.thawed_at = now if f.thaw_error in (0, errno.EINVAL) else None

    # --- the thaw ---

    def thaw(self) -> list[Problem]:
        """Thaw what is frozen; return everything that went wrong since the hold began."""
        if not self.thawing_at and not self.lost:
            self._command("thaw")
            self._await("thawing", ANSWER)
        self._await("done", self._patience())
        return self._what_went_wrong()

    def _what_went_wrong(self) -> list[Problem]:
        return [
            *thaw_failures(self.filesystems, self.lost),
            *guard_failures(self.cause, self.lost, self._hold),
        ]

    def _lose(self, why: str) -> None:
        """The guard is not to be counted on any more: thaw with our own descriptors."""
        if self.lost:
            return
        self.lost = why
        self.thawing_at = self.thawing_at or time.monotonic()
        self._thaw_ourselves()
        self._note_thawed()
        if self._commands >= 0:  # a guard that was only stopped goes on, and ends
            os.close(self._commands)
            self._commands = -1
            with contextlib.suppress(OSError):
                signal.pidfd_send_signal(self._process, signal.SIGCONT)
        if self._states:
            restore_rcu(self._states, self._rcu)
            # Not before the guard has been told to end: it would go on to freeze without a list.
            if not self._states.maybe_frozen():
                with contextlib.suppress(OSError):
                    (self._run / FROZEN_LIST).unlink()

    def _thaw_ourselves(self) -> None:
        """Thaw in a child, since a FITHAW that never returns would keep its process from ending."""
        states = self._states
        frozen = states.maybe_frozen() if states else []
        if not states or not frozen:
            return
        suspects = [Suspect(i, self.filesystems[i].step, self.filesystems[i].fd) for i in frozen]
        keep = {self._list, self._process, self._lock, *(suspect.fd for suspect in suspects)}

        def thaw(pipe: int) -> None:
            thaws = thaw_for_guard(self._process, states, [suspects])
            send_once(pipe, next(thaws))
            collections.deque(thaws, maxlen=0)

        results: dict[int, int] | None = None
        with contextlib.suppress(OSError):  # no more processes, which is when things get killed
            received = in_child(thaw, "vmsnap-thaw", keep, self._waiter, self._patience())
            results = {} if received is None else json.loads(received or "null")
        if results is None:  # there was no child, or it was killed
            thaws = thaw_for_guard(self._process, states, [suspects])
            results = next(thaws)
            try:
                self._rest = frozen_list.go_on(thaws)
            except RuntimeError:  # no more threads
                collections.deque(thaws, maxlen=0)
        for index, error in results.items():
            if error not in (errno.EINPROGRESS, errno.ETIMEDOUT):
                self.filesystems[int(index)].thaw_error = error

    def _note_thawed(self) -> None:
        """What is settled in the list is not frozen any more, whoever has thawed it."""
        for f, state in zip(self.filesystems, self._states.read() if self._states else ""):
            if f.maybe_frozen and state == NOT_FROZEN:
                f.thawed_at = time.monotonic()

    # --- the end ---

    def close(self) -> None:
        """Let the guard end, and let go of the filesystems."""
        if self._commands >= 0:
            os.close(self._commands)
            self._commands = -1
            self._await("done", ANSWER)
        for f in self.filesystems:
            f.hidden_read_only = f.entry.hidden and is_read_only(f.fd)
        fds = [self._answers, self._stderr, self._rcu]
        if not (self._rest and self._rest.is_alive()):  # which would thaw by their numbers
            fds += [self._list, self._process, *(f.fd for f in self.filesystems)]
        for fd in fds:
            if fd >= 0:
                os.close(fd)
        with contextlib.suppress(OSError):
            frozen_list.discard(self._run)
        if self._guard:
            with contextlib.suppress(ChildProcessError):
                os.waitpid(self._guard.pid, os.WNOHANG)

    # --- talking ---

    def _command(self, word: str) -> None:
        with contextlib.suppress(OSError):  # its death is noticed as end of file
            os.write(self._commands, f"{word}\n".encode())

    def _await(self, event: str, patience: float) -> None:
        """Wait until the guard has sent `event`, or is done, or is lost."""
        deadline = time.monotonic() + patience
        early = event in ("presynced", "held")
        while self._answers >= 0 and not self.lost and not self._received & {event, "done"}:
            if early and (self._waiter.interrupted or "thawing" in self._received):
                return
            if time.monotonic() >= deadline:
                self._lose(f"no {event!r} from the guard within {patience:g} s")
                return
            if self._answers in self._waiter.wait([self._answers], deadline):
                self.receive()

    def _patience(self) -> float:
        return ANSWER + STEP_PATIENCE * (1 + len({f.step for f in self.filesystems}))

    def _last_error(self) -> str:
        with contextlib.suppress(OSError):
            lines = os.pread(self._stderr, 4096, 0).decode("utf-8", "replace").strip()
            if lines:
                return f": {lines.splitlines()[-1]}"
        return ""

    @property
    def frozen_seconds(self) -> float:
        """The longest that a write can have been stalled; until now if anything may be frozen."""
        begins = [f.freezing_at for f in self.filesystems if f.freezing_at is not None]
        ends = [f.thawed_at for f in self.filesystems if f.thawed_at is not None]
        if any(f.maybe_frozen for f in self.filesystems):
            ends.append(time.monotonic())
        return max(ends) - min(begins) if begins and ends else 0.0

    def results(self) -> tuple[FilesystemResult, ...]:
        return tuple(f.result(self.thawing_at) for f in self.filesystems)

    def events(self) -> list[tuple[float, str, str]]:
        """(monotonic seconds, event, mount) of everything the guard reported."""
        events = [(at, name, f.entry.mount) for f in self.filesystems for at, name in f.events()]
        if self.held_at is not None:
            events.append((self.held_at, "held", ""))
        if self.thawing_at is not None:
            events.append((self.thawing_at, "thawing", self.cause or "guard lost"))
        return events
