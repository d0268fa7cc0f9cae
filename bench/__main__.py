# SPDX-License-Identifier: Apache-2.0
"""The run, from making the filesystems to writing the results. `--quick` measures a little of it
to see that it works, and writes nothing.

Exit status: 0 measured (whatever the numbers are), 1 failed, 77 not root.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import NoReturn

from bench import results
from bench.costs import costs
from bench.disks import NotEnoughRoomError, disks, memory
from bench.engines import Engine, EngineError, Fsfreeze, Nothing, Vmsnap, qemu_guest_agent
from bench.load import Kind, dirty_data_stays
from bench.machine import machine
from bench.quiet import Quiet
from bench.stalls import freezes, stalls
from bench.targets import targets

INSIDE = "--inside"
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
# Root-owned and writable by nobody else all the way up, as vmsnap demands of a configuration.
PARENT = Path("/var/lib")


@dataclass(frozen=True)
class Extent:
    """How much is measured: rounds by number of filesystems, and the rest."""

    busy: dict[int, int]
    idle: dict[int, int]
    flat_out: dict[int, int]
    freezes: dict[int, int]
    mounts: tuple[int, ...]
    costs: int


WHOLE = Extent(
    busy={1: 9, 4: 7, 16: 7, 64: 5},
    idle={1: 7, 4: 7, 16: 7, 64: 5},
    flat_out={16: 5},
    freezes={1: 9, 4: 9, 16: 9, 64: 9},
    mounts=(100, 1000, 5000),
    costs=9,
)
QUICK = Extent(
    busy={1: 2, 16: 2},
    idle={1: 2},
    flat_out={},
    freezes={1: 3, 16: 3},
    mounts=(100, 300, 1000),
    costs=2,
)


class Interrupted(BaseException):
    def __init__(self, number: int) -> None:
        self.number = number


def main() -> int:
    if os.geteuid() != 0:
        say("the bench makes and freezes filesystems of its own: run it as root")
        return 77
    if INSIDE not in sys.argv:
        enter_own_namespace(sys.argv[1:])
    for number in SIGNALS:
        signal.signal(number, interrupted)
    quick = "--quick" in sys.argv
    try:
        measured = measure(QUICK if quick else WHOLE)
    except Interrupted as reason:
        say(f"interrupted by {signal.Signals(reason.number).name}; everything is cleared away")
        return 128 + reason.number
    except subprocess.CalledProcessError as error:
        say(f"{error.cmd[0]} failed: {(error.output or '').strip()}")
        return 1
    except (EngineError, NotEnoughRoomError, subprocess.TimeoutExpired, OSError) as error:
        say(f"the bench failed: {error}")
        return 1
    tell("")
    if quick:
        print(results.page(measured))
        print("Measured quickly, to see that it works: nothing was written.")
    else:
        results.write(measured)
        print(results.target_table(measured.targets))
        print("Written: bench/results/README.md, results.json and stall.svg")
    return 0


def enter_own_namespace(arguments: Sequence[str]) -> NoReturn:
    """Mounts made from here on are nobody else's, and go when the bench goes."""
    again = (sys.executable, "-B", "-m", "bench", INSIDE, *arguments)
    os.execvp("unshare", ("unshare", "--mount", "--propagation", "private", *again))


def interrupted(number: int, _: FrameType | None) -> NoReturn:
    for each in SIGNALS:  # the way out is not to be interrupted again
        signal.signal(each, signal.SIG_IGN)
    raise Interrupted(number)


def measure(extent: Extent) -> results.Results:
    with ExitStack() as stack:
        home = Path(tempfile.mkdtemp(prefix="vmsnap-bench.", dir=PARENT))
        stack.callback(shutil.rmtree, home, onerror=left_behind)
        ram = stack.enter_context(memory(home / "memory"))
        agent = ram / "agent"
        agent.mkdir()
        tool = Vmsnap(home, ram / "run")
        tell("making 64 filesystems")
        mounts = stack.enter_context(disks(home, 64))
        stack.enter_context(dirty_data_stays())
        engines: list[Engine] = [
            tool,
            stack.enter_context(qemu_guest_agent(agent)),
            Fsfreeze(),
        ]
        warm_up(engines, mounts[:1])
        quiet = Quiet()
        spent = costs(tool, mounts, extent.mounts, extent.costs, quiet, tell)
        frozen = {
            count: freezes(engines, mounts[:count], rounds, quiet, tell)
            for count, rounds in extent.freezes.items()
        }
        engines.append(Nothing())
        stalled = [
            row
            for kind, counts in (
                (Kind.BUSY, extent.busy),
                (Kind.FLAT_OUT, extent.flat_out),
                (Kind.IDLE, extent.idle),
            )
            for count, rounds in counts.items()
            for row in stalls(engines, mounts[:count], kind, rounds, quiet, tell)
        ]
        reached = targets(stalled, frozen, spent)
        return results.Results(machine(), stalled, frozen, spent, reached, quiet)


def warm_up(engines: list[Engine], mounts: tuple[Path, ...]) -> None:
    """Programs are read from the disk once, before anything is measured."""
    for engine in engines:
        engine.session(mounts)


def left_behind(_: object, path: str, error: object) -> None:
    say(f"could not be removed: {path}")


def tell(what: str) -> None:
    """One line that says what is being measured, for a person who waits."""
    if sys.stderr.isatty():
        sys.stderr.write(f"\r\033[K{what}")
        sys.stderr.flush()


def say(what: str) -> None:
    print(what, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
