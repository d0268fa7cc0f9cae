# SPDX-License-Identifier: Apache-2.0
"""Somebody is killed or stopped while vmsnap-session.service holds: everything is thawed."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Iterator
from dataclasses import dataclass

import pytest

from tests.fs import kernel
from tests.fs.faults import cgroup_frozen
from tests.fs.lab import MKFS, call
from tests.fs.processes import is_stuck, wait_for_end
from tests.fs.running import Fifo, Outcome
from tests.fs.stuck import start_writer

from .apps import DIRECTORY, UNIT, Running, Scene, scene_of, until
from .container import Container, device_of, status

ENGINE_LOST = "MESSAGE_ID=212ee4753fc54aac95464b84277a04fa"
LEAVES_A_PROCESS = "setsid sleep 600 >/dev/null 2>&1 &"
SOON = "WatchdogSec=2s"


@pytest.fixture
def scene(container: Container) -> Iterator[Scene]:
    with scene_of(container) as made:
        yield made


def assert_lost(scene: Scene, session: str, result: str = "signal") -> None:
    """Everything that a user can ask says that the engine of this session was killed, and the next
    session is none the worse for it. The post-script has run no more than once."""
    scene.wait_for_failure()
    assert scene.events.heard in ([], ["quiesced"], ["quiesced", "resumed failed none"])
    assert not scene.container.frozen("/")
    assert scene.state == ("failed", result)
    for pid in scene.container.pids("vmsnap-scripts"):
        wait_for_end(pid)
    status = scene.vmsnap("status", "--json")
    assert (status.code, status.result["last"]["session"]) == (1, session)
    assert "EngineLost 129" in scene.vmsnap("status").out.decode()
    assert "EngineLost" in scene.vmsnap("history").out.decode()
    thaw = scene.thaw()
    assert (thaw.result["session"], thaw.errors) == (session, ["EngineLost"])
    assert thaw.verdict == ("failed", "none", 1)
    (record,) = scene.container.journal(ENGINE_LOST)
    assert record["VMSNAP_SESSION"] == session
    scene.freeze()
    assert scene.container.frozen("/")
    assert scene.thaw().code == 0
    assert not scene.container.frozen("/")


# --- the engine ----------------------------------------------------------------------------------


def test_a_killed_engine_is_told_and_leaves_nothing_frozen(scene: Scene) -> None:
    scene.database()
    held = scene.freeze()
    scene.container.kill(scene.engine)
    assert scene.events.wait("resumed") == "failed none"
    assert_lost(scene, held["session"])


def test_who_thaws_just_after_the_engine_was_killed_is_told(scene: Scene) -> None:
    scene.database()
    held = scene.freeze()
    scene.container.kill(scene.engine)
    thaw = scene.thaw()
    assert not scene.container.frozen("/")
    assert (thaw.code, thaw.result["session"], thaw.errors) == (1, held["session"], ["EngineLost"])
    assert scene.events.wait("resumed") == "failed none"


def test_who_thaws_while_the_post_script_of_a_killed_engine_runs_is_told(scene: Scene) -> None:
    scene.app(pre=":", post=f"{scene.say('resuming')}; {scene.stop_at('post')}")
    held = scene.freeze()
    scene.container.kill(scene.engine)
    scene.events.wait("resuming")
    scene.wait_for_failure()
    thaw = scene.thaw()
    scene.open("post")
    assert (thaw.code, thaw.result["session"], thaw.errors) == (1, held["session"], ["EngineLost"])


def test_a_caller_is_told_of_an_engine_killed_in_the_pre_scripts(scene: Scene) -> None:
    scene.database(pre=scene.stop_at("pre"))
    freeze = scene.start("freeze", "--json")
    scene.events.wait("quiesced")
    scene.container.kill(scene.engine)
    outcome = freeze.finish()
    assert outcome.verdict == ("failed", "none", 1)
    assert outcome.errors == ["EngineLost"]
    assert scene.events.wait("resumed") == "failed none"
    assert not scene.container.frozen("/")


def test_a_caller_is_told_of_an_engine_killed_in_the_post_scripts(scene: Scene) -> None:
    scene.app(pre=":", post=f"{scene.say('resuming')}; {scene.stop_at('post')}")
    held = scene.freeze()
    thaw = scene.start("thaw", "--json")
    scene.events.wait("resuming")
    scene.container.kill(scene.engine)
    outcome = thaw.finish()
    assert (outcome.code, outcome.errors) == (1, ["EngineLost"])
    assert outcome.result["session"] == held["session"]
    scene.open("post")
    for pid in scene.container.pids("vmsnap-scripts"):
        wait_for_end(pid)
    assert scene.events.heard == ["resuming"]


def lose_engine_and_supervisors(scene: Scene) -> None:
    """Kill all of the unit. The post-script, which waits, is run by ExecStopPost= then."""
    scene.container.systemctl("kill", "--signal=KILL", UNIT, check=True)
    scene.events.wait("resuming")


def wait_for_stop_job(scene: Scene) -> None:
    def queued() -> bool:
        lines = scene.container.systemctl("list-jobs", "--no-legend").stdout.splitlines()
        return any(line.split()[1:3] == [UNIT, "stop"] for line in lines)

    until(queued)


def test_who_thaws_while_the_recovery_runs_the_post_script_is_told(scene: Scene) -> None:
    scene.app(pre=":", post=f"{scene.say('resuming')}; {scene.stop_at('post')}")
    held = scene.freeze()
    lose_engine_and_supervisors(scene)
    thaw = scene.start("thaw", "--json")
    wait_for_stop_job(scene)
    scene.open("post")
    outcome = thaw.finish()
    assert (outcome.code, outcome.errors) == (1, ["EngineLost"])
    assert outcome.result["session"] == held["session"]
    assert scene.events.heard == ["resuming"]


def test_a_caller_interrupted_while_the_recovery_runs_does_not_end_it(scene: Scene) -> None:
    post = f"{scene.say('resuming')}; {scene.stop_at('post')}; {scene.say('resumed')}"
    scene.app(pre=f"{scene.say('quiesced')}; {scene.stop_at('pre')}", post=post)
    freeze = scene.start("freeze", "--json")
    scene.events.wait("quiesced")
    lose_engine_and_supervisors(scene)
    os.kill(freeze.below[0], signal.SIGINT)
    wait_for_stop_job(scene)
    scene.open("post")
    assert freeze.finish().code in (-signal.SIGINT, 128 + signal.SIGINT)
    scene.events.wait("resumed")
    assert scene.vmsnap("thaw", "--json").errors == ["EngineLost"]
    assert scene.events.heard == ["quiesced", "resuming", "resumed"]


def test_the_watchdog_ends_a_stopped_engine(scene: Scene) -> None:
    scene.settings(SOON)
    scene.database()
    held = scene.freeze()
    scene.container.kill(scene.engine, signal.SIGSTOP)
    assert scene.events.wait("resumed") == "failed none"
    assert_lost(scene, held["session"], "watchdog")


def test_the_watchdog_does_not_end_an_engine_that_holds(scene: Scene) -> None:
    scene.settings(SOON)
    scene.freeze()
    ends = scene.start("4", program="sleep")
    ends.finish()
    assert scene.container.frozen("/")
    assert scene.state == ("active", "success")
    assert scene.thaw().verdict == ("success", "filesystem", 0)


# --- the guard -----------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGHUP])
def test_the_unit_fails_by_itself_when_the_guard_is_ended(
    scene: Scene, number: signal.Signals
) -> None:
    scene.database()
    held = scene.freeze()
    os.kill(scene.guard, number)
    assert scene.events.wait("resumed") == "failed none"
    scene.wait_for_failure()
    assert not scene.container.frozen("/")
    assert scene.state == ("failed", "exit-code")
    assert "GuardLost (128)" in scene.container.status(UNIT)
    thaw = scene.thaw()
    assert (thaw.code, thaw.result["session"], thaw.errors) == (1, held["session"], ["GuardLost"])


def test_a_stopped_guard_is_replaced_at_the_thaw(scene: Scene) -> None:
    scene.database()
    scene.freeze()
    guard = scene.guard
    os.kill(guard, signal.SIGSTOP)
    thaw = scene.thaw()
    assert not scene.container.frozen("/")
    assert thaw.errors == ["GuardLost"]
    assert thaw.verdict == ("success", "crash", 0)
    assert wait_for_end(guard)


def test_a_stopped_guard_is_replaced_at_the_end_of_the_hold(scene: Scene) -> None:
    scene.database()
    scene.freeze("--hold=1")
    guard = scene.guard
    os.kill(guard, signal.SIGSTOP)
    assert scene.events.wait("resumed") == "failed none"
    scene.wait_for_failure()
    assert not scene.container.frozen("/")
    thaw = scene.thaw()
    assert (thaw.code, sorted(thaw.errors)) == (1, ["GuardLost", "HoldExpired"])
    assert wait_for_end(guard)


# --- both, and all -------------------------------------------------------------------------------


@pytest.mark.parametrize("app", [True, False])
@pytest.mark.parametrize("number", [signal.SIGSTOP, signal.SIGKILL])
def test_what_the_guard_leaves_behind_is_thawed(
    scene: Scene, number: signal.Signals, app: bool
) -> None:
    """Without an app there is no supervisor: only ExecStopPost= is left to thaw."""
    if app:
        scene.database()
    held = scene.freeze()
    engine, guard = scene.engine, scene.guard
    scene.container.kill(engine, signal.SIGSTOP)  # it shall not hear of the guard's death
    os.kill(guard, number)
    scene.container.kill(engine)
    if app:
        assert scene.events.wait("resumed") == "failed none"
    assert_lost(scene, held["session"])
    assert wait_for_end(guard)


@pytest.mark.parametrize("app", [True, False])
def test_the_watchdog_thaws_what_a_stopped_engine_and_guard_hold(scene: Scene, app: bool) -> None:
    scene.settings(SOON)
    if app:
        scene.database()
    held = scene.freeze()
    guard = scene.guard
    scene.container.kill(scene.engine, signal.SIGSTOP)
    os.kill(guard, signal.SIGSTOP)
    if app:
        assert scene.events.wait("resumed") == "failed none"
    assert_lost(scene, held["session"], "watchdog")
    assert wait_for_end(guard)


@pytest.mark.parametrize("app", [True, False])
@pytest.mark.parametrize("ends", ["engine", "watchdog"])
def test_all_is_thawed_when_no_signal_reaches_the_guard(scene: Scene, ends: str, app: bool) -> None:
    """It is in the cgroup freezer, which may never let go."""
    if ends == "watchdog":
        scene.settings(SOON)
    if app:
        scene.database()
    held = scene.freeze()
    guard = scene.guard
    with cgroup_frozen(guard):
        number = signal.SIGSTOP if ends == "watchdog" else signal.SIGKILL
        scene.container.kill(scene.engine, number)
        scene.wait_for_failure()
        assert not scene.container.frozen("/")
        assert scene.container.pids("vmsnap-guard") == [guard]
        if app:
            assert scene.events.wait("resumed") == "failed none"
    assert wait_for_end(guard)
    assert_lost(scene, held["session"], "watchdog" if ends == "watchdog" else "signal")


def test_all_is_thawed_when_all_processes_of_the_unit_are_killed(scene: Scene) -> None:
    scene.container.add_filesystem("/srv/data", "xfs")
    scene.database()
    held = scene.freeze()
    scene.container.systemctl("kill", "--signal=KILL", UNIT, check=True)
    scene.wait_for_failure()
    assert not scene.container.frozen("/srv/data")
    assert scene.events.wait("resumed") == "failed none"
    assert_lost(scene, held["session"])


def test_a_main_process_killed_through_systemd_is_no_different(scene: Scene) -> None:
    scene.database()
    held = scene.freeze()
    scene.container.systemctl("kill", "--signal=KILL", "--kill-whom=main", UNIT, check=True)
    assert scene.events.wait("resumed") == "failed none"
    assert_lost(scene, held["session"])


# --- what scripts leave running ------------------------------------------------------------------


def left_running(scene: Scene) -> int:
    (pid,) = scene.container.pids("sleep")
    scene.container.added.callback(os.kill, pid, signal.SIGKILL)
    return pid


def test_what_a_pre_script_leaves_running_survives_the_stop(scene: Scene) -> None:
    scene.database(pre=LEAVES_A_PROCESS)
    scene.freeze()
    pid = left_running(scene)
    assert scene.thaw().verdict == ("success", "application", 0)
    assert scene.container.pids("sleep") == [pid]
    scene.database()
    scene.freeze()
    assert scene.thaw().verdict == ("success", "application", 0)
    assert scene.container.pids("sleep") == [pid]


def test_what_a_pre_script_leaves_running_survives_a_killed_engine(scene: Scene) -> None:
    scene.database(pre=LEAVES_A_PROCESS)
    held = scene.freeze()
    pid = left_running(scene)
    scene.container.kill(scene.engine)
    assert scene.events.wait("resumed") == "failed none"
    scene.database()
    assert_lost(scene, held["session"])
    assert scene.container.pids("sleep") == [pid]


# --- a FIFREEZE that does not return -------------------------------------------------------------


def prepare_stuck(scene: Scene) -> tuple[str, ...]:
    """A filesystem on one that somebody else froze: its FIFREEZE returns when that is thawed.
    Return the options of a session that leaves the other's alone."""
    container = scene.container
    container.add_filesystem("/srv/parent", mib=96)
    size, mkfs = MKFS["ext4"]
    file = container.path("/srv/parent/child.img")
    with file.open("wb") as opened:
        opened.truncate(size << 20)
    call(*mkfs, file)
    loop = call("losetup", "--find", "--show", file).strip()
    container._mount_inside(loop, "/srv/child")
    call("losetup", "--detach", loop)
    child = container.path("/srv/child")
    container.thawers[device_of(child)] = os.open(child, os.O_RDONLY)
    container.added.callback(lambda d: os.close(container.thawers.pop(d)), device_of(child))
    container.add_filesystem("/srv/other", "xfs")
    kernel.freeze(container.path("/srv/parent"))
    return "--only=/srv/child", "--only=/srv/other"


