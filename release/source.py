# SPDX-License-Identifier: Apache-2.0
"""The source archive that every package is built from: vmsnap-VERSION.tar.gz.

It holds the tracked files, and what is made of CHANGELOG.md: debian/changelog, and the version and
%changelog of rpm/vmsnap.spec. The same sources give the same bytes.
"""

from __future__ import annotations

import datetime
import gzip
import io
import os
import tarfile
import tempfile
from pathlib import Path

from release import changelog
from release.command import ToolError, call


def tracked(tree: Path) -> list[Path]:
    """What belongs to the sources, relative to `tree`, a checkout. Raises ToolError."""
    names = git(tree, "ls-files", "-z").split("\0")
    return sorted(Path(name) for name in names if name and os.path.lexists(tree / name))


def committed(tree: Path) -> datetime.datetime:
    """When the last commit was made: the date of what is not released yet. Raises ToolError."""
    seconds = int(git(tree, "log", "-1", "--no-show-signature", "--format=%ct"))
    return datetime.datetime.fromtimestamp(seconds, datetime.timezone.utc)


def git(tree: Path, *argv: str) -> str:
    # Else it would answer for a repository around an unpacked archive.
    if not (tree / ".git").exists():
        raise ToolError(f"found no git repository in {tree}, expected one: it tells what to pack")
    return call("git", *argv, cwd=tree).decode()


def pack(tree: Path, files: list[Path], today: datetime.datetime, directory: Path) -> Path:
    """Write the archive of `files` in `tree` to a directory; return its path.

    `today` is the date of what CHANGELOG.md has none for. Raises changelog.Inconsistent.
    """
    releases = changelog.releases(tree, today)
    newest = releases[0]
    made = {
        "debian/changelog": changelog.debian(releases),
        "rpm/vmsnap.spec": spec(tree, releases),
    }
    path = directory / f"vmsnap-{newest.version}.tar.gz"
    directory.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".source-", dir=directory) as work:
        beside = Path(work) / path.name
        with (
            beside.open("wb") as file,
            gzip.GzipFile("", "wb", 9, file, mtime=0) as packed,
            tarfile.open(fileobj=packed, mode="w", format=tarfile.PAX_FORMAT) as archive,
        ):
            for name in sorted({*map(str, files), *made}):
                add(archive, tree / name, f"vmsnap-{newest.version}/{name}", made.get(name), newest)
        beside.replace(path)
    return path


def add(
    archive: tarfile.TarFile, path: Path, name: str, text: str | None, newest: changelog.Release
) -> None:
    """Add one file, without what differs from one checkout to the next: owner, date, umask."""
    member = tarfile.TarInfo(name)
    member.mtime = int(newest.when.timestamp())
    if text is None and path.is_symlink():
        member.type, member.linkname = tarfile.SYMTYPE, str(path.readlink())
        archive.addfile(member)
        return
    data = path.read_bytes() if text is None else text.encode()
    executable = text is None and path.stat().st_mode & 0o100
    member.mode, member.size = 0o755 if executable else 0o644, len(data)
    archive.addfile(member, io.BytesIO(data))


def spec(tree: Path, releases: list[changelog.Release]) -> str:
    """rpm/vmsnap.spec with its version and its %changelog, which end it."""
    text = (tree / "rpm/vmsnap.spec").read_text(encoding="utf-8")
    return text.replace("@VERSION@", releases[0].version) + "\n" + changelog.rpm(releases)
