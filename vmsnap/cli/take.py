# SPDX-License-Identifier: Apache-2.0
"""The commands that take a session through, or one half of it: `run`, `freeze`, `thaw`, and
`session`, which is vmsnap-session.service. Each calls and prints; errors are handled in main.py."""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from vmsnap.cli.arguments import FAILED, OK, Commands, level, seconds, selection
from vmsnap.cli.terminal import (
    colourful,
    complain,
    is_journal,
    print_json,
    print_report,
    progress_line,
    whoever_reads,
)
from vmsnap.errors import Kind, VmsnapError
from vmsnap.system.printable import printable

if TYPE_CHECKING:
    from vmsnap.result import Phase, Result
    from vmsnap.session.options import Options

RUN_EXAMPLES = """\
examples:
  vmsnap run -- /usr/local/sbin/take-snapshot
  vmsnap run --hold 20 --require application -- ./cloud-snapshot
  vmsnap run --no-fsfreeze -- lvcreate --snapshot --name backup --size 5G vg/data   (LVM freezes)
  vmsnap run --only /srv --only /var/lib/postgresql -- ./take-snapshot
  vmsnap run --json -- ./take-snapshot 2>/dev/null | jq .consistency

Without COMMAND, that of [snapshot] command= in vmsnap.conf is run.
COMMAND finds VMSNAP_SESSION and VMSNAP_CONSISTENCY in its environment. It must not write to a
frozen filesystem: it would wait for the thaw. Its output appears after the thaw.
"""
FREEZE_EXAMPLES = """\
examples:
  vmsnap freeze --hold 30 || exit
  if ./take-snapshot; then vmsnap thaw; else vmsnap thaw --failed; fi

  vmsnap freeze --require application --json
  vmsnap freeze --only /srv --only /var/lib/postgresql

Returns when everything is frozen, or says why not. The session is vmsnap-session.service from then
on: `vmsnap thaw` or `systemctl stop vmsnap-session` ends it, and so does the end of the hold.
Interrupting `vmsnap freeze` (Ctrl-C) ends it too; killing it does not.
"""
THAW_EXAMPLES = """\
examples:
  vmsnap thaw             thaw, run post-scripts, say what the snapshot is worth
  vmsnap thaw 3f2a        the same, if the session whose UUID begins so is in progress
  vmsnap thaw --failed    the same, but there is no snapshot
  vmsnap thaw --force     thaw what a killed session left frozen

Exits with 1 if the hold had expired meanwhile: a snapshot that was not finished by then is none.
"""


def register(commands: Commands) -> None:
    selected, session = selection(), session_options()
    commands.add(
        "run",
        run_command,
        "take a snapshot with COMMAND while everything is quiesced and frozen",
        selected,
        session,
        examples=RUN_EXAMPLES,
        usage="vmsnap run [options] [-- COMMAND [ARGUMENT...]]",
    )
    commands.add(
        "freeze",
        freeze_command,
        "quiesce and freeze, and hold that until `vmsnap thaw`",
        selected,
        session,
        examples=FREEZE_EXAMPLES,
    )
    thaw = commands.add(
        "thaw", thaw_command, "end what `vmsnap freeze` began", examples=THAW_EXAMPLES
    )
    thaw.add_argument("session", nargs="?", metavar="SESSION", help="end no other than this one")
    how = thaw.add_mutually_exclusive_group()
    how.add_argument(
        "--failed", action="store_true", help="end it as failed: no snapshot has been taken"
    )
    how.add_argument("--force", action="store_true", help="thaw what a killed session left frozen")
    unit = commands.add(
        "session", session_command, "the main process of vmsnap-session.service", hidden=True
    )
    unit.add_argument("--stopped", action="store_true", help="its ExecStopPost=")


def session_options() -> argparse.ArgumentParser:
    options = argparse.ArgumentParser(add_help=False)
    options.add_argument(
        "--hold", type=seconds, metavar="SECONDS", help="thaw after this time at the latest (60)"
    )
    options.add_argument(
        "--require",
        type=level,
        metavar="LEVEL",
        help="take no snapshot below crash, filesystem or application consistency",
    )
    options.add_argument(
        "--no-fsfreeze", action="store_true", help="the platform's agent freezes, vmsnap does not"
    )
    return options


