# SPDX-License-Identifier: Apache-2.0
"""Files that vmsnap writes for others, and lines that it adds to files of others: how they are told
apart from everything else, so that all of it can be taken back to the byte."""

from __future__ import annotations

import re
from pathlib import Path

from vmsnap.config.azure import AZURE_HOOKS

OURS = "`vmsnap integrate`"  # is in every file of ours that can have a comment
WRITTEN = f"# Written by {OURS}, which replaces it; with --remove it removes it."
BEGIN, END = f"# {OURS}: from here", f"# {OURS}: to here"
UNENDED = ", with the end of the line before"
ADDED = re.compile(f"(?:(\n){BEGIN}{UNENDED}|^(){BEGIN})\n.*?^{END}\n", re.M | re.S)


def with_addition(text: str, lines: str) -> str:
    """The file with these lines at its end. `without` gives the very file again."""
    rest = without(text)
    unended = rest != "" and not rest.endswith("\n")
    return rest + ("\n" + BEGIN + UNENDED if unended else BEGIN) + f"\n{lines}{END}\n"


def without(text: str) -> str:
    """What was written by others after our lines began a line, and still does."""
    return ADDED.sub(lambda found: found.group(1) if found.end() < len(text) else "", text)


def has_addition(path: Path) -> bool:
    return BEGIN in text_of(path)


def ours(path: Path) -> bool:
    """Whether a file is one that we have written."""
    text = text_of(path)
    return WRITTEN in text or AZURE_HOOKS["pre"] in text  # there are no comments in JSON


def text_of(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
