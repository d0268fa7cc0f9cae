# SPDX-License-Identifier: Apache-2.0
"""`apt-get install` of a newer version: what it replaces and what it leaves alone, most of all a
session in progress."""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.packages import made

from . import debian
from .apps import Scene, scene_of, until
from .container import Container
from .debian import CHECK, CONFIGURATION, KEEP, PATH, TIMER
from .image import DEBIAN12

DATA = "/srv/data"
RESUMED = ["quiesced", "resumed success application"]


@pytest.fixture(scope="module")
def prepared() -> Iterator[tuple[Container, str]]:
    """Where the older version was installed before the first boot, and what apt said then."""
    said: list[str] = []
    container = Container(DEBIAN12, lambda root: said.append(debian.prepare_with(made.OLD, root)))
    try:
        yield container, said[0]
    finally:
        container.close()


@pytest.fixture
def old(prepared: tuple[Container, str]) -> Iterator[Container]:
    container, _ = prepared
    debian.put_back(container, made.OLD)
    with container.guarded():
        yield container


@pytest.fixture
def scene(old: Container) -> Iterator[Scene]:
    with scene_of(old) as found:
        yield found


def upgrade(container: Container, *options: str) -> str:
    return debian.install(container, made.NEW, *options)


def test_installed_where_no_systemd_runs_it_comes_up_at_the_boot(
    prepared: tuple[Container, str],
) -> None:
    container, said = prepared
    debian.assert_well(container, made.OLD)
    assert debian.state(container, TIMER) == ("disabled", "inactive")
    (ours,) = re.findall(r"^Setting up vmsnap .*\n((?:.*\n)*?)(?=Setting|Processing)", said, re.M)
    assert all(line.startswith("Created symlink ") for line in filter(None, ours.split("\n"))), ours


# --- what is replaced, and what is not -----------------------------------------------------------


def test_an_unchanged_configuration_is_replaced_and_checked_again(old: Container) -> None:
    assert old.read(CONFIGURATION) == (made.tree(made.OLD) / "etc/vmsnap.conf").read_text()
    before = old.show(CHECK, "InvocationID")
    upgrade(old)
    assert old.read(CONFIGURATION) == (made.ROOT / "etc/vmsnap.conf").read_text()
    assert old.show(CHECK, "InvocationID") != before
    debian.assert_well(old, made.NEW)


def test_what_the_administrator_has_changed_and_added_is_left_alone(scene: Scene) -> None:
    container = scene.container
    scene.database()
    container.write(CONFIGURATION, "[freeze]\nhold = 17\n")
    container.write("/etc/vmsnap/vmsnap.conf.d/50-local.conf", "[scripts]\nkill_grace = 7\n")
    drop_in = f"/etc/systemd/system/{TIMER}.d/override.conf"
    container.write(drop_in, "[Timer]\nRandomizedDelaySec=10min\n", 0o644)
    container.systemctl("daemon-reload", check=True)
    container.systemctl("enable", "--now", TIMER, check=True)
    since = container.show(TIMER, "ActiveEnterTimestampMonotonic")
    before = own_files(container)
    assert len(before) == 6
    upgrade(container, KEEP)
    beside = container.path(f"{CONFIGURATION}.dpkg-dist")
    assert beside.read_text() == (made.ROOT / "etc/vmsnap.conf").read_text()
    assert beside.stat().st_mode & 0o777 == 0o600
    beside.unlink()
    assert own_files(container) == before
    assert debian.state(container, TIMER) == ("enabled", "active")
    assert container.show(TIMER, "ActiveEnterTimestampMonotonic") == since
    assert container.show(TIMER, "RandomizedDelayUSec")["RandomizedDelayUSec"] == "10min"
    debian.assert_well(container, made.NEW)


def own_files(container: Container) -> dict[Path, bytes]:
    places = (container.path("/etc/vmsnap"), container.path(f"/etc/systemd/system/{TIMER}.d"))
    files = [path for place in places for path in place.rglob("*")]
    return {path: path.read_bytes() for path in files if path.is_file()}


def test_check_units_that_are_disabled_stay_disabled(old: Container) -> None:
    old.systemctl("disable", "--now", CHECK, PATH, check=True)
    upgrade(old)
    assert debian.state(old, CHECK) == ("disabled", "inactive")
    assert debian.state(old, PATH) == ("disabled", "inactive")


# --- a session in progress -----------------------------------------------------------------------


