# SPDX-License-Identifier: Apache-2.0
"""One app's scripts: attempts within one budget of time, output to the journal, clean ends.

Each app has one supervisor (supervisor.py) for the whole session. It runs the pre-script when told
to, stays to reap what a successful one leaves running, and runs the post-script when told to - or
by itself when the engine has died, since an application that was quiesced must be resumed whatever
happens. It then removes the app's private directory. It holds the session's lock, so that no new
session starts meanwhile.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from vmsnap.config.app import App, Script
from vmsnap.journal.sender import Event, Journal, Priority
from vmsnap.scripts.supervisor import Link, Supervisor, supervise
from vmsnap.system.files import make_private, remove_tree
from vmsnap.system.process import Ending, spawn
from vmsnap.system.waiter import Waiter

PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
TAIL_BYTES = 4096
LINE_BYTES = 16384  # a line without an end is cut into pieces of this size
SUPERVISOR_PATIENCE = 10.0  # seconds that a supervisor may take longer than its script and the kill
# Records for the output of all scripts of a session. journald takes 10,000 in 30 s and then drops
# what comes, the session's own records among it (RateLimitBurst=, journald.conf(5)).
LINES = 8000
SUPERVISOR = "vmsnap-scripts"  # the name of the process
ATTEMPTS_TOLD = 100  # a script that fails at once can be started a million times
PREFIX = re.compile(rb"^<([0-7])>", re.MULTILINE)  # sd-daemon(3)


@dataclass(frozen=True)
class ScriptRun:
    """What came of running one script, over all its attempts."""

    attempts: int
    exit: int | None
    signal: int | None
    seconds: float
    timed_out: bool
    words: str = ""
    tail: str = ""

    @property
    def ok(self) -> bool:
        return self.exit == 0 and not self.words

    def message(self, phase: str, name: str) -> str:
        message = f"the {phase}-script of {name} {self.words}, in attempt {self.attempts}"
        tail = self.tail.strip()
        return f"{message}; its last output: {tail}" if tail else message


class AppScripts:
    """The engine's side: start the scripts of one app and hear how they ended."""

    def __init__(
        self,
        app: App,
        session: str,
        run: Path,
        grace: float,
        lock: int,
        journal: Journal,
        lines: int = LINES,
    ) -> None:
        self.app = app
        self.pre_started = False
        self._grace = grace
        self._phase = ""
        self._began = 0.0
        self._attempts = 0
        self._env: dict[str, str] = {}
        self._replaced = False
        self._lock = lock
        self._runner = Runner(app, session, run, grace, journal, lines)
        if not self._runner.directory.exists():  # it does after an engine was killed
            make_private(self._runner.directory)
        self._link = self._supervise()

    def _supervise(self) -> Link:
        return supervise(self._runner.serve, SUPERVISOR, self._runner.run, keep=[self._lock])

    def fileno(self) -> int:
        return self._link.fileno()

    def script(self, phase: str) -> Script | None:
        return self.app.pre if phase == "pre" else self.app.post

    def start(self, phase: str, env: Mapping[str, str]) -> None:
        self.pre_started = self.pre_started or phase == "pre"
        self._phase, self._began, self._attempts = phase, time.monotonic(), 0
        self._env = dict(env)
        self._link.send(run=phase, env=self._env)

    def stop(self) -> None:
        self._link.send(stop=True)

    def hear(self) -> ScriptRun | int | None:
        """The script's result, or the number of the attempt that has begun."""
        message = self._link.hear()
        if message is None:
            if self._phase == "post" and self._attempts == 0 and not self._replaced:
                self._replaced = True  # once: it must run, even if the supervisor was killed
                self._link = self._supervise()
                self._link.send(run=self._phase, env=self._env)
                return None
            return self.lost("its supervisor was killed")
        if message.pop("phase") != self._phase:  # so late that nobody counted on it any more
            return None
        if "attempt" in message:
            self._attempts = int(message["attempt"])
            return self._attempts
        return ScriptRun(**message)

    def lost(self, why: str) -> ScriptRun:
        seconds = time.monotonic() - self._began
        return ScriptRun(self._attempts, None, None, seconds, False, f"cannot be watched: {why}")

    def deadline(self, phase: str) -> float:
        script = self.script(phase)
        budget = script.budget if script else 0.0
        return self._began + budget + self._grace + SUPERVISOR_PATIENCE

    def finish(self, waiter: Waiter) -> None:
        self._link.finish(waiter, self._grace + SUPERVISOR_PATIENCE)


