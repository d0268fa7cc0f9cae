# SPDX-License-Identifier: Apache-2.0
"""apt, on Debian."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

from tests.packages import made

from .container import Container
from .image import DEBIAN11, DEBIAN12, DEBIAN13, OURS
from .package_manager import CONFIGURATION, DOCUMENTS, PATIENCE, SERVED, PackageManager, inside

QUIET = {"DEBIAN_FRONTEND": "noninteractive"}
POLICY = "usr/sbin/policy-rc.d"
FORBIDDEN = "#!/bin/sh\nexit 101\n"  # to start or stop a service


class Apt(PackageManager):
    name = "apt"
    systems = (DEBIAN11, DEBIAN12, DEBIAN13)
    system = DEBIAN12
    program = ("apt-get", "-qy")
    env = QUIET
    repository = (
        "install -D -m 644 /srv/vmsnap/vmsnap.asc /etc/apt/keyrings/vmsnap.asc",
        "cp /srv/vmsnap/vmsnap.sources /etc/apt/sources.list.d/",
        "apt-get -q update",
    )
    completions = "/usr/share/zsh/vendor-completions"
    keep = ("--option=Dpkg::Options::=--force-confold",)
    beside = f"{CONFIGURATION}.dpkg-dist"
    kept_told = f"Configuration file '{CONFIGURATION}'\n"
    saved = CONFIGURATION
    removal_purges = False
    traces = (
        *("/var/lib/dpkg", "/var/lib/apt", "/var/cache/apt", "/var/cache/debconf", "/var/log"),
        *("/var/cache/man", "/var/cache/ldconfig", "/var/cache/private", "/tmp", "/var/tmp"),
    )

    def prepare(self, root: Path) -> None:
        """The image has Debian's."""
        shutil.copytree(made.repositories(), root / SERVED, dirs_exist_ok=True)

    def prepare_needed(self, root: Path) -> None:
        """Debian's packages stay when vmsnap is purged."""
        self.prepare_with(root)
        inside(root, *self.program, "install", *OURS, env=QUIET)

    def prepare_with(self, root: Path, *steps: tuple[str, str]) -> dict[str, str]:
        policy = root / POLICY
        policy.write_text(FORBIDDEN)
        policy.chmod(0o755)
        said = super().prepare_with(root, *steps)
        policy.unlink()
        return said

    def words(self, step: str, version: str = "") -> tuple[str, ...]:
        package = f"vmsnap={version}" if version else "vmsnap"
        differs = {
            "upgrade": ("install", package),
            "downgrade": ("install", "--allow-downgrades", package),
            "reinstall": ("install", "--reinstall", package),
            "autoremove": ("autoremove", "--purge"),
        }
        return differs.get(step, (step, package))

    def put_back(self, container: Container, wanted: str) -> None:
        package = f"/{SERVED}/apt/vmsnap_{wanted}_all.deb"
        options = ("--force-confnew", "--force-confmiss")
        container.run("dpkg", *options, "--install", package, check=True, timeout=PATIENCE)

    def erase(self, container: Container) -> None:
        container.run("dpkg", "--purge", "vmsnap", check=True, timeout=PATIENCE)

    def version(self, container: Container) -> str:
        form = "${db:Status-Status} ${Version}"
        shown = container.run("dpkg-query", "--show", f"--showformat={form}", "vmsnap").stdout
        return shown.removeprefix("installed ") if shown.startswith("installed ") else ""

    def verify(self, container: Container) -> subprocess.CompletedProcess[str]:
        return container.run("dpkg", "--verify", "vmsnap")

    def documents(self, container: Container) -> list[str]:
        listed = container.run("dpkg", "--listfiles", "vmsnap", check=True).stdout.splitlines()
        return [path for path in listed if path.startswith(f"{DOCUMENTS}/")]

    def origins(self, container: Container) -> dict[str, set[str]]:
        found = {}
        for package in OURS:
            policy = container.run("apt-cache", "policy", package, check=True).stdout
            _, _, here = policy.partition("***")  # the installed version, then where it is from
            places = (("distribution", "/srv/debian"), ("vmsnap", "/srv/vmsnap"))
            found[package] = {name for name, place in places if place in here}
        return found

    def check(self, container: Container) -> None:
        container.run("apt-get", "check", check=True)


APT = Apt()
