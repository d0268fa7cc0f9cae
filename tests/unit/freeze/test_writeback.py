# SPDX-License-Identifier: Apache-2.0
"""Whose turn it is to be written back, and for how long. Nothing is written here."""

from __future__ import annotations

import contextlib
import os
from collections import deque
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest

from vmsnap.freeze import writeback
from vmsnap.freeze.writeback import OpenFile, Share, look_at, open_files, take_turns
from vmsnap.system.process import libc

MIB = 1 << 20
DIRTY, CLEAN = 0.01, 1e-6  # seconds that a piece takes


class Disk:
    """Notes what is written back, and how time passes by it."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 0.0
        self.written: list[tuple[int, int]] = []  # inode, offset
        self.dirty: set[int] = set()  # inodes
        monkeypatch.setattr(writeback, "time", SimpleNamespace(monotonic=lambda: self.now))
        monkeypatch.setattr(writeback, "duplicate", self.duplicate)
        monkeypatch.setattr(libc, "sync_file_range", self.write, raising=False)

    @contextlib.contextmanager
    def duplicate(self, file: OpenFile) -> Iterator[int]:
        yield file.inode

    def write(self, fd: int, offset: int, _size: int, _flags: int) -> None:
        self.now += DIRTY if fd in self.dirty else CLEAN
        self.written.append((fd, offset))


@pytest.fixture
def disk(monkeypatch: pytest.MonkeyPatch) -> Disk:
    return Disk(monkeypatch)


def share(pid: int, *files: tuple[int, int]) -> Share:
    """Of a process that has these files open: inode, MiB."""
    return Share(deque(OpenFile(pid, 3, 1, inode, size * MIB) for inode, size in files))


def test_every_piece_of_every_file_is_written_once(disk: Disk) -> None:
    disk.dirty = {11, 12, 21}
    take_turns(deque([share(1, (11, 40), (12, 1)), share(2, (21, 30))]), MIB)
    wanted = {(11, 40), (12, 1), (21, 30)}
    assert sorted(disk.written) == sorted((i, n * MIB) for i, mib in wanted for n in range(mib))


def test_a_process_with_much_to_write_does_not_keep_the_others_waiting(disk: Disk) -> None:
    disk.dirty = {11, 21}
    take_turns(deque([share(1, (11, 1000)), share(2, (21, 1))]), MIB)
    assert disk.written.index((21, 0)) * DIRTY < 2 * writeback.TURN
    assert len(disk.written) == 1001


def test_a_file_of_terabytes_without_data_is_given_up(disk: Disk) -> None:
    take_turns(deque([share(1, (11, 3 << 20))]), MIB)
    assert disk.now < 2 * writeback.IDLE_OF_FILE


def test_a_process_with_many_such_files_is_given_up(disk: Disk) -> None:
    disk.dirty = {21}
    many = [(inode, 3 << 20) for inode in range(100, 200)]
    take_turns(deque([share(1, *many), share(2, (21, 500))]), MIB)
    assert sum(offset_of == 21 for offset_of, _ in disk.written) == 500
    assert disk.now < 500 * DIRTY + 2 * writeback.IDLE_OF_PROCESS


def test_a_process_that_has_ended_is_passed_over(
    disk: Disk, monkeypatch: pytest.MonkeyPatch
) -> None:
    def duplicate(file: OpenFile) -> contextlib.AbstractContextManager[int]:
        if file.pid == 1:
            raise ProcessLookupError
        return disk.duplicate(file)

    monkeypatch.setattr(writeback, "duplicate", duplicate)
    take_turns(deque([share(1, (11, 1)), share(2, (21, 1))]), MIB)
    assert disk.written == [(21, 0)]


def test_what_is_asked_without_a_server_is_what_stat_says(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"x" * 12345)
    status = path.stat()
    with path.open("rb") as file:
        found = look_at(file.fileno())
    assert found == (status.st_mode, status.st_dev, status.st_ino, 12345)
    with pytest.raises(FileNotFoundError):
        look_at(writeback.AT_FDCWD, "/no/such/file")


def test_of_a_process_with_very_many_descriptors_only_some_are_looked_at(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with contextlib.ExitStack() as stack:
        files = [stack.enter_context((tmp_path / str(n)).open("wb")) for n in range(50)]
        device = os.fstat(files[0].fileno()).st_dev

        def found() -> int:
            return sum(file.pid == os.getpid() for file in open_files({device}))

        assert found() >= 50
        monkeypatch.setattr(writeback, "DESCRIPTORS_OF_PROCESS", 10)
        assert found() <= 10