def wait_until_inside(scene: Scene) -> None:
    """Wait until the guard is inside the FIFREEZE that does not return."""
    child = scene.container.path("/srv/child")
    guards = scene.container.pids
    until(lambda: any(is_stuck(pid, child, kernel.FIFREEZE) for pid in guards("vmsnap-guard")))


def assert_guard_stays_until_the_kernel_lets_it_go(scene: Scene, guard: int) -> None:
    assert scene.container.pids("vmsnap-guard") == [guard]
    assert is_stuck(guard)
    for pending in ("SigPnd", "ShdPnd"):  # proc(5)
        assert not int(status(guard)[pending], 16) & 1 << (signal.SIGKILL - 1)
    assert not scene.container.frozen("/srv/other")
    assert scene.vmsnap("freeze").code == 75
    kernel.thaw(scene.container.path("/srv/parent"))
    assert wait_for_end(guard)
    for mount in ("/srv/child", "/srv/other", "/srv/parent"):
        assert not scene.container.frozen(mount)
    assert scene.freeze()["filesystems"]
    assert scene.thaw().code == 0


def test_a_stop_spares_a_guard_that_is_inside_a_freeze(scene: Scene) -> None:
    options = prepare_stuck(scene)
    scene.container.write("/etc/vmsnap/vmsnap.conf", "[freeze]\ntimeout = 1\n")
    assert scene.freeze(*options)["consistency"] == "crash"
    guard = scene.guard
    thaw = scene.thaw()
    assert thaw.subjects == [("FreezeTimeout", "/srv/child")]
    assert scene.state[0] == "inactive"
    assert_guard_stays_until_the_kernel_lets_it_go(scene, guard)