def run_scripts(
    everyone: list[AppScripts],
    phase: str,
    env: Mapping[str, str],
    waiter: Waiter,
    tell: Callable[[AppScripts, ScriptRun | int], None],
    heed: bool,
) -> None:
    """Run the scripts of one phase, all at once, and wait for all.

    If `heed`, an interruption of the engine stops them. `tell` hears of attempts as
    they begin and of the ends as they come.
    """
    for scripts in everyone:
        scripts.start(phase, env)
    running = list(everyone)
    stopping = False
    while running:
        if heed and waiter.interrupted and not stopping:
            stopping = True
            for scripts in running:
                scripts.stop()
        deadline = min(scripts.deadline(phase) for scripts in running)
        ready = waiter.wait([scripts.fileno() for scripts in running], deadline)
        for scripts in tuple(running):
            heard = scripts.hear() if scripts.fileno() in ready else None
            if heard is None and time.monotonic() > scripts.deadline(phase):
                heard = scripts.lost("its supervisor does not answer")
            if isinstance(heard, ScriptRun):
                running.remove(scripts)
            if heard is not None:
                tell(scripts, heard)


class Runner:
    """The supervisor's side: runs in a fork of the engine, one for each app."""

    def __init__(
        self, app: App, session: str, run: Path, grace: float, journal: Journal, lines: int
    ) -> None:
        self.app, self.run, self.grace = app, run, grace
        self.directory = run / "scripts" / session / app.name
        self.room = {"pre": lines // 2, "post": lines // 2}  # records of output, over all attempts
        self.journal = Journal({**journal.fields, "VMSNAP_APP": app.name})
        self.environment = {
            "PATH": PATH,
            "LANG": os.environ.get("LANG", "C.UTF-8"),
            "HOME": "/root",
            "VMSNAP_SESSION": session,
            "VMSNAP_APP": app.name,
            "VMSNAP_SCRIPT_DIR": str(self.directory),
        }

    def serve(self, supervisor: Supervisor) -> None:
        os.chdir("/")
        started: set[str] = set()
        while (order := supervisor.order()) is not None:
            phase = str(order["run"])
            started.add(phase)
            run = self.run_script(supervisor, phase, order["env"])
            if phase == "post":  # nothing is owed any more (session/recovery.py)
                remove_tree(self.directory)
            supervisor.say(phase=phase, **asdict(run))
        if "pre" in started and "post" not in started and self.app.post:
            self.journal.send(
                f"The session ended before its time; running the post-script of {self.app.name}",
                Event.NOTE.value,
                Priority.WARNING,
                VMSNAP_PHASE="post",
            )
            abandoned = {"VMSNAP_OUTCOME": "failed", "VMSNAP_CONSISTENCY": "none"}
            self.run_script(supervisor, "post", abandoned)
        remove_tree(self.directory)
        with contextlib.suppress(OSError):  # the last app of the session succeeds
            self.directory.parent.rmdir()
            self.directory.parent.parent.rmdir()

    def run_script(self, supervisor: Supervisor, phase: str, extra: Mapping[str, str]) -> ScriptRun:
        script = self.app.pre if phase == "pre" else self.app.post
        assert script is not None
        begin = time.monotonic()
        deadline = begin + script.budget
        attempt = 0
        while True:
            attempt += 1
            if attempt <= ATTEMPTS_TOLD:
                supervisor.say(phase=phase, attempt=attempt)
            env = {
                **self.environment,
                **extra,
                "VMSNAP_PHASE": phase,
                "VMSNAP_ATTEMPT": str(attempt),
                "VMSNAP_TIMEOUT": f"{script.budget:g}",
            }
            ending, tail = self.attempt(supervisor, script, phase, env, deadline)
            if ending.ok:
                break
            over = ending.timed_out or ending.stopped or bool(ending.error)
            if over or attempt > script.retries or time.monotonic() >= deadline:
                break
        words = "" if ending.ok else ending.words
        seconds = time.monotonic() - begin
        return ScriptRun(
            attempt, ending.exit, ending.signal, seconds, ending.timed_out, words, tail
        )

    def attempt(
        self,
        supervisor: Supervisor,
        script: Script,
        phase: str,
        env: Mapping[str, str],
        deadline: float,
    ) -> tuple[Ending, str]:
        """Start the script once. Its output goes to the journal; the end of it is returned."""
        before = supervisor.living()  # what a successful pre-script left running
        output = Output(self.journal, phase, self.room[phase])
        read, write = os.pipe()
        os.set_blocking(read, False)
        null = os.open("/dev/null", os.O_RDONLY)

        def start() -> int:
            try:
                # By its path and not by a descriptor, because a script started as /dev/fd/N does
                # not know its own name. Only root could have exchanged it since it was checked.
                status = Path(script.path).stat()
                if (status.st_dev, status.st_ino) != script.identity:
                    raise OSError(errno.ESTALE, "it was replaced after it had been checked")
                argv = [script.path, *script.params]
                return spawn(argv, env, stdin=null, stdout=write, stderr=write)
            finally:
                os.close(write)

        ending = supervisor.run(start, deadline, read, output.take, survive=phase == "post")
        os.close(null)
        if ending.ok:
            # What the script left running would be killed by SIGPIPE at its next word, and what it
            # holds for the application with it.
            supervisor.discard.add(read)
        else:
            supervisor.end_everything(self.grace, before, read, output.take)
            os.close(read)
        output.end()
        self.room[phase] = output.room
        return ending, output.last_words()


class Output:
    """Cuts a script's output into lines for the journal, of which there is `room` for so many, and
    keeps its end."""

    def __init__(self, journal: Journal, phase: str, room: int = LINES) -> None:
        self.journal, self.phase, self.room = journal, phase, room
        self.left_out = 0
        self.tail = b""
        self._line = b""

    def take(self, data: bytes) -> None:
        self.tail = (self.tail + data)[-TAIL_BYTES:]
        *lines, self._line = (self._line + data).split(b"\n")
        for line in lines:
            self.record(line)
        while len(self._line) > LINE_BYTES:
            self.record(self._line[:LINE_BYTES])
            self._line = self._line[LINE_BYTES:]

    def end(self) -> None:
        if self._line:
            self.record(self._line)
        self._line = b""
        if self.left_out:
            lines = "line of output is" if self.left_out == 1 else "lines of output are"
            words = f"{self.left_out} more {lines} left out"
            self.send(words, Event.NOTE, Priority.WARNING, "vmsnap")

    def last_words(self) -> str:
        """The end of the output for a message, where priorities mean nothing."""
        return PREFIX.sub(b"", self.tail).decode("utf-8", "replace")

    def record(self, line: bytes) -> None:
        if self.room == 0:
            self.left_out += 1
            return
        self.room -= 1
        prefix = PREFIX.match(line)
        self.send(
            line[3 if prefix else 0 :].decode("utf-8", "replace"),
            Event.SCRIPT_OUTPUT,
            Priority(min(max(int(prefix[1]), 3), 6)) if prefix else Priority.INFO,
            "vmsnap-script",
        )

    def send(self, words: str, event: Event, priority: Priority, identifier: str) -> None:
        self.journal.send(words, event.value, priority, identifier, VMSNAP_PHASE=self.phase)
