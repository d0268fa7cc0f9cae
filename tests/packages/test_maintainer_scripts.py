# SPDX-License-Identifier: Apache-2.0
"""What installing, upgrading, removing and purging the Debian package does to a machine's units.

What it has in common with the RPM package is here as well; the rest of that is in
test_scriptlets.py.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from . import made
from .machine import (
    DISCONNECT,
    ENABLED,
    END_CHECKS,
    END_EVERYTHING,
    FORGET,
    INTERRUPT,
    LINK,
    NOTHING,
    Machine,
)
from .made import OLD


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return Machine(tmp_path)


def test_installing_enables_and_starts_the_check_and_nothing_that_freezes(machine: Machine) -> None:
    called = machine.run("postinst", "configure", "")
    assert machine.enabled() == ENABLED
    assert called == ["deb-systemd-invoke start vmsnap-check.path vmsnap-check.service"]


def test_cloud_init_finds_the_hook_from_the_installation_to_the_removal(machine: Machine) -> None:
    machine.run("postinst", "configure", "")
    link = machine.root / LINK
    assert (machine.root / str(link.readlink())[1:]).stat().st_mode & 0o111
    machine.run("prerm", "upgrade", OLD)
    machine.run("postrm", "upgrade", OLD)
    assert link.is_symlink()
    machine.run("postrm", "remove", DPKG_ROOT=str(machine.root))
    assert not (machine.root / "var/lib/cloud").exists()


def test_what_cloud_init_has_made_stays(machine: Machine) -> None:
    machine.run("postinst", "configure", "")
    theirs = machine.root / "var/lib/cloud/scripts/per-boot"
    theirs.mkdir()
    marker = machine.root / "var/lib/cloud/instances/i-1/sem/vmsnap"
    marker.parent.mkdir(parents=True)
    marker.touch()
    (marker.parent / "config_runcmd").touch()
    machine.run("postrm", "remove", DPKG_ROOT=str(machine.root))
    machine.run("postrm", "purge")
    assert theirs.is_dir()
    assert [path.name for path in marker.parent.iterdir()] == ["config_runcmd"]


def test_installing_within_cloud_init_waits_for_nothing_that_waits_for_it(machine: Machine) -> None:
    called = machine.run("postinst", "configure", "", DPKG_ROOT="")
    assert "systemctl start --no-block vmsnap-provision.service" in called


def test_installing_where_no_systemd_runs_enables_for_the_next_boot_and_starts_nothing(
    machine: Machine,
) -> None:
    assert machine.run("postinst", "configure", "", systemd=False) == []
    assert machine.enabled() == ENABLED


def test_an_upgrade_checks_again_and_leaves_alone_what_holds_or_takes_a_snapshot(
    machine: Machine,
) -> None:
    machine.run("postinst", "configure", "")
    assert machine.run("prerm", "upgrade", OLD) == []
    assert machine.run("postrm", "upgrade", OLD) == []
    called = machine.run("postinst", "configure", OLD)
    assert called == ["deb-systemd-invoke restart vmsnap-check.path vmsnap-check.service"]


def test_an_upgrade_does_not_enable_again_what_the_administrator_disabled(
    machine: Machine,
) -> None:
    machine.run("postinst", "configure", "")
    for link in (machine.root / "etc/systemd/system").glob("*.wants/vmsnap-*"):
        link.unlink()
    machine.run("postinst", "configure", OLD)
    assert machine.enabled() == set()


def test_an_upgrade_leaves_the_timer_enabled_that_the_administrator_enabled(
    machine: Machine,
) -> None:
    machine.run("postinst", "configure", "")
    wants = machine.root / "etc/systemd/system/timers.target.wants"
    wants.mkdir(parents=True)
    (timer,) = machine.root.rglob("vmsnap-backup.timer")
    (wants / timer.name).symlink_to("/" + str(timer.relative_to(machine.root)))
    machine.run("postinst", "configure", OLD)
    assert "vmsnap-backup.timer" in machine.enabled()


def test_removing_first_ends_the_session_then_stops_everything_then_thaws_by_force(
    machine: Machine,
) -> None:
    assert machine.run("prerm", "remove") == [
        *END_EVERYTHING,
        DISCONNECT,
        "deb-systemd-invoke stop vmsnap-check.path vmsnap-check.service",
    ]


def test_what_began_meanwhile_or_is_removed_without_a_prerm_is_ended_when_the_files_are_gone(
    machine: Machine,
) -> None:
    assert machine.run("postrm", "remove") == [
        *INTERRUPT,
        "systemctl stop vmsnap-backup.timer",
        *END_CHECKS,
        FORGET,
    ]


@pytest.mark.parametrize("script", ["prerm", "postrm"])
def test_the_guards_and_the_applications_processes_are_left_to_the_engine(
    machine: Machine, script: str
) -> None:
    """Of all the unit's processes, only the first is told; the others clean up after it."""
    signals = [x for x in machine.run(script, "remove") if x.startswith("systemctl kill")]
    assert [signal.split()[2:4] for signal in signals] == [["--kill-who=main", "--signal=INT"]]


@pytest.mark.parametrize("state", ["running", "degraded", "starting", "stopping", "maintenance"])
def test_removing_thaws_in_whatever_state_the_machine_is(machine: Machine, state: str) -> None:
    assert "vmsnap thaw --force" in machine.run("prerm", "remove", STATE=state)