def test_a_held_session_goes_on(scene: Scene) -> None:
    container = scene.container
    container.add_filesystem(DATA)
    scene.database()
    session = scene.freeze(f"--only={DATA}")["session"]
    engine = scene.engine
    upgrade(container)
    assert container.frozen(DATA)
    assert (scene.state, scene.engine) == (("active", "success"), engine)
    now = scene.vmsnap("status", "--json").result["in_progress"]
    assert now["session"] == session
    assert scene.events.heard == ["quiesced"]
    outcome = scene.thaw()
    assert outcome.verdict == ("success", "application", 0)
    assert (outcome.result["session"], outcome.errors) == (session, [])
    assert not container.frozen(DATA)
    assert scene.events.heard == RESUMED
    debian.assert_well(container, made.NEW)


def test_a_session_whose_pre_scripts_run_goes_on(scene: Scene) -> None:
    scene.container.add_filesystem(DATA)
    scene.database(pre=scene.stop_at("pre"))
    freeze = scene.start("freeze", "--json", f"--only={DATA}")
    scene.events.wait("quiesced")
    upgrade(scene.container)
    scene.open("pre")
    assert freeze.finish().result["outcome"] == "held"
    assert scene.container.frozen(DATA)
    outcome = scene.thaw()
    assert (outcome.verdict, outcome.errors) == (("success", "application", 0), [])
    assert scene.events.heard == RESUMED
    debian.assert_well(scene.container, made.NEW)


def test_a_session_around_a_command_goes_on(scene: Scene) -> None:
    container = scene.container
    container.add_filesystem(DATA)
    scene.database()
    running = scene.run(f"--only={DATA}")
    upgrade(container)
    assert container.frozen(DATA)
    assert scene.events.heard == ["quiesced", "held"]
    scene.open("release")
    outcome = running.finish()
    assert (outcome.verdict, outcome.errors) == (("success", "application", 0), [])
    assert not container.frozen(DATA)
    assert scene.events.heard == ["quiesced", "held", RESUMED[1]]
    debian.assert_well(container, made.NEW)


def test_an_upgrade_waits_for_the_thaw_of_the_root_filesystem(scene: Scene) -> None:
    container = scene.container
    scene.database()
    scene.freeze()
    with debian.apt_meanwhile(container, "install", f"vmsnap={made.NEW}"):
        until(lambda: debian.waits_for_the_disk(container))
        assert container.frozen("/")
        outcome = scene.thaw()
    assert (outcome.verdict, outcome.errors) == (("success", "application", 0), [])
    assert scene.events.heard == RESUMED
    debian.assert_well(container, made.NEW)


def test_an_upgrade_waits_for_the_end_of_a_hold_that_nobody_ends(scene: Scene) -> None:
    container = scene.container
    scene.database()
    session = scene.freeze("--hold=5")["session"]
    with debian.apt_meanwhile(container, "install", f"vmsnap={made.NEW}"):
        until(lambda: debian.waits_for_the_disk(container))
        assert scene.events.wait("resumed") == "failed none"
    assert debian.version(container) == made.NEW
    outcome = scene.thaw()
    assert (outcome.result["session"], outcome.errors) == (session, ["HoldExpired"])
    assert scene.events.heard == ["quiesced", "resumed failed none"]


# --- what nobody has signed ----------------------------------------------------------------------


def tamper(path: Path) -> None:
    """Its size stays."""
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("InRelease", ("update", "--error-on=any")),
        ("Packages.gz", ("update", "--error-on=any")),
        (f"vmsnap_{made.NEW}_all.deb", ("install", f"vmsnap={made.NEW}")),
    ],
)
def test_what_was_tampered_with_is_refused(
    old: Container, name: str, words: tuple[str, ...]
) -> None:
    served = old.path(f"/{debian.SERVED}")
    if name == "Packages.gz":
        (served / "apt/Packages").unlink()  # apt takes the one or the other
    try:
        tamper(served / "apt" / name)
        if words[0] == "update":  # or what has not changed would not be read again
            shutil.rmtree(old.path("/var/lib/apt/lists"))
        done = old.run("apt-get", "-qy", *words, env=debian.QUIET, timeout=debian.PATIENCE)
        assert done.returncode == 100, done.stdout
        assert re.search("Hash Sum mismatch|BADSIG|signature", done.stderr), done.stderr
        assert debian.version(old) == made.OLD
    finally:
        shutil.copytree(made.repositories(), served, dirs_exist_ok=True)
        debian.apt(old, "update")
    debian.assert_well(old, made.OLD)
