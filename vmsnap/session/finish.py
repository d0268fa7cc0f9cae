# SPDX-License-Identifier: Apache-2.0
"""The result of a session: put together from all that took part in it, written, sent to the
journal.

Runs in: engine, a fork of it that writes what may lie on a disk. Not while frozen.
"""

from __future__ import annotations

import contextlib
import datetime
import errno
import json
import time
from collections.abc import Iterable, Mapping
from pathlib import Path

from vmsnap.config.app import App
from vmsnap.consistency import Level
from vmsnap.freeze.freezer import Freezer
from vmsnap.journal.sender import Event, Journal, Priority
from vmsnap.result import (
    LAST,
    AppResult,
    Result,
    ScriptResult,
    SnapshotResult,
    TimelineEvent,
    error_result,
)
from vmsnap.scripts.runner import ScriptRun
from vmsnap.session.lock import RunDirectoryError, prepare_state
from vmsnap.session.log import Record
from vmsnap.system.files import write_atomically
from vmsnap.system.left_behind import written_in_child
from vmsnap.system.waiter import Waiter


def result_of(
    session: str,
    started: datetime.datetime,
    record: Record,
    level: Level,
    required: Level,
    succeeded: bool,
    apps: Iterable[App],
    runs: Mapping[tuple[str, str], ScriptRun],
    freezer: Freezer | None,
    snapshot: SnapshotResult | None,
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
        outcome="success" if succeeded else "failed",
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
        snapshot=snapshot,
        timeline=tuple(
            TimelineEvent(round(at - record.began, 6), event, subject)
            for at, event, subject in sorted(events)
        ),
    )


def send_end(journal: Journal, result: Result) -> None:
    """The record that `vmsnap history` and `vmsnap plot` read."""
    what = f"{result.consistency}-consistent snapshot" if result.snapshot_taken else "no snapshot"
    journal.send(
        f"Session {result.session} ended: {result.outcome}, {what}",
        Event.ENDED.value,
        Priority.NOTICE if result.ok else Priority.ERROR,
        VMSNAP_PHASE="report",
        VMSNAP_CONSISTENCY=result.consistency,
        VMSNAP_RESULT=json.dumps(result.to_json()),
    )


def keep(result: Result, run_dir: Path, state: Path, waiter: Waiter, lock: int) -> str:
    """Write the result to the run directory, and for after the next boot to the state directory;
    return an error message, or ""."""
    document = json.dumps(result.to_json()).encode() + b"\n"

    def write() -> None:
        try:
            prepare_state(state)
        except RunDirectoryError as e:
            raise OSError(errno.EPERM, str(e)) from None
        write_atomically(state / LAST, document, 0o600)

    try:
        write_atomically(run_dir / LAST, document, 0o600)
    except OSError:  # a full tmpfs: the older result there would hide the one below
        with contextlib.suppress(OSError):
            (run_dir / LAST).unlink()
    error = written_in_child(write, "vmsnap-result", waiter, lock)
    return error and f"cannot write the result to {state}: {error}"
