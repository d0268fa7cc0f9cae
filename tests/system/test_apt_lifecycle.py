# SPDX-License-Identifier: Apache-2.0
"""From the first installation to the purge, with all between, on the oldest and the newest Debian:
in the end nothing is left but what the administrator has written."""

from __future__ import annotations

import pytest

from tests.packages import made

from . import debian
from .apps import Scene, scene_of
from .container import Container
from .debian import CONFIGURATION, KEEP, TIMER
from .image import DEBIAN11, DEBIAN13, Recipe

OURS = "[freeze]\nhold = 17\n"
DROP_IN = f"/etc/systemd/system/{TIMER}.d/override.conf"
APP = (
    "/etc/vmsnap/apps.d/db.json",
    "/etc/vmsnap/scripts/db-pre",
    "/etc/vmsnap/scripts/db-post",
)
TIMERS = "/var/lib/systemd/timers"  # systemd's, for all timers; here there was no other before


def default(version: str) -> str:
    return (made.tree(version) / "etc/vmsnap.conf").read_text()


@pytest.mark.parametrize("recipe", [DEBIAN11, DEBIAN13], ids=lambda recipe: recipe.name)
def test_it_comes_and_goes_and_leaves_nothing_behind(recipe: Recipe) -> None:
    container = Container(recipe, debian.prepare)
    try:
        with container.guarded(300.0), scene_of(container) as scene:
            debian.add_repository(container)
            before = debian.files(container)
            install(scene)
            upgrade_and_downgrade(scene)
            remove_and_install_again(scene)
            purge(scene, before)
    finally:
        container.close()


def install(scene: Scene) -> None:
    container = scene.container
    debian.install(container, made.OLD)
    debian.assert_well(container, made.OLD)
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


def upgrade_and_downgrade(scene: Scene) -> None:
    container = scene.container
    for version, *options in ((made.NEW,), (made.NEW, "--reinstall"), (made.OLD,)):
        debian.install(container, version, *options)
        debian.assert_well(container, version)
        assert container.read(CONFIGURATION) == default(version)
        assert debian.state(container, TIMER) == ("enabled", "active")
    work(scene)


def remove_and_install_again(scene: Scene) -> None:
    container = scene.container
    container.write(CONFIGURATION, OURS)
    kept = {path: container.read(path) for path in (*APP, DROP_IN, CONFIGURATION)}
    debian.apt(container, "remove", "vmsnap")
    assert debian.version(container) == ""
    debian.assert_no_unit(container)
    assert {path: container.read(path) for path in kept} == kept
    debian.install(container, made.NEW, KEEP)
    debian.assert_well(container, made.NEW)
    assert {path: container.read(path) for path in kept} == kept
    work(scene)


def purge(scene: Scene, before: set[str]) -> None:
    container = scene.container
    debian.apt(container, "purge", "vmsnap")
    debian.apt(container, "autoremove", "--purge")
    debian.assert_no_unit(container)
    assert not container.path("/run/vmsnap").exists()
    after = debian.files(container)
    assert before - after == set()
    kept = (*APP, DROP_IN)
    directories = {path.rpartition("/")[0] for path in kept} | {"/etc/vmsnap"}
    assert paths(after - before) == {*kept, *directories, TIMERS}


def paths(lines: set[str]) -> set[str]:
    return {f"/{line.partition('/')[2].strip()}" for line in lines}
