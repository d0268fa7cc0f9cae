# SPDX-License-Identifier: Apache-2.0
"""A session: check, pre-scripts, presync, freeze, snapshot, thaw, post-scripts, report.

The only module that knows this order. Each step that changes something pushes its undo, and every
undo runs, whatever became of the others. How a failure lowers the consistency stands in
consistency.py; who takes the snapshot is given: run.py has a command do it, service/main.py the
caller that started the unit.

Runs in: engine. While frozen: no file but in the run directory, no journal, no import.
"""

from __future__ import annotations

import contextlib
import datetime
import os
import time
import traceback
from collections.abc import Callable, Iterable
from contextlib import ExitStack
from dataclasses import replace
from typing import Protocol

from vmsnap import progress
from vmsnap.config import checks
from vmsnap.config.app import App
from vmsnap.consistency import Level, consistency
from vmsnap.errors import SCRIPT, Kind, Problem, Severity
from vmsnap.freeze.failures import (
    left_out,
    newly_read_only,
    newly_writable,
    unused_excludes,
)
from vmsnap.freeze.filesystem import open_plan
from vmsnap.freeze.freezer import Freezer
from vmsnap.freeze.frozen_list import FROZEN_LIST
from vmsnap.freeze.operations import leave_out_busy
from vmsnap.freeze.plan import Plan, count_disks, make_plan
from vmsnap.freeze.writeback import write_back_open_files
from vmsnap.journal.sender import Event, Journal, Priority
from vmsnap.progress import Progress
from vmsnap.result import Phase, Result, SnapshotResult, new_session_id
from vmsnap.scripts.engine import AppScripts, run_scripts
from vmsnap.scripts.output import LINES
from vmsnap.scripts.pending import pending_in
from vmsnap.scripts.runner import ScriptRun
from vmsnap.session.finish import keep, result_of, send_end
from vmsnap.session.hold import Hold
from vmsnap.session.lock import RunDirectoryError, prepare
from vmsnap.session.log import Record
from vmsnap.session.metrics import write_metrics
from vmsnap.session.options import Options
from vmsnap.system.files import make_private, remove_tree
from vmsnap.system.process import become_subreaper, forbid_core_dumps
from vmsnap.system.waiter import Waiter

WATCH_PATIENCE = 5.0  # seconds
TEMPORARY = "tmp"  # in the run directory


class SnapshotTaker(Protocol):
    """Who takes the snapshot of a session: a command, or the caller that started the unit."""

    @property
    def held(self) -> bool:
        """Until the unit is stopped, and not until a command has ended."""
        ...

    def prepare(self, session: Session) -> None:
        """Make ready, while nothing is quiesced yet."""

    def watch(self, seconds: float) -> None:
        """Have what outlives the engine thaw after this time what is still frozen then."""

    def take(self, session: Session) -> bool:
        """Let the snapshot be taken, and thaw. Return whether it was."""
        ...

    def dismiss(self, session: Session) -> None:
        """Let go of everything, at the end of the session."""

    def result(self) -> SnapshotResult | None:
        """How it went; None if no command took it."""
        ...


