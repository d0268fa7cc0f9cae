# SPDX-License-Identifier: Apache-2.0
"""The commands that only look: what is configured, in progress, or past."""

from __future__ import annotations

import argparse
import os
import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from vmsnap.cli.arguments import FAILED, OK, Commands, selection
from vmsnap.cli.terminal import colourful, complain, is_journal, print_json
from vmsnap.system.printable import printable

if TYPE_CHECKING:
    from vmsnap.config.checks import Inspection
    from vmsnap.freeze.plan import Plan

IN_ORDER = "everything is in order"
HISTORY_EXAMPLES = """\
examples:
  vmsnap history --since yesterday
  vmsnap history --since '2026-11-01 00:00'
  vmsnap history --json | jq -r '.[] | select(.outcome == "failed") | .session'
"""
PLOT_EXAMPLES = """\
examples:
  vmsnap plot 3f2a > session.svg
"""


def register_checks(commands: Commands) -> None:
    selected = selection()
    check = commands.add(
        "check", check_command, "check configuration, scripts and filesystems", selected
    )
    check.add_argument(
        "--watch",
        action="store_true",
        help="have systemd check again when a script's directory changes",
    )
    commands.add(
        "plan", plan_command, "show which filesystems would be frozen, and in which order", selected
    )


def register_sessions(commands: Commands) -> None:
    commands.add("status", status_command, "show the session in progress, or how the last one went")
    past = commands.add(
        "history",
        history_command,
        "show past sessions, newest first",
        examples=HISTORY_EXAMPLES,
    )
    past.add_argument(
        "--since",
        default="",
        metavar="TIME",
        help="only sessions that ended since TIME, as journalctl takes it",
    )
    plot = commands.add(
        "plot", plot_command, "draw what happened in a session, as SVG", examples=PLOT_EXAMPLES
    )
    plot.add_argument("session", metavar="SESSION", help="its UUID, or the beginning of it")


def check_command(arguments: argparse.Namespace) -> int:
    from vmsnap.config import checks
    from vmsnap.config.watch import watch
    from vmsnap.freeze.plan import make_plan
    from vmsnap.journal.problems import send_problems
    from vmsnap.platforms import detect, diagnose, integrate
    from vmsnap.provision import status
    from vmsnap.report import text as report
    from vmsnap.report.tables import problem_line, problem_list
    from vmsnap.session.notify import Manager

    # Before anything is checked, so that no change is missed in between.
    inspected = checks.inspect(arguments.etc)
    unwatched = watch(inspected, arguments.etc, arguments.state) if arguments.watch else []
    found = checks.inspect(arguments.etc)
    found.problems += unwatched
    checks.inspect_metrics(found)
    settings = found.settings
    plan = make_plan(arguments.only or settings.only, (*arguments.exclude, *settings.exclude))
    usable = inspect_run_directory(found, arguments.run)
    if found.freezing and usable:
        inspect_filesystems(found, plan, arguments.run)
    level = found.level  # what follows is no part of a session
    if arguments.etc == Path("/etc"):  # the agents know no other
        diagnose.inspect(found, arguments.state)
    failed = status.failed(arguments.state, arguments.run) if usable else None
    if failed:
        found.problems.append(status.problem(failed, status.in_words(failed)))
    ok = not found.errors
    if arguments.json:
        print_json({"ok": ok, "problems": [problem.to_json() for problem in found.problems]})
    else:
        paint = report.Paint(colourful(sys.stdout))
        if is_journal(1):
            send_problems(found.problems, level)
        elif found.problems:
            print(problem_list(found.problems, paint))
        names = ", ".join(app.name for app in found.runnable) or "none"
        platform = f"{detect.distribution()} on {detect.hypervisor() or 'unknown hardware'}"
        print(f"host: {platform}")
        print(f"connected agents: {', '.join(integrate.recorded(arguments.state)) or 'none'}")
        print(f"apps that would run: {names}")
        print(f"filesystems that would be frozen: {len(plan.acted_on)} (`vmsnap plan`)")
        print(paint(IN_ORDER, "success") if ok else paint("not in order", "failed"))
    Manager().notify(f"STATUS={IN_ORDER if ok else problem_line(found.errors[0])}")
    return OK if ok else FAILED


def inspect_filesystems(found: Inspection, plan: Plan, run_dir: Path) -> None:
    """Check that everything in the plan could be frozen, by opening it and closing it again."""
    from vmsnap.errors import Severity
    from vmsnap.freeze.failures import left_out, unused_excludes
    from vmsnap.freeze.filesystem import open_plan
    from vmsnap.freeze.operations import leave_out_busy

    opened = open_plan(plan, run_dir)
    opened.left_out += leave_out_busy(opened, Severity.WARNING)  # it will have ended sometime
    opened.close()
    problems = (*left_out(plan), *opened.left_out, *opened.refused)
    found.problems += unused_excludes(plan)
    found.problems += (replace(problem, phase="check") for problem in problems)


