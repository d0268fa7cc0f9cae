# SPDX-License-Identifier: Apache-2.0
"""One app's scripts inside their supervisor: attempts within one budget of time, clean ends.

Runs in: supervisor (made in the engine, before the fork). Not while frozen: a supervisor whose
engine has died thaws first.
"""

from __future__ import annotations

import contextlib
import errno
import os
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from vmsnap.config.app import App, Script
from vmsnap.config.startable import PATH
from vmsnap.journal.sender import Event, Journal, Priority
from vmsnap.scripts.output import Output
from vmsnap.scripts.pending import Pending
from vmsnap.scripts.supervisor import Supervisor
from vmsnap.system.proc import descendants, having_environment, is_alive
from vmsnap.system.process import SHORTAGE, ExitStatus, launch, launched, not_started

SHORTAGE_PAUSE = 0.2  # seconds
UNWATCHED = "cannot be watched: its supervisor was killed"
WARNING = 2  # the exit code of a script that has only warned, in Azure's framework
ATTEMPTS_TOLD = 100  # a script that fails at once can be started a million times


@dataclass(frozen=True)
class ScriptRun:
    """What came of running one script, over all its attempts."""

    attempts: int
    exit: int | None
    signal: int | None
    seconds: float
    timed_out: bool
    reason: str = ""
    tail: str = ""

    @classmethod
    def of(cls, attempts: int, ending: ExitStatus, seconds: float, tail: str = "") -> ScriptRun:
        """`ending` is that of the last attempt."""
        reason = "" if ending.ok else ending.reason
        timed_out = ending.timed_out
        return cls(attempts, ending.exit, ending.signal, seconds, timed_out, reason, tail)

    @property
    def ok(self) -> bool:
        return self.exit == 0 and not self.reason

    @property
    def warned(self) -> bool:
        return self.exit == WARNING and not self.timed_out

    def message(self, phase: str, name: str) -> str:
        warned = ", a warning," if self.warned else ","
        message = f"the {phase}-script of {name} {self.reason}{warned} in attempt {self.attempts}"
        tail = self.tail.strip()
        return f"{message}; its last output: {tail}" if tail else message


