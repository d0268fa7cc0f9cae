# SPDX-License-Identifier: Apache-2.0
"""The RPM packages, all built on one Debian machine, once for each distribution.

They have no architecture, and differ only in where the distribution's Python looks for modules.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

from release.command import ToolError, call

SPECS = Path(__file__).parents[1] / "rpm"


@dataclass(frozen=True)
class Target:
    """A distribution: the suffix of its packages, its Python, and whether that has sdnotify."""

    name: str
    dist: str
    python: str
    has_sdnotify: bool = False
    sitelib: str = ""  # where its Python looks for modules, if not in the usual place

    @property
    def defines(self) -> tuple[str, ...]:
        macros = {
            "dist": self.dist,
            "python3_version": self.python,
            "python3_sitelib": self.sitelib or f"/usr/lib/python{self.python}/site-packages",
            "_rpmformat": "4",  # RPM 6 writes one that EL cannot read
            "use_source_date_epoch_as_buildtime": "1",
            "clamp_mtime_to_source_date_epoch": "1",
            "source_date_epoch_from_changelog": "1",
            "_buildhost": "vmsnap.invalid",
        }
        return tuple(f"--define={name} {value}" for name, value in macros.items())


TARGETS = (
    Target("el9", ".el9", "3.9"),
    Target("el10", ".el10", "3.12"),
    Target("amzn2023", ".amzn2023", "3.9"),
    Target("fc44", ".fc44", "3.14", has_sdnotify=True),
    Target("opensuse16", ".suse160", "3.13"),
)


def build(archive: Path, target: Target, directory: Path) -> list[Path]:
    """Build what a distribution needs into DIRECTORY/NAME of it; return paths. Raises ToolError."""
    into = directory / target.name
    into.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="vmsnap-rpm-") as name:
        work = Path(name)
        (work / "SOURCES").mkdir()
        packages = {"vmsnap.spec": archive}
        if not target.has_sdnotify:
            packages["python3-sdnotify.spec.in"] = sdnotify()
        call("tar", "-xzf", archive, "-C", work, "--strip-components=1", "--wildcards", "*/rpm")
        rpmbuild = ("rpmbuild", "--quiet", "-bb", f"--define=_topdir {work}", *target.defines)
        for spec, source in packages.items():
            shutil.copy(source, work / "SOURCES")
            call(*rpmbuild, work / "rpm" / spec, env={"HOME": name})  # nobody's ~/.rpmmacros
        return [Path(shutil.copy(rpm, into)) for rpm in sorted(work.glob("RPMS/*/*.rpm"))]


def sdnotify() -> Path:
    """The source of sdnotify as PyPI has it, fetched once. Raises ToolError unless it is the one
    that sources.txt names."""
    directory = SPECS.parent / "build/sources"
    wanted = SPECS / "sources.txt"
    version, checksum = wanted.read_text(encoding="ascii").split(" --hash=sha256:")
    path = directory / f"{version.replace('==', '-')}.tar.gz"
    if not path.exists():
        call(
            *(sys.executable, "-m", "pip", "download", "-q", "--no-deps", "--no-binary=:all:"),
            *("--no-build-isolation", f"--requirement={wanted}", f"--dest={directory}"),
            env=os.environ,  # pip may be told there where PyPI is
        )
    found = hashlib.sha256(path.read_bytes()).hexdigest()
    if found != checksum.strip():
        raise ToolError(
            f"found {path} with the checksum {found}, expected that of {wanted}; remove it"
        )
    return path