class SessionRefusedError(VmsnapError):
    """No session was begun, for a reason of the catalogue."""

    def __init__(self, kind: Kind, message: str) -> None:
        super().__init__(message)
        self.kind = kind


class NoCommandError(VmsnapError):
    """There is no command that takes the snapshot."""


def options_of(arguments: argparse.Namespace, command: tuple[str, ...] = ()) -> Options:
    from vmsnap.session.options import Options

    return Options(
        command=command,
        etc=arguments.etc,
        run_dir=arguments.run,
        state=arguments.state,
        hold=arguments.hold,
        require=arguments.require,
        only=tuple(arguments.only),
        exclude=tuple(arguments.exclude),
        fsfreeze=not arguments.no_fsfreeze,
    )


def run_command(arguments: argparse.Namespace) -> int:
    from vmsnap.report import text as report
    from vmsnap.report.summary import summary, timeline
    from vmsnap.result import new_session_id
    from vmsnap.session import lock
    from vmsnap.session.notify import Manager, outcome_line
    from vmsnap.session.recovery import conclude
    from vmsnap.session.run import CommandTaker
    from vmsnap.session.session import Session
    from vmsnap.system.waiter import STOP_SIGNALS, Waiter

    if arguments.words == []:
        arguments.parser.error("found no COMMAND after --, expected one")
    options = options_of(arguments, tuple(arguments.words or configured_command(arguments)))
    lock.prepare(options.run_dir)
    lock.check_state(options.state)
    session = new_session_id()
    descriptor = lock.acquire(options.run_dir, session)
    waiter = Waiter(STOP_SIGNALS)
    manager = Manager()
    conclude(options.etc, options.run_dir, options.state, descriptor, waiter, manager)
    taker, line = CommandTaker(), progress_line()

    def show(phase: Phase) -> None:
        line(waited_for(phase))

    taking = Session(options, descriptor, waiter, taker, show, session)
    manager.follow(taking)
    result = taking.take()
    manager.notify(f"STATUS={outcome_line(result)}")
    os.close(descriptor)  # who does not read keeps no other session from beginning
    with whoever_reads():
        lost = taker.command.pass_on(to_stderr=arguments.json) if taker.command else None
        if lost:
            complain(f"vmsnap run: the output of the command could not be written: {lost.strerror}")
        if arguments.json:
            print_json(result.to_json())
        elif not is_journal(2):  # which knows it all already
            paint = report.Paint(colourful(sys.stderr))
            print_report(f"{summary(result, paint)}\n\n{timeline(result)}")
    return OK if result.ok else FAILED


def waited_for(phase: Phase) -> str:
    """What a person waits for from here on. That of the freeze stays there until the thaw."""
    if phase == "freeze":
        return "frozen, taking the snapshot"
    return "" if phase == "report" else phase.doing.lower()


def configured_command(arguments: argparse.Namespace) -> tuple[str, ...]:
    from vmsnap.config import checks

    found = checks.Inspection()
    checks.inspect_settings(found, arguments.etc)
    if found.errors:
        raise SessionRefusedError(Kind.INCORRECT_SETTINGS, found.errors[0].message)
    if not found.settings.command:
        raise NoCommandError(
            "found no COMMAND after -- and no command= under [snapshot] in "
            f"{arguments.etc}/vmsnap/vmsnap.conf, expected one of them"
        )
    return found.settings.command


