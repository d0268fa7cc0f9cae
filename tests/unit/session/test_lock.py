# SPDX-License-Identifier: Apache-2.0
"""One session at a time, in a run directory that is root's alone."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from vmsnap.session.lock import (
    MARK,
    RunDirectoryError,
    SessionInProgressError,
    acquire,
    check_state,
    holder,
    prepare,
    prepare_state,
)

from ..worlds import NOBODY

SESSION = "0b6f5a0e-6f55-4b4b-8f2c-59e3b5b8f6a1"


@pytest.fixture
def run(trusted_dir: Path) -> Path:
    path = trusted_dir / "run"
    prepare(path)
    return path


@pytest.mark.parametrize("umask", [0o000, 0o022, 0o077])
def test_the_run_directory_is_made_for_root_alone_with_its_parents(
    trusted_dir: Path, umask: int
) -> None:
    before = os.umask(umask)
    try:
        prepare(trusted_dir / "a/b")
    finally:
        os.umask(before)
    assert (trusted_dir / "a/b").stat().st_mode & 0o777 == 0o700


def test_preparing_twice_is_fine(run: Path) -> None:
    prepare(run)
    assert run.is_dir()


@pytest.mark.parametrize("mode", [0o770, 0o707, 0o1777])
def test_a_run_directory_that_others_can_write_to_is_refused(run: Path, mode: int) -> None:
    run.chmod(mode)
    with pytest.raises(RunDirectoryError, match=f"mode {mode:04o}"):
        prepare(run)


@pytest.mark.parametrize("mode", [0o755, 0o750, 0o705])
def test_a_run_directory_that_others_can_read_is_refused(run: Path, mode: int) -> None:
    run.chmod(mode)
    with pytest.raises(RunDirectoryError, match=f"mode {mode:04o}, expected mode 0700"):
        prepare(run)


def test_a_run_directory_below_one_that_others_can_write_to_is_refused_and_not_made(
    trusted_dir: Path,
) -> None:
    trusted_dir.chmod(0o1777)
    with pytest.raises(RunDirectoryError, match=f"{trusted_dir}: found mode 1777"):
        prepare(trusted_dir / "run")
    assert not (trusted_dir / "run").exists()


def test_a_link_of_somebody_else_to_a_run_directory_is_refused(
    run: Path, trusted_dir: Path
) -> None:
    link = trusted_dir / "link"
    link.symlink_to(run)
    prepare(link)
    os.chown(link, NOBODY, 0, follow_symlinks=False)
    with pytest.raises(RunDirectoryError, match=f"{link}: found owner uid {NOBODY}"):
        prepare(link)


def test_a_run_directory_of_somebody_else_is_refused(run: Path) -> None:
    os.chown(run, NOBODY, 0)
    with pytest.raises(RunDirectoryError, match=str(NOBODY)):
        prepare(run)


def test_a_run_directory_that_cannot_be_made_is_refused_by_name(trusted_dir: Path) -> None:
    (trusted_dir / "file").write_text("")
    for path in (trusted_dir / "file", trusted_dir / "file/run"):
        with pytest.raises(RunDirectoryError, match=str(path)):
            prepare(path)


# --- whose directory it is ---------------------------------------------------------------------


def directory(path: Path, *files: str) -> Path:
    path.mkdir(mode=0o700)
    for name in files:
        (path / name).write_text("")
    return path


def test_a_directory_that_vmsnap_has_made_has_a_mark(run: Path) -> None:
    assert [path.name for path in run.iterdir()] == [MARK]


def test_an_empty_directory_is_taken_and_stays_vmsnaps(trusted_dir: Path) -> None:
    """As systemd's RuntimeDirectory= and the packages make them."""
    found = directory(trusted_dir / "empty")
    prepare(found)
    (found / "anything").write_text("")
    prepare(found)


@pytest.mark.parametrize("files", [["tmp"], ["lock"], ["lock", "scripts", "tmp"]])
def test_a_directory_with_files_and_no_mark_is_refused(trusted_dir: Path, files: list[str]) -> None:
    found = directory(trusted_dir / "theirs", *files)
    with pytest.raises(RunDirectoryError, match=f"{found}: found files and no {MARK}"):
        prepare(found)
    assert sorted(path.name for path in found.iterdir()) == files


def test_the_directories_that_the_packages_know_need_no_mark(
    trusted_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also those of an older version, and with what an administrator has put there."""
    found = directory(trusted_dir / "known", "last-result.json")
    found.chmod(0o755)
    for name in ("RUN", "STATE"):
        monkeypatch.setattr(f"vmsnap.session.lock.{name}", found)
        for known in (prepare, prepare_state, check_state):
            known(found)
    assert not (found / MARK).exists()
    found.chmod(0o775)
    with pytest.raises(RunDirectoryError, match="found mode 0775"):
        prepare(found)


def test_the_name_alone_makes_no_directory_vmsnaps(trusted_dir: Path) -> None:
    found = directory(trusted_dir / "vmsnap", "notes")
    for refused in (prepare, prepare_state, check_state):
        with pytest.raises(RunDirectoryError, match="no .vmsnap"):
            refused(found)


def test_a_state_directory_is_checked_without_being_written_to(trusted_dir: Path) -> None:
    check_state(trusted_dir / "none")
    check_state(directory(trusted_dir / "empty"))
    assert [*trusted_dir.rglob("*")] == [trusted_dir / "empty"]


# --- the lock ----------------------------------------------------------------------------------


def test_a_second_session_is_refused_at_once_and_hears_of_the_first(run: Path) -> None:
    first = acquire(run, SESSION)
    with pytest.raises(SessionInProgressError, match=SESSION):
        acquire(run, "another")
    os.close(first)


def test_the_refused_session_leaves_the_name_of_the_first_in_place(run: Path) -> None:
    first = acquire(run, SESSION)
    with pytest.raises(SessionInProgressError):
        acquire(run, "another")
    words = holder(run)
    os.close(first)
    assert words
    assert SESSION in words


def test_closing_the_descriptor_gives_the_lock_back(run: Path) -> None:
    os.close(acquire(run, SESSION))
    os.close(acquire(run, "another"))


def test_whoever_inherited_the_descriptor_keeps_the_lock(run: Path) -> None:
    first = acquire(run, SESSION)
    inherited = os.dup(first)
    os.close(first)
    with pytest.raises(SessionInProgressError):
        acquire(run, "another")
    os.close(inherited)
    os.close(acquire(run, "another"))


def test_the_holder_is_named_while_the_lock_is_held_and_not_after(run: Path) -> None:
    assert holder(run) is None
    descriptor = acquire(run, SESSION)
    words = holder(run)
    assert words
    assert SESSION in words
    assert str(os.getpid()) in words
    os.close(descriptor)
    assert holder(run) is None


def test_a_shorter_name_leaves_nothing_of_a_longer_one(run: Path) -> None:
    os.close(acquire(run, SESSION))
    descriptor = acquire(run, "x")
    words = holder(run)
    os.close(descriptor)
    assert words
    assert words.startswith("x ")
    assert SESSION[-12:] not in words


def test_the_lock_is_readable_by_root_alone(run: Path) -> None:
    os.close(acquire(run, SESSION))
    assert (run / "lock").stat().st_mode & 0o077 == 0


def test_a_link_in_the_place_of_the_lock_is_not_followed(run: Path, trusted_dir: Path) -> None:
    (run / "lock").symlink_to(trusted_dir / "elsewhere")
    with pytest.raises(RunDirectoryError):
        acquire(run, SESSION)
    assert not (trusted_dir / "elsewhere").exists()
