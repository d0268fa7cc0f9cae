# SPDX-License-Identifier: Apache-2.0
"""A first boot with a document that is wrong: cloud-init says so, and vmsnap as long as it is."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest

from vmsnap.errors import Kind

from . import cloud
from .apps import until
from .cloud import BAD_KEY, BAD_SCRIPT, GOOD
from .container import Container
from .image import CLOUD12, CLOUD13, Recipe
from .package_manager import CHECK, TIMER, state

KIND = Kind.PROVISIONING_FAILED


@dataclass(frozen=True)
class Story:
    name: str
    recipe: Recipe
    told: dict[str, Any]
    named: str  # the key path
    preinstalled: bool


WRONG = {
    "key": (cloud.key(BAD_KEY), "apps.db.config.timeoutInSecond"),
    "script": (cloud.key(BAD_SCRIPT), "apps.web.scripts.pre"),
    "file": (cloud.file(BAD_KEY), "apps.db.config.timeoutInSecond"),
}
STORIES = [
    Story(f"{recipe.name}-{'preinstalled' if there else 'packages'}-{name}", recipe, *wrong, there)
    for name, wrong in WRONG.items()
    for there in (True, False)
    for recipe in (CLOUD12, CLOUD13)
    if (recipe, name) != (CLOUD13, "script")
]
# Both systems, for what is the same whatever was wrong.
REBOOTED = pytest.mark.parametrize(
    "booted", STORIES[:2], ids=lambda story: story.name, indirect=True, scope="module"
)


@pytest.fixture(scope="module", params=STORIES, ids=lambda story: story.name)
def booted(request: pytest.FixtureRequest) -> Iterator[tuple[Story, Container]]:
    story: Story = request.param
    told = story.told if story.preinstalled else cloud.installing(story.told)
    with cloud.first_boot(story.recipe, cloud.text(told), story.preinstalled) as container:
        yield story, container


@pytest.fixture
def story(booted: tuple[Story, Container]) -> Story:
    return booted[0]


@pytest.fixture
def machine(booted: tuple[Story, Container]) -> Container:
    return booted[1]


@pytest.fixture(scope="module")
def rebooted(booted: tuple[Story, Container]) -> Container:
    """The same, for the tests below those of the first boot."""
    _, container = booted
    container.reboot()
    return container


# --- the first boot ------------------------------------------------------------------------------


def test_cloud_init_says_that_vmsnap_failed(machine: Container) -> None:
    found = cloud.status(machine)
    assert found.text.startswith("status: error\n")
    assert "50-vmsnap" in found.text
    assert (found.document["status"], found.code) == ("error", 1)


def test_the_result_has_one_error_and_nothing_tells_a_secret(machine: Container) -> None:
    (error,) = json.loads(machine.read("/run/cloud-init/result.json"))["v1"]["errors"]
    assert "50-vmsnap" in error
    cloud.assert_secret(machine)


def test_nothing_is_written(machine: Container) -> None:
    cloud.assert_nothing_written(machine)
    assert state(machine, TIMER) == ("disabled", "inactive")


def test_the_logs_of_cloud_init_and_the_journal_name_the_key(
    story: Story, machine: Container
) -> None:
    logs = ("/var/log/cloud-init.log", "/var/log/cloud-init-output.log")
    assert f"{story.named}: " in "".join(map(machine.read, logs))
    assert f"{story.named}: " in cloud.said(machine)
    if story.named.endswith("timeoutInSecond"):
        assert "did you mean 'timeoutInSeconds'?" in cloud.said(machine)


def test_the_check_fails_of_it(story: Story, machine: Container) -> None:
    assert_failed(story, machine)


def assert_failed(story: Story, machine: Container) -> None:
    until(lambda: state(machine, CHECK) == ("enabled", "failed"))
    checked = machine.run("vmsnap", "check", "--json")
    assert checked.returncode == 1
    (problem,) = json.loads(checked.stdout)["problems"]
    assert (problem["name"], problem["code"]) == (KIND.label, KIND.code)
    shown = machine.run("vmsnap", "status")
    assert shown.returncode == 1
    for words in (problem["message"], shown.stdout):
        assert story.named in words
        assert cloud.SECRET not in words


# --- and the next one ----------------------------------------------------------------------------


@REBOOTED
def test_what_cloud_init_has_forgotten_at_the_next_boot_vmsnap_says_still(
    story: Story, rebooted: Container
) -> None:
    assert cloud.status(rebooted).document["status"] == "done"
    assert_failed(story, rebooted)
    argv = ("journalctl", "-q", "-b", "-t", "vmsnap", "-o", "cat")
    assert story.named in rebooted.run(*argv, check=True).stdout


@REBOOTED
def test_it_is_mended_by_a_document_without_the_mistake(rebooted: Container) -> None:
    rebooted.write("/root/mended.yaml", json.dumps(GOOD))
    told = rebooted.run("vmsnap", "provision", "--file", "/root/mended.yaml", check=True)
    assert cloud.SECRET not in told.stdout + told.stderr
    until(lambda: state(rebooted, CHECK)[1] == "active")
    assert rebooted.run("vmsnap", "status").returncode == 0
    assert rebooted.run("vmsnap", "check").returncode == 0
    assert state(rebooted, TIMER) == ("enabled", "active")
    assert rebooted.systemctl("is-system-running").stdout == "running\n"
    cloud.assert_secret(rebooted)
