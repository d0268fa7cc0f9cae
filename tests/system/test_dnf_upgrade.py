# SPDX-License-Identifier: Apache-2.0
"""`dnf upgrade` from the version before, and back: what the administrator has made stays, and so
does a session in progress. The old version was installed where nothing was booted, as into images.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.fs.processes import is_stuck
from tests.packages import made

from . import distribution
from .apps import Scene, scene_of, until
from .container import Container
from .image import DNF

CHECK, PATH, TIMER = "vmsnap-check.service", "vmsnap-check.path", "vmsnap-backup.timer"
BACKUP = "vmsnap-backup.service"
CONFIGURATION = "/etc/vmsnap/vmsnap.conf"
EDIT = "textfile = /run/vmsnap-test/vmsnap.prom\n"  # in its last section
OLD_PACKAGE = f"vmsnap-{made.OLD}"
STEPS = (
    *(("install", OLD_PACKAGE), ("upgrade", "vmsnap"), ("remove", "vmsnap")),
    ("install", OLD_PACKAGE),
)
CALM = 60.0  # seconds; dnf works meanwhile


class Image:
    """Where nothing is booted yet, and what dnf said there, by what it did."""

    def __init__(self) -> None:
        self.said: dict[str, str] = {}

    def prepare(self, root: Path) -> None:
        distribution.prepare(root)
        for step, package in STEPS:
            words = ("dnf", "--assumeyes", step, package)
            self.said[step] = distribution.inside(root, *words)


@pytest.fixture(scope="module")
def image() -> Image:
    return Image()


@pytest.fixture(scope="module")
def machine(image: Image) -> Iterator[Container]:
    container = Container(DNF, image.prepare)
    try:
        yield container
    finally:
        container.close()


@pytest.fixture
def old(machine: Container) -> Iterator[Container]:
    """The old version, as it came up at the boot."""
    machine.reset()
    if distribution.versions(machine) != [made.OLD]:
        again = f"rpm --upgrade --oldpackage {distribution.KEPT}/rpm/debian/{OLD_PACKAGE}-*.rpm"
        machine.run("sh", "-c", again, check=True)
        machine.reset()
    with machine.guarded(CALM):
        yield machine


@pytest.fixture
def scene(old: Container) -> Iterator[Scene]:
    with scene_of(old) as found:
        yield found


def default(version: str) -> str:
    return (made.tree(version) / "etc/vmsnap.conf").read_text(encoding="utf-8")


def last_check(container: Container) -> str:
    return container.show(CHECK, "InvocationID")["InvocationID"]


# --- installed where nothing is booted -----------------------------------------------------------


@pytest.mark.parametrize("step", ["install", "upgrade", "remove"])
def test_dnf_works_on_an_image_without_a_complaint(
    image: Image, machine: Container, step: str
) -> None:
    assert machine.run("vmsnap", "--version").stdout == f"vmsnap {made.OLD}\n"
    distribution.assert_no_complaint(image.said[step])


def test_what_is_installed_into_an_image_comes_up_at_its_first_boot(machine: Container) -> None:
    machine.reset()
    assert sorted(machine.active) == [PATH, CHECK]
    assert distribution.state(machine, CHECK) == ("enabled", "active")
    assert distribution.state(machine, PATH) == ("enabled", "active")
    assert distribution.state(machine, TIMER) == ("disabled", "inactive")
    assert distribution.stale_bytecode(machine) == []
    assert "Subject:" in machine.run("journalctl", "--dump-catalog", check=True).stdout


# --- upgraded ------------------------------------------------------------------------------------


def test_an_upgrade_replaces_the_program_and_a_configuration_that_nobody_edited(
    old: Container,
) -> None:
    assert old.read(CONFIGURATION) == default(made.OLD)
    distribution.done(old, "upgrade", "vmsnap")
    assert distribution.versions(old) == [made.NEW]
    assert old.run("vmsnap", "--version", check=True).stdout == f"vmsnap {made.NEW}\n"
    assert old.read(CONFIGURATION) == default(made.NEW) != default(made.OLD)
    assert not list(old.path("/etc/vmsnap").rglob("*.rpm*"))
    assert distribution.stale_bytecode(old) == []


def test_the_new_version_checks_the_configuration_at_once_and_watches_it(old: Container) -> None:
    before = last_check(old)
    distribution.done(old, "upgrade", "vmsnap")
    assert last_check(old) != before
    assert distribution.state(old, CHECK) == ("enabled", "active")
    assert distribution.state(old, PATH) == ("enabled", "active")
    old.path("/etc/vmsnap/apps.d/broken.json").write_text("{")
    until(lambda: distribution.state(old, CHECK)[1] == "failed")


def test_an_upgrade_keeps_what_the_administrator_has_made(scene: Scene) -> None:
    container = scene.container
    scene.database()
    container.path(CONFIGURATION).write_text(edited := default(made.OLD) + EDIT)
    mine = [path for path in container.path("/etc/vmsnap").rglob("*") if path.is_file()]
    assert len(mine) == 4  # with the app and its scripts
    before = [(path, path.read_bytes(), path.stat().st_mode) for path in mine]
    said = distribution.done(container, "upgrade", "vmsnap")
    assert [(path, path.read_bytes(), path.stat().st_mode) for path in mine] == before
    assert container.read(CONFIGURATION) == edited
    assert container.read(f"{CONFIGURATION}.rpmnew") == default(made.NEW)
    assert f"{CONFIGURATION}.rpmnew" in said
    assert container.path(f"{CONFIGURATION}.rpmnew").stat().st_mode & 0o7777 == 0o600
    assert distribution.state(container, CHECK) == ("enabled", "active")
    scene.freeze()
    assert scene.thaw().verdict == ("success", "application", 0)
    assert scene.events.heard == ["quiesced", "resumed success application"]


def test_a_check_that_was_switched_off_stays_off(old: Container) -> None:
    old.systemctl("disable", "--now", CHECK, PATH, check=True)
    distribution.done(old, "upgrade", "vmsnap")
    assert distribution.state(old, CHECK) == ("disabled", "inactive")
    assert distribution.state(old, PATH) == ("disabled", "inactive")


def test_a_timer_that_was_switched_on_stays_on_and_takes_no_snapshot_meanwhile(
    old: Container,
) -> None:
    old.systemctl("enable", "--now", TIMER, check=True)
    distribution.done(old, "upgrade", "vmsnap")
    assert distribution.state(old, TIMER) == ("enabled", "active")
    assert old.show(TIMER, "NextElapseUSecRealtime")["NextElapseUSecRealtime"]
    assert old.show(BACKUP, "ExecMainStartTimestamp")["ExecMainStartTimestamp"] == ""


def test_a_downgrade_brings_the_old_version_back(old: Container) -> None:
    distribution.done(old, "upgrade", "vmsnap")
    distribution.done(old, "downgrade", "vmsnap")
    assert old.run("vmsnap", "--version", check=True).stdout == f"vmsnap {made.OLD}\n"
    assert old.read(CONFIGURATION) == default(made.OLD)
    assert distribution.state(old, CHECK) == ("enabled", "active")
    assert distribution.state(old, PATH) == ("enabled", "active")
    assert distribution.stale_bytecode(old) == []


def test_a_reinstallation_mends_a_module_and_leaves_the_configuration(old: Container) -> None:
    edited = old.read(CONFIGURATION) + EDIT
    old.path(CONFIGURATION).write_text(edited)
    old.run("sh", "-c", "rm /usr/lib/python3/dist-packages/vmsnap/freeze/guard.py", check=True)
    distribution.done(old, "reinstall", "vmsnap")
    assert old.read(CONFIGURATION) == edited
    verified = old.run("rpm", "--verify", "vmsnap").stdout.splitlines()
    assert [line.split()[-1] for line in verified] == [CONFIGURATION]
    assert distribution.stale_bytecode(old) == []
    assert distribution.state(old, CHECK) == ("enabled", "active")
    assert distribution.state(old, PATH) == ("enabled", "active")


# --- while a session is in progress --------------------------------------------------------------


def test_an_upgrade_leaves_a_session_that_holds_alone(scene: Scene) -> None:
    scene.container.add_filesystem("/srv/data")
    scene.database()
    held = scene.freeze("--only=/srv/data")
    distribution.done(scene.container, "upgrade", "vmsnap")
    assert distribution.versions(scene.container) == [made.NEW]
    assert scene.container.frozen("/srv/data")
    assert scene.state == ("active", "success")
    outcome = scene.thaw()
    assert not scene.container.frozen("/srv/data")
    assert outcome.result["session"] == held["session"]
    assert outcome.verdict == ("success", "application", 0)
    assert outcome.errors == []
    assert scene.events.heard == ["quiesced", "resumed success application"]


def test_an_upgrade_leaves_a_run_in_progress_alone(scene: Scene) -> None:
    scene.container.add_filesystem("/srv/data")
    scene.database()
    run = scene.run("--only=/srv/data")
    distribution.done(scene.container, "upgrade", "vmsnap")
    assert scene.container.frozen("/srv/data")
    scene.open("release")
    outcome = run.finish()
    assert not scene.container.frozen("/srv/data")
    assert outcome.verdict == ("success", "application", 0)
    assert scene.events.heard == ["quiesced", "held", "resumed success application"]


def test_an_upgrade_waits_for_the_thaw_of_the_root_filesystem(scene: Scene) -> None:
    scene.database()
    scene.freeze()
    upgrade = scene.start("--assumeyes", "upgrade", "vmsnap", program="dnf")
    until(lambda: any(is_stuck(pid) for pid in upgrade.below))
    assert scene.container.frozen("/")
    assert scene.state == ("active", "success")
    assert scene.thaw().verdict == ("success", "application", 0)
    done = upgrade.finish()
    assert done.code == 0, done.err
    assert distribution.versions(scene.container) == [made.NEW]
    assert scene.events.heard == ["quiesced", "resumed success application"]
