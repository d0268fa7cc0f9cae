# SPDX-License-Identifier: Apache-2.0
"""Killed inside a FIFREEZE, which then succeeds all the same; and what others had frozen before."""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from vmsnap.freeze.states import ASKED, FROZEN, NOT_FROZEN

from . import kernel, stuck
from .faults import kill_all, kill_both
from .lab import Lab
from .processes import is_stuck, wait_for_end, wait_until
from .running import Session

POST = "resumed $VMSNAP_OUTCOME $VMSNAP_CONSISTENCY"
IN_PROGRESS = "still inside a freeze; it is thawed as soon as that ends"
INVOCATION = {"INVOCATION_ID": "4711"}


def inside(lab: Lab, env: dict[str, str] | None = None) -> tuple[Session, stuck.HeldBack]:
    """A session whose guard is inside a FIFREEZE that is held back; that of fs1 has returned."""
    late = stuck.HeldBack(lab, lab.filesystem())
    lab.filesystem("xfs")
    session = lab.start(lab.say("taken"), env=env)
    wait_until(lambda: session.guards)
    late.wait_until_inside(session.guard)
    wait_until(lambda: states(lab) == ASKED + FROZEN)
    return session, late


def states(lab: Lab) -> str:
    text = (lab.run_directory / "frozen.json").read_text()
    return str(json.loads(text)["states"])[:2]  # of the two filesystems


def kill_guard_first(session: Session) -> None:
    os.kill(session.guard, signal.SIGKILL)
    os.kill(session.pid, signal.SIGKILL)
    session.process.wait()


def kill_engine_first(session: Session) -> None:
    guard = session.guard
    os.kill(session.pid, signal.SIGKILL)
    os.kill(guard, signal.SIGKILL)
    session.process.wait()


@pytest.mark.parametrize("kill", [kill_both, kill_guard_first, kill_engine_first])
def test_survivors_thaw_what_freezes_after_the_death_of_engine_and_guard(
    lab: Lab, kill: Callable[[Session], None]
) -> None:
    lab.app(pre="exit 0", post=lab.say(POST))
    session, late = inside(lab)
    guard = session.guard
    kill(session)
    lab.wait_for_thaw(lab.filesystems[1])
    assert lab.events.wait("resumed") == "failed none"
    late.let_go()
    assert wait_for_end(guard)
    lab.wait_for_rest()
    assert lab.frozen == []
    assert not (lab.run_directory / "frozen.json").exists()
    assert lab.run("exit 0").verdict == ("success", "application", 0)


def test_what_freezes_late_is_thawed_while_the_post_script_runs(lab: Lab) -> None:
    """Which may wait for nothing else than to write there."""
    lab.app(pre="exit 0", post=f"{lab.say(POST)}; {lab.stop_at('post')}")
    session, late = inside(lab)
    guard = session.guard
    (command,) = session.below("vmsnap-command")
    os.kill(command, signal.SIGKILL)
    kill_both(session)
    assert lab.events.wait("resumed") == "failed none"
    late.let_go()
    assert wait_for_end(guard)
    lab.wait_for_thaw()
    lab.open("post")
    lab.wait_for_rest()
    assert lab.frozen == []
    assert not (lab.run_directory / "frozen.json").exists()


def test_force_thaws_what_freezes_after_everything_was_killed(lab: Lab) -> None:
    session, late = inside(lab)
    kill_all(session)
    forced = lab.vmsnap("thaw", "--force")
    printed = forced.out.decode().splitlines()
    assert forced.code == 1
    assert f"{late.filesystem.mount}: {IN_PROGRESS}" in printed
    assert f"{lab.filesystems[1].mount}: thawed" in printed
    assert (lab.run_directory / "frozen.json").exists()
    late.let_go()
    lab.wait_for_rest()
    assert lab.frozen == []
    assert lab.vmsnap("thaw", "--force").code == 0
    assert not (lab.run_directory / "frozen.json").exists()


def test_the_unit_thaws_what_freezes_after_everything_was_killed(lab: Lab) -> None:
    session, late = inside(lab, env=INVOCATION)
    kill_all(session)
    stopped = lab.vmsnap("session", "--stopped", env=INVOCATION)
    assert stopped.code == 1
    late.let_go()
    lab.wait_for_rest()
    assert lab.frozen == []
    assert not (lab.run_directory / "frozen.json").exists()


def test_the_next_session_thaws_what_froze_after_everything_was_killed(lab: Lab) -> None:
    session, late = inside(lab)
    kill_all(session)
    assert lab.run("exit 0").errors == ["SessionInProgress"]
    late.let_go()
    lab.wait_for_rest()
    assert lab.frozen == ["fs0", "fs1"]
    assert lab.run("exit 0").verdict == ("success", "filesystem", 0)
    assert lab.frozen == []


# --- what others have frozen ---------------------------------------------------------------------


