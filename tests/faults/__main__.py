# SPDX-License-Identifier: Apache-2.0
"""The injector's command line: runs rounds in several processes and says what did not hold.

python -m tests.faults [--seed N] [--rounds N] [--minutes M] [--jobs N]
python -m tests.faults --round SEED [--times N]    the same round again
"""

from __future__ import annotations

import argparse
import json
import os
import select
import subprocess
import sys
import time
import traceback
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field

from tests.faults.rounds import Round, make_plan
from tests.faults.story import Story
from tests.faults.world import World, enter

WORLD_ROUNDS = 200  # after which a process makes new filesystems


@dataclass
class Figures:
    rounds: int = 0
    seconds: float = 0.0
    counts: Counter[str] = field(default_factory=Counter)
    bad: list[Story] = field(default_factory=list)
    broken: list[str] = field(default_factory=list)  # of the injector itself

    def add(self, story: Story) -> None:
        self.rounds += 1
        self.counts.update(story.counts)
        if story.violations:
            self.bad.append(story)

    def __str__(self) -> str:
        kinds = [f"{count:7} {what}" for what, count in sorted(self.counts.items())]
        found = [
            f"{len(self.bad)} rounds with violations",
            *(f"  {s.seed}: {s.violations}" for s in self.bad),
        ]
        return "\n".join(
            [f"{self.rounds} rounds in {self.seconds:.0f} s", *kinds, *found, *self.broken]
        )


def run(
    seed: str,
    rounds: int,
    minutes: float | None,
    jobs: int,
    verbose: bool = False,
    disk: bool = False,
) -> Figures:
    """Run the rounds SEED.0, SEED.1 ..., each process its share."""
    began, figures = time.monotonic(), Figures()
    argv = [sys.executable, "-B", "-m", "tests.faults", f"--seed={seed}", f"--rounds={rounds}"]
    argv += [f"--minutes={minutes}"] if minutes else []
    argv += ["--disk"] if disk else []
    workers = [
        subprocess.Popen([*argv, f"--worker={n}/{jobs}"], stdout=subprocess.PIPE, text=True)
        for n in range(jobs)
    ]
    for story in merged(workers):
        figures.add(story)
        if story.violations or verbose:
            print(story, flush=True)
    for worker in workers:
        if worker.wait():
            figures.broken.append(f"a process of the injector ended with {worker.returncode}")
    figures.seconds = time.monotonic() - began
    return figures


def merged(workers: list[subprocess.Popen[str]]) -> Iterator[Story]:
    poll = select.poll()
    streams = {worker.stdout.fileno(): worker.stdout for worker in workers if worker.stdout}
    for fd in streams:
        poll.register(fd, select.POLLIN)
    while streams:
        for fd, _ in poll.poll():
            line = streams[fd].readline()  # a line is written at once
            if line:
                yield Story(**json.loads(line))
            else:
                poll.unregister(fd)
                streams.pop(fd).close()


def seeds(arguments: argparse.Namespace) -> Iterator[str]:
    number, jobs = map(int, arguments.worker.split("/"))
    for n in range(number, arguments.rounds, jobs):
        yield f"{arguments.seed}.{n}"


def work(names: Iterator[str], minutes: float | None, disk: bool) -> Iterator[Story]:
    """In a process that may enter namespaces."""
    enter()
    deadline = time.monotonic() + (minutes or 1e9) * 60
    over = False
    while not over:
        world = World(disk)
        try:
            for _ in range(WORLD_ROUNDS):
                name = next(names, None)
                over = name is None or time.monotonic() >= deadline
                if over or name is None:
                    break
                round_ = Round(world, make_plan(name))
                try:
                    yield round_.run()
                except (AssertionError, OSError):  # of ours: go on with new filesystems
                    round_.story.violations.append(f"the injector: {traceback.format_exc()}")
                    yield round_.story
                    break
        finally:
            world.close()


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(prog="python -m tests.faults", description=__doc__)
    made.add_argument("--seed", default=str(time.time_ns() % 10**9))
    made.add_argument("--rounds", type=int)
    made.add_argument("--minutes", type=float)
    made.add_argument("--jobs", type=int, default=4)
    made.add_argument("--disk", action="store_true", help="images on the disk, not in memory")
    made.add_argument("--round", metavar="SEED", help="this one, and tell its story")
    made.add_argument("--times", type=int, default=1)
    made.add_argument("--verbose", action="store_true", help="tell every story")
    made.add_argument("--worker", help=argparse.SUPPRESS)
    return made


def main() -> int:
    arguments = parser().parse_args()
    if os.geteuid() != 0:
        sys.exit("this freezes filesystems of its own: run it as root")
    arguments.rounds = arguments.rounds or (10**9 if arguments.minutes else 100)
    if arguments.worker:
        for story in work(seeds(arguments), arguments.minutes, arguments.disk):
            print(json.dumps(story.to_json()), flush=True)
        return 0
    if arguments.round:
        stories = list(work(iter([arguments.round] * arguments.times), None, arguments.disk))
        for story in stories:
            print(story)
        return int(any(story.violations for story in stories))
    figures = run(
        arguments.seed,
        arguments.rounds,
        arguments.minutes,
        arguments.jobs,
        arguments.verbose,
        arguments.disk,
    )
    print(figures)
    return int(bool(figures.bad or figures.broken))


if __name__ == "__main__":
    sys.exit(main())