class Runner:
    """The supervisor's side: runs in a fork of the engine, one for each app."""

    def __init__(
        self, app: App, session: str, run_dir: Path, grace: float, journal: Journal, lines: int
    ) -> None:
        self.app, self.run, self.grace = app, run_dir, grace
        self.pending = Pending(run_dir, session, app.name)
        self.room = {"pre": lines // 2, "post": lines // 2}  # records of output, over all attempts
        self.journal = Journal({**journal.fields, "VMSNAP_APP": app.name})
        self.environment = {
            "PATH": PATH,
            "LANG": os.environ.get("LANG", "C.UTF-8"),
            "HOME": "/root",
            "VMSNAP_SESSION": session,
            "VMSNAP_APP": app.name,
            "VMSNAP_SCRIPT_DIR": str(self.pending.private),
        }

    def serve(self, supervisor: Supervisor) -> None:
        os.chdir("/")
        begun: set[str] = set()
        while (order := supervisor.order()) is not None:
            phase = str(order["run"])
            begun.add(phase)
            run = self.run_script(
                supervisor,
                phase,
                order["env"],
                order["deadline"],
                order["attempts"],
                order["unwatched"],
            )
            if phase == "pre":
                self.pending.pre_ended()
            elif run.reason != UNWATCHED:  # of which the engine learns how it ended
                self.pending.end()
            supervisor.forget()
            supervisor.send(phase=phase, **asdict(run))
        pending = self.pending.post
        if self.pending.vanished:  # better twice than never
            pending = "pre" in begun
        if pending and self.app.post and "post" not in begun:
            self.journal.send(
                f"The session ended before its time; running the post-script of {self.app.name}",
                Event.NOTE.value,
                Priority.WARNING,
                VMSNAP_PHASE="post",
            )
            abandoned = {"VMSNAP_OUTCOME": "failed", "VMSNAP_CONSISTENCY": "none"}
            deadline = time.monotonic() + self.app.post.budget
            self.run_script(supervisor, "post", abandoned, deadline)
        self.pending.end()

    def run_script(
        self,
        supervisor: Supervisor,
        phase: str,
        extra: Mapping[str, str],
        deadline: float,
        attempt: int = 0,
        unwatched: int = 0,
    ) -> ScriptRun:
        """Go on after this `attempt` until the deadline (monotonic). Its pid is `unwatched` if the
        supervisor that started it was killed; the engine, its parent then, learns how it ends."""
        script = self.app.pre if phase == "pre" else self.app.post
        assert script is not None
        begin = time.monotonic()
        if phase == "post":  # what a supervisor that was killed has left running
            if self.pending.pre_may_run:
                supervisor.end(lambda: self.processes("pre"), self.grace)
                deadline += time.monotonic() - begin  # which is not of its own time
            if unwatched or (self.pending.post_started and self.processes("post")):
                ended = supervisor.outlast(lambda: self.still_running(unwatched), deadline)
                if not ended:
                    supervisor.end(lambda: self.processes("post"), self.grace)
                seconds = time.monotonic() - begin
                return ScriptRun(attempt, None, None, seconds, not ended, UNWATCHED)
        while True:
            attempt += 1
            supervisor.forget()
            if attempt <= ATTEMPTS_TOLD:
                supervisor.send(phase=phase, attempt=attempt)
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
        return ScriptRun.of(attempt, ending, time.monotonic() - begin, tail)

    def processes(self, phase: str) -> set[int]:
        """Those of this script, whoever their parent is: with its environment, and what is below
        them."""
        names = ("VMSNAP_SESSION", "VMSNAP_APP")
        ours = {f"{name}={self.environment[name]}".encode() for name in names}
        found = having_environment(ours | {f"VMSNAP_PHASE={phase}".encode()})
        return found | descendants(*found)

    def still_running(self, unwatched: int) -> set[int]:
        """The post-script that another supervisor has started, with all below it if its pid is not
        known."""
        if not unwatched:
            return self.processes("post")
        return {unwatched} if is_alive(unwatched) else set()

    def attempt(
        self,
        supervisor: Supervisor,
        script: Script,
        phase: str,
        env: Mapping[str, str],
        deadline: float,
    ) -> tuple[ExitStatus, str]:
        """Start the script, as soon as there are processes, memory and descriptors for it. Its
        output goes to the journal; the end of it is returned."""
        while True:
            tried = self.try_to_run(supervisor, script, phase, env, deadline)
            if not isinstance(tried, OSError):
                return tried
            # Nothing announces that a shortage is over.
            short = tried.errno in SHORTAGE and time.monotonic() < deadline
            if not (short and supervisor.pause(SHORTAGE_PAUSE, survive=phase == "post")):
                return not_started(tried), ""

    def try_to_run(
        self,
        supervisor: Supervisor,
        script: Script,
        phase: str,
        env: Mapping[str, str],
        deadline: float,
    ) -> tuple[ExitStatus, str] | OSError:
        """The same; an OSError if it could not be started, and that alone."""
        try:
            before = supervisor.living()  # what a successful pre-script left running
            pid, failure, read = self.start(script, phase, env)
        except OSError as e:
            return e
        output = Output(self.journal, phase, self.room[phase])
        ending = supervisor.run(pid, deadline, read, output.take, survive=phase == "post")
        try:
            ending = launched(failure, ending)
        except OSError as e:
            os.close(read)
            supervisor.forget()
            return (ending, "") if ending.stopped else e
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

    def start(self, script: Script, phase: str, env: Mapping[str, str]) -> tuple[int, int, int]:
        """Return its pid, a pipe for launched(), and where its output can be read. Raises
        OSError."""
        mark, supervisor = self.pending.started(phase), os.getpid()

        def first() -> None:
            # By its path and not by a descriptor, because a script started as /dev/fd/N does not
            # know its own name. Only root could have exchanged it since it was checked.
            status = Path(script.path).stat()
            if (status.st_dev, status.st_ino) != script.identity:
                raise OSError(errno.ESTALE, "it was replaced after it had been checked")
            if os.getppid() != supervisor:  # which was killed meanwhile: another one starts it
                raise ProcessLookupError
            if mark:
                os.truncate(mark, 0)

        with contextlib.ExitStack() as stack:
            read, write = os.pipe()
            undo = stack.enter_context(contextlib.ExitStack())
            undo.callback(os.close, read)
            stack.callback(os.close, write)
            os.set_blocking(read, False)
            null = os.open("/dev/null", os.O_RDONLY)
            stack.callback(os.close, null)
            # In our session: by that it is found should we be killed.
            argv = [script.path, *script.params]
            pid, failure = launch(argv, env, (null, write, write), first, in_our_session=True)
            undo.pop_all()
            return pid, failure, read
