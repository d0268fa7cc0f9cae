# SPDX-License-Identifier: Apache-2.0
"""Somebody kills, stops or interrupts the engine, the guard or both, at every step of a session."""

from __future__ import annotations

import os
import signal

import pytest

from . import stuck
from .lab import Lab, Session
from .processes import children, wait_for_end

INTERRUPTIONS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
POST = "resumed $VMSNAP_OUTCOME $VMSNAP_CONSISTENCY"


def stop(*pids: int) -> tuple[int, ...]:
    """Stopped first, none of them can see another die."""
    for pid in pids:
        os.kill(pid, signal.SIGSTOP)
    return pids


def kill_both(session: Session) -> None:
    """Engine and guard, as somebody might who looks for what hangs."""
    for pid in stop(session.pid, session.guard):
        os.kill(pid, signal.SIGKILL)
    session.process.wait()


def kill_all(session: Session) -> None:
    """Everything of vmsnap, as the end of a cgroup does."""
    for pid in stop(session.pid, *(child.pid for child in children(session.pid))):
        os.kill(pid, signal.SIGKILL)
    session.process.wait()


# --- while the pre-script runs -------------------------------------------------------------------


@pytest.mark.parametrize("number", INTERRUPTIONS)
def test_an_interruption_during_the_pre_script_resumes_the_application(
    lab: Lab, number: signal.Signals
) -> None:
    lab.filesystem()
    lab.app(pre=f"{lab.say('quiescing')}; {lab.stop_at('never')}", post=lab.say(POST))
    session = lab.start(lab.say("taken"))
    lab.events.wait("quiescing", session)
    session.kill(number)
    outcome = session.finish()
    assert outcome.verdict == ("failed", "none", 1)
    assert "SnapshotFailed" in outcome.errors
    assert number.name in outcome.err
    assert lab.events.heard == ["quiescing", "resumed failed none"]
    assert outcome.result["filesystems"] == []


def test_the_death_of_the_engine_during_the_pre_script_resumes_the_application(lab: Lab) -> None:
    lab.filesystem()
    lab.app(pre=f"{lab.say('quiescing')}; {lab.stop_at('never')}", post=lab.say(POST))
    session = lab.start(lab.say("taken"))
    lab.events.wait("quiescing", session)
    session.kill(signal.SIGKILL)
    lab.events.wait("resumed")
    lab.wait_for_rest()
    assert lab.events.heard == ["quiescing", "resumed failed none"]
    assert lab.frozen == []


# --- while a filesystem is being frozen ----------------------------------------------------------


@pytest.mark.parametrize("number", INTERRUPTIONS)
def test_an_interruption_during_the_freeze_thaws_and_ends_the_session(
    lab: Lab, number: signal.Signals
) -> None:
    made = stuck.prepare(lab)
    session = lab.start(lab.say("taken"), only=made.only)
    guard = stuck.wait_until_inside(session)
    session.kill(number)
    outcome = session.finish()
    assert outcome.verdict == ("failed", "none", 1)
    assert "SnapshotFailed" in outcome.errors
    assert not made.other.is_frozen
    lab.helper(f"fsfreeze -u {made.parent.mount}").wait()
    assert wait_for_end(guard)
    assert lab.frozen == []
    assert lab.events.heard == []


def test_the_death_of_the_engine_during_the_freeze_thaws_what_was_frozen(lab: Lab) -> None:
    made = stuck.prepare(lab)
    session = lab.start(lab.say("taken"), only=made.only)
    guard = stuck.wait_until_inside(session)
    session.kill(signal.SIGKILL)
    lab.wait_for_thaw(made.other)
    assert [p.pid for p in lab.left() if p.name == "vmsnap-guard"] == [guard]
    lab.helper(f"fsfreeze -u {made.parent.mount}").wait()
    lab.wait_for_rest()
    assert lab.frozen == []
    assert "taken" not in lab.events.heard


@pytest.mark.parametrize("number", INTERRUPTIONS)
def test_a_guard_told_to_end_during_the_freeze_thaws_what_was_frozen(
    lab: Lab, number: signal.Signals
) -> None:
    made = stuck.prepare(lab)
    session = lab.start(lab.say("taken"), only=made.only)
    guard = stuck.wait_until_inside(session)
    os.kill(guard, number)
    outcome = session.finish()
    assert outcome.verdict == ("success", "crash", 0)
    assert "GuardLost" in outcome.errors
    assert not made.other.is_frozen
    lab.helper(f"fsfreeze -u {made.parent.mount}").wait()
    assert wait_for_end(guard)
    assert lab.frozen == []


# --- during the hold -----------------------------------------------------------------------------


@pytest.mark.parametrize("number", INTERRUPTIONS)
def test_an_interruption_during_the_hold_thaws_and_ends_the_command(
    lab: Lab, number: signal.Signals
) -> None:
    lab.filesystem()
    lab.app(pre=lab.say("quiesced"), post=lab.say(POST))
    session = lab.hold()
    session.kill(number)
    outcome = session.finish()
    assert outcome.verdict == ("failed", "none", 1)
    assert outcome.errors == ["SnapshotFailed"]
    assert number.name in outcome.result["errors"][0]["message"]
    assert lab.frozen == []
    assert lab.events.wait("resumed") == "failed none"


