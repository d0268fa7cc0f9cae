# SPDX-License-Identifier: Apache-2.0
"""Thawing by the list is done in a child: what comes of it when that one is killed, or takes its
time, and when there can be none."""

from __future__ import annotations

import fcntl
import json
import os
import signal
import sys

import pytest

from . import kernel
from .faults import cgroup_frozen, kill_all
from .lab import Lab
from .processes import is_stuck, look_at, wait_for_end, wait_until

# What happens to it when the machine is out of memory or processes.
CHILD_KILLED = """
import os, signal, sys
from vmsnap.cli import main
from vmsnap.session import recovery
parent = os.getpid()
def dying(thaw):
    def thaw_or_die(*arguments, **more):
        if os.getpid() != parent:
            os.kill(os.getpid(), signal.SIGKILL)
        return thaw(*arguments, **more)
    return thaw_or_die
recovery.thaw_listed = dying(recovery.thaw_listed)
recovery.thaw_after_death = dying(recovery.thaw_after_death)
sys.exit(main.main())
"""
NO_CHILD = """
import errno, os, sys
from vmsnap.cli import main
def fork():
    raise BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN))
os.fork = fork
sys.exit(main.main())
"""
# The engine's own child, which thaws when the guard is lost.
ENGINES_CHILD_KILLED = """
import os, signal, sys
from vmsnap.cli import main
from vmsnap.freeze import freezer
thaw_for_guard, parent = freezer.thaw_for_guard, os.getpid()
def thaw(*arguments):
    if os.getpid() != parent:
        os.kill(os.getpid(), signal.SIGKILL)
    return thaw_for_guard(*arguments)
freezer.thaw_for_guard = thaw
sys.exit(main.main())
"""
# There is no child, and what the engine does itself takes its time.
THAW_HANGS = """
import errno, os, sys
from vmsnap.cli import main
from vmsnap.freeze import freezer, thaw
thaw_now = thaw.Call._thaw
def none(*arguments):
    raise BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN))
def late(call):
    with open(GATE, "rb", buffering=0) as gate:
        gate.read(1)
    thaw_now(call)
freezer.in_child, thaw.Call._thaw = none, late
sys.exit(main.main())
"""
STOPPED_BEFORE_THE_COMMAND = """
import os, signal, sys
from vmsnap.cli import main
from vmsnap.session.run import CommandTaker
def take(taker, session):
    os.kill(os.getpid(), signal.SIGSTOP)
    return False
CommandTaker.take = take
sys.exit(main.main())
"""
INVOCATION = {"INVOCATION_ID": "4711"}


def python(program: str) -> tuple[str, ...]:
    return (sys.executable, "-IBc", program)


def leave_frozen(lab: Lab) -> None:
    """As a session of a unit leaves it when everything of it is killed."""
    kill_all(lab.hold(env=INVOCATION))
    lab.release()
    lab.wait_for_rest()
    assert lab.frozen == [f.mount.name for f in lab.filesystems]


@pytest.mark.parametrize("program", [CHILD_KILLED, NO_CHILD], ids=["killed", "none"])
def test_force_thaws_by_itself_when_no_child_can(lab: Lab, program: str) -> None:
    lab.filesystem("ext4")
    lab.filesystem("xfs")
    leave_frozen(lab)
    forced = lab.vmsnap("thaw", "--force", program=python(program))
    assert forced.code == 0, forced
    assert [m for m in lab.mounts if f"{m}: thawed" in forced.out.decode()] == lab.mounts
    assert lab.frozen == []
    assert not (lab.run_directory / "frozen.json").exists()


def test_a_unit_thaws_by_itself_when_no_child_can(lab: Lab) -> None:
    lab.filesystem("ext4")
    lab.filesystem("xfs")
    leave_frozen(lab)
    lab.vmsnap("session", "--stopped", env=INVOCATION, program=python(NO_CHILD))
    assert lab.frozen == []
    assert not (lab.run_directory / "frozen.json").exists()


def test_a_unit_whose_thaw_was_killed_fails_and_the_list_is_left(lab: Lab) -> None:
    lab.filesystem()
    leave_frozen(lab)
    killed = lab.vmsnap("session", "--stopped", env=INVOCATION, program=python(CHILD_KILLED))
    assert killed.code == 1, killed
    assert lab.frozen == ["fs0"]
    assert lab.vmsnap("thaw", "--force").code == 0
    assert lab.frozen == []


