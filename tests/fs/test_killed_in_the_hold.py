# SPDX-License-Identifier: Apache-2.0
"""Somebody kills, stops or interrupts the engine or the guard during the hold."""

from __future__ import annotations

import os
import pty
import signal
import termios
from pathlib import Path

import pytest

from .faults import INTERRUPTIONS
from .lab import VMSNAP, Lab
from .processes import is_stuck, wait_for_end, wait_until

POST = "resumed $VMSNAP_OUTCOME $VMSNAP_CONSISTENCY"


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


def test_a_stop_from_the_terminal_is_ignored_while_frozen(lab: Lab) -> None:
    lab.filesystem()
    session = lab.hold()
    session.kill(signal.SIGTSTP)
    lab.release()
    assert session.finish().verdict == ("success", "filesystem", 0)


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


def test_somebody_thaws_when_engine_and_guard_are_both_stopped(lab: Lab) -> None:
    lab.filesystem()
    session = lab.hold("--hold=1")
    session.kill(signal.SIGSTOP)
    os.kill(session.guard, signal.SIGSTOP)
    lab.wait_for_thaw()
    lab.release()
    session.kill(signal.SIGCONT)
    outcome = session.finish()
    assert outcome.verdict == ("success", "crash", 0)
    assert outcome.errors == ["HoldExpired"]


@pytest.mark.parametrize("number", INTERRUPTIONS)
def test_a_command_that_only_succeeds_because_an_interruption_thawed_took_no_snapshot(
    lab: Lab, number: signal.Signals
) -> None:
    filesystem = lab.filesystem()
    session = lab.start(f"{lab.say('held $$')}; exec touch {filesystem.mount}/x")
    command = int(lab.events.wait("held", session))
    wait_until(lambda: is_stuck(command))
    session.kill(number)
    outcome = session.finish()
    assert outcome.verdict == ("failed", "none", 1)
    assert outcome.errors == ["SnapshotFailed"]


def test_the_application_is_resumed_though_the_terminal_has_gone(lab: Lab) -> None:
    lab.filesystem()
    lab.app(pre=lab.say("quiesced"), post=lab.say(POST))
    master, slave = pty.openpty()
    session = lab.hold(json=False, stderr=slave)
    os.close(slave)
    os.close(master)
    session.kill(signal.SIGHUP)
    assert session.process.wait() == 1
    assert lab.events.wait("resumed") == "failed none"
    assert lab.frozen == []


def test_a_terminal_that_is_stopped_keeps_no_application_quiesced(lab: Lab) -> None:
    """^S, which suspends the output of a terminal (termios(3), tcflow)."""
    lab.filesystem()
    lab.app(pre=f"{lab.say('quiesced')}; {lab.stop_at('pre')}", post=lab.say(POST))
    master, slave = pty.openpty()
    session = lab.start("exit 0", json=False, stderr=slave)
    lab.events.wait("quiesced", session)
    termios.tcflow(slave, termios.TCOOFF)
    lab.open("pre")
    assert lab.events.wait("resumed") == "success application"
    termios.tcflow(slave, termios.TCOON)
    assert session.process.wait() == 0
    os.close(slave)
    os.close(master)


# --- a core dump onto a frozen filesystem --------------------------------------------------------


@pytest.mark.parametrize("who", ["engine", "guard"])
def test_a_process_that_crashes_does_not_wait_for_its_core_dump(lab: Lab, who: str) -> None:
    pattern = Path("/proc/sys/kernel/core_pattern").read_text()
    assert not pattern.startswith(("|", "/")), f"core dumps go elsewhere: {pattern}"
    mount = lab.filesystem().mount
    line = f'ulimit -c unlimited; cd {mount}; exec "$@"'
    session = lab.hold(program=("sh", "-c", line, "sh", str(VMSNAP)))
    crashed = session.guard if who == "guard" else session.pid
    os.kill(crashed, signal.SIGSEGV)
    assert wait_for_end(crashed, 5.0)
    lab.wait_for_thaw()
    lab.release()
    session.process.wait()
    lab.wait_for_rest()
    assert list(mount.glob("core*")) == []