def freeze_command(arguments: argparse.Namespace) -> int:
    from vmsnap.progress import Progress
    from vmsnap.report import text as report
    from vmsnap.report.summary import held
    from vmsnap.service import client

    insist_on_run_directory(arguments)
    show = progress_line()
    show("waiting for everything to be frozen")
    try:
        began = client.freeze(options_of(arguments))
    except KeyboardInterrupt:
        show("")
        complain("vmsnap freeze: interrupted; the session has been ended")
        raise
    finally:
        show("")
    if not isinstance(began, Progress):  # however it ended, it does not hold
        finish(arguments, began)
        return FAILED
    with whoever_reads():
        if arguments.json:
            print_json({**began.to_json(), "outcome": "held"})
        else:
            print(held(began, report.Paint(colourful(sys.stdout))))
    return OK


def thaw_command(arguments: argparse.Namespace) -> int:
    from vmsnap.service import client

    if arguments.session == "" or (arguments.session and arguments.force):
        arguments.parser.error("found an empty SESSION, or one with --force, expected neither")
    if arguments.force:
        return force_thaw(arguments)
    insist_on_run_directory(arguments)
    show = progress_line()
    show("waiting for the thaw and the post-scripts")
    try:
        wanted = arguments.session or ""
        result = client.thaw(arguments.run, arguments.state, wanted, arguments.failed)
    except client.NoSessionError as e:
        if e.last is None or e.last.ok:
            raise SessionRefusedError(Kind.NO_SESSION, str(e)) from None
        show("")
        complain(f"vmsnap thaw: {e}; this is the last one:")
        result = e.last
    finally:
        show("")
    return finish(arguments, result)


def finish(arguments: argparse.Namespace, result: Result) -> int:
    """Print a result, and return the exit code for it."""
    from vmsnap.report import text as report
    from vmsnap.report.summary import summary

    with whoever_reads():
        if arguments.json:
            print_json(result.to_json())
        elif result.ok:
            print(summary(result, report.Paint(colourful(sys.stdout))))
        else:
            print_report(summary(result, report.Paint(colourful(sys.stderr))))
    return OK if result.ok else FAILED


def insist_on_run_directory(arguments: argparse.Namespace) -> None:
    if arguments.run != Path("/run/vmsnap"):
        arguments.parser.error(
            f"found --run {arguments.run}, expected /run/vmsnap, which vmsnap-session.service uses"
        )


def session_command(arguments: argparse.Namespace) -> int:
    from vmsnap.service import main as unit
    from vmsnap.session import recovery

    if arguments.stopped and "INVOCATION_ID" not in os.environ:
        arguments.parser.error("this is ExecStopPost= of a unit; there is `vmsnap thaw --force`")
    if arguments.stopped:
        done = recovery.stopped(arguments.etc, arguments.run, arguments.state)
        return OK if done else FAILED
    if "VMSNAP_UNIT" not in os.environ:
        arguments.parser.error("this is vmsnap-session.service; begin a session: `vmsnap freeze`")
    return OK if unit.serve(arguments.run).ok else FAILED


def force_thaw(arguments: argparse.Namespace) -> int:
    from vmsnap.session import lock
    from vmsnap.session.recovery import conclude, thaw_by_force
    from vmsnap.system.waiter import Waiter

    messages: list[str] = []
    holder = lock.holder(arguments.run)
    if holder:
        messages.append(
            f"session {holder} is in progress; what it has frozen is thawed all the same"
        )
    good, thawed = thaw_by_force(arguments.run, remove=not holder)
    messages += thawed
    if arguments.run.exists():
        try:
            lock.prepare(arguments.run)
            descriptor = lock.acquire(arguments.run, "of `vmsnap thaw --force`")
            lost = conclude(arguments.etc, arguments.run, arguments.state, descriptor, Waiter(()))
        except lock.SessionInProgressError:
            lost = None  # supervisors of the session are running its post-scripts
        except lock.RunDirectoryError as e:
            lost = None
            messages.append(str(e))
        if lost:
            messages.append(f"session {lost.session} was killed; it has ended as failed")
            resumed = [app.name for app in lost.apps if app.post]
            messages += [f"post-script of {name}: has run" for name in resumed]
    with whoever_reads():
        if arguments.json:
            print_json({"ok": good, "messages": messages})
        else:
            print("\n".join(map(printable, messages)))
    return OK if good else FAILED
