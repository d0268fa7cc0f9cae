# SPDX-License-Identifier: Apache-2.0
"""One filesystem is damaged, covered, or has no directory to reach it by: all others are frozen,
and the level is honest."""

from __future__ import annotations

import contextlib
import fcntl
import os
import signal
import struct
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from . import kernel, strange
from .lab import Lab, call

LIMIT = 20.0  # seconds
GOING_DOWN = 0x8004587D  # linux/fs: EXT4_IOC_SHUTDOWN, XFS_IOC_GOINGDOWN: _IOR('X', 125, __u32)
NO_LOG_FLUSH = 2


@dataclass(frozen=True)
class Bad:
    """`name` is what the user knows it by. `disk` is None if it cannot be frozen in any way."""

    name: Path
    selected: tuple[Path, ...]
    disk: strange.Disk | None = None


def device_of(mount: Path) -> str:
    return next(source for point, source in kernel.mounts("self") if point == str(mount))


# --- damaged -------------------------------------------------------------------------------------


def stopped_by_an_error(lab: Lab) -> Bad:
    """ext4 with errors=remount-ro: the options say `rw` and `emergency_ro`."""
    mount = strange.point(lab, "bad")
    lab.mount("-o", "loop,errors=remount-ro", strange.image(lab, "bad"), mount)
    name = Path(device_of(mount)).name
    Path("/sys/fs/ext4", name, "trigger_fs_error").write_text("1")
    return Bad(mount, (mount,))


def going_down(lab: Lab, fstype: str) -> Bad:
    filesystem = lab.filesystem(fstype, name="bad")
    lab.filesystems.remove(filesystem)
    shut_down(filesystem.mount)
    return Bad(filesystem.mount, (filesystem.mount,))


def shut_down(mount: Path) -> None:
    fd = os.open(mount, os.O_RDONLY)
    fcntl.ioctl(fd, GOING_DOWN, struct.pack("I", NO_LOG_FLUSH))
    os.close(fd)


def an_ext4_that_was_shut_down(lab: Lab) -> Bad:
    return going_down(lab, "ext4")


def an_xfs_that_was_shut_down(lab: Lab) -> Bad:
    """Its options say nothing, and opening it fails."""
    return going_down(lab, "xfs")


def on_a_disk_that_fails(lab: Lab, fstype: str, dirty: bool) -> Bad:
    """Nothing is known of it until something is written: what it lies on was shut down."""
    below = lab.filesystem("ext4", name="below", mib=400)
    filesystem = lab.filesystem(fstype, name="bad", on=below)
    if dirty:
        (filesystem.mount / "dirty").write_bytes(b"x" * 1_000_000)
    else:
        call("sync", "--file-system", filesystem.mount)
    shut_down(below.mount)
    for failed in (filesystem, below):
        lab.filesystems.remove(failed)
    return Bad(filesystem.mount, (filesystem.mount,))


def an_ext4_on_a_disk_that_fails(lab: Lab) -> Bad:
    """FIFREEZE says EIO."""
    return on_a_disk_that_fails(lab, "ext4", dirty=False)


def an_ext4_with_data_for_a_disk_that_fails(lab: Lab) -> Bad:
    return on_a_disk_that_fails(lab, "ext4", dirty=True)


def an_xfs_with_data_for_a_disk_that_fails(lab: Lab) -> Bad:
    return on_a_disk_that_fails(lab, "xfs", dirty=True)


def a_btrfs_with_data_for_a_disk_that_fails(lab: Lab) -> Bad:
    """The commit fails before the freeze, and what is read-only by then freezes very well."""
    return on_a_disk_that_fails(lab, "btrfs", dirty=True)


def a_btrfs_on_a_disk_that_fails(lab: Lab) -> Bad:
    """The freeze succeeds, as there is nothing to write; in the thaw it becomes read-only."""
    return on_a_disk_that_fails(lab, "btrfs", dirty=False)


def an_ext4_on_a_disk_that_is_full(lab: Lab) -> Bad:
    """As a thin pool: what has been written cannot be brought there. All that is needed for the
    freeze is there already."""
    pool = strange.point(lab, "pool")
    lab.mount("-t", "tmpfs", "-o", "size=40m", "tmpfs", pool)
    image = strange.image(lab, "bad", mib=64, directory=pool)
    mount = strange.point(lab, "bad")
    lab.mount("-o", "loop", image, mount)
    with (mount / "file").open("wb") as file:
        file.write(b"x" * (1 << 20))
        file.flush()
        os.fsync(file.fileno())
        fill(pool)
        file.write(b"x" * (8 << 20))
    return Bad(mount, (mount,))


