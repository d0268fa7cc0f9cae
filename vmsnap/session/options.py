# SPDX-License-Identifier: Apache-2.0
"""What the caller of a session decides."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from vmsnap.consistency import Level


@dataclass(frozen=True)
class Options:
    """What the caller of a session decides. None and () leave it to the settings."""

    command: tuple[str, ...] = ()
    etc: Path = Path("/etc")
    run_dir: Path = Path("/run/vmsnap")
    state: Path = Path("/var/lib/vmsnap")
    hold: float | None = None
    require: Level | None = None
    only: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()
    fsfreeze: bool = True
