# SPDX-License-Identifier: Apache-2.0
"""`dnf remove vmsnap`: nothing stays frozen or quiesced, what the package brought is gone, what the
administrator has made is not."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.packages import made

from . import distribution
from .apps import Scene, scene_of, until
from .container import Container, status
from .image import DNF

CHECK, PATH, TIMER = "vmsnap-check.service", "vmsnap-check.path", "vmsnap-backup.timer"
BACKUP = "vmsnap-backup.service"
CONFIGURATION = "/etc/vmsnap/vmsnap.conf"
EDIT = "textfile = /run/vmsnap-test/vmsnap.prom\n"  # in its last section
DATA = "/srv/data"
PRESETS = "/etc/systemd/system-preset/10-local.preset"
# What is written by others: dnf's and rpm's databases and caches, and logs.
OTHERS = ("/root/.rpmdb", "/var/lib/dnf", "/var/cache/dnf", "/var/log")


@pytest.fixture(scope="module")
def machine() -> Iterator[Container]:
    container = Container(DNF, distribution.prepare)
    try:
        yield container
    finally:
        container.close()


@pytest.fixture(scope="module")
def before(machine: Container) -> list[str]:
    """What there was before it was ever installed."""
    # systemd makes this one for the first timer that keeps a stamp.
    machine.path("/var/lib/systemd/timers").mkdir(exist_ok=True)
    machine.path(DATA).mkdir()
    return files(machine)


@pytest.fixture
def installed(machine: Container, before: list[str]) -> Iterator[Container]:
    """Just installed, where nothing is left of a removal before."""
    forget(machine, before)
    distribution.done(machine, "install", "vmsnap")
    with machine.guarded():
        yield machine


@pytest.fixture
def scene(installed: Container) -> Iterator[Scene]:
    with scene_of(installed) as found:
        yield found


def files(container: Container) -> list[str]:
    """All that is on the root filesystem, with kind, mode and owner."""
    form = "%p %y %m %u:%g %l\\n"
    argv = ["find", "/", "-xdev"]
    for path in OTHERS:
        argv += ["-path", path, "-prune", "-o"]
    return sorted(container.run(*argv, "-printf", form, check=True).stdout.splitlines())


def changes(container: Container, before: list[str]) -> set[str]:
    """The paths that were not there before, or are there no more, or have changed."""
    return {line.split()[0] for line in {*files(container)} ^ {*before}}


def forget(container: Container, before: list[str]) -> None:
    """What a removal leaves on purpose, or a test that failed."""
    container.thaw()
    container.added.close()
    container.run("rpm", "--erase", "vmsnap", "python3-sdnotify", *distribution.AVAILABLE)
    container.systemctl("reset-failed")
    new = changes(container, before) - {line.split()[0] for line in before}
    container.run("rm", "-rf", "/run/vmsnap", *new)


def assert_gone(container: Container, lock: bool = False) -> None:
    """Nothing of it is known or running any more; at most the `lock` of a session is left."""
    assert distribution.versions(container) == []
    assert container.path("/run/vmsnap").exists() == lock
    assert container.systemctl("list-unit-files", "--no-legend", "vmsnap*").stdout == ""
    assert container.systemctl("list-units", "--all", "--no-legend", "vmsnap*").stdout == ""
    assert container.systemctl("is-system-running").stdout == "running\n"
    assert not [pid for pid in container.pids() if status(pid)["Name"].startswith("vmsnap")]
    catalogue = container.run("journalctl", "--dump-catalog", check=True).stdout
    assert "vmsnap" not in catalogue


def test_nothing_is_left_of_what_was_used_but_not_changed(scene: Scene, before: list[str]) -> None:
    container = scene.container
    container.systemctl("enable", "--now", TIMER, check=True)
    scene.freeze()
    assert scene.thaw().code == 0
    container.write("/var/lib/vmsnap/quiesce/db/position.json", "{}")  # as quiescers do
    distribution.done(container, "remove", "vmsnap")
    assert_gone(container)
    assert changes(container, before) == set()


def test_what_the_administrator_has_made_is_left(scene: Scene, before: list[str]) -> None:
    container = scene.container
    scene.database()
    container.path(CONFIGURATION).write_text(edited := container.read(CONFIGURATION) + EDIT)
    distribution.done(container, "remove", "vmsnap")
    assert_gone(container)
    assert changes(container, before) == {
        "/etc/vmsnap",
        "/etc/vmsnap/vmsnap.conf.rpmsave",
        "/etc/vmsnap/apps.d",
        "/etc/vmsnap/apps.d/db.json",
        "/etc/vmsnap/scripts",
        "/etc/vmsnap/scripts/db-pre",
        "/etc/vmsnap/scripts/db-post",
    }
    assert container.read(f"{CONFIGURATION}.rpmsave") == edited
    distribution.done(container, "install", "vmsnap")
    assert container.read(CONFIGURATION) == (made.ROOT / "etc/vmsnap.conf").read_text()
    assert distribution.state(container, CHECK) == ("enabled", "active")
    scene.freeze()
    assert scene.thaw().verdict == ("success", "application", 0)


def test_agents_no_longer_call_what_is_not_there(installed: Container) -> None:
    installed.run("vmsnap", "integrate", "nutanix")
    assert installed.path("/usr/local/sbin/pre_freeze").exists()
    distribution.done(installed, "remove", "vmsnap")
    assert not installed.path("/usr/local/sbin/pre_freeze").exists()


def test_a_check_that_failed_is_not_listed_for_ever(installed: Container) -> None:
    installed.write("/etc/vmsnap/apps.d/broken.json", "{")
    until(lambda: distribution.state(installed, CHECK)[1] == "failed")
    distribution.done(installed, "remove", "vmsnap")
    assert_gone(installed)


def test_a_failure_of_a_unit_of_the_administrators_is_not_forgotten(installed: Container) -> None:
    installed.run("systemd-run", "--wait", "--unit=vmsnap-mine", "false")
    distribution.done(installed, "remove", "vmsnap")
    assert installed.systemctl("is-failed", "vmsnap-mine.service").stdout == "failed\n"


def test_a_session_that_holds_ends_as_failed_before(scene: Scene) -> None:
    container = scene.container
    container.add_filesystem(DATA)
    scene.database()
    session = scene.freeze(f"--only={DATA}")["session"]
    distribution.done(container, "remove", "vmsnap")
    assert not container.frozen(DATA)
    assert scene.events.heard == ["quiesced", "resumed failed none"]
    told = [record["MESSAGE"] for record in container.journal(f"VMSNAP_SESSION={session}")]
    assert [words for words in told if words.startswith(f"Session {session} ended: failed")]
    assert_gone(container)


def test_a_scheduled_session_ends_as_failed_before(scene: Scene) -> None:
    container = scene.container
    container.add_filesystem(DATA)
    scene.database()
    command = container.write(
        "/run/vmsnap-test/take",
        f"#!/bin/sh\n{scene.say('held')}; {scene.stop_at('taken')}\n",
        0o700,
    )
    drop_in = "[snapshot]\ncommand = /run/vmsnap-test/take\n[freeze]\nonly = /srv/data\n"
    container.write("/etc/vmsnap/vmsnap.conf.d/50-local.conf", drop_in)
    assert command.exists()
    container.systemctl("start", "--no-block", BACKUP, check=True)
    scene.events.wait("held")
    assert container.frozen(DATA)
    distribution.done(container, "remove", "vmsnap")
    assert not container.frozen(DATA)
    assert scene.events.heard[-1].startswith("resumed failed")
    scene.open("taken")
    assert_gone(container)


def test_a_run_in_progress_is_thawed_and_tells_the_truth(scene: Scene, before: list[str]) -> None:
    container = scene.container
    container.add_filesystem(DATA)
    scene.database()
    run = scene.run(f"--only={DATA}")
    assert f"{DATA}: thawed" in distribution.done(container, "remove", "vmsnap")
    assert not container.frozen(DATA)
    scene.open("release")
    outcome = run.finish()
    assert outcome.subjects == [("ThawedEarly", DATA)]
    assert outcome.verdict == ("success", "crash", 0)
    assert scene.events.heard == ["quiesced", "held", "resumed success crash"]
    assert_gone(container, lock=True)
    # It came to its end, and to its result, when all else was gone.
    left = {path for path in changes(container, before) if not path.startswith("/etc/vmsnap")}
    assert left == {"/var/lib/vmsnap", "/var/lib/vmsnap/last-result.json"}


def test_a_run_in_progress_keeps_its_lock(scene: Scene) -> None:
    container = scene.container
    container.add_filesystem(DATA)
    scene.database()
    run = scene.run(f"--only={DATA}")
    distribution.done(container, "remove", "vmsnap")
    distribution.done(container, "install", "vmsnap")
    for words in (["freeze", f"--only={DATA}"], ["run", f"--only={DATA}", "--", "true"]):
        assert scene.vmsnap(*words).code == 75
    scene.open("release")
    assert run.finish().subjects == [("ThawedEarly", DATA)]
    scene.freeze(f"--only={DATA}")
    assert container.frozen(DATA)
    assert scene.thaw().verdict == ("success", "application", 0)
    assert not container.frozen(DATA)


def test_a_session_that_begins_in_the_middle_of_it_ends(scene: Scene) -> None:
    container = scene.container
    container.add_filesystem(DATA)
    scene.database()
    scene.begin_when_stopped(PATH, f"--only={DATA}")
    distribution.done(container, "remove", "vmsnap")
    assert not container.frozen(DATA)
    assert scene.events.heard == ["quiesced", "resumed failed none"]
    assert_gone(container)


def test_a_session_does_not_end_as_taken_when_the_program_cannot_run(scene: Scene) -> None:
    container = scene.container
    container.add_filesystem(DATA)
    scene.database()
    scene.freeze(f"--only={DATA}")
    container.run("chmod", "-x", "/usr/bin/vmsnap", check=True)
    distribution.done(container, "remove", "vmsnap")
    assert not container.frozen(DATA)
    assert scene.events.heard == ["quiesced", "resumed failed none"]
    assert_gone(container)


def test_what_a_preset_of_the_administrator_disables_is_not_started(
    machine: Container, before: list[str]
) -> None:
    forget(machine, before)
    machine.write(PRESETS, "disable vmsnap-*\n", 0o644)
    distribution.done(machine, "install", "vmsnap")
    for unit in (CHECK, PATH, TIMER):
        assert distribution.state(machine, unit) == ("disabled", "inactive"), unit
    assert machine.run("vmsnap", "check").returncode == 0
