# SPDX-License-Identifier: Apache-2.0
"""The result of a session, to and from JSON (version 1). Other programs depend on its form."""

from __future__ import annotations

import datetime
import json
import math
import uuid
from dataclasses import asdict, dataclass
from enum import Enum
from pathlib import Path
from typing import Any

from vmsnap.errors import CommandError, Problem

VERSION = 1
LAST = "last-result.json"  # in the run directory, and for after a boot in the state directory


class Phase(str, Enum):
    """A phase of a session, in their order. As a string it is its name, in JSON and in the journal;
    `doing` is what people read while it lasts."""

    doing: str

    def __new__(cls, name: str, doing: str) -> Phase:
        phase = str.__new__(cls, name)
        phase._value_ = name
        phase.doing = doing
        return phase

    CHECK = "check", "Checking the configuration"
    PRE = "pre", "Running pre-scripts"
    PRESYNC = "presync", "Writing back dirty pages"
    FREEZE = "freeze", "Freezing filesystems"
    SNAPSHOT = "snapshot", "Holding until the snapshot is taken"
    THAW = "thaw", "Thawing filesystems"
    POST = "post", "Running post-scripts"
    REPORT = "report", "Writing the result"

    def __str__(self) -> str:
        return str(self.value)


PHASES = tuple(phase.value for phase in Phase)
FROZEN_PHASES = tuple(phase.value for phase in (Phase.FREEZE, Phase.SNAPSHOT, Phase.THAW))


@dataclass(frozen=True)
class ScriptResult:
    attempts: int
    exit: int | None
    signal: int | None
    seconds: float
    timed_out: bool


@dataclass(frozen=True)
class AppResult:
    name: str
    config: str
    pre: ScriptResult | None
    post: ScriptResult | None


@dataclass(frozen=True)
class FilesystemResult:
    """Times are in milliseconds; None for what did not happen."""

    mount: str
    fstype: str
    device: str
    step: int | None
    freeze_ms: float | None
    held_ms: float | None
    thaw_ms: float | None
    error: str | None


@dataclass(frozen=True)
class SnapshotResult:
    command: tuple[str, ...]
    exit: int | None
    seconds: float


@dataclass(frozen=True)
class TimelineEvent:
    """`at` is in seconds since the start of the session."""

    at: float
    event: str
    subject: str


@dataclass(frozen=True)
class ErrorResult:
    name: str
    code: int
    phase: str
    subject: str
    message: str
    action: str


def error_result(problem: Problem) -> ErrorResult:
    kind = problem.kind
    return ErrorResult(
        kind.label,
        kind.code,
        problem.phase,
        problem.subject or problem.path,
        problem.message,
        kind.action,
    )


@dataclass(frozen=True)
class Result:
    """`started` is RFC 3339; `seconds` the whole session; `frozen_seconds` the longest write
    stall."""

    session: str
    outcome: str
    consistency: str
    required: str
    started: str
    seconds: float
    frozen_seconds: float
    errors: tuple[ErrorResult, ...]
    apps: tuple[AppResult, ...]
    filesystems: tuple[FilesystemResult, ...]
    snapshot: SnapshotResult | None
    timeline: tuple[TimelineEvent, ...]

    @property
    def ok(self) -> bool:
        return self.outcome == "success"

    @property
    def snapshot_taken(self) -> bool:
        return self.consistency != "none"

    def phases(self) -> tuple[tuple[str, float, float], ...]:
        """(name, begin, end) of each phase that there was, in seconds since the start."""
        begins = [event for event in self.timeline if event.event in PHASES]
        ends = [*(event.at for event in begins[1:]), self.seconds]
        return tuple((event.event, event.at, end) for event, end in zip(begins, ends))

    def to_json(self) -> dict[str, Any]:
        return {"version": VERSION, **asdict(self)}


def from_json(document: dict[str, Any]) -> Result:
    """Read what to_json wrote. Raises KeyError, TypeError or ValueError for anything else."""
    fields = dict(document)
    if fields.pop("version") != VERSION:
        raise ValueError(f"found version {document['version']!r}, expected {VERSION}")
    fields["errors"] = tuple(ErrorResult(**e) for e in fields["errors"])
    fields["apps"] = tuple(
        AppResult(
            app["name"],
            app["config"],
            *(ScriptResult(**app[phase]) if app[phase] else None for phase in ("pre", "post")),
        )
        for app in fields["apps"]
    )
    fields["filesystems"] = tuple(FilesystemResult(**f) for f in fields["filesystems"])
    if fields["snapshot"]:
        snapshot = fields["snapshot"]
        fields["snapshot"] = SnapshotResult(
            tuple(snapshot["command"]), snapshot["exit"], snapshot["seconds"]
        )
    fields["timeline"] = tuple(TimelineEvent(**e) for e in fields["timeline"])
    result = Result(**fields)
    check(result)
    return result


def check(result: Result) -> None:
    """Raise TypeError or ValueError if what others count on is not what it must be."""
    words = (result.session, result.started, *(error.name for error in result.errors))
    times = (result.seconds, result.frozen_seconds, *(event.at for event in result.timeline))
    if not all(isinstance(word, str) for word in words):
        raise TypeError("found something else where a word is expected")
    if not all(isinstance(time, (int, float)) and math.isfinite(time) for time in times):
        raise TypeError("found something else where a time in seconds is expected")
    if result.outcome not in ("success", "failed"):
        raise ValueError(f"found the outcome {result.outcome!r}, expected success or failed")
    if result.consistency not in ("application", "filesystem", "crash", "none"):
        raise ValueError(f"found the consistency {result.consistency!r}, expected a level")


def new_session_id() -> str:
    return str(uuid.uuid4())


def refused(failure: Problem) -> Result:
    """The result of a session that was not begun."""
    return Result(
        session=new_session_id(),
        outcome="failed",
        consistency="none",
        required="crash",
        started=datetime.datetime.now().astimezone().isoformat(timespec="milliseconds"),
        seconds=0.0,
        frozen_seconds=0.0,
        errors=(error_result(failure),),
        apps=(),
        filesystems=(),
        snapshot=None,
        timeline=(),
    )


class ResultReadError(CommandError):
    """There is a result, but not one that this program can read."""


def last_result(*directories: Path) -> Result | None:
    """The last session's result, from the first directory that has one. Raises
    ResultReadError."""
    for directory in directories:
        path = directory / LAST
        try:
            return from_json(json.loads(path.read_text(encoding="utf-8")))
        except FileNotFoundError:
            continue
        except (ValueError, KeyError, TypeError, RecursionError) as e:
            raise ResultReadError(f"{path}: found no result that can be read: {e}") from None
    return None
