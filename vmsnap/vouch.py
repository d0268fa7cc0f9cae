# SPDX-License-Identifier: Apache-2.0
"""The word that the snapshot of a held session has been taken, from `vmsnap thaw` to the engine.

It is an empty file in the run directory that is named after the session. An end of the hold without
it says nothing of a snapshot, unless it comes from a plain `systemctl stop` (unit.py).
"""

from __future__ import annotations

import contextlib
import os
from pathlib import Path


def vouch(run: Path, session: str) -> None:
    with contextlib.suppress(OSError):  # a full tmpfs: then the session fails, which is said
        os.close(os.open(taken(run, session), os.O_WRONLY | os.O_CREAT | os.O_NOFOLLOW, 0o600))


def vouched(run: Path, session: str) -> bool:
    return taken(run, session).exists()


def forget(run: Path, session: str) -> None:
    with contextlib.suppress(OSError):
        taken(run, session).unlink()


def taken(run: Path, session: str) -> Path:
    return run / f"taken-{session}"
