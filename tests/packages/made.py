# SPDX-License-Identifier: Apache-2.0
"""What the package tests install: packages of this checkout and of a version before it, and signed
repositories of both. Each is made once in a test run, when it is first asked for."""

from __future__ import annotations

import atexit
import functools
import os
import re
import shutil
import subprocess
import tempfile
from pathlib import Path

from release import changelog, deb, repository, rpm, source
from release.command import call

ROOT = Path(__file__).parents[2]
OLD, NEW = "0.0.9", changelog.version_of(ROOT)
URL = "file:///srv/vmsnap"  # where tests put the repositories
# What `dnf` installs on Debian: as for any distribution, but where Debian's Python looks.
ON_DEBIAN = rpm.Target("debian", ".deb12", "3.11", sitelib="/usr/lib/python3/dist-packages")


@functools.cache
def directory() -> Path:
    """Of this run; removed at its end."""
    (ROOT / "build").mkdir(exist_ok=True)
    made = Path(tempfile.mkdtemp(prefix="packages-", dir=ROOT / "build"))
    atexit.register(shutil.rmtree, made)
    return made


@functools.cache
def tree(version: str) -> Path:
    """The sources. Those of another version differ from ours in their default configuration."""
    if version == NEW:
        return ROOT
    made = directory() / f"tree-{version}"
    for path in source.tracked(ROOT):
        (made / path).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(ROOT / path, made / path, follow_symlinks=False)
    edit(made / "vmsnap/__init__.py", r'^__version__ = ".*"$', f'__version__ = "{version}"')
    edit(made / "CHANGELOG.md", r"^## .*$", f"## {version} (2026-01-01)")
    edit(made / "etc/vmsnap.conf", r"\A", f"# Of version {version}.\n")
    return made


def edit(path: Path, pattern: str, text: str) -> None:
    edited, count = re.subn(pattern, text, path.read_text(encoding="utf-8"), count=1, flags=re.M)
    assert count == 1, f"{path} has no {pattern}"
    path.write_text(edited, encoding="utf-8")


@functools.cache
def archive(version: str = NEW) -> Path:
    today = source.committed(ROOT)
    return source.pack(tree(version), source.tracked(ROOT), today, directory() / "dist")


@functools.cache
def package(version: str = NEW) -> Path:
    """The .deb."""
    return deb.build(archive(version), directory() / "dist/deb")


@functools.cache
def rpms(target: rpm.Target = ON_DEBIAN, version: str = NEW) -> list[Path]:
    return rpm.build(archive(version), target, directory() / "dist/rpm")


@functools.cache
def key() -> str:
    """The fingerprint of a key that lives as long as the run."""
    home = directory() / "gnupg"
    home.mkdir(mode=0o700)
    os.environ["GNUPGHOME"] = str(home)
    atexit.register(subprocess.run, ["gpgconf", "--kill", "gpg-agent"], check=False)
    wanted = ("--quick-generate-key", "vmsnap test", "rsa3072", "sign", "never")
    call("gpg", "--batch", "--quiet", "--passphrase", "", *wanted)
    listed = call("gpg", "--batch", "--with-colons", "--list-secret-keys").decode()
    return next(line.split(":")[9] for line in listed.splitlines() if line.startswith("fpr:"))


@functools.cache
def repositories() -> Path:
    """As `make repo` makes them, with both versions, for what can be installed on Debian."""
    for version in (OLD, NEW):
        package(version)
        rpms(ON_DEBIAN, version)
    return repository.make(directory() / "dist", key(), URL)
