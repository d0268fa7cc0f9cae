# SPDX-License-Identifier: Apache-2.0
"""The source archive: what is in it, the same bytes from any checkout, and whole or not there."""

from __future__ import annotations

import contextlib
import errno
import os
import resource
import shutil
import subprocess
import sys
import tarfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from release import source

from . import contents, made
from .made import NEW, ROOT

TODAY = source.committed(ROOT)
NOBODY = 65534


def members() -> dict[str, tarfile.TarInfo]:
    """By the name below the archive's one directory."""
    with tarfile.open(made.archive()) as archive:
        found = archive.getmembers()
    parts = [member.name.split("/", 1) for member in found]
    assert {top for top, _ in parts} == {f"vmsnap-{NEW}"}
    return {name: member for (_, name), member in zip(parts, found)}


def checkout(directory: Path) -> Path:
    """What `git clone` might make under another umask, for another user, on another day."""
    for number, path in enumerate(source.tracked(ROOT)):
        copy = directory / path
        copy.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        shutil.copy(ROOT / path, copy, follow_symlinks=False)
        os.chown(copy, NOBODY, NOBODY, follow_symlinks=False)
        os.utime(copy, (number, 86400 * number), follow_symlinks=False)
        if not copy.is_symlink():
            copy.chmod(0o700 if os.access(ROOT / path, os.X_OK) else 0o600)
    return directory


