# SPDX-License-Identifier: Apache-2.0
"""Opening the filesystems of a plan, on this machine's real mounts. Nothing is frozen here."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from vmsnap.errors import Kind
from vmsnap.freeze import filesystem
from vmsnap.freeze.filesystem import Opened, open_plan, warning
from vmsnap.freeze.mountinfo import Mount, every_mount
from vmsnap.freeze.plan import Action, Entry, Plan
from vmsnap.freeze.reopen import open_here
from vmsnap.freeze.ways import MountOpenError, Way, open_filesystem


@pytest.fixture
def proc() -> Mount:
    """A filesystem that every Linux has, and that no test could harm."""
    return next(mount for mount in every_mount() if mount.point == "/proc" and mount.pid is None)


@pytest.fixture(autouse=True)
def no_child(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is opened in a child is opened here."""

    def open_all(ways: Sequence[tuple[int, Way]]) -> dict[int, int | str]:
        return {number: answer for batch in open_here(ways) for number, answer in batch.items()}

    monkeypatch.setattr(filesystem, "open_all", open_all)


def entry(*mounts: Mount) -> Entry:
    return Entry(mounts, Action.FREEZE, 1, "")


@contextmanager
def opened(plan: Plan, run: Path) -> Iterator[list[tuple[Kind, str]]]:
    opened = open_plan(plan, run)
    yield [(problem.kind, problem.subject) for problem in (*opened.left_out, *opened.refused)]
    opened.close()


def test_a_mount_that_is_what_was_planned_is_opened(proc: Mount) -> None:
    fd = open_filesystem([proc])
    assert os.fstat(fd).st_dev == Path("/proc").stat().st_dev
    os.close(fd)


def test_another_mount_of_the_same_superblock_is_tried(proc: Mount) -> None:
    gone = replace(proc, point="/no/such/mount")
    deleted = replace(proc, point="/proc//deleted")
    os.close(open_filesystem([gone, deleted, proc]))


@pytest.mark.parametrize("change", [{"id": 999_999_999}, {"device": "900:1"}, {"point": "/sys"}])
def test_a_mount_that_is_no_longer_what_was_planned_is_refused(
    proc: Mount, change: dict[str, object]
) -> None:
    changed = replace(proc, **change)  # type: ignore[arg-type]
    with pytest.raises(MountOpenError, match="something else is mounted"):
        open_filesystem([changed])


def test_a_mount_point_that_is_gone_is_refused_with_the_systems_reason(proc: Mount) -> None:
    with pytest.raises(MountOpenError, match="No such file"):
        open_filesystem([replace(proc, point="/no/such/mount")])


def test_a_mount_that_nobody_can_reach_is_refused(proc: Mount) -> None:
    with pytest.raises(MountOpenError, match="reached"):
        open_filesystem([replace(proc, point="/proc//deleted")])


def test_one_failure_names_its_mount_and_the_others_are_still_opened(
    proc: Mount, tmp_path: Path
) -> None:
    missing = entry(replace(proc, point="/no/such/mount"))
    with opened(Plan((missing, entry(proc))), tmp_path) as failures:
        assert failures == [(Kind.MOUNT_OPEN_FAILED, "/no/such/mount")]


def test_a_name_that_matched_no_mount_point_is_a_failure(proc: Mount, tmp_path: Path) -> None:
    with opened(Plan((entry(proc),), ("/srv/typo",)), tmp_path) as failures:
        assert failures == [(Kind.MOUNT_OPEN_FAILED, "/srv/typo")]


def test_a_plan_that_freezes_nothing_is_a_failure(tmp_path: Path) -> None:
    with opened(Plan(()), tmp_path) as failures:
        assert [kind for kind, _ in failures] == [Kind.FREEZE_FAILED]


def test_the_filesystem_of_the_run_directory_must_not_be_frozen(proc: Mount) -> None:
    with opened(Plan((entry(proc),)), Path("/proc/self")) as failures:
        assert failures == [(Kind.FREEZE_FAILED, "/proc")]


def test_refusals_leave_no_descriptor_open(proc: Mount, tmp_path: Path) -> None:
    before = set(os.listdir("/proc/self/fd"))
    with opened(Plan((entry(replace(proc, id=-7)), entry(proc)), ("/x",)), tmp_path):
        pass
    assert set(os.listdir("/proc/self/fd")) == before


def test_what_was_left_out_with_a_warning_only_leaves_nothing_that_could_be_claimed() -> None:
    noted = Opened([], [warning(Kind.MOUNT_OPEN_FAILED, "left out")], [])
    assert [problem.kind for problem in noted.refused] == [Kind.FREEZE_FAILED]