@pytest.mark.parametrize("how", ["stop", "kill"])
def test_a_unit_that_ends_early_spares_a_guard_that_is_inside_a_freeze(
    scene: Scene, how: str
) -> None:
    options = prepare_stuck(scene)
    freeze = scene.start("freeze", "--json", *options)
    wait_until_inside(scene)
    guard = scene.guard
    if how == "stop":
        scene.container.systemctl("stop", UNIT)
    else:
        scene.container.kill(scene.engine)
    outcome = freeze.finish()
    assert outcome.code == 1
    assert outcome.errors[-1] == ("EngineLost" if how == "kill" else "SnapshotFailed")
    assert_guard_stays_until_the_kernel_lets_it_go(scene, guard)


# --- a FIFREEZE that returns when its guard is dead ----------------------------------------------


@dataclass(frozen=True)
class HeldBack:
    """What freezes when `let_go` is called, and then nobody knows of it but the list."""

    guard: int
    gate: Fifo

    def let_go(self) -> None:
        os.write(self.gate.fd, b"x")
        assert wait_for_end(self.guard)


def begin_held_back(scene: Scene) -> tuple[Running, HeldBack]:
    """A session whose guard is inside the FIFREEZE of /srv/data."""
    container = scene.container
    container.add_filesystem("/srv/data")
    container.add_filesystem("/srv/other", "xfs")
    gate = Fifo(container.path(DIRECTORY / "write"))
    scene.gates["write"] = gate
    data = container.path("/srv/data")
    start_writer(gate.path, data, scene.writers)
    freeze = scene.start("freeze", "--json", "--only=/srv/data", "--only=/srv/other")
    until(lambda: any(is_stuck(x, data, kernel.FIFREEZE) for x in container.pids("vmsnap-guard")))
    return freeze, HeldBack(scene.guard, gate)


