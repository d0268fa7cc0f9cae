# SPDX-License-Identifier: Apache-2.0
"""What a person reads: numbered steps, commands as typed, the verdict. The only prints of the demo.

Colours only on a terminal, and never with NO_COLOR.
"""

from __future__ import annotations

import os
import shlex
import sys
import textwrap
from collections.abc import Mapping, Sequence

from demo.proof import Finding

BOLD, DIM, RED, GREEN = "1", "2", "31", "32"


def coloured(text: str, colour: str) -> str:
    plain = bool(os.environ.get("NO_COLOR")) or os.environ.get("TERM") == "dumb"
    return text if plain or not sys.stdout.isatty() else f"\033[{colour}m{text}\033[0m"


def say(text: str = "") -> None:
    # At once, because vmsnap writes to the same terminal or pipe.
    print(text, flush=True)


class Steps:
    """Numbers the steps."""

    def __init__(self) -> None:
        self._number = 0

    def step(self, title: str) -> None:
        self._number += 1
        say("\n" + coloured(f"{self._number}. {title}", BOLD))


def fact(text: str) -> None:
    say(f"   {text}")


def typed(command: Sequence[str], abbreviations: Mapping[str, str]) -> None:
    """A command as one would type it, in lines that a person can read."""
    text = shlex.join(command)
    for long, short in abbreviations.items():
        text = text.replace(long, short)
    lines = textwrap.wrap(text, 92, break_long_words=False, break_on_hyphens=False)
    say(coloured("   $ " + " \\\n       ".join(lines), DIM))


def verdict(withs: tuple[Finding, ...], withouts: tuple[Finding, ...]) -> None:
    """The same questions side by side; a question may be unanswerable on one side."""
    other = {finding.question: finding for finding in withouts}
    asked = max(len(finding.question) for finding in withs)
    answered = max(len(finding.answer) for finding in withs) + len("ok  ")
    heading = f"{'':{asked}}  {'with vmsnap':{answered}}  without"
    say(coloured(f"   {heading}", BOLD))
    for finding in withs:
        left = cell(finding, answered)
        right = cell(other.get(finding.question), 0)
        say(f"   {finding.question:{asked}}  {left}  {right}".rstrip())


def cell(finding: Finding | None, width: int) -> str:
    if finding is None:
        return "-"
    mark, colour = ("ok ", GREEN) if finding.holds else ("BAD", RED)
    return f"{coloured(mark, colour)} {finding.answer.ljust(width - len(mark) - 1)}"
