# SPDX-License-Identifier: Apache-2.0
"""dnf, on Debian as a distribution of RPMs: its RPM database names what Debian's packages have
brought, and it has a repository with the rest, under the names that such distributions use.

These packages are empty. There is no python3-sdnotify among them: that one is ours.
"""

from __future__ import annotations

import shutil
import subprocess
import tempfile
from pathlib import Path

from release.command import call
from tests.packages import made

from . import image
from .container import Container
from .package_manager import CONFIGURATION, PATIENCE, SERVED, PackageManager, inside

INSTALLED = {
    "bash": ("/bin/sh",),
    "python3": ("/usr/bin/python3", f"python(abi) = {made.ON_DEBIAN.python}"),
    "release": ("system-release = 12",),
    "systemd": (),
    "util-linux": (),
}
AVAILABLE: dict[str, tuple[str, ...]] = {"python3-distro": (), "python3-jsonschema": ()}
# What the package `filesystem` brings, for everybody to put something into.
DIRECTORIES = ("fish/vendor_completions.d", "licenses", "zsh/site-functions")

SPEC = """\
Name: distribution
Version: 1
Release: 1
Summary: What Debian has brought
License: Apache-2.0
BuildArch: noarch
%description
%{summary}.
"""
PACKAGE = """
%package -n {name}
Summary: An empty package
{provides}
%description -n {name}
%{{summary}}.
%files -n {name}
"""
REPO = """\
[distribution]
name=distribution
baseurl=file:///srv/distribution/
gpgcheck=0
"""
PRESET = "99-default-disable.preset"  # as distributions have it: what no preset enables is off
KEPT = f"/{SERVED}"  # the repository, where its own vmsnap.repo says
BROUGHT = ("python3-sdnotify", *AVAILABLE)  # by dnf, with vmsnap


class Dnf(PackageManager):
    name = "dnf"
    systems = (image.DNF,)
    system = image.DNF
    program = ("dnf", "--assumeyes")
    repository = (
        f"rpm --import {KEPT}/vmsnap.asc",
        f"cp {KEPT}/rpm/debian/vmsnap.repo /etc/yum.repos.d/",
    )
    from_ours = frozenset({"python3-sdnotify"})
    completions = "/usr/share/zsh/site-functions"
    beside = f"{CONFIGURATION}.rpmnew"
    kept_told = f"{CONFIGURATION} created as {CONFIGURATION}.rpmnew\n"
    saved = f"{CONFIGURATION}.rpmsave"
    removal_purges = True
    traces = ("/root/.rpmdb", "/var/lib/dnf", "/var/cache/dnf", "/var/log")

    def prepare(self, root: Path) -> None:
        for names, where in ((INSTALLED, "installed"), (AVAILABLE, "distribution")):
            build(names, root / "srv" / where)
        inside(root, "sh", "-c", "rpm --install /srv/installed/*.rpm")
        call("createrepo_c", "--quiet", "--no-database", root / "srv/distribution")
        shutil.copytree(made.repositories(), root / SERVED)
        lists = root / "etc/yum.repos.d"
        lists.mkdir()
        (lists / "distribution.repo").write_text(REPO, encoding="utf-8")
        (root / "usr/lib/systemd/system-preset" / PRESET).write_text(
            "disable *\n", encoding="utf-8"
        )
        for name in DIRECTORIES:
            (root / "usr/share" / name).mkdir(parents=True, exist_ok=True)

    def prepare_needed(self, root: Path) -> None:
        """dnf removes all that it has brought with vmsnap."""
        self.prepare_with(root)

    def words(self, step: str, version: str = "") -> tuple[str, ...]:
        if step == "autoremove":
            return (step,)
        package = f"vmsnap-{version}" if version else "vmsnap"
        return ("remove" if step == "purge" else step, package)

    def put_back(self, container: Container, wanted: str) -> None:
        if self.version(container):
            package = f"{KEPT}/rpm/debian/vmsnap-{wanted}-*.rpm"
            again = f"rpm --upgrade --oldpackage {package}"
            container.run("sh", "-c", again, check=True, timeout=PATIENCE)
        else:  # dnf is to know what came with it
            self.run(container, "install", wanted)

    def erase(self, container: Container) -> None:
        container.run("rpm", "--erase", "vmsnap", *BROUGHT, timeout=PATIENCE)

    def version(self, container: Container) -> str:
        form = "%{VERSION} "
        found = container.run("rpm", "-qa", "--queryformat", form, "vmsnap").stdout
        return found.strip()  # one, or none: two would be no version

    def verify(self, container: Container) -> subprocess.CompletedProcess[str]:
        return container.run("rpm", "--verify", "vmsnap", *self.from_ours)

    def documents(self, container: Container) -> list[str]:
        return container.run("rpm", "--query", "--docfiles", "vmsnap", check=True).stdout.split()

    def origins(self, container: Container) -> dict[str, set[str]]:
        form = "%{name} %{from_repo}"
        argv = ("dnf", "--quiet", "repoquery", "--installed", f"--queryformat={form}", "python3-*")
        shown = container.run(*argv, check=True).stdout.splitlines()
        return {name: {repository} for name, repository in map(str.split, shown)}

    def check(self, container: Container) -> None:
        container.run("dnf", "check", check=True, timeout=PATIENCE)


def build(packages: dict[str, tuple[str, ...]], directory: Path) -> None:
    """Build empty packages of these names, each of which provides this as well."""
    texts = [SPEC]
    for name, provided in packages.items():
        provides = "\n".join(f"Provides: {what}" for what in provided)
        texts.append(PACKAGE.format(name=name, provides=provides))
    directory.mkdir(parents=True)
    with tempfile.TemporaryDirectory(prefix="vmsnap-stubs-") as work:
        spec = Path(work, "distribution.spec")
        spec.write_text("".join(texts), encoding="utf-8")
        call("rpmbuild", "--quiet", "-bb", f"--define=_topdir {work}", spec, env={"HOME": work})
        for path in Path(work).glob("RPMS/*/*.rpm"):
            shutil.copy(path, directory)


DNF = Dnf()