def test_a_guard_killed_in_presync_leaves_nothing_to_thaw(lab: Lab) -> None:
    lab.conf("[freeze]\ntimeout = 1\n")
    made = stuck.prepare(lab, dirty=True)
    session = lab.start(lab.say("taken"), only=made.only)
    guard = stuck.wait_until_inside(session, made)
    os.kill(guard, signal.SIGKILL)
    outcome = session.finish()
    assert "GuardLost" in outcome.errors
    assert not (lab.run_directory / "frozen.json").exists()
    kernel.freeze(made.other.mount)
    kernel.thaw(made.parent.mount)
    assert wait_for_end(guard)
    lab.wait_for_rest()
    assert b"nothing to thaw" in lab.vmsnap("thaw", "--force").out
    assert lab.frozen == ["other"]
    kernel.thaw(made.other.mount)


# Or else it would wait for the thaw before it freezes: as if the other freeze had begun after that.
WITHOUT_WITNESS = """
import sys
from vmsnap.cli import main
from vmsnap.freeze import freezer
freezer.await_thaw_by_others = lambda *_: None
sys.exit(main.main())
"""


def until_inside(lab: Lab, late: stuck.HeldBack) -> tuple[Session, int]:
    """A session whose guard is inside that FIFREEZE. If the EBUSY of the other one comes first, it
    does not begin, and the session is over."""
    while True:
        session = lab.start("exit 0", program=(sys.executable, "-IBc", WITHOUT_WITNESS))
        while session.process.poll() is None:
            for guard in session.guards:
                if is_stuck(guard, late.filesystem.mount, kernel.FIFREEZE):
                    return session, guard


@pytest.mark.parametrize("kill", [kill_both, kill_all, None])
def test_what_others_had_frozen_stays_frozen_whoever_is_killed(
    lab: Lab, kill: Callable[[Session], None] | None
) -> None:
    """The guard knows of the EBUSY, and is killed while its other FIFREEZE is under way."""
    theirs = lab.filesystem()
    late = stuck.HeldBack(lab, lab.filesystem())
    kernel.freeze(theirs.mount)
    session, guard = until_inside(lab, late)
    wait_until(lambda: states(lab) == NOT_FROZEN + ASKED)
    if kill:
        kill(session)
    else:
        os.kill(guard, signal.SIGKILL)
    late.let_go()
    assert wait_for_end(guard)
    if not kill:
        session.finish()
    lab.wait_for_rest()
    if kill is kill_all:
        assert lab.vmsnap("thaw", "--force").code == 0
    assert lab.frozen == ["fs0"]
    kernel.thaw(theirs.mount)


# --- a writer that is held inside the kernel -----------------------------------------------------


def blocked(lab: Lab, setting: str = "") -> stuck.HeldBack:
    """A filesystem that a writer keeps from freezing, and one that freezes."""
    lab.conf(f"[freeze]\ntimeout = 1\n{setting}\n")
    late = stuck.HeldBack(lab, lab.filesystem())
    lab.filesystem("xfs")
    return late


def test_who_keeps_a_filesystem_from_freezing_is_named(lab: Lab) -> None:
    late = blocked(lab)
    comm = Path(sys.executable).name
    name = f"process {late.writer.pid} ({comm}) of uid 0 is inside splice(2)"
    session = lab.start("exit 0")
    wait_until(lambda: session.guards)
    guard = session.guard
    late.wait_until_inside(guard)
    waiting = lab.writer(late.filesystem)  # waits for the freeze, and is not to blame
    outcome = session.finish()
    (error,) = outcome.result["errors"]
    assert (error["name"], error["subject"]) == ("FreezeTimeout", str(late.filesystem.mount))
    assert error["message"].endswith(f"not frozen within 1 s; {name}")
    assert outcome.result["frozen_seconds"] > 1  # its writers have waited since
    status = lab.vmsnap("status")
    waits = f"{late.filesystem.mount}: its writers wait for a freeze that has not returned; {name}"
    assert waits in status.out.decode().splitlines()
    found = lab.vmsnap("status", "--json").result["writers_wait"]
    assert [b["pid"] for b in found[str(late.filesystem.mount)]] == [late.writer.pid]
    forced = lab.vmsnap("thaw", "--force")
    assert forced.code == 1
    said = f"{late.filesystem.mount}: its writers wait; {name}"
    assert said in forced.out.decode().splitlines()
    late.let_go()
    assert wait_for_end(guard)
    lab.wait_for_rest()
    assert lab.frozen == []
    assert waiting.wait() == 0
    assert lab.vmsnap("status", "--json").result["writers_wait"] == {}


def test_who_keeps_a_filesystem_from_freezing_can_be_ended(lab: Lab) -> None:
    late = blocked(lab, "kill_blocking_writers = yes")
    outcome = lab.run("exit 0")
    assert outcome.errors == ["FreezeTimeout"]
    assert late.writer.wait() == -signal.SIGKILL
    lab.wait_for_rest()
    assert lab.frozen == []
    assert not (lab.run_directory / "frozen.json").exists()
