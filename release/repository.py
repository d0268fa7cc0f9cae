# SPDX-License-Identifier: Apache-2.0
"""Signed repositories for apt and dnf, as plain files for any web server.

    vmsnap.asc              the public key
    vmsnap.sources          for /etc/apt/sources.list.d
    apt/                    the Debian packages, Packages, InRelease
    rpm/NAME/               of each distribution: its packages, repodata
    rpm/NAME/vmsnap.repo    for /etc/yum.repos.d

What was there is kept as it was, so that older versions can still be installed. A package that was
published never gets other contents: a client with the old index would refuse them.
"""

from __future__ import annotations

import contextlib
import gzip
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

from release import signing
from release.command import ToolError, call

URL = "https://packages.vmsnap.example"
VALID_SECONDS = 30 * 24 * 3600
SOURCES = """\
Types: deb
URIs: {url}/apt/
Suites: ./
Signed-By: /etc/apt/keyrings/vmsnap.asc
"""
REPO = """\
[vmsnap]
name=vmsnap
baseurl={url}/rpm/{name}/
gpgkey={url}/vmsnap.asc
gpgcheck=1
repo_gpgcheck=1
"""


def make(dist: Path, key: str, url: str = URL) -> Path:
    """Make DIST/repo of the packages in DIST/deb and DIST/rpm, or add them; return its path.

    `url` is where it will be found. It changes as a whole or not at all. Raises ToolError.
    """
    key = signing.fingerprint(key)
    debs = sorted((dist / "deb").glob("*.deb"))
    rpms = {path.name: sorted(path.glob("*.rpm")) for path in sorted((dist / "rpm").glob("*"))}
    if not debs or not rpms or not all(rpms.values()):
        raise ToolError(f"found no packages in {dist}, expected some: `make deb rpm` builds them")
    with changed(dist) as made:
        apt(debs, made / "apt", key)
        for name, packages in rpms.items():
            dnf(packages, made / "rpm" / name, key)
            text = REPO.format(url=url.rstrip("/"), name=name)
            (made / "rpm" / name / "vmsnap.repo").write_text(text, encoding="utf-8")
        (made / "vmsnap.asc").write_bytes(signing.public(key))
        (made / "vmsnap.sources").write_text(SOURCES.format(url=url.rstrip("/")), encoding="utf-8")
    return dist / "repo"


def renew(dist: Path, key: str) -> Path:
    """Sign apt's index in DIST/repo anew, with another date until which it is valid, and nothing
    else: for a timer. Needs no packages. Return the path of DIST/repo. Raises ToolError."""
    key = signing.fingerprint(key)
    published = dist / "repo/vmsnap.asc"
    if not published.exists() or published.read_bytes() != signing.public(key):
        raise ToolError(f"{published}: found another key, or none, expected that of KEY")
    with changed(dist) as made:
        sign_apt(made / "apt", key)
    return dist / "repo"


@contextlib.contextmanager
def changed(dist: Path) -> Iterator[Path]:
    """A copy of DIST/repo to work on, which takes its place if nothing fails."""
    repository = dist / "repo"
    with tempfile.TemporaryDirectory(prefix=".repo-", dir=dist) as work:
        made, old = Path(work, "made"), Path(work, "old")
        if repository.exists():
            shutil.copytree(repository, made)
        yield made
        try:
            if repository.exists():
                repository.rename(old)
            made.rename(repository)
        finally:
            if old.exists() and not repository.exists():
                old.rename(repository)


def apt(packages: list[Path], directory: Path, key: str) -> None:
    """A flat repository: sources.list(5). What is signed is the index, which has all checksums."""
    directory.mkdir(parents=True, exist_ok=True)
    add(packages, directory, Path.read_bytes)
    index = call("apt-ftparchive", "packages", ".", cwd=directory)
    (directory / "Packages").write_bytes(index)
    (directory / "Packages.gz").write_bytes(gzip.compress(index, mtime=0))
    sign_apt(directory, key)


def sign_apt(directory: Path, key: str) -> None:
    """Valid for a while only: whoever answers in our place cannot keep a client from newer versions
    for longer with an older index, whose signature is right (apt-secure(8), Valid-Until)."""
    names = ("InRelease", "Release", "Release.gpg")
    for name in names:
        (directory / name).unlink(missing_ok=True)  # or it would list itself
    fields = {"Origin": "vmsnap", "Label": "vmsnap", "ValidTime": VALID_SECONDS}
    options = [f"-oAPT::FTPArchive::Release::{name}={value}" for name, value in fields.items()]
    release = directory / "Release"
    release.write_bytes(call("apt-ftparchive", *options, "release", ".", cwd=directory))
    (directory / "InRelease").write_bytes(signing.clearsign(release, key))
    (directory / "Release.gpg").write_bytes(signing.detached(release, key))


def dnf(packages: list[Path], directory: Path, key: str) -> None:
    """Both are signed: the packages, and the index of the repository."""
    directory.mkdir(parents=True, exist_ok=True)
    added = add(packages, directory, unsigned)
    if added:
        signing.sign_rpms(added, key)
    call("createrepo_c", "--quiet", "--no-database", directory)
    index = directory / "repodata/repomd.xml"
    index.with_name("repomd.xml.asc").write_bytes(signing.detached(index, key))


def add(packages: list[Path], directory: Path, contents: Callable[[Path], bytes]) -> list[Path]:
    """Copy what is not there yet, and return it. Raises ToolError for a file with other
    contents."""
    added = []
    for package in packages:
        there = directory / package.name
        if not there.exists():
            shutil.copyfile(package, there)  # without its mode: everybody is to read it
            added.append(there)
        elif contents(there) != contents(package):
            raise ToolError(
                f"found {package.name} in the repository with other contents, expected the same: "
                "raise the version (or remove dist/repo, if nobody has seen it)"
            )
    return added


def unsigned(package: Path) -> bytes:
    """The checksums of all that an RPM has besides its signatures."""
    return call("rpm", "-qp", "--nosignature", "--qf=%{SHA256HEADER} %{PAYLOADDIGEST}", package)
