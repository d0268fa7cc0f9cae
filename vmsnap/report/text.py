# SPDX-License-Identifier: Apache-2.0
"""What everything that people read is made of: colours, columns, durations. Text in, text out."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from vmsnap.system.printable import printable

WIDTH = 80
COLORS = {"success": "32;1", "failed": "31;1", "error": "31", "warning": "33", "dim": "2"}


class Paint:
    """Colours for a terminal; plain text for everything else."""

    def __init__(self, enabled: bool) -> None:
        self.enabled = enabled

    def __call__(self, text: str, style: str) -> str:
        return f"\033[{COLORS[style]}m{text}\033[0m" if self.enabled else text


def table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    lines = [list(header), *([printable(cell) for cell in row] for row in rows)]
    widths = [max(len(line[i]) for line in lines) for i in range(len(header))]
    return ["  ".join(cell.ljust(w) for cell, w in zip(line, widths)).rstrip() for line in lines]


def duration(seconds: float) -> str:
    if seconds < 1:
        return f"{seconds * 1000:.1f} ms"
    if seconds < 120:
        return f"{seconds:.2f} s"
    return f"{int(seconds) // 60} min {int(seconds) % 60} s"


def cut(text: str, width: int) -> str:
    return text if len(text) <= width else text[: width - 1] + "…"
