# SPDX-License-Identifier: Apache-2.0
"""The record of an app's post-script: pending from the start of its pre-script until it has run.

It is three files in the run directory, so that it outlives every process, and whoever comes next
can run what is pending: once, unless everything was killed in the middle of it. A script is marked
as started by the very process that becomes it, right before its exec, so that no kill can come in
between. The files have one byte and are made before the pre-script; a mark empties one, for which
even a full tmpfs has room.

The directories are scripts/SESSION/APP; what is pending is found by them alone, whatever else is
known of the session.

Runs in: engine, supervisor, caller. While frozen: only the files in the run directory.
"""

from __future__ import annotations

import contextlib
from pathlib import Path

from vmsnap.system.files import make_private, remove_tree

SCRIPTS = "scripts"
PRE, PRE_ENDED, POST = "pre", "pre-ended", "post"


class Pending:
    """The record of one app in one session. `private` is the directory for its scripts."""

    def __init__(self, run_dir: Path, session: str, app: str) -> None:
        self.directory = run_dir / SCRIPTS / session / app
        self.private = self.directory / "private"

    def begin(self, pre: bool) -> None:
        """Nothing has been started yet. Without a pre-script the other one is pending already.
        Raises OSError."""
        make_private(self.private)
        for name in (PRE, PRE_ENDED, POST):
            (self.directory / name).write_bytes(b"." if pre or name == POST else b"")

    def started(self, phase: str) -> Path | None:
        """What the start of this script has to empty ; None if the file has vanished."""
        path = self.directory / phase
        return path if path.exists() else None

    def pre_ended(self) -> None:
        with contextlib.suppress(OSError), (self.directory / PRE_ENDED).open("r+b") as file:
            file.truncate()

    @property
    def pre_may_run(self) -> bool:
        """Whether the pre-script was started, and its end was not seen."""
        return self._marked(PRE) and not self._marked(PRE_ENDED)

    @property
    def post(self) -> bool:
        """Whether the post-script is pending, be it that it runs and nobody watches it."""
        return self._marked(PRE)

    @property
    def post_started(self) -> bool:
        return self._marked(POST)

    @property
    def vanished(self) -> bool:
        """Somebody has removed the record."""
        return not self.directory.exists()

    def _marked(self, name: str) -> bool:
        try:
            return (self.directory / name).stat().st_size == 0
        except OSError:
            return False

    def end(self) -> None:
        """The post-script has run, or there is none. The last app of a session removes the rest."""
        with contextlib.suppress(OSError):
            (self.directory / PRE).unlink()  # for which no descriptor has to be free
        remove_tree(self.directory)
        with contextlib.suppress(OSError):
            self.directory.parent.rmdir()
            self.directory.parent.parent.rmdir()


def pending_in(run_dir: Path) -> dict[str, list[str]]:
    """The apps whose post-script is pending, by session."""
    found: dict[str, list[str]] = {}
    for directory in sorted((run_dir / SCRIPTS).glob("*/*")):
        session, app = directory.parts[-2:]
        if Pending(run_dir, session, app).post:
            found.setdefault(session, []).append(app)
    return found


def forget_the_rest(run_dir: Path) -> None:
    """Remove what records say nothing that is pending; the lock is ours."""
    keep = pending_in(run_dir)
    for session in (run_dir / SCRIPTS).glob("*"):
        for directory in session.glob("*"):
            if directory.name not in keep.get(session.name, ()):
                remove_tree(directory)
        if session.name not in keep:
            remove_tree(session)
    if not keep:
        remove_tree(run_dir / SCRIPTS)
