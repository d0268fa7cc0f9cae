# SPDX-License-Identifier: Apache-2.0
"""The numbers to reach, and whether what was measured reaches them."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from bench.costs import Costs
from bench.load import Kind
from bench.stalls import Rounds, middle

Freezes = dict[int, dict[str, list[float]]]  # filesystems -> engine -> milliseconds


@dataclass(frozen=True)
class Target:
    what: str
    wanted: str
    measured: str
    met: bool


def targets(stalls: list[Rounds], freezes: Freezes, costs: Costs) -> list[Target]:
    return [
        shorter(stalls, 16, 15.0),
        shorter(stalls, 1, 3.0),
        idle_freeze(freezes),
        below(
            "a session with a pre- and a post-script that do nothing, against one without",
            # Of the medians: from one start of a process to the next the times differ by more.
            [middle(costs.with_app) - middle(costs.whole)],
            30,
            "ms",
        ),
        below("`vmsnap run -- true`, 4 idle filesystems, whole process", costs.whole, 350, "ms"),
        below(f"`vmsnap plan` with {max(costs.plan):,} mounts", costs.plan[max(costs.plan)], 500),
        linear(costs.plan),
        below("resident memory of the guard, 64 filesystems", costs.guard_mib, 16, "MiB"),
        below("resident memory of the engine, 64 filesystems", costs.engine_mib, 40, "MiB"),
        Target("processes at rest", "0", str(costs.left_running), costs.left_running == 0),
        below("all 16 thawed after SIGKILL of the engine", costs.kill, 100),
    ]


def below(what: str, values: list[float], limit: float, unit: str = "ms") -> Target:
    value = middle(values)
    return Target(what, f"< {limit:g} {unit}", f"{value:.3g} {unit}", value < limit)


def longest(stalls: Iterable[Rounds], kind: Kind, filesystems: int, engine: str) -> float:
    """The median over the rounds of the longest stall."""
    for rounds in stalls:
        if (rounds.load, rounds.filesystems, rounds.engine) == (kind.value, filesystems, engine):
            return middle(rounds.longest)
    raise LookupError((kind, filesystems, engine))


def shorter(stalls: list[Rounds], filesystems: int, factor: float) -> Target:
    ours, agent, tool = (
        longest(stalls, Kind.BUSY, filesystems, engine)
        for engine in ("vmsnap", "qemu-ga", "fsfreeze")
    )
    noun = "filesystem" if filesystems == 1 else "filesystems"
    return Target(
        f"longest write stall, {filesystems} busy {noun}, against qemu-ga",
        f"{factor:g} times shorter",
        f"{agent / ours:.1f} times ({ours:.1f} and {agent:.0f} ms; fsfreeze {tool:.0f} ms)",
        agent / ours >= factor,
    )


def idle_freeze(freezes: Freezes) -> Target:
    one, sixteen = (middle(freezes[count]["vmsnap"]) for count in (1, 16))
    return Target(
        "freeze of 16 idle filesystems, against one",
        "at most 2 times as long",
        f"{sixteen / one:.1f} times ({sixteen:.1f} and {one:.1f} ms)",
        sixteen <= 2 * one,
    )


def linear(plan: dict[int, list[float]]) -> Target:
    """What one more mount costs among many is what it costs among few, give or take a half. By the
    fastest rounds: beside the start of a process, what few mounts cost is lost in the noise."""
    few, some, many = sorted(plan)
    fastest = {size: min(plan[size]) for size in sorted(plan)}
    slope = max(0.0, (fastest[some] - fastest[few]) / (some - few))
    expected = fastest[few] + slope * (many - few)
    return Target(
        "growth of `vmsnap plan` with the number of mounts",
        "linear",
        "fastest " + ", ".join(f"{time:.0f} ms with {size:,}" for size, time in fastest.items()),
        fastest[many] <= 1.5 * expected,
    )
