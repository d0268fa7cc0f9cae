# SPDX-License-Identifier: Apache-2.0
"""Everything of vmsnap was killed in the hold: each filesystem is thawed by whatever way leads to
it, and none waits for another."""

from __future__ import annotations

import os
import shlex
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from . import kernel, strange
from .faults import kill_all
from .lab import Lab
from .running import Outcome

LIMIT = 20.0  # seconds


@dataclass(frozen=True)
class Case:
    """`selected` are the mount points of `disk` for --only; `change` is done after all was killed.
    `reachable`: some way leads to the disk then."""

    disk: strange.Disk
    selected: tuple[Path, ...]
    change: Callable[[], object]
    reachable: bool = True


# --- what happens to the mount point that the list names -----------------------------------------


def its_server_hangs(lab: Lab) -> Case:
    """No way leads to it, but in a namespace of one's own that detaches what is above."""
    mount, server = strange.hanging(lab)
    disk = strange.disk(lab, mount / "dir", strange.image(lab, "b"))
    return Case(disk, (disk.mount,), server.hang, reachable=False)


def its_server_hangs_and_there_is_another_mount(lab: Lab) -> Case:
    mount, server = strange.hanging(lab)
    disk = strange.disk(lab, mount / "dir", strange.image(lab, "b"))
    lab.mount("--bind", disk.mount, strange.point(lab, "other-mount"))
    return Case(disk, (disk.mount,), server.hang)


def it_is_covered(lab: Lab) -> Case:
    disk = strange.disk(lab, strange.point(lab, "b"), strange.image(lab, "b"))
    lab.undo.callback(kernel.detach, disk.mount)

    def cover() -> None:
        lab.mount("-t", "tmpfs", "tmpfs", disk.mount)

    return Case(disk, (disk.mount,), cover)


def its_parent_is_covered(lab: Lab) -> Case:
    above = strange.point(lab, "above")
    (above / "b").mkdir()
    disk = strange.disk(lab, above / "b", strange.image(lab, "b"))
    lab.undo.callback(kernel.detach, above)
    return Case(disk, (disk.mount,), lambda: lab.mount("-t", "tmpfs", "tmpfs", above))


def it_is_covered_by_a_server_that_hangs(lab: Lab) -> Case:
    disk = strange.disk(lab, strange.point(lab, "b"), strange.image(lab, "b"))

    def cover() -> None:
        fd = os.open("/dev/fuse", os.O_RDWR)
        options = f"fd={fd},rootmode=40000,user_id=0,group_id=0"
        kernel.mount("srv:/b", disk.mount, "fuse.sshfs", options)
        lab.undo.callback(kernel.detach, disk.mount)
        lab.undo.callback(os.close, fd)

    return Case(disk, (disk.mount,), cover)


def it_is_moved(lab: Lab) -> Case:
    disk = strange.disk(lab, strange.point(lab, "b"), strange.image(lab, "b"))
    elsewhere = strange.point(lab, "elsewhere")
    return Case(disk, (disk.mount,), lambda: lab.mount("--move", disk.mount, elsewhere))


def only_another_mount_of_it_is_left(lab: Lab) -> Case:
    disk = strange.disk(lab, strange.point(lab, "b"), strange.image(lab, "b"))
    other = strange.point(lab, "other-mount")
    lab.mount("--bind", disk.mount, other)
    return Case(disk, (disk.mount,), lambda: kernel.detach(disk.mount))


def only_the_mount_of_a_file_of_it_is_left(lab: Lab) -> Case:
    disk = strange.disk(lab, strange.point(lab, "b"), strange.image(lab, "b"))
    (disk.mount / "file").touch()
    target = lab.directory / "one-file"
    target.touch()
    lab.mount("--bind", disk.mount / "file", target)
    return Case(disk, (disk.mount,), lambda: kernel.detach(disk.mount))


def it_was_detached_and_a_process_has_a_file_open(lab: Lab) -> Case:
    """As of `umount --lazy`: the descriptor of a process is the only way."""
    disk = strange.disk(lab, strange.point(lab, "b"), strange.image(lab, "b"))
    (disk.mount / "file").touch()
    lab.helper(f"exec 9<{disk.mount}/file; {lab.say('open')}; {lab.stop_at('never')}")
    lab.events.wait("open")
    return Case(disk, (disk.mount,), lambda: kernel.detach(disk.mount))


