# SPDX-License-Identifier: Apache-2.0
"""The result of a session, put together from everything that took part in it, and kept."""

from __future__ import annotations

import datetime
import os
import time
from collections.abc import Iterable, Mapping
from pathlib import Path

from vmsnap.config import App
from vmsnap.consistency import Level
from vmsnap.events import Waiter
from vmsnap.files import write_atomically
from vmsnap.freezer import Freezer
from vmsnap.process import in_child
from vmsnap.record import Record
from vmsnap.result import (
    LAST,
    AppResult,
    Result,
    ScriptResult,
    SnapshotResult,
    TimelineEvent,
    error_result,
)
from vmsnap.scripts import ScriptRun
from vmsnap.snapshot import Command

KEEP_PATIENCE = 10.0  # seconds for the result to be written


def result_of(
    session: str,
    started: datetime.datetime,
    record: Record,
    level: Level,
    required: Level,
    apps: Iterable[App],
    runs: Mapping[tuple[str, str], ScriptRun],
    freezer: Freezer | None,
    command: Command | None,
) -> Result:
    """`level` is NONE if no snapshot was taken; `runs` are by app and phase."""

    def script(app: App, phase: str) -> ScriptResult | None:
        run = runs.get((app.name, phase))
        if run is None:
            return None
        return ScriptResult(
            run.attempts, run.exit, run.signal, round(run.seconds, 6), run.timed_out
        )

    events = [*record.timeline, *(freezer.events() if freezer else ())]
    return Result(
        session=session,
        outcome="success" if level >= required else "failed",
        consistency=level.word,
        required=required.word,
        started=started.isoformat(timespec="milliseconds"),
        seconds=round(time.monotonic() - record.began, 6),
        frozen_seconds=round(freezer.frozen_seconds, 6) if freezer else 0.0,
        errors=tuple(map(error_result, record.failures)),
        apps=tuple(
            AppResult(app.name, app.config, script(app, "pre"), script(app, "post")) for app in apps
        ),
        filesystems=freezer.results() if freezer else (),
        snapshot=snapshot_result(command),
        timeline=tuple(
            TimelineEvent(round(at - record.began, 6), event, subject)
            for at, event, subject in sorted(events)
        ),
    )


def snapshot_result(command: Command | None) -> SnapshotResult | None:
    if command is None or command.ending is None:
        return None
    return SnapshotResult(tuple(command.argv), command.ending.exit, round(command.seconds, 6))


def keep(document: str, state: Path, waiter: Waiter, lock: int) -> str:
    """Write the result to the state directory; return what was wrong, in words. In a child, since
    it may lie on a filesystem that would not thaw, or that somebody else has frozen."""

    def write(told: int) -> None:
        try:
            state.mkdir(mode=0o700, parents=True, exist_ok=True)
            write_atomically(state / LAST, document.encode() + b"\n", 0o600)
        except OSError as e:
            os.write(told, (e.strerror or str(e)).encode())

    try:
        error = in_child(write, "vmsnap-result", {lock}, waiter, KEEP_PATIENCE)
    except OSError as e:
        return f"cannot start a process for it: {e.strerror}"
    return "it takes too long" if error is None else error.decode()
