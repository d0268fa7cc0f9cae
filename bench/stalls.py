# SPDX-License-Identifier: Apache-2.0
"""The comparison: the engines freeze the same filesystems under the same load, round by round."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from bench.disks import write_out
from bench.engines import Engine, Session
from bench.load import Kind, Load, Stall, load
from bench.quiet import Quiet

Tell = Callable[[str], None]


@dataclass(frozen=True)
class Rounds:
    """One engine's rounds at one load. Of several filesystems' stalls in a round, `longest` holds
    the longest and `median` the median; `typical` is the median of all writes. Milliseconds."""

    load: str
    filesystems: int
    engine: str
    longest: tuple[float, ...]
    median: tuple[float, ...]
    typical: tuple[float, ...]
    freeze: tuple[float, ...]
    session: tuple[float, ...]
    dirty_mib: tuple[int, ...]


@dataclass(frozen=True)
class Sample:
    session: Session
    stall: Stall
    dirty_mib: int


def rotated(engines: Sequence[Engine], number: int) -> list[Engine]:
    """So that no engine always comes after the same other one."""
    start = number % len(engines)
    return [*engines[start:], *engines[:start]]


def stalls(
    engines: Sequence[Engine],
    mounts: tuple[Path, ...],
    kind: Kind,
    rounds: int,
    quiet: Quiet,
    tell: Tell,
) -> list[Rounds]:
    samples: dict[str, list[Sample]] = {engine.name: [] for engine in engines}
    with load(kind, mounts) as writers:
        for number in range(rounds):
            tell(f"{len(mounts)} filesystems, {kind.value}: round {number + 1} of {rounds}")
            for engine in rotated(engines, number):
                quiet.wait()
                samples[engine.name].append(sample(engine, mounts, writers))
    return [gather(kind, len(mounts), engine.name, samples[engine.name]) for engine in engines]


def sample(engine: Engine, mounts: tuple[Path, ...], writers: Load) -> Sample:
    dirty_mib = writers.prepare()
    session = engine.session(mounts)
    stall = writers.stall(session.begin, session.end)
    writers.rest()
    return Sample(session, stall, dirty_mib)


def gather(kind: Kind, filesystems: int, engine: str, samples: list[Sample]) -> Rounds:
    return Rounds(
        kind.value,
        filesystems,
        engine,
        longest=tuple(milliseconds(s.stall.longest) for s in samples),
        median=tuple(milliseconds(s.stall.median) for s in samples),
        typical=tuple(milliseconds(s.stall.typical) for s in samples),
        freeze=tuple(milliseconds(s.session.freeze) for s in samples),
        session=tuple(milliseconds(s.session.end - s.session.begin) for s in samples),
        dirty_mib=tuple(s.dirty_mib for s in samples),
    )


def freezes(
    engines: Sequence[Engine], mounts: tuple[Path, ...], rounds: int, quiet: Quiet, tell: Tell
) -> dict[str, list[float]]:
    """Milliseconds until all were frozen while nobody writes, of each engine and round."""
    taken: dict[str, list[float]] = {engine.name: [] for engine in engines}
    for number in range(rounds):
        tell(f"{len(mounts)} filesystems, nobody writing: round {number + 1} of {rounds}")
        for engine in rotated(engines, number):
            quiet.wait()
            write_out(mounts)
            taken[engine.name].append(milliseconds(engine.session(mounts).freeze))
    return taken


def milliseconds(seconds: float) -> float:
    return round(seconds * 1000, 3)


def middle(values: Sequence[float]) -> float:
    return round(statistics.median(values), 3)
