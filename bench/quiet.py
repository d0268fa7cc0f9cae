# SPDX-License-Identifier: Apache-2.0
"""Waiting until nobody else uses the machine, so that the others' work is not measured as ours."""

from __future__ import annotations

import time
from pathlib import Path

LOOK_S = 0.4
BUSY = 0.15  # part of all processors
PATIENCE_S = 60.0  # for one measurement
PATIENCE_IN_ALL_S = 900.0


class Quiet:
    """`loud` of `asked` measurements began although it had not become quiet."""

    def __init__(self) -> None:
        self.asked = self.loud = 0
        self.waited = 0.0

    def wait(self) -> None:
        self.asked += 1
        begin = time.monotonic()
        while used(LOOK_S) > BUSY:
            waited = time.monotonic() - begin
            if waited > PATIENCE_S or self.waited + waited > PATIENCE_IN_ALL_S:
                self.loud += 1
                break
        self.waited += time.monotonic() - begin


def used(seconds: float) -> float:
    """The part of the processors' time that is used during the next `seconds`."""
    before = ticks()
    time.sleep(seconds)  # this is what is looked at
    idle, every = (after - earlier for after, earlier in zip(ticks(), before))
    return 1 - idle / max(1, every)


def ticks() -> tuple[int, int]:
    """Of all processors: idle (also while a disk works), and all. See proc(5), /proc/stat."""
    words = Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:9]
    numbers = [int(word) for word in words]
    return numbers[3] + numbers[4], sum(numbers)
