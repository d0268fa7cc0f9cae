# SPDX-License-Identifier: Apache-2.0
"""The session in progress, as others may see it: one file in the run directory.

The engine writes it whenever a phase begins, once the filesystems are held, and removes it at its
end. A file that is there while the session's lock is free is from an engine that was killed.
"""

from __future__ import annotations

import contextlib
import datetime
import json
import time
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

from vmsnap.consistency import Level
from vmsnap.system.files import write_atomically

PROGRESS = "session.json"
LEVELS = tuple(level.word for level in Level)


@dataclass(frozen=True)
class Progress:
    """`engine` is a pid, `invocation` that of the unit it runs in ("" outside of one), `held` says
    whether it waits for `vmsnap thaw`, `filesystems` what is frozen. Since when it is so (`since`)
    and when the hold ends is in seconds on CLOCK_MONOTONIC."""

    session: str
    phase: str
    engine: int
    invocation: str
    held: bool
    etc: str
    consistency: str
    required: str
    started: str
    apps: tuple[str, ...]
    filesystems: tuple[str, ...]
    hold_ends: float | None
    since: float = 0.0

    @property
    def hold_left(self) -> float | None:
        """Seconds until everything is thawed, by whomever; None while nothing is held."""
        return None if self.hold_ends is None else max(0.0, self.hold_ends - time.monotonic())

    def to_json(self) -> dict[str, Any]:
        left = self.hold_left
        document = {"version": 1, **asdict(self)}
        for internal in ("hold_ends", "since", "invocation", "etc"):
            del document[internal]
        return {**document, "hold_left_seconds": None if left is None else round(left, 3)}


def write(run_dir: Path, progress: Progress) -> bool:
    """False if there is no room for it."""
    try:
        write_atomically(run_dir / PROGRESS, json.dumps(asdict(progress)).encode(), 0o600)
    except OSError:
        return False
    return True


def read(run_dir: Path) -> Progress | None:
    """None if there is none, or one that is not well-formed. What another version of vmsnap
    knows more or less is left out."""
    try:
        document = json.loads((run_dir / PROGRESS).read_text(encoding="utf-8"))
        progress = Progress(
            **{f.name: document[f.name] for f in fields(Progress) if f.name in document}
        )
        words = (progress.session, progress.phase, progress.invocation, progress.etc)
        lists = (progress.apps, progress.filesystems)
        well_formed = (
            all(isinstance(word, str) for word in (*words, *progress.apps, *progress.filesystems))
            and all(isinstance(each, (list, tuple)) for each in lists)
            and progress.consistency in LEVELS
            and progress.required in LEVELS
            and isinstance(progress.engine, int)
            and isinstance(progress.since, (int, float))
            and isinstance(progress.hold_ends, (int, float, type(None)))
        )
        datetime.datetime.fromisoformat(progress.started)
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return None
    if not well_formed:
        return None
    return replace(progress, apps=tuple(progress.apps), filesystems=tuple(progress.filesystems))


def remove(run_dir: Path, session: str) -> None:
    """Remove the file, unless it is another session's by now."""
    found = read(run_dir)
    if found and found.session == session:
        with contextlib.suppress(OSError):
            (run_dir / PROGRESS).unlink()


def discard(run_dir: Path) -> None:
    """Remove the file whatever is in it, and what a kill has left of writing it; the lock is
    ours."""
    for path in (run_dir / PROGRESS, *run_dir.glob(f".{PROGRESS}.*")):
        with contextlib.suppress(OSError):
            path.unlink()


def plural(count: int, word: str) -> str:
    return f"{count} {word}" if count == 1 else f"{count} {word}s"


def what_is_held(progress: Progress) -> str:
    if progress.filesystems:
        return f"{plural(len(progress.filesystems), 'filesystem')} frozen"
    return f"{plural(len(progress.apps), 'app')} quiesced, nothing frozen"
