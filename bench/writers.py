# SPDX-License-Identifier: Apache-2.0
"""The writers, as a program of their own: one thread for each filesystem.

    python -m bench.writers commit 0 MOUNT...      4 KiB and fsync, every 10 ms; each is timed
    python -m bench.writers rewrite RATE MOUNT...  8 KiB pages at random over 50 MiB, buffered,
                                                   RATE bytes a second; 0 is as fast as it goes

Orders come on stdin, a line each. Each is answered with one line of JSON when it is carried out:
    await N            until every thread has written N times more (commit)
    dirty              all 50 MiB of every file (rewrite)
    rest, go           stop writing, write; at first they rest
    report BEGIN END   [longest, median] seconds of the writes of each thread that were under way
                       between these times on CLOCK_MONOTONIC (commit)
End of file ends it.
"""

from __future__ import annotations

import json
import os
import random
import statistics
import sys
import threading
import time
from pathlib import Path

MIB = 1 << 20
COMMIT_BYTES, COMMIT_FILE_MIB, COMMIT_EVERY_S = 4096, 4, 0.010
# PostgreSQL's background writer by default: up to 100 pages of 8 KiB, then 200 ms of rest.
PAGE_BYTES, REWRITE_FILE_MIB, REWRITE_EVERY_S = 8192, 50, 0.200
PAGES = REWRITE_FILE_MIB * MIB // PAGE_BYTES

progress = threading.Condition()
going = threading.Event()


def open_filled(path: Path, mib: int) -> int:
    """A file whose blocks are all there, so that writing to it is overwriting."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    fill(descriptor, mib)
    os.fsync(descriptor)
    return descriptor


def fill(descriptor: int, mib: int) -> None:
    block = os.urandom(MIB)
    for number in range(mib):
        os.pwrite(descriptor, block, number * MIB)


class Committer:
    """Like the log of a database."""

    def __init__(self, mount: Path) -> None:
        self.descriptor = open_filled(mount / "log", COMMIT_FILE_MIB)
        self.writes: list[tuple[float, float]] = []
        self.count = 0

    def run(self) -> None:
        block, offset = os.urandom(COMMIT_BYTES), 0
        due = time.monotonic() + random.random() * COMMIT_EVERY_S
        while going.wait():
            time.sleep(max(0.0, due - time.monotonic()))
            begin = time.monotonic()
            os.pwrite(self.descriptor, block, offset)
            os.fsync(self.descriptor)
            end = time.monotonic()
            with progress:
                self.writes.append((begin, end))
                self.count += 1
                progress.notify_all()
            offset = (offset + COMMIT_BYTES) % (COMMIT_FILE_MIB * MIB)
            due = max(due + COMMIT_EVERY_S, end)  # what a stall delayed is not made up for

    def report(self, begin: float, end: float) -> tuple[float, float]:
        durations = [e - b for b, e in self.writes if e >= begin and b <= end]
        self.writes.clear()
        return max(durations), statistics.median(durations)


class Rewriter:
    """Like the table space of a database."""

    def __init__(self, mount: Path, rate: float) -> None:
        self.descriptor = open_filled(mount / "pages", REWRITE_FILE_MIB)
        self.burst = round(rate * REWRITE_EVERY_S / PAGE_BYTES)  # pages

    def run(self) -> None:
        page, choice = os.urandom(PAGE_BYTES), random.Random(self.descriptor)
        due = time.monotonic() + random.random() * REWRITE_EVERY_S
        while going.wait():
            for _ in range(self.burst or PAGES):
                os.pwrite(self.descriptor, page, choice.randrange(PAGES) * PAGE_BYTES)
            if self.burst:
                due = max(due + REWRITE_EVERY_S, time.monotonic())
                time.sleep(max(0.0, due - time.monotonic()))


def start(writers: list[Committer] | list[Rewriter]) -> None:
    for writer in writers:
        threading.Thread(target=writer.run, daemon=True).start()


def answer(document: object) -> None:
    print(json.dumps(document), flush=True)


def commit(mounts: list[Path]) -> None:
    writers = [Committer(mount) for mount in mounts]
    start(writers)
    answer("ready")
    for line in sys.stdin:
        word, *numbers = line.split()
        if word in ("go", "rest"):
            answer(pace(word))
            continue
        with progress:
            if word == "await":
                answer(await_commits(writers, int(numbers[0])))
            else:
                answer(report(writers, *map(float, numbers)))


def pace(word: str) -> str:
    going.set() if word == "go" else going.clear()
    return word


def await_commits(writers: list[Committer], count: int) -> int:
    goals = [writer.count + count for writer in writers]
    progress.wait_for(lambda: all(w.count >= goal for w, goal in zip(writers, goals)))
    return count


def report(writers: list[Committer], begin: float, end: float) -> list[tuple[float, float]]:
    """What was under way at the end has returned when a later write has."""
    progress.wait_for(lambda: all(w.writes and w.writes[-1][0] > end for w in writers))
    return [writer.report(begin, end) for writer in writers]


def rewrite(rate: float, mounts: list[Path]) -> None:
    writers = [Rewriter(mount, rate) for mount in mounts]
    start(writers)
    answer("ready")
    for line in sys.stdin:
        word = line.strip()
        if word == "dirty":
            for writer in writers:
                fill(writer.descriptor, REWRITE_FILE_MIB)
        else:
            pace(word)
        answer(word)


def main() -> None:
    mounts = [Path(word) for word in sys.argv[3:]]
    if sys.argv[1] == "commit":
        commit(mounts)
    else:
        rewrite(float(sys.argv[2]), mounts)
    sys.stdout.flush()
    os._exit(0)  # the threads never end


if __name__ == "__main__":
    main()
