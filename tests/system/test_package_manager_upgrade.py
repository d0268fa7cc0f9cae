# SPDX-License-Identifier: Apache-2.0
"""An upgrade from the version before, and back: what the administrator has made stays, and so does
a session in progress. The old version was installed where nothing was booted, as into images.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.packages import made

from .apps import Scene, scene_of, until
from .container import Container
from .debian import APT
from .distribution import DNF
from .package_manager import (
    BACKUP,
    CALM,
    CHECK,
    CONFIGURATION,
    DATA,
    EDIT,
    MODULES,
    PATH,
    TIMER,
    PackageManager,
    assert_no_complaint,
    booted,
    default,
    state,
)

RESUMED = ["quiesced", "resumed success application"]
STEPS = (("install", made.OLD), ("upgrade", ""), ("remove", ""), ("install", made.OLD))


class Image:
    """Where nothing is booted yet, and what the package manager said there, by what it did."""

    def __init__(self, manager: PackageManager) -> None:
        self.manager = manager
        self.said: dict[str, str] = {}

    def prepare(self, root: Path) -> None:
        self.said = self.manager.prepare_with(root, *STEPS)


@pytest.fixture(scope="module", params=(APT, DNF), ids=str)
def image(request: pytest.FixtureRequest) -> Image:
    return Image(request.param)


@pytest.fixture(scope="module")
def machine(image: Image) -> Iterator[Container]:
    with booted(image.manager.system, image.prepare) as container:
        yield container


@pytest.fixture
def manager(image: Image) -> PackageManager:
    return image.manager


@pytest.fixture
def old(manager: PackageManager, machine: Container) -> Iterator[Container]:
    """The old version, as it came up at the boot."""
    if manager.version(machine) != made.OLD:
        manager.put_back(machine, made.OLD)
    machine.reset()
    with machine.guarded(CALM):
        yield machine


@pytest.fixture
def scene(old: Container) -> Iterator[Scene]:
    with scene_of(old) as found:
        yield found


@pytest.fixture
def data(scene: Scene) -> Scene:
    """With a filesystem beside `/`: a package manager can write while it is frozen."""
    scene.container.add_filesystem(DATA)
    return scene


def last_check(container: Container) -> str:
    return container.show(CHECK, "InvocationID")["InvocationID"]


# --- installed where nothing is booted -----------------------------------------------------------


@pytest.mark.parametrize("step", ["install", "upgrade", "remove"])
def test_nothing_complains_on_an_image(image: Image, machine: Container, step: str) -> None:
    assert machine.run("vmsnap", "--version").stdout == f"vmsnap {made.OLD}\n"
    assert_no_complaint(image.said[step])


def test_what_is_installed_into_an_image_comes_up_at_its_first_boot(
    manager: PackageManager, machine: Container
) -> None:
    machine.reset()
    watching = [unit for unit in machine.active if unit.startswith("vmsnap-check@")]
    assert sorted({*machine.active} - {*watching}) == [PATH, CHECK]
    assert "vmsnap-check@etc-vmsnap.path" in watching
    manager.assert_well(machine, made.OLD)
    assert state(machine, TIMER) == ("disabled", "inactive")
    assert "Subject:" in machine.run("journalctl", "--dump-catalog", check=True).stdout


# --- what is replaced, and what is not -----------------------------------------------------------


def test_an_upgrade_replaces_the_program_and_a_configuration_that_nobody_edited(
    manager: PackageManager, old: Container
) -> None:
    assert old.read(CONFIGURATION) == default(made.OLD)
    manager.run(old, "upgrade")
    assert old.read(CONFIGURATION) == default(made.NEW) != default(made.OLD)
    names = [path.name for path in old.path("/etc/vmsnap").rglob("*")]
    assert not [name for name in names if ".rpm" in name or ".dpkg" in name]
    manager.assert_well(old, made.NEW)


def test_the_new_version_checks_the_configuration_at_once_and_watches_it(
    manager: PackageManager, old: Container
) -> None:
    before = last_check(old)
    manager.run(old, "upgrade")
    assert last_check(old) != before
    manager.assert_well(old, made.NEW)
    old.path("/etc/vmsnap/apps.d/broken.json").write_text("{")
    until(lambda: state(old, CHECK)[1] == "failed")


def test_what_the_administrator_has_changed_and_added_is_left_alone(
    manager: PackageManager, scene: Scene
) -> None:
    container = scene.container
    scene.database()
    container.write(CONFIGURATION, default(made.OLD) + EDIT)
    container.write("/etc/vmsnap/vmsnap.conf.d/50-local.conf", "[scripts]\nkill_grace = 7\n")
    drop_in = f"/etc/systemd/system/{TIMER}.d/override.conf"
    container.write(drop_in, "[Timer]\nRandomizedDelaySec=10min\n", 0o644)
    container.systemctl("daemon-reload", check=True)
    container.systemctl("enable", "--now", TIMER, check=True)
    since = container.show(TIMER, "ActiveEnterTimestampMonotonic")
    before = own_files(container)
    assert len(before) == 6
    said = manager.run(container, "upgrade", options=manager.keep)
    assert manager.kept_told in said
    beside = container.path(manager.beside)
    assert beside.read_text() == default(made.NEW)
    assert beside.stat().st_mode & 0o7777 == 0o600
    beside.unlink()
    assert own_files(container) == before
    assert state(container, TIMER) == ("enabled", "active")
    assert container.show(TIMER, "ActiveEnterTimestampMonotonic") == since
    assert container.show(TIMER, "RandomizedDelayUSec")["RandomizedDelayUSec"] == "10min"
    manager.assert_well(container, made.NEW)
    scene.freeze()
    assert scene.thaw().verdict == ("success", "application", 0)
    assert scene.events.heard == RESUMED


def own_files(container: Container) -> dict[Path, tuple[bytes, int]]:
    places = (container.path("/etc/vmsnap"), container.path(f"/etc/systemd/system/{TIMER}.d"))
    files = [path for place in places for path in place.rglob("*")]
    return {path: (path.read_bytes(), path.stat().st_mode) for path in files if path.is_file()}


def test_check_units_that_are_disabled_stay_disabled(
    manager: PackageManager, old: Container
) -> None:
    old.systemctl("disable", "--now", CHECK, PATH, check=True)
    manager.run(old, "upgrade")
    assert state(old, CHECK) == ("disabled", "inactive")
    assert state(old, PATH) == ("disabled", "inactive")


def test_a_timer_that_was_enabled_stays_enabled_and_takes_no_snapshot_meanwhile(
    manager: PackageManager, old: Container
) -> None:
    old.systemctl("enable", "--now", TIMER, check=True)
    manager.run(old, "upgrade")
    assert state(old, TIMER) == ("enabled", "active")
    assert old.show(TIMER, "NextElapseUSecRealtime")["NextElapseUSecRealtime"]
    assert old.show(BACKUP, "ExecMainStartTimestamp")["ExecMainStartTimestamp"] == ""


def test_a_downgrade_brings_the_old_version_back(manager: PackageManager, old: Container) -> None:
    manager.run(old, "upgrade")
    manager.run(old, "downgrade", made.OLD)
    assert old.read(CONFIGURATION) == default(made.OLD)
    manager.assert_well(old, made.OLD)


def test_a_reinstallation_mends_a_module_and_leaves_the_configuration(
    manager: PackageManager, old: Container
) -> None:
    edited = old.read(CONFIGURATION) + EDIT
    old.path(CONFIGURATION).write_text(edited)
    old.run("rm", f"{MODULES}/vmsnap/freeze/guard.py", check=True)
    manager.run(old, "reinstall", made.OLD)
    assert old.read(CONFIGURATION) == edited
    verified = manager.verify(old).stdout.splitlines()
    assert [line.split()[-1] for line in verified] == [CONFIGURATION]
    manager.assert_well(old, made.OLD)


# --- a session in progress -----------------------------------------------------------------------


def test_a_held_session_goes_on(manager: PackageManager, data: Scene) -> None:
    container = data.container
    data.database()
    session = data.freeze(f"--only={DATA}")["session"]
    engine = data.engine
    manager.run(container, "upgrade")
    assert container.frozen(DATA)
    assert (data.state, data.engine) == (("active", "success"), engine)
    now = data.vmsnap("status", "--json").result["in_progress"]
    assert now["session"] == session
    assert data.events.heard == ["quiesced"]
    outcome = data.thaw()
    assert outcome.verdict == ("success", "application", 0)
    assert (outcome.result["session"], outcome.errors) == (session, [])
    assert not container.frozen(DATA)
    assert data.events.heard == RESUMED
    manager.assert_well(container, made.NEW)


def test_a_session_whose_pre_scripts_run_goes_on(manager: PackageManager, data: Scene) -> None:
    data.database(pre=data.stop_at("pre"))
    freeze = data.start("freeze", "--json", f"--only={DATA}")
    data.events.wait("quiesced")
    manager.run(data.container, "upgrade")
    data.open("pre")
    assert freeze.finish().result["outcome"] == "held"
    assert data.container.frozen(DATA)
    outcome = data.thaw()
    assert (outcome.verdict, outcome.errors) == (("success", "application", 0), [])
    assert data.events.heard == RESUMED
    manager.assert_well(data.container, made.NEW)


def test_a_session_around_a_command_goes_on(manager: PackageManager, data: Scene) -> None:
    container = data.container
    data.database()
    running = data.run(f"--only={DATA}")
    manager.run(container, "upgrade")
    assert container.frozen(DATA)
    assert data.events.heard == ["quiesced", "held"]
    data.open("release")
    outcome = running.finish()
    assert (outcome.verdict, outcome.errors) == (("success", "application", 0), [])
    assert not container.frozen(DATA)
    assert data.events.heard == ["quiesced", "held", RESUMED[1]]
    manager.assert_well(container, made.NEW)


def test_an_upgrade_waits_for_the_thaw_of_the_root_filesystem(
    manager: PackageManager, scene: Scene
) -> None:
    container = scene.container
    scene.database()
    scene.freeze()
    with manager.waiting(container, "upgrade"):
        assert container.frozen("/")
        assert scene.state == ("active", "success")
        outcome = scene.thaw()
    assert (outcome.verdict, outcome.errors) == (("success", "application", 0), [])
    assert scene.events.heard == RESUMED
    manager.assert_well(container, made.NEW)


def test_an_upgrade_waits_for_the_end_of_a_hold_that_nobody_ends(
    manager: PackageManager, scene: Scene
) -> None:
    container = scene.container
    scene.database()
    session = scene.freeze("--hold=5")["session"]
    with manager.waiting(container, "upgrade"):
        assert scene.events.wait("resumed") == "failed none"
    assert manager.version(container) == made.NEW
    outcome = scene.thaw()
    assert (outcome.result["session"], outcome.errors) == (session, ["HoldExpired"])
    assert scene.events.heard == ["quiesced", "resumed failed none"]
