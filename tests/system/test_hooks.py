# SPDX-License-Identifier: Apache-2.0
"""Callers that do what the agents of clouds and hypervisors do: arguments, exit codes, stdio."""

from __future__ import annotations

import os
import select
import signal
import subprocess
from collections.abc import Iterator
from typing import Any

import pytest

from .apps import UNIT, Scene, scene_of, until
from .container import Container

PATIENCE = 20.0
STRICT = "[snapshot]\nrequire = application\n"
# Who freezes: these agents do, before and after what they call; the others leave it to vmsnap.
FREEZE = [("qemu", "freeze", "thaw"), ("vmware", "freeze", "thaw")]
FREEZE += [("nutanix", "pre_freeze", "post_thaw"), ("azure", "pre", "post")]
LEAVE_IT = [("google", "pre", "post"), ("aws", "pre-script", "post-script")]
NOTHING_TO_END = {"qemu": 0, "vmware": 0, "nutanix": 0, "azure": 1, "google": 1, "aws": 205}


@pytest.fixture
def scene(container: Container) -> Iterator[Scene]:
    with scene_of(container) as made:
        yield made


def hook(scene: Scene, *words: str) -> int:
    return scene.vmsnap("hook", *words).code


def last(scene: Scene) -> tuple[str, str, list[str]]:
    result = scene.vmsnap("status", "--json").result["last"]
    names = [error["name"] for error in result["errors"]]
    return result["outcome"], result["consistency"], names


@pytest.mark.parametrize(("agent", "pre", "post"), [*FREEZE, *LEAVE_IT])
def test_two_events_are_a_session_with_the_filesystems_frozen_by_whom_it_suits(
    scene: Scene, agent: str, pre: str, post: str
) -> None:
    scene.container.add_filesystem("/srv/data")
    scene.database()
    assert hook(scene, agent, pre, "0/1,0/2") == 0
    assert scene.events.heard == ["quiesced"]
    assert scene.state[0] == "active"
    assert scene.container.frozen("/srv/data") == ((agent, pre, post) in LEAVE_IT)
    assert scene.container.frozen("/") == (agent == "google")
    assert hook(scene, agent, post, "0/1,0/2") == 0
    assert scene.events.wait("resumed") == "success application"
    assert not scene.container.frozen("/srv/data")
    assert last(scene) == ("success", "application", [])


@pytest.mark.parametrize(("agent", "pre", "post"), [*FREEZE, *LEAVE_IT])
def test_a_session_that_may_not_hold_is_refused_and_rolled_back(
    scene: Scene, agent: str, pre: str, post: str
) -> None:
    scene.container.write("/etc/vmsnap/vmsnap.conf.d/strict.conf", STRICT)
    scene.database(pre="exit 1")
    assert hook(scene, agent, pre) == (201 if agent == "aws" else 1)
    assert scene.events.wait("resumed") == "failed none"
    assert not scene.container.frozen("/")
    assert hook(scene, agent, post) == NOTHING_TO_END[agent]


@pytest.mark.parametrize(("agent", "pre", "post"), [*FREEZE, *LEAVE_IT])
def test_who_waits_no_longer_leaves_nothing_quiesced_behind(
    scene: Scene, agent: str, pre: str, post: str
) -> None:
    scene.database(pre=scene.stop_at("never"))
    running = scene.start("hook", agent, pre)
    scene.events.wait("quiesced")
    os.kill(running.below[0], signal.SIGALRM)  # its time is over
    assert running.finish().code == (201 if agent == "aws" else 1)
    assert scene.events.wait("resumed") == "failed none"
    until(lambda: scene.state[0] not in ("active", "activating", "deactivating"))
    assert hook(scene, agent, post) == NOTHING_TO_END[agent]


@pytest.mark.parametrize(("agent", "pre", "post"), [*FREEZE, *LEAVE_IT])
def test_somebody_elses_session_is_left_alone(
    scene: Scene, agent: str, pre: str, post: str
) -> None:
    scene.freeze("--no-fsfreeze")
    assert hook(scene, agent, pre) == (204 if agent == "aws" else 1)
    assert hook(scene, agent, post) == NOTHING_TO_END[agent]
    assert scene.state[0] == "active"
    assert scene.thaw().code == 0


