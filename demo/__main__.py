# SPDX-License-Identifier: Apache-2.0
"""The story, from two empty disks to the verdict.

Exit status: 0 every proof about the copies made with vmsnap held, 1 it did not, 77 not root.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from contextlib import ExitStack
from types import FrameType
from typing import Any, NoReturn

from demo import disks, stage, survivors
from demo.control import RefusedError, ask
from demo.proof import Finding, prove
from demo.stage import Stage
from demo.story import Steps, fact, say, verdict
from demo.tool import CHECKOUT, DemoError, Tool

INSIDE = "--inside"
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
BUSINESS = 500  # transactions before each copy
EXAMINATION = (
    "First as they lie, mounted read-only with log replay forbidden; then as after a restore.",
    "A frozen xfs keeps one kind of record in its log, by the kernel's design: the superblock.",
    "xfs_repair -n therefore remarks on the log and on the free-block count of the superblock.",
    "If the log holds nothing else, these two remarks are no complaint; a restore ends them.",
)


class Interrupted(BaseException):
    def __init__(self, number: int) -> None:
        self.number = number


def main() -> int:
    if os.geteuid() != 0:
        say("the demo makes and freezes filesystems of its own: run it as root")
        return 77
    if INSIDE not in sys.argv:
        enter_own_namespace()
    for number in SIGNALS:
        signal.signal(number, interrupted)
    try:
        survivors.adopt()
        tell()
    except Interrupted as reason:
        say(f"\ninterrupted by {signal.Signals(reason.number).name}; everything is cleared away")
        return 128 + reason.number
    except subprocess.CalledProcessError as error:
        return failed(f"{error.cmd[0]} failed: {(error.output or '').strip()}")
    except (DemoError, RefusedError, OSError) as error:
        return failed(str(error))
    return 0


def enter_own_namespace() -> NoReturn:
    """Mounts made from here on are nobody else's, and go when the demo goes."""
    again = (sys.executable, "-B", "-m", "demo", INSIDE)
    os.execvp("unshare", ("unshare", "--mount", "--propagation", "private", *again))


def interrupted(number: int, _: FrameType | None) -> NoReturn:
    ignore_signals()  # the way out is not to be interrupted again
    raise Interrupted(number)


def ignore_signals() -> None:
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)


def failed(reason: str) -> int:
    say(f"\nThe demo failed: {reason}")
    return 1


def tell() -> None:
    say("vmsnap: an application-consistent snapshot of a busy application, and its proof")
    steps = Steps()
    with ExitStack() as stack:
        scene = stack.enter_context(stage.home())
        set_up(steps, stack, scene)
        stack.callback(ignore_signals)
        tool = configure(steps, scene)
        said = snapshot(steps, scene, tool)
        carried_on(scene, said)
        without = copy_without(steps, scene)
        steps.step("The copies are examined")
        for line in EXAMINATION:
            fact(line)
        withs = prove(scene.copies("with"), said)
        withouts = prove(scene.copies("without"), without)
    steps.step("Verdict")
    conclude(withs, withouts)


def set_up(steps: Steps, stack: ExitStack, scene: Stage) -> None:
    steps.step("Two disks and an application that writes to both all the time")
    fact(f"D={scene.home}")
    for disk in scene.live:
        disks.make(disk)
        stack.enter_context(disks.mounted(disk))
        fact(f"{disk.fstype:4} on $D/{disk.mount.name}, in the image $D/{disk.image.name}")
    stack.enter_context(disks.memory(scene.memory))
    stack.enter_context(stage.application(scene))
    fact("each transaction goes to an SQLite database (ext4) and to a ledger (xfs)")
    fact(f"application: {ask(scene.socket, f'await {BUSINESS}')}")


def configure(steps: Steps, scene: Stage) -> Tool:
    steps.step("vmsnap learns to quiesce it")
    run = scene.memory / "run"
    tool = Tool(scene.home, run, tuple(disk.mount for disk in scene.live))
    for directory in (tool.etc, tool.run, tool.state):
        directory.mkdir(mode=0o700)
    tool.init()
    for script in tool.write_scripts(scene.socket, scene.said):
        fact(f"written: $D/{script.relative_to(scene.home)}")
    tool.check()
    tool.plan()
    return tool


def snapshot(steps: Steps, scene: Stage, tool: Tool) -> int:
    """The last transaction that the application called done when it was quiesced."""
    steps.step("The snapshot: quiesce, freeze, copy both disks block by block, thaw, resume")
    tool.snapshot(scene.copying("with"))
    result = tool.result()
    if (result.get("outcome"), result.get("consistency")) != ("success", "application"):
        raise DemoError(f"vmsnap calls its snapshot {outline(result)}")
    said = scene.said.read_text().strip()
    fact(f"the application had said: {said}")
    return int(said.partition(" ")[2])


def outline(result: dict[str, Any]) -> str:
    return f"{result.get('outcome')}, consistency {result.get('consistency')}"


def carried_on(scene: Stage, said: int) -> None:
    fact(f"and now it says: {ask(scene.socket, f'await {said + BUSINESS}')}")


def copy_without(steps: Steps, scene: Stage) -> int:
    """The last transaction that the application called done before the copying began."""
    steps.step("For contrast: the same copies without vmsnap, while the application goes on")
    said = ask(scene.socket, "status")
    fact(f"the application says: {said}")
    subprocess.run(scene.copying("without"), cwd=CHECKOUT, check=True)
    return int(said.partition(" ")[2])


def conclude(withs: tuple[Finding, ...], withouts: tuple[Finding, ...]) -> None:
    verdict(withs, withouts)
    wrong = [finding for finding in withouts if not finding.holds]
    say()
    if wrong:
        fact(f"Without vmsnap, {len(wrong)} of {len(withouts)} answers are bad.")
    else:
        fact("Without vmsnap, nothing was wrong this time: luck, not a guarantee.")
    broken = [finding.question for finding in withs if not finding.holds]
    if broken:
        raise DemoError(f"of the copies made with vmsnap, this did not hold: {'; '.join(broken)}")
    fact("With vmsnap, every proof held: the snapshot is application-consistent.")


if __name__ == "__main__":
    sys.exit(main())
