# SPDX-License-Identifier: Apache-2.0
"""What people read: tables, the summary of a session, its timeline. Text in, text out."""

from __future__ import annotations

import datetime
import textwrap
from collections import Counter
from collections.abc import Iterable, Sequence

from vmsnap.errors import Problem, Severity
from vmsnap.freeze.plan import Action, Plan
from vmsnap.progress import Progress
from vmsnap.result import ErrorResult, Result, ScriptResult

WIDTH = 80
COLORS = {"success": "32;1", "failed": "31;1", "error": "31", "warning": "33", "dim": "2"}


class Paint:
    """Colours for a terminal; plain text for everything else."""

    def __init__(self, enabled: bool) -> None:
        self.enabled = enabled

    def __call__(self, text: str, style: str) -> str:
        return f"\033[{COLORS[style]}m{text}\033[0m" if self.enabled else text


def printable(text: str) -> str:
    """Text from outside with nothing in it that a terminal obeys."""
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)


def table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    lines = [list(header), *([printable(cell) for cell in row] for row in rows)]
    widths = [max(len(line[i]) for line in lines) for i in range(len(header))]
    return ["  ".join(cell.ljust(w) for cell, w in zip(line, widths)).rstrip() for line in lines]


# --- the plan ----------------------------------------------------------------------------------


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


# --- the checks --------------------------------------------------------------------------------


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


# --- a session ---------------------------------------------------------------------------------


def summary(result: Result, paint: Paint) -> str:
    """What a person wants to know of a session, most important first."""
    verdict = paint("succeeded" if result.ok else "failed", result.outcome)
    stalled = f"writes stalled for {duration(result.frozen_seconds)}"
    if not result.filesystems:  # the platform's agent may have
        stalled = "vmsnap has frozen nothing"
    lines = [
        f"Session {result.session} {verdict}: "
        + (f"{result.consistency}-consistent snapshot" if result.snapshot_taken else "no snapshot"),
        f"  started {result.started}",
        f"  took {duration(result.seconds)}, {stalled}",
    ]
    if result.required != "crash":
        lines.append(f"  required consistency: {result.required}")
    for app in result.apps:
        scripts = f"pre-script {script(app.pre)}, post-script {script(app.post)}"
        lines.append(f"  app {printable(app.name)}: {scripts}")
    for error in result.errors:
        lines += error_lines(error, paint)
    return "\n".join(lines)


def error_lines(error: ErrorResult, paint: Paint) -> list[str]:
    def wrapped(text: str) -> list[str]:
        paragraphs = text.splitlines() or [""]
        return [
            line
            for paragraph in paragraphs
            for line in textwrap.wrap(
                printable(paragraph), WIDTH, initial_indent="    ", subsequent_indent="    "
            )
        ]

    where = f" ({printable(error.subject)})" if error.subject else ""
    head = f"  {paint(f'{error.name} {error.code}', 'error')} in phase {error.phase}{where}:"
    return [head, *wrapped(error.message), *(paint(line, "dim") for line in wrapped(error.action))]


def script(result: ScriptResult | None) -> str:
    if result is None:
        return "not run"
    if result.timed_out:
        word = "timed out"
    elif result.exit == 0:
        word = "ok"
    elif result.signal is not None:
        word = f"killed by signal {result.signal}"
    else:
        word = "failed" if result.exit is None else f"failed with exit code {result.exit}"
    attempts = f", {result.attempts} attempts" if result.attempts > 1 else ""
    return f"{word} ({duration(result.seconds)}{attempts})"


def duration(seconds: float) -> str:
    if seconds < 1:
        return f"{seconds * 1000:.1f} ms"
    if seconds < 120:
        return f"{seconds:.2f} s"
    return f"{int(seconds) // 60} min {int(seconds) % 60} s"


def held(progress: Progress, paint: Paint) -> str:
    """What the caller of `vmsnap freeze` wants to know once it holds."""
    left = duration(progress.hold_left or 0.0)
    return "\n".join(
        [
            f"Session {progress.session} {paint('holds', 'success')}",
            f"  {what_is_held(progress)}, {progress.consistency}-consistent so far",
            f"  take the snapshot and run `vmsnap thaw`, within {left}",
        ]
    )


def in_progress(progress: Progress) -> str:
    lines = [
        f"Session {progress.session} in progress, of process {progress.engine}",
        f"  started {progress.started}",
        f"  phase {progress.phase}, {progress.consistency}-consistent so far",
    ]
    if progress.hold_left is not None:
        end = "`vmsnap thaw` ends it" if progress.held else "until its command ends"
        left = f"{progress.hold_left:.0f} s left"
        lines.append(f"  holding {what_is_held(progress)}, {left}; {end}")
    return "\n".join(lines)


def lost(progress: Progress, frozen: bool, paint: Paint) -> str:
    lines = [
        f"Session {progress.session} {paint('was killed', 'failed')} in phase {progress.phase}",
        "  `vmsnap thaw --force` ends it: it runs post-scripts that have not run",
    ]
    if frozen:
        count = plural(len(progress.filesystems), "filesystem")
        lines.insert(1, f"  {count} may still be frozen: whoever writes there hangs")
    return "\n".join(lines)


def what_is_held(progress: Progress) -> str:
    if progress.filesystems:
        return f"{plural(len(progress.filesystems), 'filesystem')} frozen"
    return f"{plural(len(progress.apps), 'app')} quiesced, nothing frozen"


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
    """To the minute, in the time zone of whoever asks."""
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


def cut(text: str, width: int) -> str:
    return text if len(text) <= width else text[: width - 1] + "…"


def plural(count: int, word: str) -> str:
    return f"{count} {word}" if count == 1 else f"{count} {word}s"


BAR = 40


def timeline(result: Result) -> str:
    """The phases to scale, and what each filesystem went through."""
    total = max(result.seconds, 1e-9)
    lines = ["Timeline"]
    for name, begin, end in result.phases():
        left = round(begin / total * BAR)
        length = max(round((end - begin) / total * BAR), 1)
        left = min(left, BAR - length)
        bar = " " * left + ("█" if name in FROZEN_PHASES else "▒") * length
        lines.append(
            f"  {name:<9} {duration(begin):>9}  {bar:<{BAR}}  "
            f"{duration(end - begin)}{detail(name, result)}"
        )
    if result.filesystems:
        rows = [
            (
                f"  {fs.mount}",
                fs.fstype,
                str(fs.step or "-"),
                milliseconds(fs.freeze_ms),
                milliseconds(fs.held_ms),
                milliseconds(fs.thaw_ms),
                fs.error or "",
            )
            for fs in result.filesystems
        ]
        lines += ["", *table(("  FILESYSTEM", "TYPE", "STEP", "FREEZE", "HELD", "THAW", ""), rows)]
    return "\n".join(lines)


FROZEN_PHASES = ("freeze", "snapshot", "thaw")


def detail(phase: str, result: Result) -> str:
    if phase == "snapshot" and result.snapshot:
        program, *arguments = result.snapshot.command
        return "  " + printable(" ".join([program.rpartition("/")[2], *arguments]))[:30]
    return ""


def milliseconds(value: float | None) -> str:
    return "-" if value is None else f"{value:.1f} ms"
