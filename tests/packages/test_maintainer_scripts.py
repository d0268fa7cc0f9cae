# SPDX-License-Identifier: Apache-2.0
"""What installing, upgrading, removing and purging a package does to a machine's units.

The scripts of the built packages are run. deb-systemd-helper, which enables, is the real one, in a
root of its own; whoever would start, stop or freeze something is replaced by what writes it down.
"""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from release.rpm import TARGETS

from . import contents, made
from .made import OLD

RECORDED = ("deb-systemd-invoke", "systemctl", "vmsnap", "py3compile", "py3clean", "journalctl")
# Written down, or answered: without a word by what is not installed.
STAND_IN = """#!/bin/sh
case "$1" in
is-system-running) echo "$STATE"; exit 1 ;;
is-enabled) exit "$DISABLED" ;;
esac
echo "{name}" "$@" >>{said}
case "{name}" in systemctl | vmsnap) exit "$CODE" ;; esac
"""
# Nobody has said that a snapshot was taken: SIGINT is what ends a session as failed.
INTERRUPT = [
    "systemctl kill --kill-who=main --signal=INT vmsnap-session.service vmsnap-backup.service",
    "systemctl stop vmsnap-session.service vmsnap-backup.service",
]
END_EVERYTHING = ["systemctl stop vmsnap-backup.timer", *INTERRUPT, "vmsnap thaw --force"]
# /run and /var/lib are not this machine's: the first says whether systemd runs, of the second
# something is removed.
INSIDE = """
mount -t tmpfs none /run
mount -t tmpfs none /var/lib
[ "$1" = "without systemd" ] || mkdir -p /run/systemd/system
shift
exec "$@"
"""


class Machine:
    """Where the package is unpacked."""

    def __init__(self, directory: Path) -> None:
        self.root, self.said = directory / "root", directory / "said"
        self.scripts, self.programs = directory / "scripts", directory / "programs"
        contents.call("dpkg-deb", "-x", made.package(), self.root)
        contents.call("dpkg-deb", "-e", made.package(), self.scripts)
        self.programs.mkdir()
        for name in RECORDED:
            program = self.programs / name
            program.write_text(STAND_IN.format(name=name, said=self.said), encoding="utf-8")
            program.chmod(0o755)

    def run(
        self, script: str, *arguments: str, systemd: bool = True, **variables: str
    ) -> list[str]:
        """Run a script; return what it called, without what cannot change a unit."""
        # Without DPKG_ROOT, as removing does nothing to the units of another root.
        root = {} if script == "prerm" else {"DPKG_ROOT": str(self.root)}
        command = (str(self.scripts / script), *arguments)
        return self.called(*command, systemd=systemd, **root, **variables)

    def run_rpms(self, tag: str, number: int, systemd: bool = True, **variables: str) -> list[str]:
        """Likewise a scriptlet of the RPM package. The number is of the packages that will be."""
        (package,) = [x for x in made.rpms(TARGETS[0]) if x.name.startswith("vmsnap-")]
        script = contents.query(package, f"%{{{tag}}}")
        command = ("/bin/sh", "-c", script, "sh", str(number))
        return self.called(*command, systemd=systemd, **variables)

    def called(self, *command: str, systemd: bool, **variables: str) -> list[str]:
        self.said.write_text("", encoding="utf-8")
        done = self.inside(*command, systemd=systemd, **variables)
        assert done.returncode == 0, done.stderr
        lines = self.said.read_text(encoding="utf-8").splitlines()
        return [
            x for x in lines if not x.startswith(("py3", "journalctl")) and "daemon-reload" not in x
        ]

    def inside(
        self, *command: str, systemd: bool = True, **variables: str
    ) -> subprocess.CompletedProcess[str]:
        running = "with systemd" if systemd else "without systemd"
        path = f"{self.programs}:/usr/sbin:/usr/bin:/sbin:/bin"
        return subprocess.run(
            ["unshare", "--mount", "sh", "-ec", INSIDE, "sh", running, *command],
            env={
                "PATH": path,
                "DPKG_MAINTSCRIPT_PACKAGE": "vmsnap",
                "STATE": "running" if systemd else "offline",
                "DISABLED": "0",
                "CODE": "0",
                **variables,
            },
            capture_output=True,
            text=True,
            check=False,
        )

    def enabled(self) -> set[str]:
        """The units that are started at boot, as links of another unit's."""
        links = (self.root / "etc/systemd/system").glob("*.wants/*")
        return {link.name for link in links if os.path.lexists(link)}


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return Machine(tmp_path)


