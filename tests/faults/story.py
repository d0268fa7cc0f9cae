# SPDX-License-Identifier: Apache-2.0
"""The story of a round: what was done when, to whom, and what was seen."""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass, field
from typing import Any


@dataclass
class Story:
    """`counts` are the kinds of fault that were done, and what else is worth a figure."""

    seed: str
    began: float = field(default_factory=time.monotonic)
    lines: list[str] = field(default_factory=list)
    counts: dict[str, int] = field(default_factory=dict)
    violations: list[str] = field(default_factory=list)
    excused: list[str] = field(default_factory=list)
    seconds: float = 0.0

    def tell(self, text: str) -> None:
        self.lines.append(f"{(time.monotonic() - self.began) * 1000:9.1f} ms  {text}")

    def count(self, what: str) -> None:
        self.counts[what] = self.counts.get(what, 0) + 1

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    def __str__(self) -> str:
        return "\n".join(
            [
                f"round {self.seed}: {'; '.join(self.violations)}",
                *(f"  {line}" for line in self.lines),
                f"  again: sudo build/venv/bin/python -m tests.faults --round {self.seed}",
            ]
        )
