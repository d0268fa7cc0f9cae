# SPDX-License-Identifier: Apache-2.0
"""The longest write stalls as a bar chart: one SVG that needs nothing else, light or dark."""

from __future__ import annotations

import math
from collections.abc import Iterator

from bench.load import Kind
from bench.stalls import Rounds, middle

WIDTH, TOP, LEFT, RIGHT = 760, 64, 128, 72
BAR, GAP = 18, 18
COLOURS = {"vmsnap": "v", "qemu-ga": "q", "fsfreeze": "f", "no freeze": "n"}

# Plain colours and no variables, which not every viewer of SVG knows.
STYLE = """\
svg { font: 13px system-ui, sans-serif }
.title { font-size: 15px; font-weight: 600 } .end { text-anchor: end } .mid { text-anchor: middle }
.paper { fill: #fff } text { fill: #1f2328 } line { stroke: #d8dee4 }
.v { fill: #1a7f37 } .q { fill: #bc4c00 } .f { fill: #8250df } .n { fill: #8c959f }
@media (prefers-color-scheme: dark) {
  .paper { fill: #0d1117 } text { fill: #e6edf3 } line { stroke: #30363d }
  .v { fill: #3fb950 } .q { fill: #f0883e } .f { fill: #a371f7 } .n { fill: #6e7681 } }
"""


def chart(stalls: list[Rounds]) -> str:
    busy = [rounds for rounds in stalls if rounds.load == Kind.BUSY.value]
    groups = [
        [rounds for rounds in busy if rounds.filesystems == count]
        for count in sorted({rounds.filesystems for rounds in busy})
    ]
    low, high = decades([middle(rounds.longest) for rounds in busy])
    height = TOP + sum(len(group) * BAR + GAP for group in groups) + 32
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" role="img">',
        "<title>Longest write stall by engine and number of busy filesystems</title>",
        f"<style>\n{STYLE}</style>",
        f'<rect class="paper" width="{WIDTH}" height="{height}"/>',
        '<text class="title" x="16" y="26">Longest write stall, milliseconds (logarithmic; shorter '
        "is better)</text>",
        *legend(),
        *grid(low, high, height),
        *bars(groups, low, high),
        "</svg>",
    ]
    return "\n".join(lines) + "\n"


def decades(values: list[float]) -> tuple[int, int]:
    """The powers of ten that enclose the values."""
    return math.floor(math.log10(min(values) * 0.8)), math.ceil(math.log10(max(values)))


def across(value: float, low: int, high: int) -> float:
    return LEFT + (math.log10(value) - low) / (high - low) * (WIDTH - LEFT - RIGHT)


def legend() -> Iterator[str]:
    x = LEFT
    for engine, style in COLOURS.items():
        yield f'<rect class="{style}" x="{x}" y="38" width="11" height="11" rx="2"/>'
        yield f'<text x="{x + 16}" y="48">{engine}</text>'
        x += 100


def grid(low: int, high: int, height: int) -> Iterator[str]:
    for power in range(low, high + 1):
        x = across(10.0**power, low, high)
        yield f'<line x1="{x:.1f}" x2="{x:.1f}" y1="{TOP - 6}" y2="{height - 28}"/>'
        yield f'<text class="mid" x="{x:.1f}" y="{height - 12}">{10.0**power:g}</text>'


def bars(groups: list[list[Rounds]], low: int, high: int) -> Iterator[str]:
    y = TOP
    for group in groups:
        count = group[0].filesystems
        middle_y = y + len(group) * BAR / 2 + 4
        words = "1 filesystem" if count == 1 else f"{count} filesystems"
        yield f'<text class="end" x="{LEFT - 12}" y="{middle_y:.1f}">{words}</text>'
        for rounds in group:
            value = middle(rounds.longest)
            end = across(value, low, high)
            size = f'width="{end - LEFT:.1f}" height="{BAR - 3}"'
            yield f'<rect class="{COLOURS[rounds.engine]}" x="{LEFT}" y="{y}" {size} rx="2"/>'
            said = f"{value:.0f}" if value >= 100 else f"{value:.1f}"
            yield f'<text x="{end + 6:.1f}" y="{y + 12}">{said}</text>'
            y += BAR
        y += GAP