class Session:
    """One session. Owns the lock that it was given, and everything it starts until it has ended."""

    def __init__(
        self,
        options: Options,
        lock: int,
        waiter: Waiter,
        taker: SnapshotTaker,
        show: Callable[[Phase], None] = lambda _: None,
        session: str | None = None,
    ) -> None:
        forbid_core_dumps()
        become_subreaper()  # if a supervisor is killed, how its script ends is still told
        self.id = session or new_session_id()
        self.options, self.lock, self.waiter, self.taker = options, lock, waiter, taker
        self.journal = Journal({"VMSNAP_SESSION": self.id})
        self.engine = os.getpid()
        self.shown = show
        self.record = Record(self.journal, self.show, lambda: self.level)
        self.runs: dict[tuple[str, str], ScriptRun] = {}
        self.started = datetime.datetime.now(datetime.timezone.utc).astimezone()
        self.found = checks.Inspection()
        self.scripts: list[AppScripts] = []
        self.plan: Plan | None = None
        self.freezer: Freezer | None = None
        self.hold: Hold | None = None
        self.required = Level.CRASH
        self.temporary = options.run_dir / TEMPORARY / self.id
        self.taken = False

    def take(self) -> Result:
        """Run the whole session and return its result."""
        try:
            with ExitStack() as undo:
                self.check()
                self.foresee()
                if self.may_go_on():
                    undo.callback(self.clean_up)
                    undo.callback(self.post)
                    self.pre()
                if self.may_go_on():
                    undo.callback(self.thaw)
                    self.freeze()
                if self.may_go_on():
                    self.taken = self.taker.take(self)
        except Exception as e:  # a bug, or a machine at its end; everything is undone by now
            self.record.send(traceback.format_exc(), Event.NOTE, Priority.ERROR)
            message = f"unexpected error: {type(e).__name__}: {e}"
            self.record.fail(Problem(Kind.SNAPSHOT_FAILED, message, self.record.phase))
        return self.report()

    # --- the level -----------------------------------------------------------------------------

    @property
    def freezing(self) -> bool:
        """Whether filesystems are meant to be frozen, by us or by the platform's agent."""
        return not self.options.fsfreeze or self.found.freezing

    @property
    def level(self) -> Level:
        return self.level_of(self.record.failures)

    def level_of(self, problems: Iterable[Problem]) -> Level:
        kinds = [problem.kind for problem in problems]
        return consistency(kinds, apps=self.found.apps_meant, freezing=self.freezing)

    @property
    def suffices(self) -> bool:
        """Whether the level is the required one. What a script has only warned of counts against
        the settings and the caller, and not against continueBackupOnFailure, as in Azure."""
        failures = [failure for failure in self.record.failures if not failure.tolerated]
        return self.level >= self.asked and self.level_of(failures) >= self.required

    @property
    def asked(self) -> Level:
        """What the settings and the caller require."""
        asked = (self.found.settings.require, self.options.require)
        return max([Level.CRASH, *filter(None, asked)])

    def what_is_required(self) -> Level:
        """What the apps ask for, which counts only if there is more than one disk (Azure's rule);
        the settings and the caller can ask for more."""
        strict = any(app.required for app in self.found.apps) and count_disks() > 1
        return Level.APPLICATION if strict else self.asked

    def may_go_on(self) -> bool:
        if self.waiter.interrupted:
            message = f"the session was interrupted by {self.waiter.interrupted}"
            if message not in (problem.message for problem in self.record.failures):
                self.record.fail(Problem(Kind.SNAPSHOT_FAILED, message, self.record.phase))
        return self.suffices

    @property
    def freezes(self) -> bool:
        """Whether we freeze. Not while an earlier session's filesystems stay frozen: the list of
        them must not be lost."""
        left = any(problem.kind is Kind.THAW_FAILED for problem in self.record.failures)
        return self.options.fsfreeze and self.freezing and not left

    @property
    def hold_seconds(self) -> float:
        return self.options.hold or self.found.settings.hold

    # --- the phases ----------------------------------------------------------------------------

    def check(self) -> None:
        self.record.enter(Phase.CHECK, f"Session {self.id} begins", Event.STARTED)
        self.recover()
        self.found = checks.inspect(self.options.etc)
        self.record.fail(*self.found.problems)
        self.required = self.what_is_required()
        if self.required is Level.APPLICATION and not self.found.apps_meant:
            message = "found no app, expected one, since application consistency is required"
            self.record.fail(Problem(Kind.SNAPSHOT_FAILED, message, Phase.CHECK))
        self.journal.decided(f"{self.found.settings}")
        for app in self.found.apps:
            runs = "runs" if app in self.found.runnable else "does not run"
            self.journal.decided(f"app {app.name} of {app.config} {runs}")
        self.journal.decided(f"consistency: {self.level.word}, required: {self.required.word}")
        self.taker.prepare(self)

    def recover(self) -> None:
        """Say what of a session that was killed recovery.py could not do."""
        listed = self.options.run_dir / FROZEN_LIST
        if listed.exists():
            message = (
                "what an earlier session had frozen cannot all be thawed, see the journal; if "
                f"it is no longer there, remove {listed}"
            )
            self.record.fail(Problem(Kind.THAW_FAILED, message, Phase.CHECK))
        for session, apps in pending_in(self.options.run_dir).items():
            self.record.note(
                f"the post-scripts of session {session} are still to be run, and could not be: "
                f"{', '.join(apps)}; see `vmsnap check`"
            )
        make_private(self.temporary)

    def foresee(self) -> None:
        """What would end the session at its freeze ends it before anything is quiesced. All else is
        told by the freeze, since a pre-script may mount and unmount: nothing stays open, and the
        plan is made again."""
        if self.required is Level.CRASH or not self.freezes:
            return
        plan = self.make_plan()
        opened = open_plan(plan, self.options.run_dir)
        opened.left_out += leave_out_busy(opened)
        opened.close()
        errors = [p for p in (*left_out(plan), *opened.left_out) if p.severity is Severity.ERROR]
        if self.level_of((*self.record.failures, *errors)) < self.required:
            self.record.fail(*(replace(problem, phase=Phase.CHECK) for problem in errors))

    def pre(self) -> None:
        self.record.enter(Phase.PRE)
        self.supervise(self.found.runnable)
        self.run_scripts([s for s in self.scripts if s.app.pre], {})

    def supervise(self, apps: list[App]) -> None:
        """Start a supervisor for each app's scripts."""
        grace = self.found.settings.kill_grace
        for app in apps:
            try:
                self.scripts.append(
                    AppScripts(
                        app,
                        self.id,
                        self.options.run_dir,
                        grace,
                        self.lock,
                        self.journal,
                        self.waiter,
                        LINES // len(apps),
                    )
                )
            except OSError as e:
                kinds = SCRIPT["pre" if app.pre else "post"]
                message = f"cannot prepare to run its scripts: {e.filename or ''}: {e.strerror}"
                self.record.fail(Problem(kinds.failed, message, self.record.phase, app.name))

    def freeze(self) -> None:
        if not self.freezes:
            return
        self.record.enter(Phase.PRESYNC)
        settings = self.found.settings
        self.plan = plan = self.make_plan()
        for entry in plan.entries:
            step = f" in step {entry.step}" if entry.step else ""
            self.journal.decided(
                f"{entry.mount}: {entry.action.value}{step} {entry.reason}".strip()
            )
        known = (*unused_excludes(plan), *left_out(plan))
        self.record.fail(*(replace(problem, phase=Phase.PRESYNC) for problem in known))
        self.freezer = freezer = Freezer(
            self.options.run_dir,
            self.id,
            settings.freeze_timeout,
            self.hold_seconds,
            self.waiter,
            settings.kill_blocking_writers,
            any(s.pre_started for s in self.scripts),
        )
        try:
            opened = freezer.open(plan)
            self.record.fail(*opened.left_out)
            refused = self.record.fail(*opened.refused) or not opened.filesystems
            if refused or not self.may_go_on() or self.record.fail(*freezer.start(self.lock)):
                return
        except OSError as e:  # out of descriptors or memory
            message = f"cannot prepare the freeze: {e.strerror}"
            self.record.fail(Problem(Kind.FREEZE_FAILED, message, Phase.FREEZE))
            return
        if freezer.unlocked:
            self.record.note(
                f"the guard could not lock its memory: {os.strerror(freezer.unlocked)}"
            )
        write_back_open_files({os.fstat(f.fd).st_dev for f in freezer.filesystems}, self.waiter)
        freezer.presync()
        self.record.enter(Phase.FREEZE, f"Filesystems to freeze: {len(freezer.filesystems)}")
        # From here to the thaw: no file, no journal, no import, no terminal.
        self.journal.buffer()
        self.watch(settings.freeze_timeout + self.hold_seconds)
        if not self.waiter.interrupted:
            self.record.fail(*freezer.freeze())
        if freezer.held_at is None:
            self.journal.release()
        else:
            count = sum(1 for f in freezer.filesystems if not f.error)
            self.record.send(f"Filesystems frozen: {count}", Event.FROZEN)

    def make_plan(self) -> Plan:
        settings = self.found.settings
        return make_plan(
            self.options.only or settings.only,
            (*self.options.exclude, *settings.exclude),
            pulse=lambda: self.waiter.wait((), 0.0),
        )

    def watch(self, seconds: float) -> None:
        """Set the fallback watchdogs of all supervisors, for a little later than the guard's own
        deadline in `seconds`: should engine and guard both be stopped."""
        for scripts in self.scripts:
            scripts.watch(seconds + WATCH_PATIENCE)
        self.taker.watch(seconds + WATCH_PATIENCE)

    def thaw(self) -> None:
        if self.freezer is None or self.record.phase is Phase.THAW:
            return
        self.record.begin(Phase.THAW)
        try:
            if self.freezer.held_at is not None:
                self.record.fail(*self.freezer.thaw())
        finally:
            self.freezer.close()
            self.journal.release()
        self.record.show_phase()
        if self.plan and self.freezer.held_at is not None:
            after = self.make_plan()
            frozen = self.freezer.filesystems
            told = {f.entry.mount for f in frozen} | {p.subject for p in self.record.failures}
            self.record.fail(*newly_writable(self.plan, after, told))
            self.record.fail(*newly_read_only(frozen, after))
        count = sum(1 for f in self.freezer.filesystems if f.thawed_at is not None)
        self.record.send(f"Filesystems thawed: {count}", Event.THAWED)

    def post(self) -> None:
        self.record.enter(Phase.POST)
        wanted = [s for s in self.scripts if s.app.post and (s.pre_started or s.app.pre is None)]
        outcome = "success" if self.succeeded else "failed"
        self.run_scripts(
            wanted, {"VMSNAP_OUTCOME": outcome, "VMSNAP_CONSISTENCY": self.reached.word}
        )

    def clean_up(self) -> None:
        for scripts in self.scripts:
            scripts.finish(self.waiter)

    def begin_hold(self) -> Hold:
        self.record.begin(Phase.SNAPSHOT)
        self.hold = Hold(self.freezer, self.waiter, self.hold_seconds)
        self.watch(self.hold_seconds)
        return self.hold

    def report(self, known: Callable[[Result], Result] = lambda result: result) -> Result:
        """Write the result and send it; `known` amends it by what else is known."""
        self.record.enter(Phase.REPORT)
        self.taker.dismiss(self)
        remove_tree(self.temporary)
        with contextlib.suppress(OSError):
            self.temporary.parent.rmdir()
        result = known(self.result())
        for trouble in (
            keep(result, self.options.run_dir, self.options.state, self.waiter, self.lock),
            write_metrics(result, self.found.settings.textfile, self.waiter),
        ):
            if trouble:
                self.record.note(trouble)
        send_end(self.journal, result)
        progress.remove(self.options.run_dir, self.id)
        return result

    # --- scripts -------------------------------------------------------------------------------

    def run_scripts(self, wanted: list[AppScripts], env: dict[str, str]) -> None:
        phase = self.record.phase.value

        def notify(scripts: AppScripts, received: ScriptRun | int) -> None:
            if isinstance(received, ScriptRun):
                self.script_ended(scripts.app.name, phase, received)
            else:
                self.record.mark(f"{phase}-attempt {received}", scripts.app.name)

        run_scripts(wanted, phase, env, self.waiter, notify, interruptible=phase == "pre")

    def script_ended(self, name: str, phase: str, run: ScriptRun) -> None:
        self.runs[name, phase] = run
        self.record.mark(f"{phase}-ended", name)
        self.journal.send(
            f"{phase}-script of {name} " + (run.reason or f"succeeded in {run.seconds:.3f} s"),
            Event.SCRIPT_ENDED.value,
            VMSNAP_APP=name,
            VMSNAP_PHASE=phase,
        )
        if not run.ok:
            kinds = SCRIPT[phase]
            kind = kinds.timeout if run.timed_out else kinds.failed
            message = run.message(phase, name)
            self.record.fail(Problem(kind, message, phase, name, tolerated=run.warned))

    # --- what is known -------------------------------------------------------------------------

    @property
    def reached(self) -> Level:
        return self.level if self.taken else Level.NONE

    @property
    def succeeded(self) -> bool:
        return self.taken and self.suffices

    def result(self) -> Result:
        return result_of(
            self.id,
            self.started,
            self.record,
            self.reached,
            self.required,
            self.succeeded,
            self.found.apps,
            self.runs,
            self.freezer,
            self.taker.result(),
        )

    def show(self, phase: Phase) -> None:
        """Show how far the session is; not while anything is frozen."""
        with contextlib.suppress(RunDirectoryError):  # it may have been emptied, or be another's
            prepare(self.options.run_dir)
            self.publish(phase)
        self.shown(phase)

    def publish(self, phase: Phase) -> bool:
        """The same, in the run directory only. False if there is no room."""
        freezer = self.freezer
        frozen = freezer.filesystems if freezer and freezer.holding else ()
        return progress.write(
            self.options.run_dir,
            Progress(
                session=self.id,
                phase=phase.value,
                engine=self.engine,
                invocation=os.environ.get("INVOCATION_ID", ""),
                held=self.taker.held,
                etc=str(self.options.etc),
                consistency=self.level.word,
                required=self.required.word,
                started=self.started.isoformat(timespec="milliseconds"),
                apps=tuple(app.name for app in self.found.runnable),
                filesystems=tuple(f.entry.mount for f in frozen if f.frozen_at is not None),
                hold_ends=self.hold.ends if self.hold and phase is Phase.SNAPSHOT else None,
                since=time.monotonic(),
            ),
        )
