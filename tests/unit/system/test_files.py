# SPDX-License-Identifier: Apache-2.0
"""Atomic writes: the old content or the new one, and nothing beside them."""

from __future__ import annotations

import errno
import os
import resource
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from vmsnap.system.files import write_atomically


@contextmanager
def full_disk(size: int) -> Iterator[None]:
    """No file of this process can grow beyond `size` bytes, as if the disk were full."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def names(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.iterdir())


@pytest.mark.parametrize("data", [b"", b"new\n", bytes(100_000)])
def test_the_new_content_replaces_the_old(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"old")
    write_atomically(path, data, 0o600)
    assert path.read_bytes() == data
    assert names(tmp_path) == ["file"]


@pytest.mark.parametrize("umask", [0o000, 0o022, 0o077, 0o777])
@pytest.mark.parametrize("mode", [0o600, 0o700, 0o644])
def test_the_mode_is_the_one_asked_for_whatever_the_umask(
    tmp_path: Path, umask: int, mode: int
) -> None:
    before = os.umask(umask)
    try:
        write_atomically(tmp_path / "file", b"x", mode)
    finally:
        os.umask(before)
    assert (tmp_path / "file").stat().st_mode & 0o7777 == mode


def test_a_disk_that_fills_up_leaves_the_old_content_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"old")
    with full_disk(10), pytest.raises(OSError):
        write_atomically(path, b"x" * 100_000, 0o600)
    assert path.read_bytes() == b"old"
    assert names(tmp_path) == ["file"]


@pytest.mark.parametrize("error", [errno.ENOSPC, errno.EIO, errno.EDQUOT])
def test_a_disk_that_fails_at_fsync_leaves_the_old_content_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: int
) -> None:
    def fail(_fd: int) -> None:
        raise OSError(error, os.strerror(error))

    path = tmp_path / "file"
    path.write_bytes(b"old")
    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OSError) as caught:
        write_atomically(path, b"new", 0o600)
    assert caught.value.errno == error
    assert path.read_bytes() == b"old"
    assert names(tmp_path) == ["file"]


def test_a_killed_write_leaves_the_old_content(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Killed(BaseException):
        pass

    def die(_fd: int) -> None:
        raise Killed

    path = tmp_path / "file"
    path.write_bytes(b"old")
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", die)
        with pytest.raises(Killed):
            write_atomically(path, b"new", 0o600)
    assert path.read_bytes() == b"old"


def test_what_a_killed_writer_left_beside_does_not_stop_the_next_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Process ids come again, first of all after a boot."""
    path = tmp_path / "file"

    def die(_fd: int) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", die)
        with pytest.raises(KeyboardInterrupt):
            write_atomically(path, b"first", 0o600)
    write_atomically(path, b"second", 0o600)
    assert path.read_bytes() == b"second"


def test_the_data_is_on_the_disk_before_the_name_and_the_name_before_the_return(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "file"
    seen: list[tuple[str, bool]] = []

    def watch(fd: int) -> None:
        kind = "directory" if Path(f"/proc/self/fd/{fd}").is_dir() else "file"
        seen.append((kind, path.exists()))

    monkeypatch.setattr(os, "fsync", watch)
    write_atomically(path, b"new", 0o600)
    assert seen == [("file", False), ("directory", True)]


def test_a_link_is_replaced_and_not_written_through(tmp_path: Path) -> None:
    target = tmp_path / "target"
    target.write_bytes(b"precious")
    (tmp_path / "file").symlink_to(target)
    write_atomically(tmp_path / "file", b"new", 0o600)
    assert target.read_bytes() == b"precious"
    assert (tmp_path / "file").read_bytes() == b"new"


def test_a_missing_directory_is_an_error_of_the_system(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        write_atomically(tmp_path / "no/file", b"x", 0o600)