def test_force_has_the_patience_to_name_what_is_stuck_in_every_step(lab: Lab) -> None:
    parent = lab.filesystem(name="parent", mib=128)
    stuck = [lab.filesystem(name=f"stuck{n}", on=parent) for n in range(2)]
    listed = [
        {"mount": str(f.mount), "st_dev": f.mount.stat().st_dev, "step": step}
        for step, f in enumerate(stuck)
    ]
    kernel.freeze(parent.mount)
    helpers = [lab.helper(f"exec fsfreeze -f {f.mount}") for f in stuck]
    inside = [(helper.pid, f.mount, kernel.FIFREEZE) for helper, f in zip(helpers, stuck)]
    wait_until(lambda: all(is_stuck(*where) for where in inside))
    document = {"guard": 1, "filesystems": listed}
    (lab.run_directory / "frozen.json").write_text(json.dumps(document))
    with (lab.run_directory / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # a session is in progress, so only this is done
        forced = lab.vmsnap("thaw", "--force")
    assert forced.code == 1
    words = "still inside a freeze; it is thawed as soon as that ends"
    told = forced.out.decode().splitlines()
    assert [f for f in stuck if f"{f.mount}: {words}" in told] == stuck, told
    kernel.thaw(parent.mount)
    for helper in helpers:
        helper.wait()
    lab.wait_for_rest()
    assert lab.frozen == []


def test_the_engine_thaws_by_itself_when_its_child_was_killed(lab: Lab) -> None:
    lab.filesystem("ext4")
    lab.filesystem("xfs")
    session = lab.hold(program=python(ENGINES_CHILD_KILLED))
    os.kill(session.guard, signal.SIGKILL)
    lab.wait_for_thaw()
    lab.release()
    outcome = session.finish()
    assert outcome.verdict == ("success", "crash", 0)
    assert outcome.errors == ["GuardLost"]
    assert outcome.result["frozen_seconds"] > 0
    assert not (lab.run_directory / "frozen.json").exists()


def test_an_engine_that_thaws_by_itself_waits_for_that_before_it_ends(lab: Lab) -> None:
    """Its end would kill the FITHAW, after which btrfs is read-only for good."""
    lab.filesystem()
    gate = lab.gate("thaw")
    session = lab.hold(program=python(THAW_HANGS.replace("GATE", repr(str(gate.path)))))
    os.kill(session.guard, signal.SIGKILL)
    lab.release()
    wait_until(lambda: (lab.run_directory / "last-result.json").exists())
    assert not wait_for_end(session.pid, 1.0)
    assert lab.frozen == ["fs0"]
    lab.open("thaw")
    outcome = session.finish()
    assert set(outcome.errors) == {"GuardLost", "ThawFailed"}
    assert lab.frozen == []


def test_a_supervisor_thaws_when_the_engine_is_stopped_before_the_command(lab: Lab) -> None:
    """And the guard is in a state from which no signal wakes it: the cgroup freezer."""
    lab.conf("[freeze]\ntimeout = 1\n")
    lab.filesystem("ext4")
    lab.filesystem("xfs")
    program = python(STOPPED_BEFORE_THE_COMMAND)
    session = lab.start("exit 0", "--hold=2", program=program)
    wait_until(lambda: session.guards)
    guard = session.guard
    wait_until(lambda: stat_of(session.pid) == "T")
    with cgroup_frozen(guard):
        assert lab.frozen == ["fs0", "fs1"]
        lab.wait_for_thaw()
        os.kill(session.pid, signal.SIGKILL)
        session.process.wait()
    assert wait_for_end(guard)
    lab.wait_for_rest()
    assert lab.frozen == []


@pytest.mark.parametrize("killed", [False, True])
@pytest.mark.parametrize("command", [("session", "--stopped"), ("thaw", "--force")])
def test_whoever_comes_next_thaws_in_the_place_of_a_guard_in_the_cgroup_freezer(
    lab: Lab, command: tuple[str, ...], killed: bool
) -> None:
    """It holds the lock, so a next session waits for its end. The list stays until then."""
    lab.filesystem("ext4")
    lab.filesystem("xfs")
    session = lab.hold(env=INVOCATION)
    guard = session.guard
    with cgroup_frozen(guard):
        kill_all(session, spare=guard)
        lab.release()
        assert lab.frozen == ["fs0", "fs1"]
        thaw = lab.vmsnap(*command, env=INVOCATION)
        assert thaw.code == 0, thaw
        assert lab.frozen == []
        assert lab.run("exit 0").errors == ["SessionInProgress"]
        theirs = lab.filesystems[0]
        kernel.freeze(theirs.mount)
        again = lab.vmsnap(*command, env=INVOCATION)
        assert (again.code, theirs.is_frozen) == (0, True), again
        if killed:
            os.kill(guard, signal.SIGKILL)  # which the freezer does not hold back
    assert wait_for_end(guard)
    lab.wait_for_rest()
    assert theirs.is_frozen  # the guard knows that others have thawed what it froze
    kernel.thaw(theirs.mount)
    assert lab.run("exit 0").verdict == ("success", "filesystem", 0)
    assert lab.frozen == []


def stat_of(pid: int) -> str:
    process = look_at(pid)
    return process.state if process else ""