def wait_for_rest(scene: Scene) -> None:
    for name in ("vmsnap-scripts", "vmsnap-thaw"):
        for pid in scene.container.pids(name):
            assert wait_for_end(pid)


@pytest.mark.parametrize("killed", ["both", "all"])
def test_the_unit_thaws_what_freezes_after_engine_and_guard_were_killed(
    scene: Scene, killed: str
) -> None:
    scene.database()
    freeze, late = begin_held_back(scene)
    engine = scene.engine
    scene.container.kill(engine, signal.SIGSTOP)  # it shall not hear of the guard's death
    if killed == "all":
        scene.container.systemctl("kill", "--signal=KILL", UNIT, check=True)
    else:
        os.kill(late.guard, signal.SIGKILL)
        scene.container.kill(engine)
    outcome = freeze.finish()
    assert (outcome.verdict, outcome.errors[-1]) == (("failed", "none", 1), "EngineLost")
    assert not scene.container.frozen("/srv/other")
    assert scene.events.wait("resumed") == "failed none"
    late.let_go()
    wait_for_rest(scene)
    assert not scene.container.frozen("/srv/data")
    assert scene.events.heard == ["quiesced", "resumed failed none"]
    assert scene.freeze("--only=/srv/data")["filesystems"]
    assert scene.thaw().code == 0


