# SPDX-License-Identifier: Apache-2.0
"""A session as text: its summary, its errors, its timeline."""

from __future__ import annotations

import textwrap

from vmsnap.progress import Progress, plural, what_is_held
from vmsnap.report.text import WIDTH, Paint, duration, table
from vmsnap.result import FROZEN_PHASES, ErrorResult, Result, ScriptResult
from vmsnap.system.printable import printable


def summary(result: Result, paint: Paint) -> str:
    """What a person wants to know of a session, most important first."""
    outcome = paint("succeeded" if result.ok else "failed", result.outcome)
    stalled = f"writes stalled for {duration(result.frozen_seconds)}"
    if not result.filesystems:  # the platform's agent may have
        stalled = "vmsnap has frozen nothing"
    lines = [
        f"Session {result.session} {outcome}: "
        + (f"{result.consistency}-consistent snapshot" if result.snapshot_taken else "no snapshot"),
        f"  started {result.started}",
        f"  took {duration(result.seconds)}, {stalled}",
    ]
    if result.required != "crash":
        lines.append(f"  required consistency: {result.required}")
    for app in result.apps:
        scripts = f"pre-script {script_words(app.pre)}, post-script {script_words(app.post)}"
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


def script_words(result: ScriptResult | None) -> str:
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
        lines.insert(1, f"  {count} may still be frozen: writes to them block")
    return "\n".join(lines)


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


def detail(phase: str, result: Result) -> str:
    if phase == "snapshot" and result.snapshot:
        program, *arguments = result.snapshot.command
        return "  " + printable(" ".join([program.rpartition("/")[2], *arguments]))[:30]
    return ""


def milliseconds(value: float | None) -> str:
    return "-" if value is None else f"{value:.1f} ms"
