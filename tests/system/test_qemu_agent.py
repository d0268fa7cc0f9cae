# SPDX-License-Identifier: Apache-2.0
"""Debian's QEMU guest agent freezes `/`, and vmsnap is its hook: what a hypervisor's host does."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator

import pytest

from .agents import SOCKET, STRICT, Host, Platform
from .container import Container

HOOK = "/run/vmsnap-test/hook"
PATIENCE = 25.0


class Agent(Host):
    """qemu-ga in the container, and the host that is connected to it."""

    def __init__(self, container: Container) -> None:
        container.write(HOOK, '#!/bin/sh\nexec vmsnap hook qemu "$@"\n', 0o700)
        container.path(SOCKET).unlink(missing_ok=True)
        argv = ("qemu-ga", "-m", "unix-listen", "-p", SOCKET, "-t", "/run", f"-F{HOOK}")
        self.process = container.popen(*argv)
        super().__init__(container)

    def kill(self) -> None:
        for pid in self.container.pids("qemu-ga"):
            os.kill(pid, signal.SIGKILL)
        self.close()


@pytest.fixture
def scene(platform: Platform) -> Platform:
    return platform


@pytest.fixture
def agent(platform: Platform) -> Iterator[Agent]:
    platform.container.path("/run/qga.state").unlink(missing_ok=True)  # of a test that failed
    made = Agent(platform.container)
    yield made
    made.close()


def test_a_snapshot_through_the_agent_is_application_consistent(
    scene: Platform, agent: Agent
) -> None:
    scene.database()
    assert agent.ask("guest-fsfreeze-freeze") == 1
    assert scene.events.heard == ["quiesced"]
    assert scene.container.frozen("/")
    assert agent.ask("guest-fsfreeze-status") == "frozen"
    assert scene.vmsnap("status").code == 0
    assert agent.ask("guest-fsfreeze-thaw") == 1
    assert scene.events.wait("resumed") == "success application"
    assert not scene.container.frozen("/")
    assert scene.last == ("success", "application", [])


def test_a_pre_script_that_fails_keeps_the_agent_from_freezing_if_that_is_required(
    scene: Platform, agent: Agent
) -> None:
    scene.container.write("/etc/vmsnap/vmsnap.conf.d/strict.conf", STRICT)
    scene.database(pre="exit 1")
    assert "hook" in str(agent.ask("guest-fsfreeze-freeze"))
    assert scene.events.wait("resumed") == "failed none"
    assert not scene.container.frozen("/")
    assert scene.state[0] == "failed"
    assert scene.last[2][0] == "Pre-ScriptExecutionFailed"
    assert agent.ask("guest-fsfreeze-thaw") == 0  # nothing was frozen, and no session is sought


def test_else_the_snapshot_is_taken_and_is_worth_less(scene: Platform, agent: Agent) -> None:
    scene.database(pre="exit 1")
    assert agent.ask("guest-fsfreeze-freeze") == 1
    assert agent.ask("guest-fsfreeze-thaw") == 1
    assert scene.events.wait("resumed") == "success filesystem"
    assert scene.last == ("success", "filesystem", ["Pre-ScriptExecutionFailed"])


def test_a_pre_script_that_hangs_is_ended_and_keeps_the_agent_from_freezing(
    scene: Platform, agent: Agent
) -> None:
    scene.container.write("/etc/vmsnap/vmsnap.conf.d/strict.conf", STRICT)
    scene.database(pre=scene.stop_at("never"), timeoutInSeconds=1)
    assert "hook" in str(agent.ask("guest-fsfreeze-freeze"))
    assert scene.events.wait("resumed") == "failed none"
    assert not scene.container.frozen("/")
    assert scene.last[2][0] == "Pre-ScriptTimeout"


def test_an_agent_that_was_killed_thaws_when_it_is_back(scene: Platform, agent: Agent) -> None:
    """Its own state file says that it has frozen; the session outlives it."""
    scene.database()
    assert agent.ask("guest-fsfreeze-freeze") == 1
    agent.kill()
    assert scene.container.frozen("/")
    assert scene.state[0] == "active"
    back = Agent(scene.container)
    assert back.ask("guest-fsfreeze-thaw") == 1
    assert scene.events.wait("resumed") == "success application"
    assert not scene.container.frozen("/")
    back.close()


def test_a_host_that_never_thaws_leaves_no_application_quiesced(
    scene: Platform, agent: Agent
) -> None:
    """What the agent has frozen is the agent's to thaw."""
    scene.container.write("/etc/vmsnap/vmsnap.conf.d/hold.conf", "[freeze]\nhold = 1\n")
    scene.database()
    assert agent.ask("guest-fsfreeze-freeze") == 1
    assert scene.events.wait("resumed") == "failed none"
    assert scene.container.frozen("/")
    assert "hook" in str(agent.ask("guest-fsfreeze-thaw"))  # so the host knows what it has
    assert not scene.container.frozen("/")
    scene.wait_for_failure()
    assert "HoldExpired" in scene.last[2]


def test_nobody_elses_session_is_ended_by_the_agent(scene: Platform, agent: Agent) -> None:
    scene.freeze("--no-fsfreeze")
    assert "hook" in str(agent.ask("guest-fsfreeze-freeze"))
    assert agent.ask("guest-fsfreeze-thaw") == 0
    assert scene.state[0] == "active"
    assert scene.thaw().code == 0