@contextlib.contextmanager
def files_of_at_most(size: int) -> Iterator[None]:
    """A write beyond it fails as on a full disk; Python ignores the signal."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_packing_again_gives_the_same_bytes(tmp_path: Path) -> None:
    again = source.pack(ROOT, source.tracked(ROOT), TODAY, tmp_path)
    assert again.name == f"vmsnap-{NEW}.tar.gz"
    assert again.read_bytes() == made.archive().read_bytes()


def test_another_checkout_gives_the_same_bytes_whatever_its_umask_owner_and_dates(
    tmp_path: Path,
) -> None:
    tree = checkout(tmp_path / "tree")
    shuffled = source.tracked(ROOT)[::-1]
    packed = source.pack(tree, shuffled, TODAY, tmp_path)
    assert packed.read_bytes() == made.archive().read_bytes()


def test_it_holds_what_is_tracked_and_the_debian_changelog_and_nothing_else() -> None:
    listed = subprocess.run(
        ["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert sorted(members()) == sorted([*listed.stdout.splitlines(), "debian/changelog"])


def test_what_is_tracked_keeps_its_contents(tmp_path: Path) -> None:
    tree = contents.unpack(made.archive(), tmp_path)
    for path in source.tracked(ROOT):
        if str(path) == "rpm/vmsnap.spec":
            continue  # it has a version and a changelog now
        if (ROOT / path).is_symlink():
            assert (tree / path).readlink() == (ROOT / path).readlink()
        assert (tree / path).read_bytes() == (ROOT / path).read_bytes(), path
        assert os.access(tree / path, os.X_OK) == os.access(ROOT / path, os.X_OK), path


def test_everything_belongs_to_root_can_be_read_and_is_of_the_day_of_the_release() -> None:
    for name, member in members().items():
        assert (member.uid, member.gid) == (0, 0), name
        assert (member.uname, member.gname) in {("", ""), ("root", "root")}, name
        assert member.mtime == int(TODAY.timestamp()), name
        assert member.issym() or member.mode in {0o644, 0o755}, name


def test_the_date_of_the_commit_is_found_also_where_git_shows_signatures(tmp_path: Path) -> None:
    made.key()
    git = ["git", "-C", str(tmp_path), "-c", "user.name=a", "-c", "user.email=a@b.c"]
    day = {"GIT_COMMITTER_DATE": "2026-03-04T05:06:07Z"}
    for command in (
        ["init", "-q"],
        ["config", "log.showSignature", "true"],
        ["commit", "-q", "--allow-empty", f"--gpg-sign={made.key()}", "-m", "signed"],
    ):
        subprocess.run([*git, *command], env={**os.environ, **day}, check=True)
    shown = subprocess.run([*git, "log", "--format=%ct"], capture_output=True, check=True)
    assert b"vmsnap test" in shown.stdout + shown.stderr  # whose signature it is
    assert source.committed(tmp_path).isoformat() == "2026-03-04T05:06:07+00:00"


def test_nothing_in_it_leaves_the_directory_that_it_is_unpacked_in() -> None:
    names = members()
    for name, member in names.items():
        assert member.isfile() or member.issym(), name
        assert ".." not in Path(name).parts, name
        if member.issym():
            assert os.path.normpath(Path(name).parent / member.linkname) in names


def test_the_spec_in_it_has_the_version_and_a_changelog_that_rpm_reads(tmp_path: Path) -> None:
    spec = contents.unpack(made.archive(), tmp_path) / "rpm/vmsnap.spec"
    query = ["rpmspec", "-q", "--qf", "%{VERSION} %{CHANGELOGNAME}", str(spec)]
    done = subprocess.run(query, capture_output=True, text=True, check=True)
    version, _, name = done.stdout.partition(" ")
    assert version == NEW
    assert name.endswith(f" - {NEW}-1")


def test_only_what_is_tracked_and_still_there_belongs_to_the_sources(tmp_path: Path) -> None:
    names = ["a", "a b", "á", "new\nline", "deep/er", "gone"]
    for name in [*names, "untracked", "ignored"]:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(name, encoding="utf-8")
    (tmp_path / ".gitignore").write_text("ignored\n", encoding="utf-8")
    (tmp_path / "dangling").symlink_to("nowhere")
    subprocess.run(["git", "init", "-q", str(tmp_path)], check=True)
    subprocess.run(["git", "add", "--", "dangling", *names], cwd=tmp_path, check=True)
    (tmp_path / "gone").unlink()
    assert sorted(map(str, source.tracked(tmp_path))) == sorted(["dangling", *names[:-1]])


@pytest.mark.parametrize("reason", ["full disk", "lost file"])
def test_an_archive_that_cannot_be_finished_leaves_the_one_before_whole(
    tmp_path: Path, reason: str
) -> None:
    path = source.pack(ROOT, source.tracked(ROOT), TODAY, tmp_path)
    before = path.read_bytes()
    files = source.tracked(ROOT)
    if reason == "lost file":
        files = [*files, Path("zzz/lost")]
    limit = 64 * 1024 if reason == "full disk" else 1 << 30
    with pytest.raises(OSError) as caught, files_of_at_most(limit):
        source.pack(ROOT, files, TODAY, tmp_path)
    assert caught.value.errno == (errno.EFBIG if reason == "full disk" else errno.ENOENT)
    assert path.read_bytes() == before


def test_nothing_is_left_of_an_archive_that_could_not_be_finished(tmp_path: Path) -> None:
    with pytest.raises(OSError), files_of_at_most(64 * 1024):
        source.pack(ROOT, source.tracked(ROOT), TODAY, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == []


@pytest.mark.parametrize("inside", ["no repository", "somebody else's repository"])
def test_the_unpacked_archive_is_no_checkout_and_says_so(tmp_path: Path, inside: str) -> None:
    if inside != "no repository":
        subprocess.run(["git", "init", "-q", str(tmp_path)], check=True)
        identity = ["-c", "user.name=a", "-c", "user.email=a@b.c"]
        commit = ["commit", "-q", "--allow-empty", "-m", "of another project"]
        subprocess.run(["git", *identity, *commit], cwd=tmp_path, check=True)
    tree = contents.unpack(made.archive(), tmp_path)
    done = subprocess.run(
        [sys.executable, "-B", "-m", "release", "source"],
        cwd=tree,
        env={"PATH": os.environ["PATH"], "GIT_CEILING_DIRECTORIES": str(tmp_path.parent)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith("release: ")
    assert "git" in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tree / "dist").exists()
