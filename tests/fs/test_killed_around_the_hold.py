# SPDX-License-Identifier: Apache-2.0
"""Engine or guard are killed or interrupted before the hold, and after it."""

from __future__ import annotations

import os
import signal

import pytest

from . import stuck
from .faults import INTERRUPTIONS
from .lab import Lab
from .processes import look_at, wait_for_end, wait_until

POST = "resumed $VMSNAP_OUTCOME $VMSNAP_CONSISTENCY"


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


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_an_interruption_during_the_freeze_thaws_and_ends_the_session(
    lab: Lab, number: signal.Signals
) -> None:
    made = stuck.prepare(lab)
    session = lab.start(lab.say("taken"), only=made.only)
    guard = stuck.wait_until_inside(session, made)
    session.kill(number)
    outcome = session.finish()
    assert outcome.verdict == ("failed", "none", 1)
    assert "SnapshotFailed" in outcome.errors
    assert not made.other.is_frozen
    lab.helper(f"fsfreeze -u {made.parent.mount}").wait()
    assert wait_for_end(guard)
    assert lab.frozen == []
    assert lab.events.heard == []


@pytest.mark.parametrize("dirty", [False, True])
def test_the_death_of_the_engine_during_the_freeze_thaws_what_was_frozen(
    lab: Lab, dirty: bool
) -> None:
    """With dirty data the freeze does not even begin: the filesystem cannot be written out."""
    made = stuck.prepare(lab, dirty)
    session = lab.start(lab.say("taken"), only=made.only)
    guard = stuck.wait_until_inside(session, made)
    session.kill(signal.SIGKILL)
    lab.wait_for_thaw(made.other)
    assert [p.pid for p in lab.left() if p.name == "vmsnap-guard"] == [guard]
    lab.helper(f"fsfreeze -u {made.parent.mount}").wait()
    lab.wait_for_rest()
    assert lab.frozen == []
    assert "taken" not in lab.events.heard


def test_a_guard_told_to_end_during_the_freeze_thaws_what_was_frozen(lab: Lab) -> None:
    made = stuck.prepare(lab)
    session = lab.start(lab.say("taken"), only=made.only)
    guard = stuck.wait_until_inside(session, made)
    os.kill(guard, signal.SIGTERM)
    outcome = session.finish()
    assert outcome.verdict == ("success", "crash", 0)
    assert "GuardLost" in outcome.errors
    assert not made.other.is_frozen
    lab.helper(f"fsfreeze -u {made.parent.mount}").wait()
    assert wait_for_end(guard)
    assert lab.frozen == []


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_a_session_does_not_end_before_a_freeze_on_its_way_was_undone(
    lab: Lab, number: signal.Signals
) -> None:
    """Not even of a guard that was killed: it dies when its FIFREEZE returns, which succeeds."""
    lab.conf("[freeze]\ntimeout = 1\n")  # until then nobody sees that the guard was killed
    late = stuck.HeldBack(lab, lab.filesystem())
    other = lab.filesystem()
    session = lab.start("exit 0")
    wait_until(lambda: session.guards)
    guard = session.guard
    late.wait_until_inside(guard)
    os.kill(guard, number)
    lab.wait_for_thaw(other)
    assert look_at(session.pid)
    late.let_go()
    outcome = session.finish()
    assert lab.frozen == []
    mount = str(late.filesystem.mount)
    assert ("thawed", mount) in outcome.events("thawed")
    assert {f["mount"]: f["error"] for f in outcome.result["filesystems"]}[mount] is None
    assert outcome.verdict == ("success", "crash", 0)
    assert "GuardLost" in outcome.errors
    assert wait_for_end(guard)


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