def test_a_thaw_of_the_unit_that_hangs_is_given_its_time(scene: Scene) -> None:
    scene.settings("TimeoutStopSec=1s")
    freeze, late = begin_held_back(scene)
    scene.container.kill(scene.engine, signal.SIGSTOP)
    os.kill(late.guard, signal.SIGKILL)
    scene.container.kill(scene.engine)
    outcome = freeze.finish()
    assert outcome.errors[-1] == "EngineLost"
    (record,) = scene.container.journal(ENGINE_LOST)
    assert record["VMSNAP_SESSION"] == outcome.result["session"]
    late.let_go()
    wait_for_rest(scene)
    assert not scene.container.frozen("/srv/data")


@pytest.mark.parametrize("who", ["force", "session"])
def test_whoever_comes_next_does_what_a_killed_recovery_has_left(scene: Scene, who: str) -> None:
    """The recovery waits for the guard's last thread to end, and then would go on."""
    scene.database()
    freeze, late = begin_held_back(scene)
    scene.container.systemctl("kill", "--signal=KILL", UNIT, check=True)
    until(lambda: scene.container.pids("vmsnap-thaw"))
    scene.container.kill(int(scene.container.show(UNIT, "ControlPID")["ControlPID"]))
    for pid in scene.container.pids("vmsnap-thaw"):
        os.kill(pid, signal.SIGKILL)
    scene.wait_for_failure()
    assert freeze.finish().code != 0
    assert scene.events.heard == ["quiesced"]
    late.let_go()
    assert scene.container.frozen("/srv/data")
    if who == "force":
        assert scene.vmsnap("thaw", "--force").code == 0
        assert not scene.container.frozen("/srv/data")
        assert scene.events.heard == ["quiesced", "resumed failed none"]
        assert scene.thaw().errors == ["EngineLost"]
    else:
        scene.freeze("--only=/srv/data")
        assert scene.events.heard == ["quiesced", "resumed failed none", "quiesced"]
        assert scene.thaw().verdict == ("success", "application", 0)
        assert scene.events.heard[3:] == ["resumed success application"]
    for mount in ("/srv/data", "/srv/other"):
        assert not scene.container.frozen(mount)


def test_history_names_every_session_that_was_lost(scene: Scene) -> None:
    lost = []
    for _ in range(2):
        lost.append(scene.freeze()["session"])
        scene.container.kill(scene.engine)
        outcome: Outcome = scene.thaw()
        assert outcome.errors == ["EngineLost"]
        for pid in scene.container.pids("vmsnap-guard"):
            wait_for_end(pid)
    past = json.loads(scene.vmsnap("history", "--json").out)
    known = [each["session"] for each in past if each["errors"]]
    assert [session for session in known if session in lost] == lost[::-1]
