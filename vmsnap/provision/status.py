# SPDX-License-Identifier: Apache-2.0
"""How the last `vmsnap provision` went: at the next boot cloud-init forgets its failures, not we.

The outcome is that of one instance, as cloud-init knows it, so that a machine made from another
one's disk does not show the other's failure.
"""

from __future__ import annotations

import contextlib
import datetime
import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from vmsnap.errors import Kind, Problem
from vmsnap.journal.problems import send_problems
from vmsnap.journal.sender import Event, Journal
from vmsnap.provision.validation import Mistake
from vmsnap.session import lock
from vmsnap.system.bounded import bounded
from vmsnap.system.files import write_atomically
from vmsnap.system.trusted import InsecurePathError, UnreadableFileError, read_anybodys_text

RECORD = "provision.json"
HOLDER = "vmsnap provision"  # in the lock (session/lock.py)
# What this boot found, then what the last one did (cloud-init, helpers.Paths).
INSTANCE_IDS = (Path("/run/cloud-init/.instance-id"), Path("/var/lib/cloud/data/instance-id"))


def now() -> str:
    """RFC 3339."""
    return datetime.datetime.now().astimezone().isoformat("T", "seconds")


def instance_id() -> str:
    """ "" where cloud-init has never run."""
    for path in INSTANCE_IDS:
        with contextlib.suppress(OSError):
            return path.read_text(encoding="utf-8", errors="replace").strip()
    return ""


@dataclass(frozen=True)
class Provisioning:
    """How one went. `source` is the path of the document or "-"; the other paths are of
    configuration files. `timer`: whether the timer is to be enabled, None if it was left alone."""

    source: str
    instance: str = field(default_factory=instance_id)
    at: str = field(default_factory=now)
    problems: tuple[Mistake, ...] = ()
    written: tuple[str, ...] = ()
    unchanged: tuple[str, ...] = ()
    timer: bool | None = None
    removed: tuple[str, ...] = ()

    @property
    def ok(self) -> bool:
        return not self.problems

    def to_json(self) -> dict[str, Any]:
        return {"version": 1, "ok": self.ok, **asdict(self)}


def record(outcome: Provisioning, state: Path) -> None:
    """Raises OSError, and lock.RunDirectoryError."""
    lock.prepare_state(state)
    write_atomically(state / RECORD, (json.dumps(outcome.to_json()) + "\n").encode(), 0o600)


def send_outcome(outcome: Provisioning) -> None:
    """To the journal."""
    if not outcome.ok:
        send_problems([problem(outcome, "\n".join(map(str, outcome.problems)))])
        return
    counts = f"files written: {len(outcome.written)}, unchanged: {len(outcome.unchanged)}"
    Journal().send(f"provisioned from {outcome.source}; {counts}", Event.PROVISIONED.value)


def problem(outcome: Provisioning, message: str) -> Problem:
    return Problem(Kind.PROVISIONING_FAILED, message, path=outcome.source)


def recorded(state: Path) -> Provisioning | None:
    """None if nothing was provisioned on this instance, or if the record cannot be read."""
    cannot_be_read = (InsecurePathError, UnreadableFileError, OSError)
    with contextlib.suppress(*cannot_be_read, ValueError, KeyError, TypeError):
        found = json.loads(bounded(lambda: read_anybodys_text(state / RECORD)))
        if found["instance"] == instance_id():
            return Provisioning(
                found["source"],
                found["instance"],
                found["at"],
                tuple(Mistake(**mistake) for mistake in found["problems"]),
                tuple(found["written"]),
                tuple(found["unchanged"]),
                found["timer"],
                tuple(found.get("removed", ())),
            )
    return None


def failed(state: Path, run_dir: Path) -> Provisioning | None:
    """The last one, if it failed. One that is under way has not."""
    last = recorded(state)
    under_way = (lock.holder(run_dir) or "").startswith(HOLDER)
    return last if last and not last.ok and not under_way else None


def in_words(outcome: Provisioning) -> str:
    """One line on one that failed."""
    source = "" if outcome.source == "-" else f" of {outcome.source}"
    more = f" (and {len(outcome.problems) - 1} more)" if len(outcome.problems) > 1 else ""
    return f"provisioning{source} failed at {outcome.at}: {outcome.problems[0]}{more}"
