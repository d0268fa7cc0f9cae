# SPDX-License-Identifier: Apache-2.0
"""Everything was killed, and what is frozen can no longer be reached as it was: each is thawed by
itself, through whatever way in there is."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from . import fuse
from .faults import kill_all, kill_both
from .lab import Filesystem, Lab
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
    with never_answering(dead) as server:
        argv = [*python(NO_CHILD), "thaw", *lab.places(), "--force"]
        forced = Session(lab.directory, argv, lab.environment())
        lab.sessions.append(forced)
        lab.wait_for_thaw(*others)
        server.stop()
        forced.finish()
    assert lab.vmsnap("thaw", "--force").code == 0
    assert lab.frozen == []


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
