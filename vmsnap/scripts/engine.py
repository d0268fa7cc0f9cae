# SPDX-License-Identifier: Apache-2.0
"""One app's scripts: attempts within one budget of time, output to the journal, clean ends.

Each app has one supervisor (supervisor.py) for the whole session. It runs the pre-script when told
to, stays to reap what a successful one leaves running, and runs the post-script when told to - or
by itself when the engine has died, since an application that was quiesced must be resumed whatever
happens. It then removes the app's private directory. It holds the session's lock, so that no new
session starts meanwhile.

Runs in: engine. While frozen: no file, no journal, no import.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

from vmsnap.config.app import App, Script
from vmsnap.journal.sender import Journal
from vmsnap.scripts.output import LINES
from vmsnap.scripts.runner import SHORTAGE_PAUSE, UNWATCHED, Runner, ScriptRun
from vmsnap.scripts.supervisor import Link, supervise
from vmsnap.system.process import SHORTAGE, ExitStatus, ended_child
from vmsnap.system.waiter import Waiter

SUPERVISOR_PATIENCE = 10.0  # seconds that a supervisor may take longer than its script and the kill
REPLACEMENTS = 5  # of one app's supervisor
SUPERVISOR = "vmsnap-scripts"  # the name of the process


class AppScripts:
    """The engine's side: start the scripts of one app and receive how they ended."""

    def __init__(
        self,
        app: App,
        session: str,
        run_dir: Path,
        grace: float,
        lock: int,
        journal: Journal,
        waiter: Waiter,
        lines: int = LINES,
    ) -> None:
        self.app = app
        self._waiter = waiter
        self.pre_started = False
        self._grace = grace
        self._phase = ""
        self._began = 0.0
        self._attempts = 0
        self._orphan = 0  # the pid of a post-script whose supervisor was killed
        self._env: dict[str, str] = {}
        self._replacements = 0
        self._lock = lock
        self._runner = Runner(app, session, run_dir, grace, journal, lines)
        self._pending = self._runner.pending
        begins = self._pending.vanished  # else it is from an engine that was killed
        if begins:
            self._pending.begin(pre=app.pre is not None)
        try:
            self._link = self._supervise()
        except OSError:
            if begins:
                self._pending.end()
            raise

    def _supervise(self) -> Link:
        return supervise(self._runner.serve, SUPERVISOR, self._runner.run, keep=[self._lock])

    def fileno(self) -> int:
        return self._link.fileno()

    def script(self, phase: str) -> Script | None:
        return self.app.pre if phase == "pre" else self.app.post

    def watch(self, seconds: float) -> None:
        self._link.watch(seconds)

    def start(self, phase: str, env: Mapping[str, str]) -> None:
        self.pre_started = self.pre_started or phase == "pre"
        self._phase, self._began = phase, time.monotonic()
        self._attempts = self._orphan = 0
        self._env = dict(env)
        self._order()

    def _order(self) -> None:
        self._link.send(
            run=self._phase,
            env=self._env,
            deadline=self._began + self._budget(self._phase),
            attempts=self._attempts,
            unwatched=self._orphan,
        )

    def _budget(self, phase: str) -> float:
        script = self.script(phase)
        return script.budget if script else 0.0

    def stop(self) -> None:
        self._link.send(stop=True)

    def receive(self) -> ScriptRun | int | None:
        """The script's result, or the number of the attempt that has begun."""
        message = self._link.receive()
        if message is None:
            return self._unwatched(None)
        if message.pop("phase") != self._phase:  # of an earlier phase, given up meanwhile
            return None
        if "attempt" in message:
            self._attempts = int(message["attempt"])
            return self._attempts
        run = ScriptRun(**message)
        return self._unwatched(run) if run.reason == UNWATCHED else run

    def _unwatched(self, waited: ScriptRun | None) -> ScriptRun | None:
        """The supervisor that started the script was killed. Return how the script ended; None if
        another supervisor waits for that now, or runs it again. `waited` is from one that could do
        nothing but wait.

        The script is our child then, since we are a subreaper (session.py), and so we know.
        """
        if self._phase != "post":
            return self.lost(UNWATCHED)
        orphan = 0 if waited else self._link.orphan()
        if waited is None and self._pending.post_started:  # else it is the pre-script
            self._orphan = orphan or self._orphan
        ended = ended_child(self._orphan) if self._orphan else None
        if ended and waited and waited.timed_out:
            ended = replace(ended, timed_out=True)
        if ended and self._is_final(ended):
            run = self._ended(ended)
        elif waited and not ended:
            run = waited
        elif waited or (self._pending.post and self._replace_supervisor()):
            self._orphan = 0 if ended else self._orphan
            if not self._pending.post_started:  # whose time has not begun
                self._began = time.monotonic()
            self._order()
            return None
        else:
            return self.lost(UNWATCHED)
        self._pending.end()
        return run

    def _is_final(self, ended: ExitStatus) -> bool:
        """Whether it is not run again: one that was killed is, which it need not have done by
        itself."""
        script = self.script(self._phase)
        retried = ended.exit and script and self._attempts <= script.retries
        return ended.timed_out or (ended.signal is None and not retried)

    def _replace_supervisor(self) -> bool:
        """Start another supervisor in the place of one that was killed, as soon as there is a
        process for it. False if there can be no more."""
        self._replacements += 1
        deadline = self._began + self._budget(self._phase)
        while self._replacements <= REPLACEMENTS:
            try:
                self._link = self._supervise()
            except OSError as e:
                if e.errno not in SHORTAGE or time.monotonic() >= deadline:
                    return False
                self._waiter.wait((), time.monotonic() + SHORTAGE_PAUSE)
            else:
                return True
        return False

    def lost(self, why: str) -> ScriptRun:
        return self._ended(ExitStatus(error=why))

    def _ended(self, ending: ExitStatus) -> ScriptRun:
        return ScriptRun.of(self._attempts, ending, time.monotonic() - self._began)

    def deadline(self, phase: str) -> float:
        return self._began + self._budget(phase) + self._grace + SUPERVISOR_PATIENCE

    def finish(self, waiter: Waiter) -> None:
        self._link.finish(waiter, self._grace + SUPERVISOR_PATIENCE)


def run_scripts(
    everyone: list[AppScripts],
    phase: str,
    env: Mapping[str, str],
    waiter: Waiter,
    notify: Callable[[AppScripts, ScriptRun | int], None],
    interruptible: bool,
) -> None:
    """Run the scripts of one phase, all at once, and wait for all.

    If `interruptible`, an interruption of the engine stops them. `notify` gets attempts as
    they begin and ends as they come.
    """
    for scripts in everyone:
        scripts.start(phase, env)
    running = list(everyone)
    stopping = False
    while running:
        if interruptible and waiter.interrupted and not stopping:
            stopping = True
            for scripts in running:
                scripts.stop()
        deadline = min(scripts.deadline(phase) for scripts in running)
        asked_at = time.monotonic()  # to replace a supervisor below may take long
        ready = waiter.wait([scripts.fileno() for scripts in running], deadline)
        for scripts in tuple(running):
            received = scripts.receive() if scripts.fileno() in ready else None
            if received is None and asked_at > scripts.deadline(phase):
                received = scripts.lost("cannot be watched: its supervisor does not answer")
            if isinstance(received, ScriptRun):
                running.remove(scripts)
            if received is not None:
                notify(scripts, received)