def fill(directory: Path) -> None:
    with (directory / "filling").open("wb", buffering=0) as file, contextlib.suppress(OSError):
        while True:
            file.write(b"x" * 4096)


SHOWN = [
    stopped_by_an_error,
    an_ext4_that_was_shut_down,
    an_xfs_that_was_shut_down,
]
DAMAGED = [
    *SHOWN,
    an_ext4_on_a_disk_that_fails,
    an_ext4_with_data_for_a_disk_that_fails,
    an_xfs_with_data_for_a_disk_that_fails,
    a_btrfs_with_data_for_a_disk_that_fails,
    a_btrfs_on_a_disk_that_fails,
    an_ext4_on_a_disk_that_is_full,
]

# --- covered -------------------------------------------------------------------------------------


def covered_by_another_disk(lab: Lab) -> Bad:
    disk = strange.disk(lab, strange.point(lab, "bad"), strange.image(lab, "bad"))
    lab.mount("-o", "loop", strange.image(lab, "above"), disk.mount)
    lab.undo.callback(kernel.detach, disk.mount)
    return Bad(disk.mount, (disk.mount,), disk)


def covered_by_a_tmpfs(lab: Lab) -> Bad:
    disk = strange.disk(lab, strange.point(lab, "bad"), strange.image(lab, "bad"))
    lab.mount("-t", "tmpfs", "tmpfs", disk.mount)
    lab.undo.callback(kernel.detach, disk.mount)
    return Bad(disk.mount, (disk.mount,), disk)


def below_a_directory_that_is_mounted_over(lab: Lab) -> Bad:
    above = strange.point(lab, "above")
    (above / "bad").mkdir()
    disk = strange.disk(lab, above / "bad", strange.image(lab, "bad"))
    lab.mount("-t", "tmpfs", "tmpfs", above)
    lab.undo.callback(kernel.detach, above)
    return Bad(disk.mount, (disk.mount,), disk)


def covered_twice(lab: Lab) -> Bad:
    disk = strange.disk(lab, strange.point(lab, "bad"), strange.image(lab, "bad"))
    for _ in range(2):
        lab.mount("-t", "tmpfs", "tmpfs", disk.mount)
        lab.undo.callback(kernel.detach, disk.mount)
    return Bad(disk.mount, (disk.mount,), disk)


def covered_by_a_file(lab: Lab) -> Bad:
    """A file is mounted on the one file through which it is mounted."""
    disk = strange.disk(lab, strange.point(lab, "whole"), strange.image(lab, "bad"))
    (disk.mount / "file").touch()
    target = lab.directory / "bad"
    target.touch()
    lab.mount("--bind", disk.mount / "file", target)
    kernel.detach(disk.mount)
    lab.mount("--bind", "/dev/null", target)
    lab.undo.callback(kernel.detach, target)
    return Bad(target, (target,), disk)


def covered_by_an_automount(lab: Lab) -> Bad:
    disk = strange.disk(lab, strange.point(lab, "bad"), strange.image(lab, "bad"))
    asked, daemon = os.pipe()
    options = f"fd={daemon},pgrp={os.getpgrp()},minproto=5,maxproto=5,direct"
    kernel.mount("systemd-1", disk.mount, "autofs", options)
    os.close(daemon)
    lab.undo.callback(kernel.detach, disk.mount)
    lab.undo.callback(os.close, asked)
    return Bad(disk.mount, (disk.mount,), disk)


COVERED = [
    covered_by_another_disk,
    covered_by_a_tmpfs,
    below_a_directory_that_is_mounted_over,
    covered_twice,
    covered_by_a_file,
    covered_by_an_automount,
]

# --- no directory --------------------------------------------------------------------------------


def mounted(lab: Lab, make: Callable[[Path], object]) -> Bad:
    """Its only mount is one of a single object in it."""
    disk = strange.disk(lab, strange.point(lab, "whole"), strange.image(lab, "bad"))
    make(disk.mount / "object")
    target = lab.directory / "bad"
    if (disk.mount / "object").is_dir():
        target.mkdir()
    else:
        target.touch()
    lab.mount("--bind", disk.mount / "object", target)
    kernel.detach(disk.mount)
    return Bad(target, (target,), disk)


