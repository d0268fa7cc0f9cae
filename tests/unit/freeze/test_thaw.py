# SPDX-License-Identifier: Apache-2.0
"""The list of what may be frozen, wherever thawing needs no ioctl. tests/fs thaws for real."""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import NoReturn

import pytest

from vmsnap.freeze import thaw
from vmsnap.freeze.frozen_list import FROZEN_LIST, FrozenListError, thaw_listed
from vmsnap.freeze.states import FROZEN, HEAD, NOT_FROZEN, States


def write(run: Path, *filesystems: dict[str, object]) -> Path:
    path = run / FROZEN_LIST
    path.write_text(json.dumps({"guard": 1, "filesystems": filesystems}))
    return path


@pytest.fixture(autouse=True)
def no_more_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Mount points are then opened by whoever thaws."""

    def fork() -> NoReturn:
        raise BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN))

    monkeypatch.setattr(os, "fork", fork)


def test_without_a_list_there_is_nothing_to_thaw(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        next(thaw_listed(tmp_path, lambda _: None))


def test_an_empty_list_is_forgotten(tmp_path: Path) -> None:
    path = write(tmp_path)
    assert next(thaw_listed(tmp_path, lambda _: None))
    assert not path.exists()


def test_a_mount_that_cannot_be_opened_is_said_and_the_list_is_kept(tmp_path: Path) -> None:
    told: list[str] = []
    path = write(tmp_path, {"mount": "/no/such/mount", "st_dev": -1, "step": 1})
    assert not next(thaw_listed(tmp_path, told.append))
    assert path.exists()
    assert "/no/such/mount" in told[0]


def test_a_mount_point_where_something_else_is_mounted_now_is_left_alone(tmp_path: Path) -> None:
    told: list[str] = []
    path = write(tmp_path, {"mount": str(tmp_path), "st_dev": -1, "step": 1})
    assert not next(thaw_listed(tmp_path, told.append))
    assert path.exists()
    assert "something else is mounted there now" in told[0]


ITEM = {"mount": "/", "st_dev": 1, "step": 1}
UNREADABLE = {
    "empty": "",
    "cut": "{",
    "a list": "[]",
    "null": "null",
    **{
        words: json.dumps({"guard": 1, "filesystems": filesystems})
        for words, filesystems in {
            "no list in it": 3,
            "words in it": ["/"],
            "nothing said of a filesystem": [{}],
            "a mount that is a number": [{**ITEM, "mount": 3}],
            "a step that is a word": [{**ITEM, "step": "x"}],
        }.items()
    },
}


@pytest.mark.parametrize("text", UNREADABLE.values(), ids=UNREADABLE)
def test_a_list_that_cannot_be_read_is_an_error_that_says_what_to_do(
    tmp_path: Path, text: str
) -> None:
    (tmp_path / FROZEN_LIST).write_text(text)
    with pytest.raises(FrozenListError, match="fsfreeze --unfreeze"):
        next(thaw_listed(tmp_path, lambda _: None))
    assert (tmp_path / FROZEN_LIST).exists()


def test_what_the_guard_asks_for_meanwhile_is_not_settled(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It was not asked for when the letters were read, and its FIFREEZE has not returned."""

    def not_frozen_yet(call: thaw.Call) -> None:
        call.error = errno.EINVAL

    monkeypatch.setattr(thaw.Call, "_thaw", not_frozen_yet)
    path = tmp_path / "list"
    path.write_text(f'{HEAD}{NOT_FROZEN}{NOT_FROZEN}"')
    guard, fd = os.pidfd_open(os.getpid()), os.open(path, os.O_RDWR)

    def batches() -> Iterator[list[thaw.Suspect]]:
        os.pwrite(fd, FROZEN.encode(), len(HEAD))
        yield [thaw.Suspect(0, 1, -1)]

    states = States(fd, 1)
    assert next(thaw.thaw_for_guard(guard, states, batches(), 0.0)) == {0: errno.EINPROGRESS}
    assert states.read() == FROZEN
    for each in (guard, fd):
        os.close(each)
