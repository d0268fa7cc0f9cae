# SPDX-License-Identifier: Apache-2.0
"""`apt-get remove` and `purge`: nothing stays frozen, no application quiesced, nothing left behind.

Nobody has said that a snapshot was taken, so the session that is ended has failed.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest

from tests.packages import made

from . import debian
from .apps import DIRECTORY, UNIT, Scene, scene_of, until
from .container import Container
from .debian import CONFIGURATION, PATH, TIMER
from .image import DEBIAN12

DATA = "/srv/data"
BACKUP = "vmsnap-backup.service"
FAILED = ["quiesced", "resumed failed none"]
LAST = "/var/lib/vmsnap/last-result.json"
STAMP = "/var/lib/systemd/timers/stamp-vmsnap-backup.timer"


@pytest.fixture(scope="module")
def machine() -> Iterator[Container]:
    container = Container(DEBIAN12, lambda root: debian.prepare_with(made.NEW, root))
    try:
        yield container
    finally:
        container.close()


@pytest.fixture
def installed(machine: Container) -> Iterator[Container]:
    debian.put_back(machine, made.NEW)
    with machine.guarded():
        yield machine


@pytest.fixture
def scene(installed: Container) -> Iterator[Scene]:
    with scene_of(installed) as found:
        yield found


@pytest.fixture
def data(scene: Scene) -> Scene:
    """With a filesystem beside `/`: apt can write while it is frozen."""
    scene.container.add_filesystem(DATA)
    return scene


def remove(container: Container) -> str:
    said = debian.apt(container, "remove", "vmsnap")
    assert not container.path("/usr/bin/vmsnap").exists()
    debian.assert_no_unit(container)
    return said


def last(container: Container) -> dict[str, Any]:
    """What the last session has come to."""
    document: dict[str, Any] = json.loads(container.read(LAST))
    return document


def begin_scheduled(scene: Scene) -> None:
    """Start the unit of the timer; return when it holds."""
    scene.database()
    words = f"{scene.say('held')}; {scene.stop_at('release')}"
    scene.container.write(DIRECTORY / "take", f"#!/bin/sh\n{words}\n", 0o700)
    settings = f"[freeze]\nonly = {DATA}\n[snapshot]\ncommand = {DIRECTORY}/take\n"
    scene.container.write(CONFIGURATION, settings)
    scene.container.systemctl("start", "--no-block", BACKUP, check=True)
    scene.events.wait("held")


def test_agents_no_longer_call_what_is_not_there(installed: Container) -> None:
    """They would refuse every snapshot."""
    for agent in ("nutanix", "vmware"):
        installed.run("vmsnap", "integrate", agent)
    hooks = ["usr/local/sbin/pre_freeze", "usr/local/sbin/post_thaw", "etc/vmware-tools"]
    assert all(installed.path(f"/{hook}").exists() for hook in hooks)
    said = remove(installed)
    assert "removed /usr/local/sbin/pre_freeze" in said
    assert not any(installed.path(f"/{hook}").exists() for hook in hooks)


# --- a session in progress -----------------------------------------------------------------------


def test_a_held_session_ends_before_the_program_goes(data: Scene) -> None:
    data.database()
    session = data.freeze(f"--only={DATA}")["session"]
    remove(data.container)
    assert not data.container.pids("vmsnap")
    assert not data.container.frozen(DATA)
    assert data.events.heard == FAILED
    result = last(data.container)
    assert (result["session"], result["outcome"]) == (session, "failed")
    assert [error["name"] for error in result["errors"]] == ["SnapshotFailed"]


def test_a_session_whose_pre_scripts_run_ends_before_it_freezes(data: Scene) -> None:
    data.database(pre=data.stop_at("pre"))
    freeze = data.start("freeze", "--json", f"--only={DATA}")
    data.events.wait("quiesced")
    remove(data.container)
    begun = freeze.finish()
    assert begun.verdict == ("failed", "none", 1)
    assert not data.container.frozen(DATA)
    assert data.events.heard == FAILED


def test_a_scheduled_session_ends_before_the_program_goes(data: Scene) -> None:
    begin_scheduled(data)
    remove(data.container)
    assert not data.container.frozen(DATA)
    assert data.events.heard == ["quiesced", "held", "resumed failed none"]
    assert last(data.container)["outcome"] == "failed"


def test_a_session_around_a_command_is_thawed_and_does_not_claim_more(data: Scene) -> None:
    data.database()
    running = data.run("--only", DATA)
    assert f"{DATA}: thawed" in remove(data.container)
    assert not data.container.frozen(DATA)
    data.open("release")
    outcome = running.finish()
    assert outcome.subjects == [("ThawedEarly", DATA)]
    assert outcome.result["consistency"] == "crash"
    assert data.events.heard == ["quiesced", "held", "resumed success crash"]


def test_a_session_around_a_command_whose_pre_scripts_run_goes_on(data: Scene) -> None:
    """It has frozen nothing yet, and has opened all that it needs."""
    data.database(pre=data.stop_at("pre"))
    running = data.start("run", "--json", f"--only={DATA}", "--", "true")
    data.events.wait("quiesced")
    remove(data.container)
    data.open("pre")
    outcome = running.finish()
    assert (outcome.verdict, outcome.errors) == (("success", "application", 0), [])
    assert not data.container.frozen(DATA)
    assert data.events.heard == ["quiesced", "resumed success application"]


def test_a_session_that_begins_in_the_middle_of_it_ends(data: Scene) -> None:
    data.database()
    data.begin_when_stopped(PATH, f"--only={DATA}")
    remove(data.container)
    assert not data.container.pids("vmsnap")
    assert not data.container.frozen(DATA)
    assert data.events.heard == FAILED
    assert last(data.container)["outcome"] == "failed"


def test_a_held_session_ends_when_only_the_files_of_an_upgrade_are_there(data: Scene) -> None:
    """dpkg runs no prerm then."""
    data.database()
    session = data.freeze(f"--only={DATA}")["session"]
    package = f"/{debian.SERVED}/apt/vmsnap_{made.NEW}_all.deb"
    data.container.run("dpkg", "--unpack", package, check=True, timeout=debian.PATIENCE)
    assert data.container.frozen(DATA)
    debian.apt(data.container, "remove", "vmsnap")
    assert not data.container.path("/usr/bin/vmsnap").exists()
    assert data.container.systemctl("list-units", "--failed", "--plain", "--no-legend").stdout == ""
    assert not data.container.pids("vmsnap")
    assert not data.container.frozen(DATA)
    assert data.events.heard == FAILED
    result = last(data.container)
    assert (result["session"], result["outcome"]) == (session, "failed")


def test_a_held_session_does_not_end_as_taken_when_the_program_cannot_run(data: Scene) -> None:
    data.database()
    session = data.freeze(f"--only={DATA}")["session"]
    data.container.run("chmod", "-x", "/usr/bin/vmsnap", check=True)
    remove(data.container)
    assert not data.container.frozen(DATA)
    assert data.events.heard == FAILED
    result = last(data.container)
    assert (result["session"], result["outcome"]) == (session, "failed")


def test_a_scheduled_session_ends_even_if_services_are_not_to_be_touched(data: Scene) -> None:
    begin_scheduled(data)
    policy = data.container.write("/usr/sbin/policy-rc.d", "#!/bin/sh\nexit 101\n", 0o755)
    try:
        debian.apt(data.container, "remove", "vmsnap")
    finally:
        policy.unlink()
    assert not data.container.pids("vmsnap")
    assert not data.container.frozen(DATA)
    assert data.events.heard == ["quiesced", "held", "resumed failed none"]
    assert last(data.container)["outcome"] == "failed"


def test_a_purge_leaves_the_lock_to_the_session_that_has_it(data: Scene) -> None:
    data.database()
    running = data.run(f"--only={DATA}")
    debian.apt(data.container, "purge", "vmsnap")
    debian.install(data.container, made.NEW)
    for words in (["freeze", f"--only={DATA}"], ["run", f"--only={DATA}", "--", "true"]):
        assert data.vmsnap(*words).code == 75
    data.open("release")
    assert running.finish().subjects == [("ThawedEarly", DATA)]
    assert data.events.heard == ["quiesced", "held", "resumed success crash"]
    data.freeze(f"--only={DATA}")
    assert data.container.frozen(DATA)
    assert data.thaw().verdict == ("success", "application", 0)
    assert not data.container.frozen(DATA)


def test_a_removal_waits_for_the_thaw_of_the_root_filesystem(scene: Scene) -> None:
    container = scene.container
    scene.database()
    scene.freeze()
    with debian.apt_meanwhile(container, "remove", "vmsnap"):
        until(lambda: debian.waits_for_the_disk(container))
        assert container.frozen("/")
        outcome = scene.thaw()
    assert (outcome.verdict, outcome.errors) == (("success", "application", 0), [])
    assert scene.events.heard == ["quiesced", "resumed success application"]
    assert not container.path("/usr/bin/vmsnap").exists()
    debian.assert_no_unit(container)


# --- nothing in progress -------------------------------------------------------------------------


def test_a_removal_ends_what_watches_and_what_is_scheduled(scene: Scene) -> None:
    container = scene.container
    scene.database()  # the directory of its scripts is watched
    watched = "vmsnap-check@etc-vmsnap-scripts.path"
    until(lambda: debian.state(container, watched)[1] == "active")
    container.systemctl("enable", "--now", TIMER, check=True)
    scene.vmsnap("freeze", "--hold=1")
    scene.wait_for_failure()
    until(lambda: debian.state(container, UNIT)[1] == "failed")
    remove(container)
    assert container.path(CONFIGURATION).exists()
    assert container.path("/etc/vmsnap/apps.d/db.json").exists()
    assert last(container)["outcome"] == "failed"
    for unit in (watched, PATH, TIMER):
        assert debian.state(container, unit)[1] == "inactive"


def test_a_removal_forgets_no_failure_of_a_unit_of_the_administrators(installed: Container) -> None:
    installed.run("systemd-run", "--wait", "--unit=vmsnap-mine", "false")
    debian.apt(installed, "remove", "vmsnap")
    assert installed.systemctl("is-failed", "vmsnap-mine.service").stdout == "failed\n"


def test_a_purge_removes_also_what_sessions_left(scene: Scene) -> None:
    container = scene.container
    container.systemctl("enable", "--now", TIMER, check=True)
    assert container.path(STAMP).exists()
    scene.freeze()
    assert scene.thaw().code == 0
    debian.apt(container, "purge", "vmsnap")
    for path in ("/etc/vmsnap", "/var/lib/vmsnap", "/run/vmsnap", STAMP):
        assert not container.path(path).exists(), path
    left = container.run("find", "/etc", "/usr", "/var/lib/systemd", "-name", "*vmsnap*").stdout
    assert not [path for path in left.split() if not path.startswith("/etc/apt/")]
    debian.assert_no_unit(container)
