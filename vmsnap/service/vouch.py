# SPDX-License-Identifier: Apache-2.0
"""The word of `vmsnap thaw` to the engine: whether the snapshot of a held session has been taken.

It is an empty file in the run directory that is named after the word and the session, and is there
before the engine is told to thaw. An end of the hold without it says nothing of a snapshot, unless
it comes from a plain `systemctl stop` (main.py).
"""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

TAKEN, FAILED = "taken", "failed"


def say(run: Path, session: str, word: str) -> None:
    with contextlib.suppress(OSError):  # a full tmpfs: then the session fails, which is said
        os.close(os.open(path(run, session, word), os.O_WRONLY | os.O_CREAT | os.O_NOFOLLOW, 0o600))


def said(run: Path, session: str) -> str:
    """TAKEN, FAILED or nothing. If both were said it was not taken."""
    words = (word for word in (FAILED, TAKEN) if path(run, session, word).exists())
    return next(words, "")


def forget(run: Path, session: str) -> None:
    for word in (TAKEN, FAILED):
        with contextlib.suppress(OSError):
            path(run, session, word).unlink()


def path(run: Path, session: str, word: str) -> Path:
    return run / f"{word}-{session}"
