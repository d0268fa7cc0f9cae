# SPDX-License-Identifier: Apache-2.0
"""Tables and lists: the plan, problems, past sessions."""

from __future__ import annotations

import datetime
import textwrap
from collections import Counter
from collections.abc import Iterable

from vmsnap.errors import Problem, Severity
from vmsnap.freeze.plan import Action, Plan
from vmsnap.report.text import WIDTH, Paint, cut, table
from vmsnap.result import Result
from vmsnap.system.printable import printable


def plan_table(plan: Plan) -> str:
    """One line for each filesystem on a disk; the virtual ones are summed up in the last line."""
    order = {Action.FREEZE: 0, Action.SYNC: 1, Action.SKIP: 2}
    shown = [entry for entry in plan.entries if not entry.virtual]
    shown.sort(key=lambda e: (order[e.action], e.step or 0, e.mount))
    rows = [
        (
            entry.mount,
            entry.mounts[0].source,
            entry.mounts[0].fstype,
            entry.action.value,
            str(entry.step or "-"),
            entry.reason,
        )
        for entry in shown
    ]
    lines = table(("MOUNT", "SOURCE", "TYPE", "ACTION", "STEP", "WHY NOT FROZEN"), rows)
    hidden = Counter(entry.mounts[0].fstype for entry in plan.entries if entry.virtual)
    if hidden:
        kinds = ", ".join(f"{n} {fstype}" for fstype, n in sorted(hidden.items()))
        text = f"skipped as well, being on no disk: {kinds}"
        lines += ["", *textwrap.wrap(text, WIDTH, subsequent_indent="  ")]
    lines += [
        f"{option} {printable(pattern)}: nothing is mounted there"
        for option, patterns in (("--only", plan.unmatched), ("--exclude", plan.idle))
        for pattern in patterns
    ]
    return "\n".join(lines)


def problem_list(problems: Iterable[Problem], paint: Paint) -> str:
    lines = []
    for problem in problems:
        word = problem.severity.value
        name = f"{problem.kind.label} ({problem.kind.code})"
        lines.append(f"{paint(word, word)}: {printable(problem.message)}")
        if problem.severity is Severity.ERROR:
            lines.append(paint(f"  {name}: {problem.kind.action}", "dim"))
    return "\n".join(lines)


def problem_line(problem: Problem) -> str:
    """One problem, in one line that says what and where."""
    message = printable(" ".join(problem.message.split()))
    return f"{problem.kind.label} ({problem.kind.code}): {message}"


def history_table(sessions: Iterable[Result], paint: Paint) -> str:
    """One line for each session, within 80 columns."""
    shown = list(sessions)
    if not shown:
        return "The journal knows no session."
    rows = [
        (
            local_time(result.started),
            result.session[:8],
            result.outcome,
            result.consistency,
            briefly(result.seconds),
            briefly(result.frozen_seconds),
            cut(result.errors[0].name, 12) if result.errors else "",
        )
        for result in shown
    ]
    header, *lines = table(
        ("STARTED", "SESSION", "OUTCOME", "LEVEL", "TOOK", "STALL", "FIRST ERROR"), rows
    )
    painted = [
        line.replace(result.outcome, paint(result.outcome, result.outcome), 1)
        for line, result in zip(lines, shown)
    ]
    return "\n".join([header, *painted])


def local_time(started: str) -> str:
    """To the minute, in the local time zone."""
    try:
        moment = datetime.datetime.fromisoformat(started).astimezone()
    except (ValueError, OverflowError):
        return started[:16]
    return moment.strftime("%Y-%m-%d %H:%M")


def briefly(seconds: float) -> str:
    """In at most seven characters."""
    for below, unit, form in (
        (1, 0.001, "{:.0f} ms"),
        (100, 1, "{:.1f} s"),
        (6000, 60, "{:.0f} min"),
    ):
        if seconds < below:
            return form.format(seconds / unit)
    return f"{min(seconds / 3600, 9999):.0f} h"
