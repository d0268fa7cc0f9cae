# SPDX-License-Identifier: Apache-2.0
"""Everything was killed, and what is frozen can no longer be reached as it was: each is thawed by
itself, through whatever way in there is."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from . import fuse, kernel
from .faults import kill_all, kill_both
from .lab import Filesystem, Lab, call
from .processes import wait_until
from .running import Session
from .test_thaw_alone import NO_CHILD, python

LIST = "frozen.json"


def below(lab: Lab, fstype: str = "ext4") -> Filesystem:
    """A filesystem that is mounted in a directory of its own, which can be covered."""
    (lab.directory / "above").mkdir(mode=0o700)
    return lab.filesystem(fstype, name="above/below")


@contextmanager
def never_answering(filesystem: Filesystem) -> Iterator[fuse.Server]:
    """Who looks at its mount point waits for a server above it."""
    with fuse.serving(filesystem.mount.parent, silent=True) as server:
        yield server


def leave_frozen(lab: Lab) -> None:
    kill_all(lab.hold())
    lab.release()
    lab.wait_for_rest()


def forget_all_but_paths(lab: Lab) -> None:
    """As in a list of an older version."""
    path = lab.run_directory / LIST
    document = json.loads(path.read_text())
    names = ("mount", "st_dev", "step")
    document["filesystems"] = [{n: x[n] for n in names} for x in document["filesystems"]]
    path.write_text(json.dumps(document))


# --- none waits for another ----------------------------------------------------------------------


def test_one_behind_a_server_that_never_answers_is_named_and_the_others_are_thawed(
    lab: Lab,
) -> None:
    first, dead, last = lab.filesystem("xfs"), below(lab), lab.filesystem()
    leave_frozen(lab)
    forget_all_but_paths(lab)
    with never_answering(dead) as server:
        forced = lab.vmsnap("thaw", "--force")
        assert (first.is_frozen, last.is_frozen) == (False, False)
        assert forced.code == 1
        words = f"{dead.mount}: cannot be reached: it could not be opened within 2 s"
        assert words in forced.out.decode().splitlines()
        server.stop()
        lab.wait_for_rest()
    assert lab.frozen == ["below"]
    assert lab.vmsnap("thaw", "--force").code == 0
    assert lab.frozen == []


def test_supervisors_thaw_the_others_as_well(lab: Lab) -> None:
    first, dead, last = lab.filesystem(), below(lab), lab.filesystem("xfs")
    session = lab.hold()
    forget_all_but_paths(lab)
    with never_answering(dead) as server:
        kill_both(session)
        lab.wait_for_thaw(first, last)
        server.stop()
        lab.wait_for_rest()
    assert lab.vmsnap("thaw", "--force").code == 0
    assert lab.frozen == []


def test_without_processes_what_may_hang_comes_last(lab: Lab) -> None:
    dead, others = below(lab), [lab.filesystem(), lab.filesystem("xfs")]
    leave_frozen(lab)
    forget_all_but_paths(lab)
    with never_answering(dead) as server:
        argv = [*python(NO_CHILD), "thaw", *lab.places(), "--force"]
        forced = Session(lab.directory, argv, lab.environment())
        lab.sessions.append(forced)
        lab.wait_for_thaw(*others)
        server.stop()
        forced.finish()
    assert lab.vmsnap("thaw", "--force").code == 0
    assert lab.frozen == []


# The child that looks filesystems up is killed, the first times.
KILLED_CHILDREN = """
import os, signal, sys
from pathlib import Path
from vmsnap.cli import main
from vmsnap.freeze import ways
send, killed = ways.send_descriptors, Path(MARK)
def dying(*arguments):
    if len(list(killed.parent.glob("killed-*"))) < 2:
        killed.with_name(f"killed-{os.getpid()}").touch()
        os.kill(os.getpid(), signal.SIGKILL)
    send(*arguments)
