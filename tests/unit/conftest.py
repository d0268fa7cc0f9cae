# SPDX-License-Identifier: Apache-2.0
"""Fixtures of the unit tests: what they may not do, and directories that the checks trust."""

from __future__ import annotations

import fcntl
import os
import shutil
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import NoReturn

import pytest

from vmsnap.freeze import stacking

from . import worlds
from .ownership import Ownership, trusted_directory
from .worlds import Etc, Machine


@pytest.fixture(autouse=True)
def no_processes_and_no_ioctls(monkeypatch: pytest.MonkeyPatch) -> None:
    """pytest.fail raises what no `except Exception` catches."""

    def forbidden(*_arguments: object, **_keywords: object) -> NoReturn:
        pytest.fail("a unit test started a process or issued an ioctl")

    for owner, name in (
        (os, "fork"),
        (os, "posix_spawn"),
        (os, "posix_spawnp"),
        (os, "system"),
        (subprocess, "Popen"),
        (fcntl, "ioctl"),
    ):
        monkeypatch.setattr(owner, name, forbidden)


@pytest.fixture(autouse=True)
def loops_do_not_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stacking, "ask_loops", lambda *_: {})


@pytest.fixture(autouse=True)
def ownership(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> None:
    if os.getuid() != 0:
        tmp_path_factory.getbasetemp()  # whose owner pytest looks at, and should see
        Ownership().pretend(monkeypatch)


@pytest.fixture(autouse=True)
def umask() -> Iterator[None]:
    """What a test makes is as it says, whatever the user's own."""
    before = os.umask(0o022)
    yield
    os.umask(before)


@pytest.fixture
def never_hangs() -> Iterator[None]:
    """A rescue, not a measurement: whoever waits for a FIFO's other end is woken and fails."""

    def give_up(*_: object) -> NoReturn:
        pytest.fail("hung")

    before = signal.signal(signal.SIGALRM, give_up)
    signal.alarm(30)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


@pytest.fixture
def trusted_dir(ownership: None) -> Iterator[Path]:
    """A directory that only root can change, all the way up."""
    path = trusted_directory()
    yield path
    shutil.rmtree(path)


@pytest.fixture
def etc(trusted_dir: Path) -> Etc:
    return Etc(trusted_dir / "etc")


@pytest.fixture(autouse=True)
def owners(monkeypatch: pytest.MonkeyPatch) -> None:
    """The ioctl that says who owns a mount namespace, for one that a test has made up."""
    monkeypatch.setattr("vmsnap.freeze.mountinfo.owner", worlds.owner)


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return Machine(tmp_path)
