# SPDX-License-Identifier: Apache-2.0
"""What becomes of a machine that a first boot has configured: reboots, clones, removals."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from . import cloud
from .apps import scene_of, until
from .cloud import APP, GOOD, LINK, PROVISION
from .container import Container
from .debian import APT
from .image import CLOUD12, CLOUD13, Recipe
from .package_manager import CHECK, state

TOLD = cloud.file(GOOD)
OTHER = cloud.file({"apps": {"other": APP}})


@pytest.fixture(scope="module", params=[CLOUD12, CLOUD13], ids=lambda recipe: recipe.name)
def machine(request: pytest.FixtureRequest) -> Iterator[Container]:
    """Each test but those of removals leaves it provisioned by TOLD, as some instance."""
    recipe: Recipe = request.param
    with cloud.first_boot(recipe, cloud.text(TOLD), preinstalled=True) as container:
        yield container


def assert_provisioned(container: Container, instance: str) -> None:
    found = cloud.record(container)
    assert (found["ok"], found["instance"]) == (True, instance)
    assert cloud.status(container).code == 0
    assert_in_order(container)


def assert_in_order(container: Container) -> None:
    assert container.run("vmsnap", "status").returncode == 0
    until(lambda: state(container, CHECK) == ("enabled", "active"))
    assert container.systemctl("is-system-running").stdout == "running\n"


def is_linked(container: Container) -> bool:
    link = container.path(LINK)
    return link.is_symlink() and str(link.readlink()) == "/usr/libexec/vmsnap/cloud-init-hook"


def times(container: Container) -> int:
    """How often it has been provisioned."""
    return cloud.said(container).count("provisioned from ")


def files(container: Container) -> str:
    """Of the configuration, with what changes when they are written again."""
    argv = ("find", "/etc/vmsnap", "-printf", "%p %i %T@ %C@\\n")
    return container.run(*argv, check=True).stdout


def test_a_session_with_the_root_filesystem_frozen_is_application_consistent(
    machine: Container,
) -> None:
    with machine.guarded(), scene_of(machine) as scene:
        held = scene.freeze("--hold=20")
        assert held["filesystems"] == ["/"]
        assert machine.frozen("/")
        outcome = scene.thaw()
        assert outcome.verdict == ("success", "application", 0)
        assert [app["name"] for app in outcome.result["apps"]] == ["db", "web"]


def test_after_a_reboot_all_is_as_it_was_and_nothing_is_done_again(machine: Container) -> None:
    told = times(machine)
    before = cloud.record(machine), files(machine)
    machine.reboot()
    assert (cloud.record(machine), files(machine)) == before
    assert_provisioned(machine, before[0]["instance"])
    assert machine.show(PROVISION, "ActiveState", "ConditionResult") == {
        "ActiveState": "inactive",
        "ConditionResult": "no",
    }
    assert times(machine) == told


def test_a_copy_of_the_machine_is_provisioned_anew(machine: Container) -> None:
    cloud.reboot_as(machine, "two", OTHER)
    assert_provisioned(machine, "two")
    assert machine.path("/etc/vmsnap/apps.d/other.json").exists()
    cloud.reboot_as(machine, "three", TOLD)
    assert_provisioned(machine, "three")


@pytest.mark.parametrize("told", [TOLD, {}], ids=["told", "not-told"])
def test_a_copy_of_the_machine_does_not_show_the_failure_of_the_other(
    machine: Container, told: dict[str, Any]
) -> None:
    failed = machine.run("vmsnap", "provision", "-", input='{"apps": {"other": {}}}')
    assert failed.returncode == 1
    assert machine.run("vmsnap", "status").returncode == 1
    machine.path(cloud.YAML).unlink()
    cloud.reboot_as(machine, f"four-{len(told)}", told)
    assert cloud.status(machine).code == 0
    assert_in_order(machine)
    assert machine.path(cloud.RECORD).exists() is bool(told)
    if not told:
        cloud.reboot_as(machine, "five", TOLD)
        assert_provisioned(machine, "five")


def test_after_cloud_init_clean_the_machine_is_provisioned_again(machine: Container) -> None:
    told = times(machine)
    machine.run("cloud-init", "clean", "--logs", check=True)
    assert is_linked(machine)
    assert not machine.path(cloud.RECORD).exists()
    machine.reboot()
    assert times(machine) == told + 1
    assert_provisioned(machine, cloud.record(machine)["instance"])


def test_after_the_state_of_cloud_init_was_removed_the_machine_is_provisioned_again(
    machine: Container,
) -> None:
    told = times(machine)
    removal = "rm -rf instance* scripts sem data"
    machine.run("sh", "-c", f"cd /var/lib/cloud && {removal}", check=True)
    machine.reboot()
    assert is_linked(machine)
    assert times(machine) == told + 1
    assert_provisioned(machine, cloud.record(machine)["instance"])


# --- removals ------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def removed(machine: Container) -> Container:
    """After the package is gone, as a copy, so that cloud-init does all that it would do."""
    APT.run(machine, "remove")
    cloud.reboot_as(machine, "without", {})
    return machine


@pytest.fixture(scope="module")
def purged(removed: Container) -> Container:
    APT.run(removed, "purge")
    cloud.reboot_as(removed, "without-any", {})
    return removed


def assert_gone(container: Container) -> None:
    found = cloud.status(container)
    assert (found.document["status"], found.document["errors"], found.code) == ("done", [], 0)
    assert not container.path(LINK).is_symlink()
    APT.assert_no_unit(container)


def test_without_the_package_the_machine_boots_as_if_it_had_never_been(removed: Container) -> None:
    assert APT.version(removed) == ""
    assert_gone(removed)


def test_without_the_package_cloud_init_clean_makes_no_link(removed: Container) -> None:
    assert removed.path("/etc/cloud/clean.d/50-vmsnap").exists()
    removed.run("cloud-init", "clean", "--logs", check=True)
    assert not removed.path(LINK).is_symlink()


def test_after_a_purge_there_is_nothing_of_it_but_what_was_provisioned(purged: Container) -> None:
    assert_gone(purged)
    argv = ("find", "/etc", "/usr", "/var/lib", "-xdev", "-name", "*vmsnap*")
    found = {*purged.run(*argv, check=True).stdout.split()}
    assert {path for path in found if "/apt/" not in path} == {
        "/etc/systemd/system/vmsnap-backup.timer.d",
        "/etc/vmsnap",
        "/etc/vmsnap/vmsnap.conf.d",
    }