ways.send_descriptors = dying
sys.exit(main.main())
"""


def killing(lab: Lab) -> tuple[str, ...]:
    return python(KILLED_CHILDREN.replace("MARK", repr(str(lab.shm / "killed"))))


def test_who_looks_them_up_can_be_killed(lab: Lab) -> None:
    lab.filesystem(), lab.filesystem("xfs")
    leave_frozen(lab)
    argv = [*killing(lab), "thaw", *lab.places(), "--force"]
    forced = Session(lab.directory, argv, lab.environment())
    lab.sessions.append(forced)
    assert forced.finish().code == 0
    assert len(list(lab.shm.glob("killed-*"))) == 2
    assert lab.frozen == []


def test_before_the_freeze_too(lab: Lab) -> None:
    lab.filesystem(), lab.filesystem("xfs")
    outcome = lab.run("exit 0", program=killing(lab))
    assert outcome.verdict == ("success", "filesystem", 0)


# --- other ways in -------------------------------------------------------------------------------


@pytest.mark.parametrize("fstype", ["ext4", "xfs", "btrfs"])
def test_what_is_mounted_elsewhere_too_is_thawed_there(lab: Lab, fstype: str) -> None:
    filesystem = lab.filesystem(fstype)
    (lab.directory / "elsewhere").mkdir(mode=0o700)
    lab.mount("--bind", filesystem.mount, lab.directory / "elsewhere")
    leave_frozen(lab)
    lab.umount(filesystem.mount)
    assert lab.vmsnap("thaw", "--force").code == 0
    lab.mount("--bind", lab.directory / "elsewhere", filesystem.mount)
    assert lab.frozen == []


@pytest.mark.parametrize("fstype", ["ext4", "xfs", "btrfs"])
def test_what_was_unmounted_while_frozen_is_thawed(lab: Lab, fstype: str) -> None:
    """Engine and guard hold it open, so that only umount --lazy can; but not when they are dead."""
    lazily, later = lab.filesystem(fstype), lab.filesystem(fstype)
    session = lab.hold()
    writer = lab.writer(lazily)
    wait_until(lambda: "percpu" in Path(f"/proc/{writer.pid}/wchan").read_text())
    call("umount", "--lazy", lazily.mount)
    kill_all(session)
    lab.release()
    lab.umount(later.mount)
    forced = lab.vmsnap("thaw", "--force")
    assert forced.code == 0, forced.out
    assert [m for m in lab.mounts if f"{m}: thawed" in forced.out.decode()] == lab.mounts
    lab.events.wait("wrote-fs0")
    lab.wait_for_rest()
    mount_again(lab, *lab.filesystems)
    assert lab.frozen == []
    assert (lazily.mount / "written-by-test").read_text() == "x\n"


@pytest.mark.parametrize("fstype", ["ext4", "xfs", "btrfs"])
def test_supervisors_thaw_what_was_unmounted(lab: Lab, fstype: str) -> None:
    filesystem = lab.filesystem(fstype)
    session = lab.hold()
    writer = lab.writer(filesystem)
    wait_until(lambda: "percpu" in Path(f"/proc/{writer.pid}/wchan").read_text())
    call("umount", "--lazy", filesystem.mount)
    kill_both(session)
    lab.events.wait("wrote-fs0")
    lab.wait_for_rest()
    mount_again(lab, filesystem)
    assert lab.frozen == []


def test_a_subvolume_that_was_unmounted_is_thawed(lab: Lab) -> None:
    filesystem = lab.filesystem("btrfs")
    call("btrfs", "subvolume", "create", filesystem.mount / "sub")
    lab.umount(filesystem.mount)
    lab.mount("-o", "loop,subvol=sub", filesystem.image, filesystem.mount)
    leave_frozen(lab)
    lab.umount(filesystem.mount)
    assert lab.vmsnap("thaw", "--force").code == 0
    mount_again(lab, filesystem)
    assert lab.frozen == []


@pytest.mark.parametrize("fstype", ["ext4", "xfs", "btrfs"])
def test_what_lies_behind_a_server_that_never_answers_is_thawed(lab: Lab, fstype: str) -> None:
    dead, other = below(lab, fstype), lab.filesystem()
    leave_frozen(lab)
    with never_answering(dead) as server:
        forced = lab.vmsnap("thaw", "--force")
        assert forced.code == 0, forced.out
        assert not other.is_frozen
        server.stop()
        lab.wait_for_rest()
    assert lab.frozen == []


def test_what_somebody_has_thawed_and_unmounted_is_not_mounted(lab: Lab) -> None:
    """That would write to a disk that may be another machine's by now."""
    filesystem = lab.filesystem()
    lab.umount(filesystem.mount)
    device = call("losetup", "--find", "--show", filesystem.image).strip()
    lab.undo.callback(call, "losetup", "--detach", device)
    lab.mount(device, filesystem.mount)
    leave_frozen(lab)
    kernel.thaw(filesystem.mount)
    lab.umount(filesystem.mount)
    before = filesystem.image.read_bytes()
    forced = lab.vmsnap("thaw", "--force")
    assert filesystem.image.read_bytes() == before
    assert forced.code == 1
    assert "nothing has mounted its device" in forced.out.decode()
    lab.mount(device, filesystem.mount)
    assert lab.vmsnap("thaw", "--force").code == 0


def mount_again(lab: Lab, *filesystems: Filesystem) -> None:
    """Of those that were unmounted, the last descriptor may be closed a moment later."""
    for filesystem in filesystems:
        lab.mount("-o", "loop", filesystem.image, filesystem.mount)
