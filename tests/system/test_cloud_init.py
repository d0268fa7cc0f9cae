# SPDX-License-Identifier: Apache-2.0
"""A first boot after which a machine is configured: both ways to install, both ways to write it."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import pytest
import yaml

from tests.packages import made

from . import cloud
from .apps import until
from .cloud import GOOD, YAML
from .container import Container
from .image import CLOUD12, CLOUD13, CLOUD_DNF, Recipe
from .package_manager import CHECK, CONFIGURATION, PATH, TIMER, state


@dataclass(frozen=True)
class Story:
    name: str
    recipe: Recipe
    user_data: Callable[[], str]  # asked for late: the repository's key is made in the test run
    preinstalled: bool = False

    @property
    def told(self) -> dict[str, Any]:
        found: dict[str, Any] = yaml.safe_load(self.user_data())
        return found

    @property
    def document(self) -> dict[str, Any]:
        """What vmsnap is told."""
        if "vmsnap" in self.told:
            found: dict[str, Any] = self.told["vmsnap"]
        else:
            (text,) = (f["content"] for f in self.told["write_files"] if f["path"] == YAML)
            found = yaml.safe_load(text)
        return found

    @property
    def is_degraded(self) -> bool:
        """By the rule of cloud-init 23.4 and later for keys that it does not know."""
        return "vmsnap" in self.told and self.recipe is CLOUD13


def preinstalled(recipe: Recipe, name: str, told: dict[str, Any]) -> Story:
    return Story(f"{recipe.name}-preinstalled-{name}", recipe, lambda: cloud.text(told), True)


def example(recipe: Recipe, name: str) -> Story:
    return Story(f"{recipe.name}-{name}", recipe, lambda: cloud.example(name))


STORIES = [
    *(
        preinstalled(recipe, spelling, told)
        for recipe in (CLOUD12, CLOUD13)
        for spelling, told in (("key", cloud.key(GOOD)), ("file", cloud.file(GOOD)))
    ),
    *(example(recipe, n) for recipe in (CLOUD12, CLOUD13) for n in ("apt.yaml", "apt-clean.yaml")),
    *(example(CLOUD_DNF, name) for name in ("dnf.yaml", "dnf-clean.yaml")),
]


@pytest.fixture(scope="module", params=STORIES, ids=lambda story: story.name)
def booted(request: pytest.FixtureRequest) -> Iterator[tuple[Story, Container]]:
    story: Story = request.param
    with cloud.first_boot(story.recipe, story.user_data(), story.preinstalled) as container:
        yield story, container


@pytest.fixture
def story(booted: tuple[Story, Container]) -> Story:
    return booted[0]


@pytest.fixture
def machine(booted: tuple[Story, Container]) -> Iterator[Container]:
    with booted[1].guarded():
        yield booted[1]


def test_every_example_is_one_of_the_stories() -> None:
    names = {path.name for path in cloud.EXAMPLES.iterdir()}
    assert names == {s.name.partition("-")[2] for s in STORIES if s.name.endswith(".yaml")}


def test_cloud_init_is_done(story: Story, machine: Container) -> None:
    found = cloud.status(machine)
    assert found.text.startswith("status: done\n")
    assert found.document["status"] == "done"
    assert found.document["errors"] == []
    assert found.code == (2 if story.is_degraded else 0), found.text
    assert ("degraded" in found.text) is story.is_degraded
    if story.is_degraded:
        # By what it says of the schema, in two of its stages, and by nothing else.
        assert found.document["recoverable_errors"].keys() == {"WARNING"}
        (words,) = {*found.document["recoverable_errors"]["WARNING"]}
        assert "cloud-init schema --system" in words


def test_the_result_has_no_error_and_nothing_tells_a_secret(machine: Container) -> None:
    assert json.loads(machine.read("/run/cloud-init/result.json"))["v1"]["errors"] == []
    cloud.assert_secret(machine)


def test_apps_are_written_for_root_alone(story: Story, machine: Container) -> None:
    for name, app in story.document["apps"].items():
        config = f"/etc/vmsnap/apps.d/{name}.json"
        assert cloud.mode_and_owner(machine, config) == (0o600, 0, 0)
        written = json.loads(machine.read(config))
        assert written.items() >= app["config"].items()
        for phase, text in app.get("scripts", {}).items():
            script = f"/etc/vmsnap/scripts/{name}/{phase}"
            assert written[f"{phase}ScriptLocation"] == script
            assert cloud.mode_and_owner(machine, script) == (0o700, 0, 0)
            assert machine.read(script) == text
    for directory in ("", "/apps.d", "/scripts", "/vmsnap.conf.d"):
        assert cloud.mode_and_owner(machine, f"/etc/vmsnap{directory}") == (0o700, 0, 0)


def test_settings_are_in_a_file_of_their_own(story: Story, machine: Container) -> None:
    drop_in = "/etc/vmsnap/vmsnap.conf.d/50-provision.conf"
    assert cloud.mode_and_owner(machine, drop_in) == (0o600, 0, 0)
    hold = story.document["conf"]["freeze"]["hold"]
    assert f"\nhold = {hold}\n" in machine.read(drop_in)
    assert "\nhold = " not in machine.read(CONFIGURATION)


def test_the_configuration_is_checked_and_in_order(machine: Container) -> None:
    assert machine.run("vmsnap", "check", check=True)
    until(lambda: state(machine, CHECK) == ("enabled", "active"))
    assert state(machine, PATH) == ("enabled", "active")
    assert machine.systemctl("is-system-running").stdout == "running\n"


def test_the_outcome_is_recorded_and_told(story: Story, machine: Container) -> None:
    source = "-" if "vmsnap" in story.told else YAML
    found = cloud.record(machine)
    assert cloud.mode_and_owner(machine, cloud.RECORD) == (0o600, 0, 0)
    assert (found["ok"], found["instance"], found["source"]) == (True, "one", source)
    assert cloud.said(machine).count("provisioned from ") == 1
    count = len(found["written"])
    assert f"provisioned from {source}; files written: {count}, " in cloud.said(machine)
    assert machine.run("vmsnap", "status").returncode == 0


def test_it_was_done_once_and_by_cloud_init(machine: Container) -> None:
    shown = machine.show(cloud.PROVISION, "ActiveState", "ConditionResult", "UnitFileState")
    assert shown == {"ActiveState": "inactive", "ConditionResult": "no", "UnitFileState": "enabled"}
    log = machine.read("/var/log/cloud-init-output.log") + machine.read("/var/log/cloud-init.log")
    assert "Running command ['/var/lib/cloud/scripts/per-instance/50-vmsnap']" in log


def test_it_was_installed_from_the_repository_that_is_signed(
    story: Story, machine: Container
) -> None:
    if story.recipe is CLOUD_DNF:
        argv = ("dnf", "-q", "repoquery", "--installed", "--qf=%{version} %{from_repo}", "vmsnap")
        assert machine.run(*argv, check=True).stdout == f"{made.NEW} vmsnap\n"
        trusted = machine.run("rpm", "-q", "--qf=%{VERSION}\n", "gpg-pubkey", check=True).stdout
        assert trusted.split() == [made.key()[-8:].lower()]
    else:
        policy = machine.run("apt-cache", "policy", "vmsnap", check=True).stdout
        installed, _, here = policy.partition("***")
        assert f"Installed: {made.NEW}\n" in installed
        assert here.split("\n")[1].split()[1:3] == [made.URL.replace("///", "/") + "/apt", "./"]


def test_the_timer_is_as_the_document_says(story: Story, machine: Container) -> None:
    if "timer" not in story.document:
        assert state(machine, TIMER) == ("disabled", "inactive")
        return
    assert state(machine, TIMER) == ("enabled", "active")
    drop_in = f"/etc/systemd/system/{TIMER}.d/50-provision.conf"
    assert cloud.mode_and_owner(machine, drop_in) == (0o644, 0, 0)
    assert "*-*-* 00:00:00" in machine.show(TIMER, "TimersCalendar")["TimersCalendar"]


def test_only_the_key_is_unknown_to_the_schema(story: Story, machine: Container) -> None:
    checked = machine.run("cloud-init", "schema", "--system")
    assert (checked.returncode != 0) is story.is_degraded, checked
    if story.is_degraded:
        assert "vmsnap: Additional properties are not allowed" in checked.stdout + checked.stderr
