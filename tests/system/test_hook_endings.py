# SPDX-License-Identifier: Apache-2.0
"""Hooks whose agent is killed, comes twice, comes too late or not at all: nothing stays quiesced
without an owner, and nothing is told to be better than it is."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator

import pytest

from .apps import Scene, scene_of, until
from .container import Container


@pytest.fixture
def scene(container: Container) -> Iterator[Scene]:
    with scene_of(container) as made:
        yield made


def hook(scene: Scene, *words: str) -> int:
    return scene.vmsnap("hook", *words).code


def ended(scene: Scene) -> bool:
    return scene.state[0] not in ("active", "activating", "deactivating")


# --- the agent, or what it has called, is gone ---------------------------------------------------


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGINT])
def test_an_agent_that_ends_its_hook_has_no_session(scene: Scene, number: signal.Signals) -> None:
    """vmtoolsd does, when the host gives up."""
    scene.database(pre=scene.stop_at("never"))
    running = scene.start("hook", "vmware", "freeze")
    scene.events.wait("quiesced")
    os.kill(running.below[0], number)
    assert running.finish().code == 1
    assert scene.events.wait("resumed") == "failed none"
    until(lambda: ended(scene))
    assert hook(scene, "vmware", "freezeFail") == 0


def test_what_a_killed_hook_has_begun_is_ended_by_the_agents_next_event(scene: Scene) -> None:
    scene.database(pre=scene.stop_at("gate"))
    running = scene.start("hook", "vmware", "freeze")
    scene.events.wait("quiesced")
    os.kill(running.below[0], signal.SIGKILL)
    running.finish()
    scene.open("gate")
    until(lambda: scene.state[0] == "active")
    assert hook(scene, "vmware", "freezeFail") == 0
    assert scene.events.wait("resumed") == "failed none"
    assert ended(scene)


def test_what_a_killed_hook_was_about_to_begin_is_ended_too(scene: Scene) -> None:
    scene.database(pre=scene.stop_at("never"))
    running = scene.start("hook", "vmware", "freeze")
    scene.events.wait("quiesced")
    os.kill(running.below[0], signal.SIGKILL)
    running.finish()
    assert hook(scene, "vmware", "thaw") == 1
    assert scene.events.wait("resumed") == "failed none"
    until(lambda: ended(scene))


def test_a_session_that_cannot_be_remembered_is_not_begun(scene: Scene) -> None:
    scene.container.run("install", "-d", "-m", "700", "/run/vmsnap/hook-google", check=True)
    scene.container.added.callback(scene.container.run, "rmdir", "/run/vmsnap/hook-google")
    scene.database()
    assert hook(scene, "google", "pre", "0/1") == 1
    assert ended(scene)
    assert scene.events.heard == []


# --- an agent that waits no longer ---------------------------------------------------------------


def test_a_slow_way_back_does_not_keep_the_agent_waiting(scene: Scene) -> None:
    post = f"{scene.stop_at('gate')}; {scene.say('resumed')}"
    scene.app(pre=f"{scene.say('quiesced')}; {scene.stop_at('never')}", post=post)
    running = scene.start("hook", "aws", "pre-script")
    scene.events.wait("quiesced")
    os.kill(running.below[0], signal.SIGALRM)  # its time is over
    assert running.finish().code == 201
    scene.open("gate")
    scene.events.wait("resumed")
    until(lambda: ended(scene))


def test_a_slow_end_does_not_keep_it_waiting_either(scene: Scene) -> None:
    scene.app(post=f"{scene.stop_at('gate')}; {scene.say('resumed $VMSNAP_OUTCOME')}")
    assert hook(scene, "nutanix", "pre_freeze") == 0
    assert hook(scene, "nutanix", "post_thaw", "--within=1") == 1
    scene.open("gate")
    assert scene.events.wait("resumed") == "success"


# --- whose session it is -------------------------------------------------------------------------


def test_what_somebody_else_has_ended_is_no_success(scene: Scene) -> None:
    """The platform's snapshot was taken of disks that were not frozen any more."""
    scene.database()
    assert hook(scene, "google", "pre", "0/1") == 0
    assert scene.thaw().code == 0
    assert hook(scene, "google", "post", "0/1") == 1


def test_what_somebody_else_is_just_ending_is_none_either(scene: Scene) -> None:
    scene.app(post=f"{scene.say('resuming')}; {scene.stop_at('gate')}")
    assert hook(scene, "google", "pre", "0/1") == 0
    thawing = scene.start("thaw")
    scene.events.wait("resuming")
    running = scene.start("hook", "google", "post", "0/1")
    scene.open("gate")
    assert thawing.finish().code == 0
    assert running.finish().code == 1


def test_a_session_that_was_over_is_no_success_though_others_have_followed(scene: Scene) -> None:
    scene.container.write("/etc/vmsnap/vmsnap.conf.d/hold.conf", "[freeze]\nhold = 1\n")
    assert hook(scene, "vmware", "freeze") == 0
    scene.wait_for_failure()
    assert scene.vmsnap("run", "--no-fsfreeze", "--", "true").code == 0
    assert hook(scene, "vmware", "thaw") == 1


def test_of_two_that_begin_at_once_one_does_and_can_be_ended(scene: Scene) -> None:
    running = {disk: scene.start("hook", "google", "pre", disk) for disk in ("0/1", "0/2")}
    codes = {disk: begun.finish().code for disk, begun in running.items()}
    assert sorted(codes.values()) == [0, 1]
    ended = {disk: hook(scene, "google", "post", disk) for disk in codes}
    assert ended == codes
    assert not scene.container.frozen("/")


@pytest.mark.parametrize("delay", [0, 50, 100, 150, 200, 250])
def test_a_hook_that_is_ended_early_begins_no_session_of_another_kind(
    scene: Scene, delay: int
) -> None:
    """Neither before nor while the unit starts; with defaults, it would freeze by itself."""
    scene.database()
    running = scene.start("hook", f"--within={0.05 + delay / 1000}", "qemu", "freeze")
    code = running.finish().code
    until(lambda: scene.state[0] not in ("activating", "deactivating"))
    assert (scene.state[0] == "active") == (code == 0)
    assert not scene.container.journal("-t", "vmsnap", "VMSNAP_PHASE=presync")
    assert hook(scene, "qemu", "thaw") == 0


def test_the_journal_knows_which_agent_has_called_and_what_it_was_told(scene: Scene) -> None:
    scene.freeze("--no-fsfreeze")
    assert hook(scene, "qemu", "freeze") == 1
    said = [
        record["MESSAGE"] for record in scene.container.journal("-t", "vmsnap", "-p", "warning")
    ]
    assert said == ["hook qemu freeze: another session is in progress"]


def test_nor_is_it_for_data_lifecycle_manager(scene: Scene) -> None:
    scene.container.add_filesystem("/srv/data")
    assert hook(scene, "aws", "pre-script") == 0
    scene.container.systemctl("stop", "vmsnap-session.service", check=True)
    assert hook(scene, "aws", "post-script") == 203
    assert hook(scene, "aws", "post-script") == 205


def test_the_snapshot_of_another_disk_does_not_end_the_session(scene: Scene) -> None:
    """Google's agent calls post whatever became of pre."""
    assert hook(scene, "google", "pre", "0/1") == 0
    assert hook(scene, "google", "pre", "0/2") == 1
    assert hook(scene, "google", "post", "0/2") == 1
    assert scene.container.frozen("/")
    assert hook(scene, "google", "post", "0/1") == 0
    assert not scene.container.frozen("/")