def mounted_as_a_fifo(lab: Lab) -> Bad:
    return mounted(lab, os.mkfifo)


def mounted_as_a_device(lab: Lab) -> Bad:
    return mounted(lab, lambda path: os.mknod(path, 0o020600, os.makedev(1, 3)))


def mounted_as_a_block_device_that_is_not_there(lab: Lab) -> Bad:
    return mounted(lab, lambda path: os.mknod(path, 0o060600, os.makedev(240, 77)))


def mounted_as_a_socket(lab: Lab) -> Bad:
    return mounted(lab, lambda path: os.mknod(path, 0o140600))


def mounted_as_a_file_that_was_deleted(lab: Lab) -> Bad:
    disk = strange.disk(lab, strange.point(lab, "whole"), strange.image(lab, "bad"))
    (disk.mount / "object").touch()
    target = lab.directory / "bad"
    target.touch()
    lab.mount("--bind", disk.mount / "object", target)
    (disk.mount / "object").unlink()
    kernel.detach(disk.mount)
    return Bad(target, (target,), disk)


NO_DIRECTORY = [
    mounted_as_a_fifo,
    mounted_as_a_device,
    mounted_as_a_block_device_that_is_not_there,
    mounted_as_a_socket,
    mounted_as_a_file_that_was_deleted,
]
ALL = [*DAMAGED, *COVERED, *NO_DIRECTORY]


@pytest.mark.parametrize("make", ALL)
def test_all_others_are_frozen_and_the_level_is_honest(
    lab: Lab, make: Callable[[Lab], Bad]
) -> None:
    lab.conf("[freeze]\ntimeout = 3\n")
    others = [lab.filesystem("ext4", name="first")]
    bad = make(lab)
    others.append(lab.filesystem("xfs", name="last"))
    session = lab.hold(only=[*lab.mounts, *map(str, bad.selected)], seconds=LIMIT)
    frozen = [other.is_frozen for other in others]
    reached = bad.disk is not None and bad.disk.is_frozen
    lab.release()
    outcome = session.finish(LIMIT)
    assert frozen == [True, True]
    if reached:
        assert outcome.verdict == ("success", "filesystem", 0)
    else:
        assert outcome.verdict == ("success", "crash", 0)
        assert {subject for _, subject in outcome.subjects} == {str(bad.name)}
    if bad.disk:
        assert not bad.disk.is_frozen


@pytest.mark.parametrize("make", SHOWN)
def test_check_tells_of_the_damage(lab: Lab, make: Callable[[Lab], Bad]) -> None:
    """Before any snapshot is taken: the filesystem is in trouble, whatever becomes of snapshots."""
    bad = make(lab)
    outcome = lab.begin("check", f"--only={bad.name}", "--json").finish(LIMIT)
    messages = [p["message"] for p in outcome.result["problems"]]
    assert [m for m in messages if str(bad.name) in m], messages


@pytest.mark.parametrize("lost", [False, True])
def test_what_the_thaw_leaves_read_only_is_named(lab: Lab, lost: bool) -> None:
    below = lab.filesystem("ext4", name="below", mib=200)
    filesystem = lab.filesystem("btrfs", on=below)
    lab.filesystems.remove(below)
    session = lab.hold()
    shut_down(below.mount)
    if lost:
        os.kill(session.guard, signal.SIGKILL)
    lab.release()
    outcome = session.finish()
    assert ("BecameReadOnly", str(filesystem.mount)) in outcome.subjects
    assert outcome.verdict == ("success", "crash", 0)


def test_a_filesystem_that_is_only_shown_read_only_is_frozen_and_no_problem(lab: Lab) -> None:
    filesystem = lab.filesystem("btrfs")
    lab.mount("-o", "remount,bind,ro", filesystem.mount)
    session = lab.hold()
    assert lab.frozen == ["fs0"]
    lab.release()
    outcome = session.finish()
    assert outcome.subjects == []
    assert outcome.verdict == ("success", "filesystem", 0)


# What would take a user namespace of somebody's.
FOREIGN = """
import sys
from vmsnap.cli import main
from vmsnap.freeze.plan import Entry
Entry.foreign = property(lambda entry: entry.mount.endswith("/bad"))
sys.exit(main.main())
"""


