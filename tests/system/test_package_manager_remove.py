# SPDX-License-Identifier: Apache-2.0
"""A removal: nothing stays frozen, no application quiesced, what the package brought is gone, what
the administrator has made is not.

Nobody has said that a snapshot was taken, so the session that is ended has failed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

from tests.packages import made

from .apps import UNIT, Scene, scene_of, until
from .container import Container
from .debian import APT
from .distribution import DNF
from .package_manager import (
    CHECK,
    CONFIGURATION,
    DATA,
    EDIT,
    PATH,
    TIMER,
    PackageManager,
    begin_scheduled,
    booted,
    default,
    last_result,
    state,
)

STAMP = "/var/lib/systemd/timers/stamp-vmsnap-backup.timer"
FAILED = ["quiesced", "resumed failed none"]
APP = {
    *("/etc/vmsnap", "/etc/vmsnap/apps.d", "/etc/vmsnap/apps.d/db.json", "/etc/vmsnap/scripts"),
    *("/etc/vmsnap/scripts/db-pre", "/etc/vmsnap/scripts/db-post"),
}


@pytest.fixture(scope="module", params=(APT, DNF), ids=str)
def manager(request: pytest.FixtureRequest) -> PackageManager:
    found: PackageManager = request.param
    return found


@pytest.fixture(scope="module")
def machine(manager: PackageManager) -> Iterator[Container]:
    with booted(manager.system, manager.prepare_needed) as container:
        yield container


@pytest.fixture(scope="module")
def before(manager: PackageManager, machine: Container) -> set[str]:
    """What there was before it was ever installed."""
    # systemd makes this one for the first timer that keeps a stamp.
    machine.path("/var/lib/systemd/timers").mkdir(exist_ok=True)
    machine.path(DATA).mkdir()
    return manager.files(machine)


@pytest.fixture
def installed(manager: PackageManager, machine: Container, before: set[str]) -> Iterator[Container]:
    """Just installed, where nothing is left of a removal before."""
    manager.forget(machine, before)
    manager.put_back(machine, made.NEW)
    with machine.guarded():
        yield machine


@pytest.fixture
def scene(installed: Container) -> Iterator[Scene]:
    with scene_of(installed) as found:
        yield found


@pytest.fixture
def data(scene: Scene) -> Scene:
    """With a filesystem beside `/`: a package manager can write while it is frozen."""
    scene.container.add_filesystem(DATA)
    return scene


def assert_result(manager: PackageManager, container: Container, **expected: str) -> None:
    """That of the last session, where a removal does not remove it."""
    if not manager.removal_purges:
        found = last_result(container)
        assert {name: found[name] for name in expected} == expected


# --- what is left --------------------------------------------------------------------------------


def test_nothing_is_left_of_what_was_used_but_not_changed(
    manager: PackageManager, scene: Scene, before: set[str]
) -> None:
    container = scene.container
    container.systemctl("enable", "--now", TIMER, check=True)
    assert container.path(STAMP).exists()
    scene.freeze()
    assert scene.thaw().code == 0
    container.write("/var/lib/vmsnap/quiesce/db/position.json", "{}")  # as quiescers do
    manager.run(container, "purge")
    manager.assert_gone(container, purged=True)
    assert manager.changes(container, before) == set()


def test_what_the_administrator_has_made_is_left(
    manager: PackageManager, scene: Scene, before: set[str]
) -> None:
    container = scene.container
    scene.database()
    container.path(CONFIGURATION).write_text(edited := default(made.NEW) + EDIT)
    manager.run(container, "remove")
    manager.assert_gone(container)
    assert container.read(manager.saved) == edited
    manager.run(container, "purge")
    manager.assert_gone(container, purged=True)
    left = {manager.saved} - {CONFIGURATION}  # its own, to apt
    assert manager.changes(container, before) == APP | left
    assert all(container.read(path) == edited for path in left)
    manager.run(container, "install")
    assert container.read(CONFIGURATION) == default(made.NEW)
    manager.assert_well(container, made.NEW)
    scene.freeze()
    assert scene.thaw().verdict == ("success", "application", 0)


def test_agents_no_longer_call_what_is_not_there(
    manager: PackageManager, installed: Container
) -> None:
    """They would refuse every snapshot."""
    for agent in ("nutanix", "vmware"):
        installed.run("vmsnap", "integrate", agent)
    hooks = ["usr/local/sbin/pre_freeze", "usr/local/sbin/post_thaw", "etc/vmware-tools"]
    assert all(installed.path(f"/{hook}").exists() for hook in hooks)
    assert "removed /usr/local/sbin/pre_freeze" in manager.run(installed, "remove")
    assert not any(installed.path(f"/{hook}").exists() for hook in hooks)
    manager.assert_gone(installed)


def test_a_removal_ends_what_watches_and_what_is_scheduled(
    manager: PackageManager, scene: Scene
) -> None:
    container = scene.container
    scene.database()  # the directory of its scripts is watched
    watched = "vmsnap-check@etc-vmsnap-scripts.path"
    until(lambda: state(container, watched)[1] == "active")
    container.systemctl("enable", "--now", TIMER, check=True)
    scene.vmsnap("freeze", "--hold=1")
    scene.wait_for_failure()
    until(lambda: state(container, UNIT)[1] == "failed")
    manager.run(container, "remove")
    manager.assert_gone(container)
    assert container.path(CONFIGURATION).exists() is not manager.removal_purges
    assert container.path("/etc/vmsnap/apps.d/db.json").exists()
    assert_result(manager, container, outcome="failed")
    for unit in (watched, PATH, TIMER):
        assert state(container, unit)[1] == "inactive"


def test_a_check_that_failed_is_not_listed_for_ever(
    manager: PackageManager, installed: Container
) -> None:
    installed.write("/etc/vmsnap/apps.d/broken.json", "{")
    until(lambda: state(installed, CHECK)[1] == "failed")
    manager.run(installed, "remove")
    manager.assert_gone(installed)


def test_a_failure_of_a_unit_of_the_administrators_is_not_forgotten(
    manager: PackageManager, installed: Container
) -> None:
    installed.run("systemd-run", "--wait", "--unit=vmsnap-mine", "false")
    manager.run(installed, "remove")
    assert installed.systemctl("is-failed", "vmsnap-mine.service").stdout == "failed\n"


# --- a session in progress -----------------------------------------------------------------------


def test_a_held_session_ends_before_the_program_goes(manager: PackageManager, data: Scene) -> None:
    container = data.container
    data.database()
    session = data.freeze(f"--only={DATA}")["session"]
    manager.run(container, "remove")
    manager.assert_gone(container)
    assert not container.frozen(DATA)
    assert data.events.heard == FAILED
    told = [record["MESSAGE"] for record in container.journal(f"VMSNAP_SESSION={session}")]
    assert [words for words in told if words.startswith(f"Session {session} ended: failed")]
    assert_result(manager, container, session=session, outcome="failed")
    if not manager.removal_purges:
        errors = last_result(container)["errors"]
        assert [error["name"] for error in errors] == ["SnapshotFailed"]


def test_a_session_whose_pre_scripts_run_ends_before_it_freezes(
    manager: PackageManager, data: Scene
) -> None:
    data.database(pre=data.stop_at("pre"))
    freeze = data.start("freeze", "--json", f"--only={DATA}")
    data.events.wait("quiesced")
    manager.run(data.container, "remove")
    begun = freeze.finish()
    assert begun.verdict == ("failed", "none", 1)
    assert not data.container.frozen(DATA)
    assert data.events.heard == FAILED
    manager.assert_gone(data.container)


def test_a_scheduled_session_ends_before_the_program_goes(
    manager: PackageManager, data: Scene
) -> None:
    begin_scheduled(data)
    manager.run(data.container, "remove")
    assert not data.container.frozen(DATA)
    assert data.events.heard == ["quiesced", "held", "resumed failed none"]
    assert_result(manager, data.container, outcome="failed")
    data.open("release")
    manager.assert_gone(data.container)


def test_a_session_around_a_command_is_thawed_and_does_not_claim_more(
    manager: PackageManager, data: Scene
) -> None:
    container = data.container
    data.database()
    running = data.run(f"--only={DATA}")
    assert f"{DATA}: thawed" in manager.run(container, "remove")
    assert not container.path("/usr/bin/vmsnap").exists()
    manager.assert_no_unit(container)
    assert not container.frozen(DATA)
    data.open("release")
    outcome = running.finish()
    assert outcome.subjects == [("ThawedEarly", DATA)]
    assert outcome.verdict == ("success", "crash", 0)
    assert data.events.heard == ["quiesced", "held", "resumed success crash"]
    manager.assert_gone(container, lock=True)


def test_a_session_around_a_command_leaves_its_result_when_all_else_is_gone(
    manager: PackageManager, data: Scene, before: set[str]
) -> None:
    data.database()
    running = data.run(f"--only={DATA}")
    manager.run(data.container, "purge")
    data.open("release")
    assert running.finish().subjects == [("ThawedEarly", DATA)]
    manager.assert_gone(data.container, purged=True, lock=True)
    left = manager.changes(data.container, before) - APP
    assert left == {"/var/lib/vmsnap", "/var/lib/vmsnap/last-result.json"}


def test_a_session_around_a_command_whose_pre_scripts_run_goes_on(
    manager: PackageManager, data: Scene
) -> None:
    """It has frozen nothing yet, and has opened all that it needs."""
    data.database(pre=data.stop_at("pre"))
    running = data.start("run", "--json", f"--only={DATA}", "--", "true")
    data.events.wait("quiesced")
    manager.run(data.container, "remove")
    assert not data.container.path("/usr/bin/vmsnap").exists()
    manager.assert_no_unit(data.container)
    data.open("pre")
    outcome = running.finish()
    assert (outcome.verdict, outcome.errors) == (("success", "application", 0), [])
    assert not data.container.frozen(DATA)
    assert data.events.heard == ["quiesced", "resumed success application"]


def test_a_session_around_a_command_keeps_its_lock(manager: PackageManager, data: Scene) -> None:
    data.database()
    running = data.run(f"--only={DATA}")
    manager.run(data.container, "purge")
    manager.run(data.container, "install")
    for words in (["freeze", f"--only={DATA}"], ["run", f"--only={DATA}", "--", "true"]):
        assert data.vmsnap(*words).code == 75
    data.open("release")
    assert running.finish().subjects == [("ThawedEarly", DATA)]
    assert data.events.heard == ["quiesced", "held", "resumed success crash"]
    data.freeze(f"--only={DATA}")
    assert data.container.frozen(DATA)
    assert data.thaw().verdict == ("success", "application", 0)
    assert not data.container.frozen(DATA)


def begin_in_the_middle(data: Scene) -> dict[str, str]:
    data.begin_when_stopped(PATH, f"--only={DATA}")
    return {}


def begin_where_the_program_cannot_run(data: Scene) -> dict[str, str]:
    session = data.freeze(f"--only={DATA}")["session"]
    data.container.run("chmod", "-x", "/usr/bin/vmsnap", check=True)
    return {"session": session}


@pytest.mark.parametrize("begin", [begin_in_the_middle, begin_where_the_program_cannot_run])
def test_a_held_session_does_not_end_as_taken(
    manager: PackageManager, data: Scene, begin: Callable[[Scene], dict[str, str]]
) -> None:
    data.database()
    known = begin(data)
    manager.run(data.container, "remove")
    manager.assert_gone(data.container)
    assert not data.container.frozen(DATA)
    assert data.events.heard == FAILED
    assert_result(manager, data.container, **known, outcome="failed")


def test_a_removal_waits_for_the_thaw_of_the_root_filesystem(
    manager: PackageManager, scene: Scene
) -> None:
    container = scene.container
    scene.database()
    scene.freeze()
    with manager.waiting(container, "remove"):
        assert container.frozen("/")
        outcome = scene.thaw()
    assert (outcome.verdict, outcome.errors) == (("success", "application", 0), [])
    assert scene.events.heard == ["quiesced", "resumed success application"]
    manager.assert_gone(container)
