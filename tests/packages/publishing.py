# SPDX-License-Identifier: Apache-2.0
"""Publishing what a test has in a `dist` of its own."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

from release import repository

from . import made
from .made import NEW, OLD, ON_DEBIAN, ROOT


def packages_of(version: str, dist: Path) -> Path:
    """Make a `dist` with the packages of a version, and nothing published yet; return its path."""
    made.key()
    (dist / "deb").mkdir(parents=True)
    (dist / "rpm" / ON_DEBIAN.name).mkdir(parents=True)
    put(dist, version)
    return dist


def put(dist: Path, version: str) -> None:
    shutil.copy(made.package(version), dist / "deb")
    for path in made.rpms(version=version):
        shutil.copy(path, dist / "rpm" / ON_DEBIAN.name)


def project(directory: Path) -> Path:
    """Make, and return, where `python -m release repo` finds something published, and packages."""
    dist = packages_of(OLD, directory / "dist")
    repository.make(dist, made.key())
    put(dist, NEW)
    shutil.copytree(ROOT / "release", directory / "release")
    return directory


def run(project: Path, key: str, home: str, umask: int = 0o022) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-B", "-m", "release", "repo", f"--key={key}"],
        cwd=project,
        env={"PATH": os.environ["PATH"], "GNUPGHOME": home},
        umask=umask,
        capture_output=True,
        text=True,
        check=False,
    )


def everything(directory: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(directory)): path.read_bytes()
        for path in directory.rglob("*")
        if path.is_file()
    }


def key_of(published: Path) -> bytes:
    return (published / "vmsnap.asc").read_bytes()


def stanzas(text: str) -> list[dict[str, str]]:
    found = [dict(re.findall(r"^(\S+): (.*)$", part, re.M)) for part in text.split("\n\n")]
    return [stanza for stanza in found if stanza]


def readable(published: Path) -> None:
    for path in (published, *published.rglob("*")):
        assert path.stat().st_mode & 0o777 == (0o755 if path.is_dir() else 0o644), path