def test_nothing_but_what_only_a_user_has_mounted_and_that_is_damaged_is_no_freeze(
    lab: Lab,
) -> None:
    bad = an_ext4_on_a_disk_that_fails(lab)
    program = (sys.executable, "-IBc", FOREIGN)
    outcome = lab.start("exit 0", only=[str(bad.name)], program=program).finish(LIMIT)
    assert outcome.verdict == ("success", "crash", 0)
    assert outcome.errors == ["FreezeFailed"]


def test_a_lone_filesystem_that_is_damaged_is_no_freeze(lab: Lab) -> None:
    bad = an_ext4_on_a_disk_that_fails(lab)
    outcome = lab.start("exit 0", only=[str(bad.name)]).finish(LIMIT)
    assert outcome.verdict == ("success", "crash", 0)
    assert outcome.subjects == [("FreezeFailed", str(bad.name))]
    (error,) = outcome.result["errors"]
    assert "left out" in error["message"]


def test_no_snapshot_is_taken_if_more_is_required_than_is_left_by_what_is_damaged(lab: Lab) -> None:
    """And all others are thawed again."""
    other = lab.filesystem()
    bad = a_btrfs_with_data_for_a_disk_that_fails(lab)
    only = [str(other.mount), str(bad.name)]
    outcome = lab.start(lab.say("taken"), "--require=filesystem", only=only).finish(LIMIT)
    assert outcome.verdict == ("failed", "none", 1)
    assert lab.events.heard == []
    assert not other.is_frozen


def test_another_failure_beside_it_still_ends_the_freeze_of_all(lab: Lab) -> None:
    other, theirs = lab.filesystem(), lab.filesystem()
    bad = an_ext4_on_a_disk_that_fails(lab)
    kernel.freeze(theirs.mount)
    session = lab.hold(only=[*lab.mounts, str(bad.name)])
    frozen = other.is_frozen
    lab.release()
    outcome = session.finish()
    assert not frozen
    assert ("FreezeFailed", str(theirs.mount)) in outcome.subjects
    assert theirs.is_frozen
    kernel.thaw(theirs.mount)


def test_what_lies_on_a_damaged_one_that_is_left_out_has_its_own_error(lab: Lab) -> None:
    below = lab.filesystem("ext4", name="below", mib=200)
    above = lab.filesystem("ext4", name="above", on=below)
    other = lab.filesystem()
    shut_down(below.mount)
    for failed in (below, above):
        lab.filesystems.remove(failed)
    only = [str(f.mount) for f in (below, above, other)]
    session = lab.hold(only=only)
    frozen = other.is_frozen
    lab.release()
    outcome = session.finish()
    assert frozen
    assert {subject for _, subject in outcome.subjects} == set(only[:2])
    assert outcome.verdict == ("success", "crash", 0)


def test_what_only_became_read_only_by_an_error_is_not_shown_as_to_be_frozen(lab: Lab) -> None:
    bad = stopped_by_an_error(lab)
    outcome = lab.begin("plan", "--json", f"--only={bad.name}").finish(LIMIT)
    entries: Any = outcome.result
    (entry,) = [e for e in entries if e["mount"] == str(bad.name)]
    assert entry["action"] == "skip"
    assert "error" in entry["reason"] or "damage" in entry["reason"]


@pytest.mark.parametrize("make", [*COVERED, *NO_DIRECTORY])
def test_check_finds_what_a_session_finds(lab: Lab, make: Callable[[Lab], Bad]) -> None:
    lab.filesystem()
    bad = make(lab)
    only = [*lab.mounts, *map(str, bad.selected)]
    checked = lab.begin("check", *(f"--only={m}" for m in only)).finish(LIMIT)
    outcome = lab.start("exit 0", only=only).finish(LIMIT)
    assert (checked.code == 0) == (outcome.result["consistency"] == "filesystem")


def test_nothing_is_quiesced_for_a_damaged_one_when_the_application_is_required(lab: Lab) -> None:
    bad = stopped_by_an_error(lab)
    lab.filesystem()
    lab.app(pre=lab.say("quiesced"), post=lab.say("resumed"))
    only = [*lab.mounts, str(bad.name)]
    outcome = lab.start("exit 0", "--require=application", only=only).finish(LIMIT)
    assert outcome.code == 1
    assert lab.events.heard == []
