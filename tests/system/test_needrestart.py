# SPDX-License-Identifier: Apache-2.0
"""needrestart, which after an upgrade of Python restarts what still runs the old one, leaves a
session alone."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.packages import made

from .apps import UNIT, Scene, scene_of
from .container import Container
from .debian import APT
from .package_manager import BACKUP, DATA, PATIENCE, begin_scheduled, booted

REPLACE = 'file=$(readlink -f /usr/bin/python3); cp -p "$file" "$file.new"; mv "$file.new" "$file"'


@pytest.fixture(scope="module")
def machine() -> Iterator[Container]:
    with booted(
        APT.system, lambda root: APT.prepare_with(root, ("install", made.NEW))
    ) as container:
        argv = (*APT.program, "install", "needrestart")
        container.run(*argv, check=True, timeout=PATIENCE, env=APT.env)
        yield container


@pytest.fixture
def scene(machine: Container) -> Iterator[Scene]:
    machine.reset()
    machine.add_filesystem(DATA)
    with machine.guarded(), scene_of(machine) as found:
        yield found


def needrestart(container: Container, *options: str) -> str:
    done = container.run("needrestart", *options, check=True, timeout=60.0, env=APT.env)
    return done.stdout


def replace_python(container: Container) -> None:
    """As an upgrade does: who runs has the old one, which is deleted."""
    container.run("sh", "-ec", REPLACE, check=True)


def test_a_held_session_goes_on(scene: Scene) -> None:
    scene.database()
    session = scene.freeze(f"--only={DATA}")["session"]
    engine = scene.engine
    replace_python(scene.container)
    assert f"NEEDRESTART-SVC: {UNIT}\n" in needrestart(scene.container, "-b", "-l")
    needrestart(scene.container, "-r", "a", "-l")
    assert (scene.state, scene.engine) == (("active", "success"), engine)
    assert scene.container.frozen(DATA)
    outcome = scene.thaw()
    assert (outcome.verdict, outcome.errors) == (("success", "application", 0), [])
    assert outcome.result["session"] == session
    assert scene.events.heard == ["quiesced", "resumed success application"]


def test_a_scheduled_session_goes_on(scene: Scene) -> None:
    container = scene.container
    begin_scheduled(scene)
    replace_python(container)
    assert f"NEEDRESTART-SVC: {BACKUP}\n" in needrestart(container, "-b", "-l")
    needrestart(container, "-r", "a", "-l")
    assert container.frozen(DATA)
    scene.open("release")
    assert scene.events.wait("resumed") == "success application"
    assert scene.events.heard == ["quiesced", "held", "resumed success application"]
