# SPDX-License-Identifier: Apache-2.0
"""Runs as the snapshot command of a session and prints what guard and engine have in memory.

A program of its own that imports nothing of the bench: vmsnap starts it while all is frozen.
"""

from __future__ import annotations

import json
import os
from pathlib import Path


def status(pid: int) -> dict[str, str]:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return {key: value.strip() for key, value in (line.split(":", 1) for line in lines)}


def ancestors() -> set[int]:
    """Without process 1, which inherits the guards of others."""
    found, pid = set(), os.getppid()
    while pid > 1:
        found.add(pid)
        pid = int(status(pid)["PPid"])
    return found


def our_guard() -> dict[str, str]:
    """The guard of this session, not that of another one on this machine."""
    above = ancestors()
    for directory in Path("/proc").iterdir():
        if directory.name.isdigit():
            try:
                found = status(int(directory.name))
            except (FileNotFoundError, ProcessLookupError):  # it has ended
                continue
            if found["Name"] == "vmsnap-guard" and int(found["PPid"]) in above:
                return found
    raise SystemExit("found no guard")


def resident_kib(found: dict[str, str]) -> int:
    return int(found["VmRSS"].split()[0])


if __name__ == "__main__":
    guard = our_guard()
    engine = status(int(guard["PPid"]))
    print(json.dumps({"guard": resident_kib(guard), "engine": resident_kib(engine)}))
