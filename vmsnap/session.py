# SPDX-License-Identifier: Apache-2.0
"""A session: check, pre-scripts, presync, freeze, snapshot, thaw, post-scripts, report.

The only module that knows this order. Each step that changes something pushes its undo, and every
undo runs, whatever became of the others. How a failure lowers the consistency stands in
consistency.py.
"""

from __future__ import annotations

import datetime
import json
import os
import shutil
import time
import uuid
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from vmsnap import checks, snapshot
from vmsnap.config import App
from vmsnap.consistency import Level, consistency
from vmsnap.errors import SCRIPT, Failure, Kind, Severity
from vmsnap.events import Waiter
from vmsnap.files import write_atomically
from vmsnap.freezer import Freezer
from vmsnap.journal import Event, Journal, Priority
from vmsnap.result import (
    LAST,
    AppResult,
    Result,
    ScriptResult,
    SnapshotResult,
    TimelineEvent,
    error_result,
)
from vmsnap.scripts import AppScripts, ScriptRun, run_scripts
from vmsnap.storage import count_disks, make_plan
from vmsnap.thaw import FROZEN_LIST, thaw_listed


@dataclass(frozen=True)
class Options:
    """What the caller of a session decides. None and () leave it to the settings."""

    command: tuple[str, ...]
    etc: Path = Path("/etc")
    run: Path = Path("/run/vmsnap")
    state: Path = Path("/var/lib/vmsnap")
    hold: float | None = None
    require: Level | None = None
    only: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()
    fsfreeze: bool = True


