# SPDX-License-Identifier: Apache-2.0
"""What the machine does while it is measured: nothing, or writers (writers.py) on all filesystems.

Also the kernel's settings for writing back, without which nothing would stay dirty for long.
"""

from __future__ import annotations

import contextlib
import json
import statistics
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Any

from bench.disks import thaw, write_out

CHECKOUT = Path(__file__).resolve().parent.parent
VM = Path("/proc/sys/vm")
WARM_UP = 20  # commits of every writer before a round
PACE = 4096_000  # bytes per second and filesystem: 100 pages of 8 KiB every 200 ms


class Kind(Enum):
    """The value is the word in tables and files."""

    IDLE = "idle"  # nothing is dirty; only the writer whose stalls are measured
    BUSY = "busy"  # and one that rewrites 50 MiB at a pace
    FLAT_OUT = "busy, unpaced"  # and one that rewrites 50 MiB as fast as it goes

    @property
    def rate(self) -> int | None:
        return {"idle": None, "busy": PACE, "busy, unpaced": 0}[self.value]


@dataclass(frozen=True)
class Stall:
    """Seconds, of write+fsync, during a time that was asked about."""

    longest: float  # of all filesystems
    median: float  # of the longest of each filesystem
    typical: float  # of all writes, the stalled and the others


class Program:
    """One process of writers."""

    def __init__(self, mounts: tuple[Path, ...], *words: str) -> None:
        self.mounts = mounts
        self.process = subprocess.Popen(
            (sys.executable, "-B", "-m", "bench.writers", *words, *map(str, mounts)),
            cwd=CHECKOUT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=True,  # a Ctrl-C is the bench's to handle
        )

    def order(self, *words: object) -> Any:
        assert self.process.stdin
        print(*words, file=self.process.stdin, flush=True)
        return self.answer()

    def answer(self) -> Any:
        assert self.process.stdout
        return json.loads(self.process.stdout.readline())

    def end(self) -> None:
        # A writer on a frozen filesystem cannot end, not even by SIGKILL.
        for mount in self.mounts:
            thaw(mount)
        self.process.kill()
        with self.process:
            pass


class Load:
    def __init__(self, mounts: tuple[Path, ...], committers: Program, rewriters: Program | None):
        self.mounts, self.committers, self.rewriters = mounts, committers, rewriters

    def prepare(self) -> int:
        """Bring everything into the state in which a round begins. Return MiB that are dirty, as
        well as can be told from what is dirty on the whole machine."""
        write_out(self.mounts)
        elsewhere = dirty_mib()
        self.committers.order("go")
        if self.rewriters:
            self.rewriters.order("dirty")
            self.rewriters.order("go")
        self.committers.order("await", WARM_UP)
        return max(0, dirty_mib() - elsewhere)

    def rest(self) -> None:
        for program in filter(None, (self.committers, self.rewriters)):
            program.order("rest")

    def stall(self, begin: float, end: float) -> Stall:
        answer = self.committers.order("report", begin, end)
        longest = [seconds for seconds, _ in answer]
        typical = statistics.median(seconds for _, seconds in answer)
        return Stall(max(longest), statistics.median(longest), typical)


@contextlib.contextmanager
def load(kind: Kind, mounts: tuple[Path, ...]) -> Iterator[Load]:
    with contextlib.ExitStack() as undo:
        undo.callback(write_out, mounts)
        programs = [Program(mounts, "commit", "0")]
        undo.callback(programs[0].end)
        if kind.rate is not None:
            programs.append(Program(mounts, "rewrite", str(kind.rate)))
            undo.callback(programs[1].end)
        for program in programs:
            program.answer()
        yield Load(mounts, programs[0], programs[1] if programs[1:] else None)


def dirty_mib() -> int:
    lines = Path("/proc/meminfo").read_text().splitlines()
    words = dict(line.split(":", 1) for line in lines)
    return int(words["Dirty"].split()[0]) >> 10


@contextlib.contextmanager
def dirty_data_stays() -> Iterator[None]:
    """Only syncs write back while this lasts: no timer does, and no amount of dirty memory."""
    total = int(Path("/proc/meminfo").read_text().split()[1]) << 10
    settings = {
        "dirty_writeback_centisecs": "0",
        "dirty_expire_centisecs": "360000",
        "dirty_bytes": str(total // 2),
        "dirty_background_bytes": str(total // 5 * 2),
    }
    # Of bytes and ratio one is in force and the other reads as 0; writing one clears the other.
    twins = ("dirty_ratio", "dirty_background_ratio")
    before = {name: (VM / name).read_text().strip() for name in (*settings, *twins)}
    try:
        for name, value in settings.items():
            (VM / name).write_text(value)
        yield
    finally:
        for name, value in before.items():
            if value != "0" or "centisecs" in name:
                (VM / name).write_text(value)