def test_the_death_of_the_engine_thaws_ends_the_command_and_resumes_the_application(
    lab: Lab,
) -> None:
    lab.filesystem("ext4")
    lab.filesystem("xfs")
    lab.app(pre=lab.say("quiesced"), post=lab.say(POST))
    session = lab.hold()
    command = int(lab.events.wait("held"))
    session.kill(signal.SIGKILL)
    lab.wait_for_thaw()
    assert lab.events.wait("resumed") == "failed none"
    lab.wait_for_rest()
    assert lab.frozen == []
    assert wait_for_end(command, 0)


def test_a_new_session_can_start_after_the_death_of_an_engine(lab: Lab) -> None:
    lab.filesystem()
    lab.hold().kill(signal.SIGKILL)
    lab.wait_for_thaw()
    lab.wait_for_rest()
    assert lab.run("exit 0").verdict == ("success", "filesystem", 0)


def test_recovery_after_the_death_of_an_engine_leaves_the_freezes_of_others_alone(
    lab: Lab,
) -> None:
    """The guard has thawed, so what is frozen now is somebody else's."""
    filesystem = lab.filesystem()
    lab.hold().kill(signal.SIGKILL)
    lab.wait_for_thaw()
    lab.wait_for_rest()
    lab.helper(f"fsfreeze -f {filesystem.mount}").wait()
    outcome = lab.run("exit 0")
    assert filesystem.is_frozen
    lab.helper(f"fsfreeze -u {filesystem.mount}").wait()
    assert outcome.subjects == [("FreezeFailed", str(filesystem.mount))]


def test_the_death_of_the_guard_thaws_and_lowers_the_consistency(lab: Lab) -> None:
    lab.filesystem("ext4")
    lab.filesystem("xfs")
    session = lab.hold()
    os.kill(session.guard, signal.SIGKILL)
    lab.wait_for_thaw()
    lab.release()
    outcome = session.finish()
    assert outcome.verdict == ("success", "crash", 0)
    assert outcome.errors == ["GuardLost"]
    assert lab.frozen == []


@pytest.mark.parametrize("number", INTERRUPTIONS)
def test_a_guard_told_to_end_thaws_and_lowers_the_consistency(
    lab: Lab, number: signal.Signals
) -> None:
    lab.filesystem()
    session = lab.hold()
    os.kill(session.guard, number)
    lab.wait_for_thaw()
    lab.release()
    outcome = session.finish()
    assert outcome.verdict == ("success", "crash", 0)
    assert outcome.errors == ["GuardLost"]
    assert lab.frozen == []


def test_the_guard_thaws_at_the_deadline_of_the_hold_though_the_engine_is_stopped(
    lab: Lab,
) -> None:
    lab.filesystem()
    session = lab.hold("--hold=1")
    session.kill(signal.SIGSTOP)
    lab.wait_for_thaw()
    lab.release()
    session.kill(signal.SIGCONT)
    outcome = session.finish()
    assert outcome.verdict == ("success", "crash", 0)
    assert outcome.errors == ["HoldExpired"]


def test_the_engine_thaws_in_the_place_of_a_stopped_guard(lab: Lab) -> None:
    lab.filesystem()
    session = lab.hold()
    os.kill(session.guard, signal.SIGSTOP)
    lab.release()
    outcome = session.finish()
    assert outcome.verdict == ("success", "crash", 0)
    assert outcome.errors == ["GuardLost"]
    assert lab.frozen == []


def test_the_engine_keeps_the_deadline_of_the_hold_in_the_place_of_a_stopped_guard(
    lab: Lab,
) -> None:
    lab.filesystem()
    session = lab.hold("--hold=1")
    os.kill(session.guard, signal.SIGSTOP)
    lab.wait_for_thaw()
    lab.release()
    outcome = session.finish()
    assert outcome.verdict == ("success", "crash", 0)
    assert "GuardLost" in outcome.errors
    assert lab.frozen == []


def test_both_stopped_leaves_the_emergency_exit(lab: Lab) -> None:
    lab.filesystem("ext4")
    lab.filesystem("xfs")
    session = lab.hold()
    both = stop(session.pid, session.guard)
    forced = lab.vmsnap("thaw", "--force")
    assert forced.code == 0, forced
    lab.wait_for_thaw()
    for pid in both:
        os.kill(pid, signal.SIGCONT)
    lab.release()
    outcome = session.finish()
    assert outcome.verdict == ("success", "crash", 0)
    assert set(outcome.errors) == {"ThawedEarly"}