class Session:
    """One session. Owns the lock that it was given, and everything it starts until it has ended."""

    def __init__(
        self,
        options: Options,
        lock: int,
        waiter: Waiter,
        show: Callable[[str], None] = lambda _: None,
        session: str | None = None,
    ) -> None:
        self.id = session or new_id()
        self.options, self.lock, self.waiter, self.show = options, lock, waiter, show
        self.journal = Journal({"VMSNAP_SESSION": self.id})
        self.failures: list[Failure] = []
        self.timeline: list[tuple[float, str, str]] = []
        self.runs: dict[tuple[str, str], ScriptRun] = {}
        self.began = time.monotonic()
        self.started = datetime.datetime.now(datetime.timezone.utc).astimezone()
        self.phase = ""
        self.found = checks.Inspection()
        self.scripts: list[AppScripts] = []
        self.freezer: Freezer | None = None
        self.command: snapshot.Command | None = None
        self.taken = False
        self.thawed = False

    def take(self) -> Result:
        """Run the whole session and return its result. Never raises for what can go wrong in it."""
        with ExitStack() as undo:
            self.check()
            if self.may_go_on():
                undo.callback(self.finish_scripts)
                undo.callback(self.post)
                self.pre()
            if self.may_go_on():
                undo.callback(self.thaw)
                self.freeze()
            if self.may_go_on():
                self.snapshot()
        return self.report()

    # --- the level -----------------------------------------------------------------------------

    @property
    def freezing(self) -> bool:
        """Whether filesystems are meant to be frozen, by us or by the platform's agent."""
        return not self.options.fsfreeze or all(app.freeze for app in self.found.apps)

    @property
    def level(self) -> Level:
        kinds = [failure.kind for failure in self.failures]
        return consistency(kinds, apps=self.found.apps_meant, freezing=self.freezing)

    @property
    def required(self) -> Level:
        """What the apps ask for, which counts only if there is more than one disk (Azure's rule);
        the settings and the caller can ask for more."""
        strict = any(app.required for app in self.found.apps) and count_disks() > 1
        asked = (self.found.settings.require, self.options.require)
        return max([Level.APPLICATION if strict else Level.CRASH, *filter(None, asked)])

    def may_go_on(self) -> bool:
        if self.waiter.interrupted and not any(f.subject == "interrupted" for f in self.failures):
            self.fail(
                Failure(
                    Kind.SNAPSHOT_FAILED,
                    self.phase,
                    "interrupted",
                    f"the session was interrupted by {self.waiter.interrupted}",
                )
            )
        return self.level >= self.required

    # --- the phases ----------------------------------------------------------------------------

    def check(self) -> None:
        self.enter("check", f"Session {self.id} begins", Event.STARTED)
        self.recover()
        self.found = checks.inspect(self.options.etc)
        for problem in self.found.problems:
            subject = problem.subject or problem.path
            if problem.severity is Severity.ERROR:
                self.fail(Failure(problem.kind, "check", subject, problem.message))
            else:
                self.note(problem.message)
        path = snapshot.find(self.options.command[0])
        if path is None:
            message = f"found no program {self.options.command[0]!r}, expected one that can be run"
            self.fail(Failure(Kind.SNAPSHOT_FAILED, "check", self.options.command[0], message))
        else:
            grace = self.found.settings.kill_grace
            self.command = snapshot.Command(path, self.options.command, grace, self.lock)

    def recover(self) -> None:
        """Clean up after a session that was killed together with its guard. We hold the lock, so
        nobody else is about to."""
        if (self.options.run / FROZEN_LIST).exists():
            self.note("found the list of frozen filesystems of a session that was killed; thawing")
            thaw_listed(self.options.run, self.note)
        shutil.rmtree(self.options.run / "scripts", ignore_errors=True)

    def pre(self) -> None:
        self.enter("pre", "Running pre-scripts")
        grace = self.found.settings.kill_grace
        for app in self.found.runnable:
            try:
                self.scripts.append(
                    AppScripts(app, self.id, self.options.run, grace, self.lock, self.journal)
                )
            except OSError as e:
                kinds = SCRIPT["pre" if app.pre else "post"]
                message = f"cannot make its directory below {self.options.run}: {e.strerror}"
                self.fail(Failure(kinds.failed, "pre", app.name, message))
        self.run_scripts([s for s in self.scripts if s.app.pre], {})

    def freeze(self) -> None:
        if not self.options.fsfreeze or not self.freezing:
            return
        self.enter("presync", "Writing out what is dirty")
        settings = self.found.settings
        hold = self.options.hold or settings.hold
        plan = make_plan(
            self.options.only or settings.only, (*self.options.exclude, *settings.exclude)
        )
        freezer = Freezer(self.options.run, self.id, settings.freeze_timeout, hold, self.waiter)
        self.freezer = freezer
        if self.fail(*freezer.open(plan)) or self.fail(*freezer.start(self.lock)):
            return
        if freezer.unlocked:
            self.note(f"the guard could not lock its memory: {os.strerror(freezer.unlocked)}")
        freezer.presync()
        self.enter("freeze", f"Freezing {len(freezer.filesystems)} filesystems")
        # From here to the thaw: no file, no journal, no import, no terminal.
        self.journal.hold()
        if not self.waiter.interrupted:
            self.fail(*freezer.freeze())
        if freezer.held_at is None:
            self.journal.release()
        else:
            count = f"Froze {len(freezer.filesystems)} filesystems"
            self.journal.send(count, Event.FROZEN.value, VMSNAP_PHASE="freeze")

    def snapshot(self) -> None:
        """Run the command; end when it has ended. The guard watches the hold; without a freeze the
        same time is watched here, since the applications are held all the same."""
        assert self.command
        command, freezer = self.command, self.freezer
        self.mark("snapshot")
        self.phase = "snapshot"
        hold = self.options.hold or self.found.settings.hold
        hold_end = time.monotonic() + hold
        frozen = freezer is not None and freezer.holding
        directory = self.options.run
        command.start(snapshot.environment(self.id, self.level.word, directory))
        give_up: float | None = None
        while command.ending is None:
            fds = [*command.fds(), *(freezer.fds() if freezer else ())]
            held_until = freezer.deadline() if freezer and freezer.holding else hold_end
            ready = self.waiter.wait(fds, command.deadline() or give_up or held_until)
            command.hear(ready)
            if freezer and freezer.holding:
                freezer.hear()
                if time.monotonic() >= freezer.deadline():
                    freezer.overdue()
            if self.waiter.interrupted:
                self.thaw()
                command.stop()
            elif give_up is None and (
                not freezer.holding if frozen and freezer else time.monotonic() >= hold_end
            ):
                give_up = time.monotonic() + snapshot.AFTER_EXPIRY
                if not frozen:
                    message = f"found the snapshot still being taken after {hold:g} s"
                    self.fail(Failure(Kind.HOLD_EXPIRED, "snapshot", "", message))
            elif give_up is not None and time.monotonic() >= give_up:
                command.stop()
        self.mark("snapshot-ended")
        command.collect()
        self.taken = command.ending.ok
        if not command.ending.ok:
            words = f"{self.options.command[0]} {command.ending.words}"
            if self.waiter.interrupted:
                words += f": the session was interrupted by {self.waiter.interrupted}"
            self.fail(Failure(Kind.SNAPSHOT_FAILED, "snapshot", self.options.command[0], words))
        elif command.lost:
            message = (
                f"{self.options.command[0]} wrote {command.lost} bytes more than the "
                f"{snapshot.OUTPUT_BYTES >> 20} MiB that are kept in memory while frozen, so its "
                "output is not whole"
            )
            self.fail(Failure(Kind.SNAPSHOT_FAILED, "snapshot", self.options.command[0], message))

    def thaw(self) -> None:
        if self.thawed:
            return
        self.thawed = True
        if self.freezer is None:
            return
        self.mark("thaw")
        self.phase = "thaw"
        try:
            if self.freezer.held_at is not None:
                self.fail(*self.freezer.thaw())
        finally:
            self.freezer.close()
            self.journal.release()
        self.show("thaw")
        count = sum(1 for f in self.freezer.filesystems if f.thawed_at is not None)
        self.journal.send(f"Thawed {count} filesystems", Event.THAWED.value, VMSNAP_PHASE="thaw")

    def post(self) -> None:
        self.enter("post", "Running post-scripts")
        wanted = [s for s in self.scripts if s.app.post and (s.pre_started or s.app.pre is None)]
        outcome = "success" if self.succeeded else "failed"
        self.run_scripts(
            wanted, {"VMSNAP_OUTCOME": outcome, "VMSNAP_CONSISTENCY": self.reached.word}
        )

    def finish_scripts(self) -> None:
        for scripts in self.scripts:
            scripts.finish(self.waiter)

    def report(self) -> Result:
        self.enter("report", "Reporting")
        if self.command:
            self.command.finish(self.waiter)
        result = self.result()
        document = json.dumps(result.to_json())
        try:
            self.options.state.mkdir(mode=0o700, parents=True, exist_ok=True)
            write_atomically(self.options.state / LAST, document.encode() + b"\n", 0o600)
        except OSError as e:
            self.note(f"cannot write the result to {self.options.state}: {e.strerror}")
        self.journal.send(
            f"Session {self.id} ended: {result.outcome}, {result.consistency} consistency",
            Event.ENDED.value,
            Priority.NOTICE if result.ok else Priority.ERROR,
            VMSNAP_PHASE="report",
            VMSNAP_CONSISTENCY=result.consistency,
            VMSNAP_RESULT=document,
        )
        return result

    # --- scripts -------------------------------------------------------------------------------

    def run_scripts(self, wanted: list[AppScripts], env: dict[str, str]) -> None:
        phase = self.phase

        def tell(scripts: AppScripts, what: str) -> None:
            self.mark(f"{phase}-{what}", scripts.app.name)

        runs = run_scripts(wanted, phase, env, self.waiter, tell, heed=phase == "pre")
        for name, run in runs.items():
            self.runs[name, phase] = run
            self.mark(f"{phase}-ended", name)
            self.journal.send(
                f"{phase}-script of {name} " + (run.words or f"succeeded in {run.seconds:.3f} s"),
                Event.SCRIPT_ENDED.value,
                VMSNAP_APP=name,
                VMSNAP_PHASE=phase,
            )
            if not run.ok:
                kinds = SCRIPT[phase]
                kind = kinds.timeout if run.timed_out else kinds.failed
                self.fail(Failure(kind, phase, name, message_of(phase, name, run)))

    # --- what is known -------------------------------------------------------------------------

    def enter(self, phase: str, message: str, event: Event = Event.PHASE) -> None:
        self.phase = phase
        self.mark(phase)
        self.show(phase)
        self.journal.send(message, event.value, VMSNAP_PHASE=phase)

    def mark(self, event: str, subject: str = "") -> None:
        self.timeline.append((time.monotonic(), event, subject))

    def note(self, message: str) -> None:
        self.journal.send(message, Event.NOTE.value, Priority.WARNING, VMSNAP_PHASE=self.phase)

    def fail(self, *failures: Failure) -> bool:
        """Record what went wrong. True if anything did."""
        for failure in failures:
            self.failures.append(failure)
            self.journal.send(
                f"{failure.kind.label}: {failure.message}",
                failure.kind.message_id,
                Priority.ERROR,
                VMSNAP_PHASE=failure.phase,
                VMSNAP_ERROR=failure.kind.label,
                VMSNAP_CODE=str(failure.kind.code),
                VMSNAP_CONSISTENCY=self.level.word,
            )
        return bool(failures)

    @property
    def reached(self) -> Level:
        return self.level if self.taken else Level.NONE

    @property
    def succeeded(self) -> bool:
        return self.taken and self.level >= self.required

    def result(self) -> Result:
        def script(app: App, phase: str) -> ScriptResult | None:
            run = self.runs.get((app.name, phase))
            if run is None:
                return None
            return ScriptResult(
                run.attempts, run.exit, run.signal, round(run.seconds, 6), run.timed_out
            )

        return Result(
            session=self.id,
            outcome="success" if self.succeeded else "failed",
            consistency=self.reached.word,
            required=self.required.word,
            started=self.started.isoformat(timespec="milliseconds"),
            seconds=round(time.monotonic() - self.began, 6),
            frozen_seconds=round(self.freezer.frozen_seconds, 6) if self.freezer else 0.0,
            errors=tuple(map(error_result, self.failures)),
            apps=tuple(
                AppResult(app.name, app.config, script(app, "pre"), script(app, "post"))
                for app in self.found.apps
            ),
            filesystems=self.freezer.results() if self.freezer else (),
            snapshot=self.snapshot_result(),
            timeline=tuple(
                TimelineEvent(round(at - self.began, 6), event, subject)
                for at, event, subject in sorted(
                    [*self.timeline, *(self.freezer.events() if self.freezer else ())]
                )
            ),
        )

    def snapshot_result(self) -> SnapshotResult | None:
        if self.command is None or self.command.ending is None:
            return None
        seconds = round(self.command.seconds, 6)
        return SnapshotResult(self.options.command, self.command.ending.exit, seconds)


def message_of(phase: str, name: str, run: ScriptRun) -> str:
    message = f"the {phase}-script of {name} {run.words}, in attempt {run.attempts}"
    tail = run.tail.strip()
    return f"{message}; its last output: {tail}" if tail else message


def new_id() -> str:
    return str(uuid.uuid4())


def refused(kind: Kind, message: str) -> Result:
    """The result of a session that was not begun."""
    failure = Failure(kind, "check", "", message)
    return Result(
        session=new_id(),
        outcome="failed",
        consistency=Level.NONE.word,
        required=Level.CRASH.word,
        started=datetime.datetime.now().astimezone().isoformat(timespec="milliseconds"),
        seconds=0.0,
        frozen_seconds=0.0,
        errors=(error_result(failure),),
        apps=(),
        filesystems=(),
        snapshot=None,
        timeline=(),
    )
