# SPDX-License-Identifier: Apache-2.0
"""The metrics' directory may belong to another user, who is not trusted."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from . import kernel
from .fuse import INIT, serving
from .lab import Lab

NOBODY = 65534


@pytest.fixture
def collected(lab: Lab) -> Path:
    """The collector's directory, and sessions that write there."""
    lab.filesystem()
    path = lab.directory / "collected"
    path.mkdir()
    os.chown(path, NOBODY, NOBODY)
    lab.conf(f"[metrics]\ntextfile = {path}/vmsnap.prom\n")
    return path


def test_a_fifo_in_the_files_place_holds_nobody_up(lab: Lab, collected: Path) -> None:
    os.mkfifo(collected / "vmsnap.prom")
    for _ in range(2):  # the second finds the lock free
        outcome = lab.run("exit 0")
        assert outcome.verdict == ("success", "filesystem", 0)
        assert "found a FIFO, expected a regular file" in outcome.err
    assert lab.left() == []


def test_a_directory_that_never_answers_is_not_asked(lab: Lab, collected: Path) -> None:
    with serving(collected, silent=True) as server:
        outcome = lab.run("exit 0")
        assert server.stop() == [str(INIT)]
    assert outcome.verdict == ("success", "filesystem", 0)
    assert f"{collected}: found a FUSE filesystem" in outcome.err


def test_a_frozen_directory_costs_no_later_session(lab: Lab) -> None:
    """What hangs in the write to it has not the lock, and has ended soon after the thaw."""
    lab.filesystem()
    other = lab.filesystem()
    lab.conf(f"[metrics]\ntextfile = {other.mount}/vmsnap.prom\n")
    only = [str(lab.filesystems[0].mount)]
    kernel.freeze(other.mount)
    try:
        for _ in range(2):
            outcome = lab.run("exit 0", only=only)
            assert outcome.verdict == ("success", "filesystem", 0)
            assert f"{other.mount}/vmsnap.prom: it takes too long" in outcome.err
    finally:
        kernel.thaw(other.mount)
    lab.wait_for_rest()
    assert [path.name for path in other.mount.iterdir()] == ["lost+found"]


def test_the_check_names_the_directorys_owner(lab: Lab, collected: Path) -> None:
    checked = lab.vmsnap("check", "--json", *(f"--only={mount}" for mount in lab.mounts))
    assert checked.result["ok"]
    (problem,) = checked.result["problems"]
    assert problem["severity"] == "warning"
    assert f"{collected}: found owner uid {NOBODY}" in problem["message"]
