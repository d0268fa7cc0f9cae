# SPDX-License-Identifier: Apache-2.0
"""Debian as a distribution of RPMs: its RPM database names what Debian's packages have brought, and
it has a repository with the rest, under the names that such distributions use.

These packages are empty. There is no python3-sdnotify among them: that one is ours.
"""

from __future__ import annotations

import shutil
import subprocess
import tempfile
from pathlib import Path

from release.command import call
from tests.packages import made

from .container import Container

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
KEPT = "/srv/vmsnap"  # the repository, where its own vmsnap.repo says


def prepare(root: Path) -> None:
    """All that docs/install.md says, up to `dnf install vmsnap`."""
    for names, where in ((INSTALLED, "installed"), (AVAILABLE, "distribution")):
        build(names, root / "srv" / where)
    inside(root, "sh", "-c", "rpm --install /srv/installed/*.rpm")
    call("createrepo_c", "--quiet", "--no-database", root / "srv/distribution")
    shutil.copytree(made.repositories(), root / KEPT[1:])
    lists = root / "etc/yum.repos.d"
    lists.mkdir()
    (lists / "distribution.repo").write_text(REPO, encoding="utf-8")
    (root / "usr/lib/systemd/system-preset" / PRESET).write_text("disable *\n", encoding="utf-8")
    for name in DIRECTORIES:
        (root / "usr/share" / name).mkdir(parents=True, exist_ok=True)
    inside(root, "rpm", "--import", f"{KEPT}/vmsnap.asc")
    shutil.copy(root / KEPT[1:] / "rpm/debian/vmsnap.repo", lists)


def inside(root: Path, *argv: str) -> str:
    """Run a command below a root where nothing is booted."""
    # Debian's rpm has its database in the home directory.
    return call("chroot", root, *argv, env={"HOME": "/root"}).decode()


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


def dnf(container: Container, *words: str) -> subprocess.CompletedProcess[str]:
    """Run dnf, whatever comes of it."""
    return container.run("dnf", "--assumeyes", *words, timeout=60.0)


def done(container: Container, *words: str) -> str:
    """Run dnf; return what it said. Raises AssertionError if it fails, or anything complains."""
    ended = dnf(container, *words)
    said = ended.stdout + ended.stderr
    assert ended.returncode == 0, said
    assert_no_complaint(said)
    return said


def assert_no_complaint(said: str) -> None:
    for word in (
        "scriptlet",
        "failed",
        "error",
        "cannot",
        "traceback",
        "ignoring",
        "not been booted",
    ):
        found = [line for line in said.lower().splitlines() if word in line]
        assert not [line for line in found if "running scriptlet:" not in line], said


def versions(container: Container) -> list[str]:
    """Of vmsnap, as the RPM database has them: one, or none."""
    form = "%{VERSION}\\n"
    return container.run("rpm", "-qa", "--queryformat", form, "vmsnap").stdout.split()


def state(container: Container, unit: str) -> tuple[str, str]:
    """Whether a unit is enabled, and whether it is active."""
    shown = container.show(unit, "UnitFileState", "ActiveState")
    return shown["UnitFileState"], shown["ActiveState"]


def stale_bytecode(container: Container) -> list[str]:
    """The modules of vmsnap that this Python would compile again, and bytecode without a module."""
    return container.run("python3", "-IBc", STALE, check=True).stdout.split()


# What importlib compares: the magic number, no flags, and the date and size of the source.
STALE = """
import importlib.util, pathlib, struct, vmsnap
directory = pathlib.Path(vmsnap.__file__).parent
wanted = {importlib.util.cache_from_source(str(path)): path for path in directory.rglob("*.py")}
for cached, path in wanted.items():
    if not pathlib.Path(cached).exists():
        print(path)
        continue
    seen = path.stat()
    header = importlib.util.MAGIC_NUMBER + struct.pack("<III", 0, int(seen.st_mtime), seen.st_size)
    if pathlib.Path(cached).read_bytes()[:16] != header:
        print(path)
for path in directory.rglob("__pycache__/*"):
    if str(path) not in wanted:
        print(path)
"""