def test_installing_enables_and_starts_the_check_and_nothing_that_freezes(machine: Machine) -> None:
    called = machine.run("postinst", "configure", "")
    assert machine.enabled() == {"vmsnap-check.path", "vmsnap-check.service"}
    assert called == ["deb-systemd-invoke start vmsnap-check.path vmsnap-check.service"]


def test_installing_where_no_systemd_runs_enables_for_the_next_boot_and_starts_nothing(
    machine: Machine,
) -> None:
    assert machine.run("postinst", "configure", "", systemd=False) == []
    assert machine.enabled() == {"vmsnap-check.path", "vmsnap-check.service"}


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
    for link in (machine.root / "etc/systemd/system").glob("*.wants/vmsnap-check.*"):
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
        "deb-systemd-invoke stop vmsnap-check.path vmsnap-check.service",
    ]


def test_what_began_meanwhile_or_is_removed_without_a_prerm_is_ended_when_the_files_are_gone(
    machine: Machine,
) -> None:
    assert machine.run("postrm", "remove") == [
        *INTERRUPT,
        "systemctl stop vmsnap-backup.timer vmsnap-check.path vmsnap-recheck.service",
        "systemctl stop vmsnap-check.service",
        "systemctl reset-failed vmsnap-*",
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
    assert machine.run("prerm", "remove", systemd=False, STATE="") == ["vmsnap thaw --force"]


def test_removing_in_a_chroot_thaws_nothing_of_the_machine_around_it(machine: Machine) -> None:
    """systemctl itself does nothing there, also when /run is the machine's."""
    called = machine.run("prerm", "remove", STATE="offline")
    assert [x for x in called if x.startswith("vmsnap")] == []
    for script in ("prerm", "postrm"):
        assert machine.run(script, "remove", systemd=False) == [], script


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
    done = machine.inside("sh", "-ec", script, "sh", postrm, argument, DPKG_ROOT=str(machine.root))
    assert (done.returncode, done.stdout) == (0, left)


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
        (package,) = [x for x in made.rpms(TARGETS[0]) if x.name.startswith("vmsnap-")]
        script = contents.query(package, "%{POSTUN}")
    command = ("sh", "-c", script, "sh", "purge" if kind == "deb" else "0")
    root = str(machine.root)
    done = machine.inside("sh", "-ec", LOCKED, "sh", session, *command, DPKG_ROOT=root)
    assert (done.returncode, done.stdout) == (0, left), done.stderr


def test_purging_leaves_nothing_enabled(machine: Machine) -> None:
    machine.run("postinst", "configure", "")
    machine.run("postrm", "remove")
    machine.run("postrm", "purge")
    assert machine.enabled() == set()


# --- the RPM package ---


def test_installing_the_rpm_package_applies_the_presets_and_starts_what_they_enable(
    machine: Machine,
) -> None:
    preset = (
        "systemctl --no-reload preset vmsnap-check.path vmsnap-check.service vmsnap-backup.timer"
    )
    starts = [f"systemctl start vmsnap-check.{kind}" for kind in ("path", "service")]
    assert machine.run_rpms("POSTIN", 1) == [preset, *starts]
    assert machine.run_rpms("POSTIN", 1, DISABLED="1") == [preset]
    assert machine.run_rpms("POSTIN", 1, systemd=False) == [preset]


def test_upgrading_the_rpm_package_checks_again_and_leaves_alone_what_takes_a_snapshot(
    machine: Machine,
) -> None:
    assert machine.run_rpms("POSTIN", 2) == []
    assert machine.run_rpms("PREUN", 1) == []
    assert machine.run_rpms("POSTUN", 1) == [
        "systemctl try-restart vmsnap-check.path vmsnap-check.service"
    ]


def test_removing_the_rpm_package_ends_a_session_as_that_of_debian_does(machine: Machine) -> None:
    units = "vmsnap-check.path vmsnap-check.service vmsnap-backup.timer"
    disable = f"systemctl --no-reload disable {units}"
    assert machine.run_rpms("PREUN", 0) == [*END_EVERYTHING, disable, f"systemctl stop {units}"]
    assert machine.run_rpms("POSTUN", 0) == [*INTERRUPT, "systemctl reset-failed vmsnap-*"]
    assert machine.run_rpms("PREUN", 0, systemd=False) == [disable]
    assert machine.run_rpms("POSTUN", 0, systemd=False) == []
    assert machine.run_rpms("PREUN", 0, CODE="1")[:4] == END_EVERYTHING
    assert machine.run_rpms("POSTUN", 0, CODE="1")[:2] == INTERRUPT