def test_removing_where_there_is_no_systemctl_still_thaws(machine: Machine) -> None:
    assert machine.run("prerm", "remove", systemd=False, STATE="") == [
        "vmsnap thaw --force",
        DISCONNECT,
    ]


def test_removing_in_a_chroot_thaws_nothing_of_the_machine_around_it(machine: Machine) -> None:
    """systemctl itself does nothing there, also when /run is the machine's."""
    called = machine.run("prerm", "remove", STATE="offline")
    assert [x for x in called if x.startswith("vmsnap")] == [DISCONNECT]  # which only writes files
    assert machine.run("prerm", "remove", systemd=False) == [DISCONNECT]
    assert machine.run("postrm", "remove", systemd=False) == []


@pytest.mark.parametrize("script", ["prerm", "postrm"])
def test_removing_from_another_root_does_nothing_to_this_machine(
    machine: Machine, script: str
) -> None:
    assert machine.run(script, "remove", DPKG_ROOT=str(machine.root)) == []


def test_the_failures_that_are_forgotten_are_those_of_every_unit_of_ours_and_no_other() -> None:
    ours = {path.name.replace("@", "@*") for path in (made.ROOT / "systemd").iterdir()}
    assert {*FORGET.split()[2:]} == ours


THAWED = "session 3f2a is in progress; what it has frozen is thawed all the same\n/srv: thawed"


@pytest.mark.parametrize("kind", ["deb", "rpm"])
@pytest.mark.parametrize("code", ["0", "1"])
def test_what_was_thawed_by_force_is_said_and_that_nothing_was_is_not(
    machine: Machine, kind: str, code: str
) -> None:
    if kind == "deb":
        command = [str(machine.scripts / "prerm"), "remove"]
    else:
        command = ["sh", "-c", machine.scriptlet("PREUN"), "sh", "0"]
    assert machine.inside(*command, CODE=code, SAYS=THAWED).stderr == f"{THAWED}\n"
    assert machine.inside(*command, CODE=code, SAYS=NOTHING).stderr == ""


def test_neither_systemctl_nor_a_program_that_cannot_thaw_keeps_the_package_installed(
    machine: Machine,
) -> None:
    assert machine.run("prerm", "remove", CODE="1")[:4] == END_EVERYTHING
    assert machine.run("postrm", "remove", CODE="1")[:2] == INTERRUPT


@pytest.mark.parametrize(("argument", "left"), [("remove", "results\n"), ("purge", "")])
def test_results_stay_when_the_package_is_removed_and_go_when_it_is_purged(
    machine: Machine, argument: str, left: str
) -> None:
    script = """
        mkdir /var/lib/vmsnap /run/vmsnap
        echo results >/var/lib/vmsnap/last-result.json
        "$@"
        find /var/lib/vmsnap /run/vmsnap -type f -exec cat {} + 2>/dev/null || true
    """
    postrm = str(machine.scripts / "postrm")
    done = machine.inside("sh", "-ec", script, "sh", postrm, argument)
    assert (done.returncode, done.stdout) == (0, left)


def test_purging_below_another_root_leaves_the_results_of_this_machine(machine: Machine) -> None:
    script = """
        for root in "" "$DPKG_ROOT"; do
            mkdir -p "$root/var/lib/vmsnap" "$root/run/vmsnap"
            touch "$root/var/lib/vmsnap/last-result.json" "$root/run/vmsnap/lock"
        done
        "$@"
        find "$DPKG_ROOT/var/lib/vmsnap" "$DPKG_ROOT/run/vmsnap" 2>/dev/null || true
        find /var/lib/vmsnap /run/vmsnap -type f
    """
    command = ("sh", "-ec", script, "sh", str(machine.scripts / "postrm"), "purge")
    done = machine.inside(*command, DPKG_ROOT=str(machine.root))
    assert done.stdout == "/var/lib/vmsnap/last-result.json\n/run/vmsnap/lock\n", done.stderr


LOCKED = """
    mkdir /run/vmsnap
    exec 9>/run/vmsnap/lock
    [ "$1" = over ] || flock 9
    shift
    "$@"
    [ ! -e /run/vmsnap/lock ] || echo there
"""


@pytest.mark.parametrize(("session", "left"), [("in progress", "there\n"), ("over", "")])
@pytest.mark.parametrize("kind", ["deb", "rpm"])
def test_the_lock_of_a_session_goes_with_the_package_but_not_while_one_is_in_progress(
    machine: Machine, kind: str, session: str, left: str
) -> None:
    if kind == "deb":
        script = (machine.scripts / "postrm").read_text(encoding="utf-8")
    else:
        script = machine.scriptlet("POSTUN")
    command = ("sh", "-c", script, "sh", "purge" if kind == "deb" else "0")
    done = machine.inside("sh", "-ec", LOCKED, "sh", session, *command)
    assert (done.returncode, done.stdout) == (0, left), done.stderr


def test_purging_leaves_nothing_enabled(machine: Machine) -> None:
    machine.run("postinst", "configure", "")
    machine.run("postrm", "remove")
    machine.run("postrm", "purge")
    assert machine.enabled() == set()