def inspect_run_directory(found: Inspection, run_dir: Path) -> bool:
    """Check that a session could use it, and that none was killed and left filesystems frozen.
    False if nothing there can be looked at."""
    from vmsnap.errors import Kind
    from vmsnap.freeze.frozen_list import FROZEN_LIST
    from vmsnap.session.lock import RunDirectoryError, check_state, holder

    try:
        check_state(run_dir)
    except RunDirectoryError as e:
        found.error(Kind.INCORRECT_SETTINGS, str(run_dir), str(e))
        return False
    listed = run_dir / FROZEN_LIST
    if listed.exists() and not holder(run_dir):
        message = f"{listed}: found a list of filesystems that a killed session has left frozen"
        found.error(Kind.THAW_FAILED, str(listed), message)
    return True


def plan_command(arguments: argparse.Namespace) -> int:
    from vmsnap.config import checks
    from vmsnap.freeze.plan import make_plan
    from vmsnap.report.tables import plan_table

    only, exclude = arguments.only, arguments.exclude
    if os.geteuid() == 0:
        settings = checks.inspect(arguments.etc).settings
        only, exclude = only or settings.only, (*exclude, *settings.exclude)
    else:
        complain(
            "vmsnap plan: not root, so without the settings and without other mount namespaces"
        )
    plan = make_plan(only, exclude)
    for note in plan.notes:
        complain(f"vmsnap plan: {note}")
    if arguments.json:
        print_json([entry.to_json() for entry in plan.entries])
    else:
        print(plan_table(plan))
    return FAILED if plan.unmatched else OK


def status_command(arguments: argparse.Namespace) -> int:
    from vmsnap import progress
    from vmsnap.freeze.frozen_list import FROZEN_LIST, unanswered
    from vmsnap.provision import status
    from vmsnap.report import text as report
    from vmsnap.report.summary import in_progress, lost, summary, timeline
    from vmsnap.result import last_result
    from vmsnap.session import lock

    holder = lock.holder(arguments.run)
    now = progress.read(arguments.run)
    paint = report.Paint(colourful(sys.stdout))
    last = last_result(arguments.run, arguments.state)
    provisioning = status.recorded(arguments.state)
    failed = status.failed(arguments.state, arguments.run)
    waiting = unanswered(arguments.run)
    if arguments.json:
        print_json(
            {
                "provisioning": provisioning.to_json() if provisioning else None,
                "in_progress": now.to_json() if now and holder else None,
                "lost": now.to_json() if now and not holder else None,
                "last": last.to_json() if last else None,
                "writers_wait": {
                    mount: [blocker.to_json() for blocker in found]
                    for mount, found in waiting.items()
                },
            }
        )
    elif now and holder:
        print(in_progress(now))
    elif holder:
        print(f"In progress: {'' if holder.startswith('vmsnap ') else 'session '}{holder}")
    elif now:
        print(lost(now, (arguments.run / FROZEN_LIST).exists(), paint))
    elif last:
        print(f"{summary(last, paint)}\n\n{timeline(last)}")
    else:
        print("No session yet.")
    if not arguments.json:
        for mount, found in waiting.items():
            who = "".join(f"; {blocker}" for blocker in found)
            print(printable(f"{mount}: its writers wait for a freeze that has not returned{who}"))
    if failed and not arguments.json:
        print(paint(printable(status.in_words(failed)), "failed"))
    return OK if not failed and (holder or not (now or (last and not last.ok))) else FAILED


def history_command(arguments: argparse.Namespace) -> int:
    from vmsnap.report import history
    from vmsnap.report import text as report
    from vmsnap.report.tables import history_table

    sessions = history.history(arguments.since)
    if arguments.json:
        print_json([result.to_json() for result in sessions])
    else:
        print(history_table(sessions, report.Paint(colourful(sys.stdout))))
    return OK


def plot_command(arguments: argparse.Namespace) -> int:
    from vmsnap.report import history, plot
    from vmsnap.result import last_result

    last = last_result(arguments.run, arguments.state)
    known = history.find(arguments.session, history.history())
    if last and last.session.startswith(arguments.session) and last not in known:
        known.append(last)
    if len(known) != 1:
        found = (
            f"{len(known)} sessions whose UUID begins" if known else "no session whose UUID begins"
        )
        complain(
            f"vmsnap plot: found {found} with {arguments.session!r}, expected one; "
            "`vmsnap history` shows them"
        )
        return FAILED
    if arguments.json:
        print_json(known[0].to_json())
    else:
        print(plot.svg(known[0]))
    return OK
