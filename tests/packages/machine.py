# SPDX-License-Identifier: Apache-2.0
"""A machine on which the scripts of the built packages are run.

deb-systemd-helper, which enables, is the real one, in a root of its own; whoever would start, stop
or freeze something is replaced by what writes it down.
"""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

from release.rpm import TARGETS

from . import contents, made

RECORDED = ("deb-systemd-invoke", "systemctl", "vmsnap", "py3compile", "py3clean", "journalctl")
# Written down, or answered: without a word by what is not installed.
STAND_IN = """#!/bin/sh
case "$1" in
is-system-running) echo "$STATE"; exit 1 ;;
is-enabled) exit "$DISABLED" ;;
esac
echo "{name}" "$@" >>{said}
[ "{name}" != vmsnap ] || echo "$SAYS"
case "{name}" in systemctl | vmsnap) exit "$CODE" ;; esac
"""
NOTHING = "nothing to thaw: /run/vmsnap holds no list of frozen filesystems"
# Nobody has said that a snapshot was taken: SIGINT is what ends a session as failed.
INTERRUPT = [
    "systemctl kill --kill-who=main --signal=INT vmsnap-session.service vmsnap-backup.service",
    "systemctl stop vmsnap-session.service vmsnap-backup.service",
]
WATCH = (
    "systemctl stop vmsnap-check.path vmsnap-check@*.path vmsnap-recheck.service "
    "vmsnap-provision.service"
)
END_CHECKS = ["systemctl stop vmsnap-check.service", WATCH, "systemctl stop vmsnap-check.service"]
FORGET = (
    "systemctl reset-failed vmsnap-session.service vmsnap-backup.service vmsnap-backup.timer "
    "vmsnap-check.service vmsnap-check.path vmsnap-check@*.path vmsnap-recheck.service "
    "vmsnap-provision.service"
)
ENABLED = {"vmsnap-check.path", "vmsnap-check.service", "vmsnap-provision.service"}
LINK = "var/lib/cloud/scripts/per-instance/50-vmsnap"
END_EVERYTHING = ["systemctl stop vmsnap-backup.timer", *INTERRUPT, "vmsnap thaw --force"]
DISCONNECT = "vmsnap integrate --remove"
# These are not this machine's: the first says whether systemd runs, of the others something is
# removed.
INSIDE = """
mount -t tmpfs none /run
mount -t tmpfs none /var/lib
mount -t tmpfs none /etc/systemd
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
        here = script == "prerm" or arguments == ("remove",)
        root = {"DPKG_ROOT": "" if here else str(self.root)}
        command = (str(self.scripts / script), *arguments)
        return self.called(*command, systemd=systemd, **{**root, **variables})

    def run_rpms(self, tag: str, number: int, systemd: bool = True, **variables: str) -> list[str]:
        """Likewise a scriptlet of the RPM package. The number is of the packages that will be."""
        command = ("/bin/sh", "-c", self.scriptlet(tag), "sh", str(number))
        return self.called(*command, systemd=systemd, **variables)

    def scriptlet(self, tag: str) -> str:
        (package,) = [x for x in made.rpms(TARGETS[0]) if x.name.startswith("vmsnap-")]
        return contents.query(package, f"%{{{tag}}}")

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
                "SAYS": NOTHING,
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