def test_both_killed_thaws_all_the_same_and_resumes_the_application(lab: Lab) -> None:
    """What supervises scripts and command has survived."""
    lab.filesystem("ext4")
    lab.filesystem("xfs")
    lab.app(pre=lab.say("quiesced"), post=lab.say(POST))
    kill_both(lab.hold())
    lab.wait_for_thaw()
    assert lab.events.wait("resumed") == "failed none"
    lab.wait_for_rest()
    assert lab.frozen == []


def test_everything_killed_leaves_a_list_from_which_force_thaws(lab: Lab) -> None:
    parent = lab.filesystem(name="parent", mib=96)
    lab.filesystem(name="child", on=parent)
    lab.filesystem("xfs", name="other")
    kill_all(lab.hold())
    lab.release()
    lab.wait_for_rest()
    assert lab.frozen == ["parent", "child", "other"]
    forced = lab.vmsnap("thaw", "--force")
    assert forced.code == 0
    for mount in lab.mounts:
        assert f"{mount}: thawed" in forced.out.decode()
    assert lab.frozen == []
    again = lab.vmsnap("thaw", "--force")
    assert (again.code, b"nothing to thaw" in again.out) == (0, True)


def test_everything_killed_is_mended_by_the_next_session(lab: Lab) -> None:
    lab.filesystem("ext4")
    lab.filesystem("xfs")
    kill_all(lab.hold())
    lab.release()
    lab.wait_for_rest()
    assert lab.frozen == ["fs0", "fs1"]
    outcome = lab.run("exit 0")
    assert outcome.verdict == ("success", "filesystem", 0)
    assert lab.frozen == []


def test_force_leaves_alone_what_is_mounted_there_now(lab: Lab) -> None:
    first = lab.filesystem()
    kill_all(lab.hold())
    lab.release()
    lab.wait_for_rest()
    second = lab.filesystem()
    lab.helper(f"fsfreeze -f {second.mount}").wait()
    lab.mount("--bind", second.mount, first.mount)
    forced = lab.vmsnap("thaw", "--force")
    assert forced.code == 1
    assert second.is_frozen
    lab.helper(f"fsfreeze -u {second.mount}").wait()
    lab.umount(first.mount)
    assert first.is_frozen
    assert lab.vmsnap("thaw", "--force").code == 0
    assert lab.frozen == []


def test_the_death_of_the_commands_supervisor_thaws_and_fails_the_session(lab: Lab) -> None:
    lab.filesystem()
    session = lab.hold()
    (supervisor,) = session.below("vmsnap-command")
    os.kill(supervisor, signal.SIGKILL)
    outcome = session.finish()
    assert outcome.verdict == ("failed", "none", 1)
    assert outcome.errors == ["SnapshotFailed"]
    assert lab.frozen == []
    lab.release()  # nobody is left who knows of the command
    lab.wait_for_rest()


def test_the_death_of_the_scripts_supervisor_still_resumes_the_application(lab: Lab) -> None:
    lab.filesystem()
    lab.app(pre=lab.say("quiesced"), post=lab.say(POST))
    session = lab.hold()
    (supervisor,) = session.below("vmsnap-scripts")
    os.kill(supervisor, signal.SIGKILL)
    lab.release()
    session.finish()
    lab.wait_for_rest()
    assert [word for word in lab.events.heard if word.startswith("resumed")] != []


# --- while it is being thawed, and afterwards ----------------------------------------------------


def test_the_death_of_the_engine_before_its_order_to_thaw_is_obeyed(lab: Lab) -> None:
    lab.filesystem()
    session = lab.hold()
    command = int(lab.events.wait("held"))
    guard = session.guard
    os.kill(guard, signal.SIGSTOP)
    lab.release()
    assert wait_for_end(command)
    session.kill(signal.SIGKILL)
    session.process.wait()
    os.kill(guard, signal.SIGCONT)
    lab.wait_for_thaw()
    lab.wait_for_rest()
    assert lab.frozen == []


@pytest.mark.parametrize("number", INTERRUPTIONS)
def test_an_interruption_during_the_post_script_does_not_stop_it(
    lab: Lab, number: signal.Signals
) -> None:
    lab.filesystem()
    lab.app(post=f"{lab.say('resuming')}; {lab.stop_at('post')}; {lab.say('resumed')}")
    session = lab.start("exit 0")
    lab.events.wait("resuming", session)
    session.kill(number)
    lab.open("post")
    outcome = session.finish()
    assert outcome.verdict == ("success", "application", 0)
    assert lab.events.heard == ["resuming", "resumed"]


def test_the_death_of_the_engine_during_the_post_script_does_not_stop_it(lab: Lab) -> None:
    lab.filesystem()
    lab.app(post=f"{lab.say('resuming')}; {lab.stop_at('post')}; {lab.say('resumed')}")
    session = lab.start("exit 0")
    lab.events.wait("resuming", session)
    session.kill(signal.SIGKILL)
    session.process.wait()
    lab.vmsnap("status")  # takes longer than anybody needs to notice the death
    lab.open("post")
    lab.wait_for_rest()
    assert lab.events.heard == ["resuming", "resumed"]
