# SPDX-License-Identifier: Apache-2.0
"""What installing, upgrading, removing and purging the Debian package does to a machine's units.

The scripts of the built package are run. deb-systemd-helper, which enables, is the real one, in a
root of its own; whoever would start, stop or freeze something is replaced by what writes it down.
"""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from . import contents, made
from .made import OLD

RECORDED = ("deb-systemd-invoke", "systemctl", "vmsnap", "py3compile", "py3clean")
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
            program.write_text(f'#!/bin/sh\necho "{name}" "$@" >>{self.said}\n', encoding="utf-8")
            program.chmod(0o755)

    def run(self, script: str, *arguments: str, systemd: bool = True) -> list[str]:
        """Run a script; return what it called, without what cannot change a unit."""
        self.said.write_text("", encoding="utf-8")
        # Without DPKG_ROOT, as removing does nothing to the units of another root.
        root = {} if script == "prerm" else {"DPKG_ROOT": str(self.root)}
        done = self.inside(str(self.scripts / script), *arguments, systemd=systemd, **root)
        assert done.returncode == 0, done.stderr
        lines = self.said.read_text(encoding="utf-8").splitlines()
        return [x for x in lines if not x.startswith("py3") and "daemon-reload" not in x]

    def inside(
        self, *command: str, systemd: bool = True, **variables: str
    ) -> subprocess.CompletedProcess[str]:
        running = "with systemd" if systemd else "without systemd"
        path = f"{self.programs}:/usr/sbin:/usr/bin:/sbin:/bin"
        return subprocess.run(
            ["unshare", "--mount", "sh", "-ec", INSIDE, "sh", running, *command],
            env={"PATH": path, "DPKG_MAINTSCRIPT_PACKAGE": "vmsnap", **variables},
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
        "vmsnap thaw --failed",
        "deb-systemd-invoke stop vmsnap-backup.timer vmsnap-backup.service vmsnap-session.service",
        "vmsnap thaw --force",
        "deb-systemd-invoke stop vmsnap-check.path vmsnap-check.service",
    ]


def test_removing_where_no_systemd_runs_still_thaws(machine: Machine) -> None:
    called = machine.run("prerm", "remove", systemd=False)
    assert called == ["vmsnap thaw --failed", "vmsnap thaw --force"]


def test_a_program_that_cannot_thaw_does_not_keep_the_package_installed(machine: Machine) -> None:
    (machine.programs / "vmsnap").write_text("#!/bin/sh\nexit 1\n", encoding="utf-8")
    assert len(machine.run("prerm", "remove")) == 2


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


def test_purging_leaves_nothing_enabled(machine: Machine) -> None:
    machine.run("postinst", "configure", "")
    machine.run("postrm", "remove")
    machine.run("postrm", "purge")
    assert machine.enabled() == set()
