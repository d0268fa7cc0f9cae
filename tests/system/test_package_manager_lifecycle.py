# SPDX-License-Identifier: Apache-2.0
"""From the first installation to the last removal, with all between, on the oldest and the newest
system: in the end nothing is left but what the administrator has written."""

from __future__ import annotations

import pytest

from tests.packages import made

from .apps import Scene, scene_of
from .debian import APT
from .distribution import DNF
from .image import Recipe
from .package_manager import (
    CONFIGURATION,
    TIMER,
    PackageManager,
    booted,
    default,
    paths,
    state,
)

OURS = "[freeze]\nhold = 17\n"
DROP_IN = f"/etc/systemd/system/{TIMER}.d/override.conf"
APP = (
    "/etc/vmsnap/apps.d/db.json",
    "/etc/vmsnap/scripts/db-pre",
    "/etc/vmsnap/scripts/db-post",
)
TIMERS = "/var/lib/systemd/timers"  # systemd's, for all timers; here there was no other before


@pytest.mark.parametrize(
    ("manager", "system"),
    [
        pytest.param(manager, system, id=f"{manager}-{system.name}")
        for manager in (APT, DNF)
        for system in dict.fromkeys((manager.systems[0], manager.systems[-1]))
    ],
)
def test_it_comes_and_goes_and_leaves_nothing_behind(
    manager: PackageManager, system: Recipe
) -> None:
    with (
        booted(system, manager.prepare) as machine,
        machine.guarded(300.0),
        scene_of(machine) as scene,
    ):
        manager.add_repository(machine)
        before = manager.files(machine)
        install(manager, scene)
        upgrade_and_downgrade(manager, scene)
        remove_and_install_again(manager, scene)
        purge(manager, scene, before)


def install(manager: PackageManager, scene: Scene) -> None:
    container = scene.container
    manager.run(container, "install", made.OLD)
    manager.assert_well(container, made.OLD)
    assert container.read(CONFIGURATION) == default(made.OLD)
    scene.database()
    container.write(DROP_IN, "[Timer]\nRandomizedDelaySec=10min\n", 0o644)
    container.systemctl("daemon-reload", check=True)
    container.systemctl("enable", "--now", TIMER, check=True)
    work(scene)


def work(scene: Scene) -> None:
    """A whole session, with `/` frozen."""
    scene.freeze("--hold=20")
    assert scene.container.frozen("/")
    assert scene.thaw().verdict == ("success", "application", 0)
    assert not scene.container.frozen("/")


def upgrade_and_downgrade(manager: PackageManager, scene: Scene) -> None:
    container = scene.container
    steps = (("upgrade", made.NEW), ("reinstall", made.NEW), ("downgrade", made.OLD))
    for step, version in steps:
        manager.run(container, step, version)
        manager.assert_well(container, version)
        assert container.read(CONFIGURATION) == default(version)
        assert state(container, TIMER) == ("enabled", "active")
    work(scene)


def remove_and_install_again(manager: PackageManager, scene: Scene) -> None:
    container = scene.container
    container.write(CONFIGURATION, OURS)
    kept = {path: container.read(path) for path in (*APP, DROP_IN)}
    kept[manager.saved] = OURS
    manager.run(container, "remove")
    manager.assert_gone(container)
    assert {path: container.read(path) for path in kept} == kept
    manager.run(container, "install", made.NEW, manager.keep)
    manager.assert_well(container, made.NEW)
    assert {path: container.read(path) for path in kept} == kept
    work(scene)


def purge(manager: PackageManager, scene: Scene, before: set[str]) -> None:
    container = scene.container
    manager.run(container, "purge")
    manager.run(container, "autoremove")
    manager.assert_gone(container, purged=True)
    after = manager.files(container)
    assert before - after == set()
    kept = {*APP, DROP_IN, manager.saved} - {CONFIGURATION}
    directories = {path.rpartition("/")[0] for path in kept} | {"/etc/vmsnap"}
    assert paths(after - before) == {*kept, *directories, TIMERS}
