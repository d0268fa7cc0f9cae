# SPDX-License-Identifier: Apache-2.0
"""The samples in the README, and how two printouts of the same are told to be alike: line by line,
but for times, names of devices, identifiers, and the widths of bars and columns."""

from __future__ import annotations

import re
from pathlib import Path

README = (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")
UUID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")


def samples(command: str) -> list[list[str]]:
    """What the README shows below each prompt with this command, a line each."""
    blocks = re.findall(r"^```\n(.*?)^```", README, re.M | re.S)
    prompts = [part for block in blocks for part in re.split(r"^# ", block, flags=re.M)]
    return [part.splitlines()[1:] for part in prompts if part.startswith(command)]


def shape(lines: list[str]) -> list[str]:
    """The lines without what differs from run to run."""
    found = []
    for line in lines:
        text = UUID.sub("UUID", line)
        text = re.sub(r"\b[0-9a-f]{8}\b", "ID", text)
        text = re.sub(r"\d{4}-\d\d-\d\d[T ]\d\d:[0-9:.+]+", "DATE", text)
        text = re.sub(r"\bsince \w+ DATE UTC; \w+ ago", "since DATE", text)
        text = re.sub(r"[0-9.]+ (ms|s)\b", "TIME", text)
        text = re.sub(r"/dev/(loop)?\w+", "DEVICE", text)
        text = re.sub(r"^(host: ).*", r"\1MACHINE", text)
        found.append(" ".join(re.sub(r"[▒█]+", " ", text).split()))
    return found