def in_container(lab: Lab, words: str) -> str:
    return f"exec unshare -m /bin/sh -c {shlex.quote(words)}"


def the_process_that_was_looked_through_has_ended(lab: Lab) -> Case:
    """The namespace has another process, which sees it still."""
    image, mount = strange.image(lab, "b"), strange.point(lab, "b")
    first = f"mount -o loop {image} {mount}; ({lab.say('there')}; {lab.stop_at('never')}) & "
    helper = lab.helper(in_container(lab, f"{first} {lab.stop_at('leave')}"))
    lab.events.wait("there")
    lab.undo.callback(lab.open, "never")  # ends the other one
    disk = strange.watch(lab, mount, image, f"/proc/{helper.pid}/root")

    def leave() -> None:
        lab.open("leave")
        helper.wait()

    return Case(disk, (mount,), leave)


def only_our_namespace_has_it_still(lab: Lab) -> Case:
    """A container had the same disk under another name, and has ended."""
    disk = strange.disk(lab, strange.point(lab, "b"), strange.image(lab, "b"))
    inside = f"mount --move {disk.mount} /mnt; {lab.say('there')}; {lab.stop_at('never')}"
    lab.helper(in_container(lab, inside))
    lab.events.wait("there")
    return Case(disk, (disk.mount,), lambda: kernel.detach(disk.mount))


CASES = [
    its_server_hangs,
    its_server_hangs_and_there_is_another_mount,
    it_is_covered,
    its_parent_is_covered,
    it_is_covered_by_a_server_that_hangs,
    it_is_moved,
    only_another_mount_of_it_is_left,
    only_the_mount_of_a_file_of_it_is_left,
    it_was_detached_and_a_process_has_a_file_open,
    the_process_that_was_looked_through_has_ended,
    only_our_namespace_has_it_still,
]


def all_killed(lab: Lab, make: Callable[[Lab], Case]) -> Case:
    first = lab.filesystem(name="first")
    case = make(lab)
    last = lab.filesystem("xfs", name="last")
    only = [*lab.mounts, *map(str, case.selected)]
    kill_all(lab.hold(only=only))
    lab.release()
    lab.wait_for_rest()
    assert (first.is_frozen, case.disk.is_frozen, last.is_frozen) == (True, True, True)
    case.change()
    return case


def thawed(lab: Lab, case: Case, outcome: Outcome, words: str) -> None:
    assert lab.frozen == []
    if case.disk.is_frozen:
        assert not case.reachable
        assert outcome.code == 1
        assert str(case.disk.mount) in words


@pytest.mark.parametrize("make", CASES)
def test_force_thaws_each_by_whatever_way_leads_to_it(
    lab: Lab, make: Callable[[Lab], Case]
) -> None:
    case = all_killed(lab, make)
    outcome = lab.begin("thaw", "--force").finish(LIMIT)
    thawed(lab, case, outcome, outcome.out.decode() + outcome.err)


@pytest.mark.parametrize("make", CASES)
def test_the_next_session_thaws_each_by_whatever_way_leads_to_it(
    lab: Lab, make: Callable[[Lab], Case]
) -> None:
    case = all_killed(lab, make)
    session = lab.start(lab.say("taken"))
    outcome = session.finish(LIMIT)
    if case.disk.is_frozen:
        assert outcome.result["consistency"] in ("crash", "none")
    assert lab.frozen == []
    assert case.disk.is_frozen is False or not case.reachable


def test_what_no_way_leads_to_is_thawed_when_one_does_again(lab: Lab) -> None:
    """The list is kept until then."""
    mount, server = strange.hanging(lab)
    disk = strange.disk(lab, mount / "dir", strange.image(lab, "b"))
    kill_all(lab.hold(only=[str(disk.mount)]))
    lab.release()
    lab.wait_for_rest()
    server.hang()
    lab.begin("thaw", "--force").finish(LIMIT)
    server.go_on()
    outcome = lab.begin("thaw", "--force").finish(LIMIT)
    assert outcome.code == 0
    assert not disk.is_frozen
