# SPDX-License-Identifier: Apache-2.0
"""Debian's QEMU guest agent freezes `/`, and vmsnap is its hook: what a hypervisor's host does."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
from collections.abc import Iterator

import pytest

from .apps import Scene, scene_of, until
from .container import Container
from .image import AGENTS

SOCKET, HOOK = "/run/qga.sock", "/run/vmsnap-test/hook"
PATIENCE = 25.0
STRICT = "[snapshot]\nrequire = application\n"


class Agent:
    """qemu-ga in the container, and the host that is connected to it."""

    def __init__(self, container: Container) -> None:
        self.container = container
        self.container.write(HOOK, '#!/bin/sh\nexec vmsnap hook qemu "$@"\n', 0o700)
        self.container.path(SOCKET).unlink(missing_ok=True)
        argv = ("qemu-ga", "-m", "unix-listen", "-p", SOCKET, "-t", "/run", f"-F{HOOK}")
        self.process = container.popen(*argv)
        self.connection = socket.socket(socket.AF_UNIX)
        self.connection.settimeout(PATIENCE)
        until(self.connected)
        self.answers = self.connection.makefile("rb")

    def connected(self) -> bool:
        with contextlib.suppress(FileNotFoundError, ConnectionRefusedError):
            self.connection.connect(str(self.container.path(SOCKET)))
            return True
        return False

    def ask(self, command: str) -> object:
        """What it returns, or the description of its error."""
        self.connection.sendall(json.dumps({"execute": command}).encode() + b"\n")
        answer = json.loads(self.answers.readline())
        return answer["return"] if "return" in answer else answer["error"]["desc"]

    def kill(self) -> None:
        for pid in self.container.pids("qemu-ga"):
            os.kill(pid, signal.SIGKILL)
        self.close()

    def close(self) -> None:
        self.answers.close()
        self.connection.close()


@pytest.fixture(scope="module")
def machine() -> Iterator[Container]:
    made = Container(AGENTS)
    try:
        yield made
    finally:
        made.close()


@pytest.fixture
def scene(machine: Container) -> Iterator[Scene]:
    machine.reset()
    with machine.guarded(), scene_of(machine) as made:
        yield made


@pytest.fixture
def agent(scene: Scene) -> Iterator[Agent]:
    scene.container.path("/run/qga.state").unlink(missing_ok=True)  # of a test that failed
    made = Agent(scene.container)
    yield made
    made.close()


def last(scene: Scene) -> tuple[str, str, list[str]]:
    result = scene.vmsnap("status", "--json").result["last"]
    names = [error["name"] for error in result["errors"]]
    return result["outcome"], result["consistency"], names


def test_a_snapshot_through_the_agent_is_application_consistent(scene: Scene, agent: Agent) -> None:
    scene.database()
    assert agent.ask("guest-fsfreeze-freeze") == 1
    assert scene.events.heard == ["quiesced"]
    assert scene.container.frozen("/")
    assert agent.ask("guest-fsfreeze-status") == "frozen"
    assert scene.vmsnap("status").code == 0
    assert agent.ask("guest-fsfreeze-thaw") == 1
    assert scene.events.wait("resumed") == "success application"
    assert not scene.container.frozen("/")
    assert last(scene) == ("success", "application", [])


def test_a_pre_script_that_fails_keeps_the_agent_from_freezing_if_that_is_required(
    scene: Scene, agent: Agent
) -> None:
    scene.container.write("/etc/vmsnap/vmsnap.conf.d/strict.conf", STRICT)
    scene.database(pre="exit 1")
    assert "hook" in str(agent.ask("guest-fsfreeze-freeze"))
    assert scene.events.wait("resumed") == "failed none"
    assert not scene.container.frozen("/")
    assert scene.state[0] == "failed"
    assert last(scene)[2][0] == "Pre-ScriptExecutionFailed"
    assert agent.ask("guest-fsfreeze-thaw") == 0  # nothing was frozen, and no session is sought


def test_else_the_snapshot_is_taken_and_is_worth_less(scene: Scene, agent: Agent) -> None:
    scene.database(pre="exit 1")
    assert agent.ask("guest-fsfreeze-freeze") == 1
    assert agent.ask("guest-fsfreeze-thaw") == 1
    assert scene.events.wait("resumed") == "success filesystem"
    assert last(scene) == ("success", "filesystem", ["Pre-ScriptExecutionFailed"])


def test_a_pre_script_that_hangs_is_ended_and_keeps_the_agent_from_freezing(
    scene: Scene, agent: Agent
) -> None:
    scene.container.write("/etc/vmsnap/vmsnap.conf.d/strict.conf", STRICT)
    scene.database(pre=scene.stop_at("never"), timeoutInSeconds=1)
    assert "hook" in str(agent.ask("guest-fsfreeze-freeze"))
    assert scene.events.wait("resumed") == "failed none"
    assert not scene.container.frozen("/")
    assert last(scene)[2][0] == "Pre-ScriptTimeout"


def test_an_agent_that_was_killed_thaws_when_it_is_back(scene: Scene, agent: Agent) -> None:
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


def test_a_host_that_never_thaws_leaves_no_application_quiesced(scene: Scene, agent: Agent) -> None:
    """What the agent has frozen is the agent's to thaw."""
    scene.container.write("/etc/vmsnap/vmsnap.conf.d/hold.conf", "[freeze]\nhold = 1\n")
    scene.database()
    assert agent.ask("guest-fsfreeze-freeze") == 1
    assert scene.events.wait("resumed") == "failed none"
    assert scene.container.frozen("/")
    assert "hook" in str(agent.ask("guest-fsfreeze-thaw"))  # so the host knows what it has
    assert not scene.container.frozen("/")
    scene.wait_for_failure()
    assert "HoldExpired" in last(scene)[2]


def test_nobody_elses_session_is_ended_by_the_agent(scene: Scene, agent: Agent) -> None:
    scene.freeze("--no-fsfreeze")
    assert "hook" in str(agent.ask("guest-fsfreeze-freeze"))
    assert agent.ask("guest-fsfreeze-thaw") == 0
    assert scene.state[0] == "active"
    assert scene.thaw().code == 0
