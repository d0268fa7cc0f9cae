# SPDX-License-Identifier: Apache-2.0
"""First boots that say nothing to vmsnap, or that install it where cloud-init's own way is over."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest

from vmsnap.errors import Kind

from . import cloud
from .cloud import BAD_KEY, GOOD, PROVISION
from .container import Container
from .debian import APT
from .image import CLOUD12, CLOUD13, Recipe
from .package_manager import CHECK, TIMER, state

# --- no document ---------------------------------------------------------------------------------


@pytest.fixture(
    scope="module",
    params=[(CLOUD12, True), (CLOUD12, False), (CLOUD13, False)],
    ids=lambda param: f"{param[0].name}-{'preinstalled' if param[1] else 'packages'}",
)
def untold(request: pytest.FixtureRequest) -> Iterator[Container]:
    recipe, preinstalled = request.param
    told: dict[str, Any] = {} if preinstalled else cloud.installing({})
    with cloud.first_boot(recipe, cloud.text(told), preinstalled) as container:
        yield container


def test_who_says_nothing_to_vmsnap_gets_what_the_package_brings(untold: Container) -> None:
    found = cloud.status(untold)
    assert (found.document["status"], found.document["errors"], found.code) == ("done", [], 0)
    cloud.assert_nothing_written(untold)
    assert state(untold, TIMER) == ("disabled", "inactive")
    APT.assert_well(untold, APT.version(untold))


def test_where_nothing_was_said_nothing_is_recorded(untold: Container) -> None:
    assert not untold.path(cloud.RECORD).exists()
    assert untold.run("vmsnap", "status").returncode == 0
    assert untold.show(PROVISION, "ActiveState", "ConditionResult") == {
        "ActiveState": "inactive",
        "ConditionResult": "no",
    }


# --- installed by runcmd -------------------------------------------------------------------------


def by_runcmd(recipe: Recipe, told: dict[str, Any]) -> Iterator[Container]:
    """The scripts of each instance have been run by then."""
    install = ["env", "DEBIAN_FRONTEND=noninteractive", "apt-get", "-qy", "install", "vmsnap"]
    commands = [["apt-get", "-q", "update"], install]
    told = {**cloud.with_repository(told), "runcmd": commands}
    with cloud.first_boot(recipe, cloud.text(told)) as container:
        yield container


@pytest.fixture(scope="module")
def late() -> Iterator[Container]:
    yield from by_runcmd(CLOUD12, cloud.key(GOOD))


@pytest.fixture(scope="module")
def late_and_wrong() -> Iterator[Container]:
    yield from by_runcmd(CLOUD13, cloud.file(BAD_KEY))


def test_installed_by_runcmd_it_is_provisioned_when_cloud_init_is_done(late: Container) -> None:
    assert cloud.status(late).code == 0
    assert cloud.record(late)["ok"]
    assert late.show(PROVISION, "Result", "ConditionResult", "ExecMainStatus") == {
        "Result": "success",
        "ConditionResult": "yes",
        "ExecMainStatus": "0",
    }
    assert late.path("/etc/vmsnap/apps.d/web.json").exists()
    assert state(late, TIMER) == ("enabled", "active")
    APT.assert_well(late, APT.version(late))
    cloud.assert_secret(late)


def test_a_reboot_does_not_do_it_again(late: Container) -> None:
    before = cloud.record(late)
    late.reboot()
    assert cloud.record(late) == before
    assert late.show(PROVISION, "ConditionResult") == {"ConditionResult": "no"}
    APT.assert_well(late, APT.version(late))


def test_where_cloud_init_cannot_say_that_it_failed_units_do(late_and_wrong: Container) -> None:
    assert cloud.status(late_and_wrong).code == 0
    assert late_and_wrong.systemctl("is-system-running").stdout == "degraded\n"
    failed = late_and_wrong.systemctl("list-units", "--failed", "--plain", "--no-legend").stdout
    assert {line.split()[0] for line in failed.splitlines()} == {CHECK, PROVISION}
    checked = late_and_wrong.run("vmsnap", "check", "--json")
    (problem,) = json.loads(checked.stdout)["problems"]
    assert problem["name"] == Kind.PROVISIONING_FAILED.label
    assert "apps.db.config.timeoutInSecond" in cloud.said(late_and_wrong)
    cloud.assert_nothing_written(late_and_wrong)
    cloud.assert_secret(late_and_wrong)