def test_vmware_says_that_there_is_no_snapshot(scene: Scene) -> None:
    scene.database()
    assert hook(scene, "vmware", "freeze") == 0
    assert hook(scene, "vmware", "freezeFail") == 0
    assert scene.events.wait("resumed") == "failed none"
    assert last(scene) == ("failed", "none", ["SnapshotFailed"])


# --- the codes of Data Lifecycle Manager ---------------------------------------------------------


def test_a_dry_run_begins_nothing_and_says_whether_all_is_in_order(scene: Scene) -> None:
    scene.database()
    assert hook(scene, "aws", "dry-run") == 0
    scene.container.write("/etc/vmsnap/apps.d/broken.json", "{")
    assert hook(scene, "aws", "dry-run") == 206
    assert scene.events.heard == []
    assert scene.container.show(UNIT, "ActiveState")["ActiveState"] == "inactive"


def test_a_second_pre_is_told_that_post_was_expected(scene: Scene) -> None:
    scene.container.add_filesystem("/srv/data")
    assert hook(scene, "aws", "pre-script") == 0
    assert hook(scene, "aws", "pre-script") == 204
    assert scene.container.frozen("/srv/data")
    assert hook(scene, "aws", "post-script") == 0


def test_the_agents_own_disk_is_not_frozen_for_it_could_not_tell_of_that(scene: Scene) -> None:
    """amazon-ssm-agent's parts talk through files."""
    scene.container.add_filesystem("/srv/data")
    scene.container.add_filesystem("/var/lib/amazon")
    assert hook(scene, "aws", "pre-script") == 0
    frozen = {
        path for path in ("/srv/data", "/var/lib/amazon", "/") if scene.container.frozen(path)
    }
    assert frozen == {"/srv/data"}  # its log is on "/"
    assert hook(scene, "aws", "post-script") == 0


def test_where_there_is_only_the_agents_own_disk_nothing_is_consistent(scene: Scene) -> None:
    scene.container.write("/etc/vmsnap/vmsnap.conf.d/strict.conf", STRICT)
    scene.database()
    assert hook(scene, "aws", "pre-script") == 201
    assert scene.events.wait("resumed") == "failed none"


@pytest.mark.parametrize(("required", "code"), [("filesystem", 0), ("application", 202)])
def test_a_post_script_that_fails_counts_as_the_required_level_says(
    scene: Scene, required: str, code: int
) -> None:
    text = f"[snapshot]\nrequire = {required}\n"
    scene.container.write("/etc/vmsnap/vmsnap.conf.d/required.conf", text)
    scene.container.add_filesystem("/srv/data")
    scene.app(pre="exit 0", post="exit 1")
    assert hook(scene, "aws", "pre-script") == 0
    assert hook(scene, "aws", "post-script") == code
    assert last(scene)[1] == "filesystem"


def test_a_hold_that_has_expired_is_an_automatic_thaw(scene: Scene) -> None:
    scene.container.write("/etc/vmsnap/vmsnap.conf.d/hold.conf", "[freeze]\nhold = 1\n")
    assert hook(scene, "aws", "pre-script") == 0
    scene.wait_for_failure()
    assert not scene.container.frozen("/")
    assert hook(scene, "aws", "post-script") == 203


def test_the_session_holds_none_of_the_agents_descriptors(scene: Scene) -> None:
    """Google's waits until its script's output is closed, for ever if need be."""
    scene.database()
    streams: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
    process = scene.container.popen("vmsnap", "hook", "google", "pre", "0/1", **streams)
    fd = process.stdout.fileno()
    while select.select([fd], [], [], PATIENCE)[0] and os.read(fd, 4096):
        pass
    assert process.wait(PATIENCE) == 0
    assert select.select([fd], [], [], 0)[0]  # its end: nobody has it open
    assert scene.container.frozen("/")
    assert hook(scene, "google", "post", "0/1") == 0


@pytest.mark.parametrize("words", [("qemu", "pre"), ("qemu",), ("xen", "freeze"), ()])
def test_what_no_agent_says_is_refused(scene: Scene, words: tuple[str, ...]) -> None:
    assert hook(scene, *words) == 2
    assert scene.container.show(UNIT, "ActiveState")["ActiveState"] == "inactive"
