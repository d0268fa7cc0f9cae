# SPDX-License-Identifier: Apache-2.0
"""The unit files on a real systemd: it understands them, and what they must never have breaks them.

What needs no systemd to be seen is in tests/unit/test_units.py.
"""

from __future__ import annotations

import os
import re
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from .apps import DIRECTORY, UNIT, Scene, scene_of, until
from .container import REPOSITORY, Container, status

UNITS = sorted(path.name for path in (REPOSITORY / "systemd").iterdir())
SERVICES = [name for name in UNITS if name.endswith(".service")]
DOCUMENT = REPOSITORY / "docs/units.md"
MOST_BELOW = 0.5  # a ceiling far above what is true tells nobody anything


@pytest.fixture
def scene(container: Container) -> Iterator[Scene]:
    with scene_of(container) as made:
        yield made


# --- as shipped --------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [*UNITS, "vmsnap-check@opt-quiesce.path"])
def test_systemd_has_nothing_to_say_against(container: Container, name: str) -> None:
    """Neither unknown settings, nor missing programs, nor manual pages that are not there."""
    found = container.path("/usr/lib/systemd/system") / name
    template = re.sub("@.+", "@.path", name) if "@" in name else name
    assert found.with_name(template).exists()
    if not name.endswith("@.path"):
        verified = container.run("systemd-analyze", "verify", "--man=yes", name)
        assert (verified.returncode, verified.stdout, verified.stderr) == (0, "", "")


def ceilings() -> dict[str, float]:
    """The table of docs/units.md."""
    row = re.compile(r"^\| `(vmsnap-[a-z]+\.service)` \| ([0-9.]+) \|", re.MULTILINE)
    return {name: float(level) for name, level in row.findall(DOCUMENT.read_text())}


def test_the_exposure_of_every_service_is_documented() -> None:
    assert sorted(ceilings()) == SERVICES


@pytest.mark.parametrize("name", SERVICES)
def test_no_service_is_more_exposed_than_documented(container: Container, name: str) -> None:
    shown = container.run("systemd-analyze", "security", "--no-pager", name, check=True).stdout
    (level,) = re.findall(rf"Overall exposure level for {name}: ([0-9.]+)", shown)
    assert ceilings()[name] - MOST_BELOW <= float(level) <= ceilings()[name]


# --- what a session must be able to do ---------------------------------------------------------


def test_the_guard_of_a_held_session_goes_before_everybody(scene: Scene) -> None:
    scene.freeze()
    assert os.sched_getscheduler(scene.guard) == os.SCHED_FIFO
    assert scene.thaw().code == 0


def test_what_a_script_mounts_stays_mounted_for_everybody(scene: Scene) -> None:
    mount = DIRECTORY / "mount"
    scene.app(pre=f"mkdir {mount} && mount -t tmpfs tmpfs {mount}")
    scene.freeze()
    assert scene.container.path(mount).is_mount()
    assert scene.thaw().verdict == ("success", "application", 0)
    scene.container.run("umount", str(mount), check=True)


# --- why some settings are forbidden: each of them does harm -----------------------------------


@pytest.mark.parametrize("setting", ["ProtectKernelLogs", "ProtectControlGroups", "PrivateMounts"])
def test_with_a_mount_namespace_what_a_script_mounts_is_lost(scene: Scene, setting: str) -> None:
    mount = DIRECTORY / "mount"
    scene.settings(f"{setting}=yes")
    scene.app(pre=f"mkdir {mount} && mount -t tmpfs tmpfs {mount}")
    scene.freeze()
    assert not scene.container.path(mount).is_mount()
    assert scene.thaw().code == 0


def test_with_private_tmp_a_script_does_not_find_a_socket_in_tmp(scene: Scene) -> None:
    scene.container.write("/tmp/db.sock", "")
    scene.app(pre="test -e /tmp/db.sock")
    assert scene.freeze()["consistency"] == "application"
    assert scene.thaw().code == 0
    scene.settings("PrivateTmp=yes")
    assert scene.freeze()["consistency"] == "filesystem"
    assert scene.thaw().errors == ["Pre-ScriptExecutionFailed"]
    scene.container.path("/tmp/db.sock").unlink()


def test_with_protect_home_scripts_do_not_see_a_filesystem_that_is_frozen(scene: Scene) -> None:
    """vmsnap itself finds it: in the mount tables of other processes."""
    scene.container.add_filesystem("/home")
    scene.container.write("/home/file", "")
    scene.app(pre="test -e /home/file")
    assert scene.freeze()["consistency"] == "application"
    assert scene.thaw().code == 0
    scene.settings("ProtectHome=yes")
    held = scene.freeze()
    assert scene.container.frozen("/home")
    assert held["consistency"] == "filesystem"
    assert scene.thaw().errors == ["Pre-ScriptExecutionFailed"]


@pytest.mark.parametrize("setting", ["CapabilityBoundingSet=~CAP_SYS_ADMIN", "PrivateUsers=yes"])
def test_without_the_capability_nothing_can_be_frozen(scene: Scene, setting: str) -> None:
    scene.settings(setting)
    outcome = scene.vmsnap("freeze", "--json", "--require", "filesystem")
    assert outcome.errors == ["FreezeFailed"]
    assert "Operation not permitted" in outcome.result["errors"][0]["message"]
    assert not scene.container.frozen("/")


def test_with_restrict_realtime_the_guard_is_one_process_of_many(scene: Scene) -> None:
    scene.settings("RestrictRealtime=yes")
    scene.freeze()
    assert os.sched_getscheduler(scene.guard) == os.SCHED_OTHER
    assert scene.thaw().code == 0


# --- and the worst of them ---------------------------------------------------------------------


def kill_all(scene: Scene) -> None:
    """Kill engine and guard at once, so that only ExecStopPost= is left to thaw."""
    engine, guard = scene.container.outside(scene.engine), scene.guard
    below = [
        pid
        for pid in scene.container.pids()
        if "vmsnap" in status(pid)["Name"] and pid not in (engine, guard)
    ]
    for number in (signal.SIGSTOP, signal.SIGKILL):
        for pid in (*below, guard, engine):
            os.kill(pid, number)


def test_when_all_are_killed_the_unit_thaws(scene: Scene) -> None:
    scene.freeze()
    kill_all(scene)
    scene.wait_for_failure()
    assert not scene.container.frozen("/")
    assert scene.state == ("failed", "signal")


@pytest.mark.parametrize("setting", ["StateDirectory", "CacheDirectory", "LogsDirectory"])
def test_with_a_directory_that_systemd_makes_the_unit_cannot_thaw(
    scene: Scene, setting: str
) -> None:
    """Before ExecStopPost= systemd makes the directory anew: on the disk that this should thaw."""
    scene.settings(f"{setting}=vmsnap")
    scene.freeze()
    kill_all(scene)
    control: list[int] = []

    def hangs() -> bool:
        pid = int(scene.container.show(UNIT, "ControlPID")["ControlPID"])
        control[:] = [scene.container.outside(pid)] if pid else []
        return bool(control) and "mnt_want_write" in Path(f"/proc/{control[0]}/stack").read_text()

    until(hangs)
    assert status(control[0])["State"].startswith("D")
    assert scene.container.frozen("/")
    assert scene.container.thaw()
    scene.wait_for_failure()
