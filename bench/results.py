# SPDX-License-Identifier: Apache-2.0
"""The results as people and programs read them: README.md, results.json and the chart."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from bench.chart import chart
from bench.costs import Costs
from bench.quiet import BUSY, Quiet
from bench.stalls import Rounds, middle
from bench.targets import Freezes, Target

DIRECTORY = Path(__file__).with_name("results")

METHOD = """\
- Filesystems: ext4 (160 MiB, 4 KiB blocks) and xfs (300 MiB) in turn; alone, ext4. In image files
  on the machine's own disk, every block written once beforehand, on loop devices with direct I/O.
- `busy`: two writers on each filesystem. One writes 4 KiB and fsyncs, every 10 ms; its writes are
  timed. One rewrites 8 KiB pages at random in a file of 50 MiB, buffered, at the pace of
  PostgreSQL's background writer: 100 pages, then 200 ms of rest, which is 4 MB/s. Before each round
  all 50 MiB are made dirty, and `vm.dirty_*` is set so that only syncs write back: for 64
  filesystems that is 3.2 GiB. `unpaced`: the second writer rewrites as fast as it can.
  `idle`: only the first writer, and nothing else dirty.
- A stall is the time of one write+fsync. It counts if any of it lies within the session; the
  session of vmsnap is its whole process, with checks and the writing out before the freeze.
  *Longest*: of all filesystems. *Median*: over the filesystems, of the longest of each.
- Each engine freezes all, runs `true`, thaws all: `vmsnap run` from this checkout, without compiled
  bytecode; `qemu-ga` already running and connected, over its socket (guest-fsfreeze-freeze-list);
  `fsfreeze` of util-linux, one filesystem after the other. `no freeze` is one second of the same
  load without any.
- The engines take turns in each round, in rotating order. Every number is the median of the rounds.
- *Nobody writing*: the time until all are frozen, without any writer. For vmsnap from its own
  timeline, for the others from the request until the last answer.
"""


@dataclass(frozen=True)
class Results:
    machine: dict[str, str]
    stalls: list[Rounds]
    freezes: Freezes
    costs: Costs
    targets: list[Target]
    quiet: Quiet


def write(results: Results) -> None:
    DIRECTORY.mkdir(exist_ok=True)
    (DIRECTORY / "README.md").write_text(page(results))
    (DIRECTORY / "results.json").write_text(json.dumps(document(results), indent=1) + "\n")
    (DIRECTORY / "stall.svg").write_text(chart(results.stalls))


# --- for people --------------------------------------------------------------------------------


def page(results: Results) -> str:
    missed = [target for target in results.targets if not target.met]
    reached = f"{len(results.targets) - len(missed)} of {len(results.targets)}"
    return "\n".join(
        (
            "# What vmsnap costs, and what the others cost",
            "",
            f"Written by `make bench`. {reached} numbers to reach are reached.",
            "",
            target_table(results.targets),
            "![Longest write stall by engine and number of busy filesystems](stall.svg)",
            "",
            "## Write stalls",
            "",
            stall_table(results.stalls),
            "## Until all are frozen, nobody writing",
            "",
            freeze_table(results.freezes),
            "## vmsnap itself",
            "",
            cost_table(results.costs),
            "## The machine",
            "",
            table(("", ""), results.machine.items()),
            "## How it is measured",
            "",
            METHOD + disturbance(results.quiet),
        )
    )


def disturbance(quiet: Quiet) -> str:
    return (
        "- Before each measurement the writers rest until the machine is quiet. "
        f"{quiet.loud} of {quiet.asked} began\n  although others still used more than "
        f"{BUSY:.0%} of its processors.\n"
    )


def table(heads: Sequence[str], rows: Iterable[Sequence[str]], numbers: int = 0) -> str:
    """The last `numbers` columns are aligned to the right."""
    rule = ["---"] * (len(heads) - numbers) + ["---:"] * numbers
    return "".join(f"| {' | '.join(row)} |\n" for row in (heads, rule, *rows))


def target_table(targets: list[Target]) -> str:
    rows = ((t.what, t.wanted, t.measured, "met" if t.met else "**MISSED**") for t in targets)
    return table(("what", "to reach", "measured", ""), rows)


def stall_table(stalls: list[Rounds]) -> str:
    rows = (
        (
            r.load,
            str(r.filesystems),
            r.engine,
            *(number(middle(v)) for v in (r.longest, r.median, r.session)),
            number(max(r.longest)),
            f"{middle(r.dirty_mib):.0f}",
            str(len(r.longest)),
        )
        for r in stalls
    )
    heads = (
        *("load", "filesystems", "engine"),
        *("longest, ms", "median, ms", "session, ms"),
        *("worst round, ms", "dirty before, MiB", "rounds"),
    )
    return table(heads, rows, numbers=6)


def freeze_table(freezes: Freezes) -> str:
    engines = list(next(iter(freezes.values())))
    rows = (
        (str(count), *(number(middle(freezes[count][engine])) for engine in engines))
        for count in freezes
    )
    return table(("filesystems", *(f"{engine}, ms" for engine in engines)), rows, len(engines))


def cost_table(costs: Costs) -> str:
    whole, with_app = middle(costs.whole), middle(costs.with_app)
    rows = [
        ("whole process, 4 idle filesystems, no app", f"{whole:.0f} ms"),
        ("the same with one app, whose two scripts do nothing", f"{with_app:.0f} ms"),
        ("the two phases of the scripts therein", f"{middle(costs.phases):.1f} ms"),
        *((f"`vmsnap plan`, {n:,} mounts", f"{middle(t):.0f} ms") for n, t in costs.plan.items()),
        ("resident memory of the guard", f"{middle(costs.guard_mib):.1f} MiB"),
        ("resident memory of the engine", f"{middle(costs.engine_mib):.1f} MiB"),
        ("SIGKILL of the engine until 16 stalled writes return", f"{middle(costs.kill):.1f} ms"),
    ]
    return table(("what", "median"), rows, numbers=1)


def number(milliseconds: float) -> str:
    return f"{milliseconds:.0f}" if milliseconds >= 100 else f"{milliseconds:.1f}"


# --- for programs ------------------------------------------------------------------------------


def document(results: Results) -> dict[str, Any]:
    """Times in milliseconds; for everything measured the rounds and their median."""
    return {
        "version": 1,
        "machine": results.machine,
        "measurements": {"all": results.quiet.asked, "disturbed": results.quiet.loud},
        "targets": [asdict(target) for target in results.targets],
        "stalls": [
            {key: summed(value) for key, value in asdict(rounds).items()}
            for rounds in results.stalls
        ],
        "freezes": summed(results.freezes),
        "costs": summed(asdict(results.costs)),
    }


def summed(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(key): summed(inner) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return {"median": middle(value), "rounds": list(value)}
    return value
