# SPDX-License-Identifier: Apache-2.0
"""Filesystems that sysfs has and no mount table: which there are, and what they are called."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from ..worlds import Machine, shape


@pytest.fixture
def initial(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> Machine:
    """A machine whose mount tables root can see, all of them."""
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    (machine.proc / "self/ns/pid").symlink_to("pid:[4026531836]")
    return machine


def device(machine: Machine, number: str, name: str) -> Path:
    path = machine.block(number, name)
    (machine.sys / "class/block").mkdir(parents=True, exist_ok=True)
    (machine.sys / "class/block" / name).symlink_to(path)
    return path


def superblock(machine: Machine, fstype: str, name: str) -> None:
    (machine.sys / "fs" / fstype / name).mkdir(parents=True)


@pytest.mark.parametrize("fstype", ["ext4", "xfs", "f2fs", "nilfs2"])
def test_it_has_the_path_of_its_device(initial: Machine, fstype: str) -> None:
    device(initial, "900:1", "vdb1")
    superblock(initial, fstype, "vdb1")
    superblock(initial, fstype, "features")
    assert shape(initial.plan()) == {"/dev/vdb1": ("freeze", 1)}


def test_a_volume_has_the_path_that_users_know(initial: Machine) -> None:
    (device(initial, "900:1", "dm-0") / "dm").mkdir()
    (initial.sys / "class/block/dm-0/dm/name").write_text("vg-data\n")
    superblock(initial, "ext4", "dm-0")
    assert shape(initial.plan()) == {"/dev/mapper/vg-data": ("freeze", 1)}


def test_an_exclamation_mark_stands_for_a_slash(initial: Machine) -> None:
    device(initial, "900:1", "cciss!c0d0")
    superblock(initial, "xfs", "cciss!c0d0")
    assert shape(initial.plan()) == {"/dev/cciss/c0d0": ("freeze", 1)}


def test_a_pool_has_the_path_of_one_of_its_devices(initial: Machine) -> None:
    members = initial.sys / "fs/btrfs/0f0f-aa/devices"
    members.mkdir(parents=True)
    for number, name in (("900:1", "vdb"), ("900:2", "vdc")):
        (members / name).symlink_to(device(initial, number, name))
    assert shape(initial.plan()) == {"/dev/vdb": ("freeze", 1)}


def test_a_pool_that_may_be_one_of_a_mount_table_is_asked_when_it_is_open(initial: Machine) -> None:
    """Which of them has lost its devices, and so is no pool here, nobody knows."""
    members = initial.sys / "fs/btrfs/0f0f-aa/devices"
    members.mkdir(parents=True)
    (members / "vdb").symlink_to(device(initial, "900:1", "vdb"))
    initial.mount("/srv", "0:45", "btrfs", source="/dev/none")
    assert "/dev/vdb" in shape(initial.plan())


def test_what_a_mount_table_has_is_not_hidden(initial: Machine) -> None:
    device(initial, "900:1", "vdb1")
    superblock(initial, "ext4", "vdb1")
    initial.mount("/srv", "900:1")
    assert shape(initial.plan()) == {"/srv": ("freeze", 1)}


def test_what_only_a_foreign_namespace_has_is_not_hidden(initial: Machine) -> None:
    device(initial, "900:1", "vdb1")
    superblock(initial, "ext4", "vdb1")
    initial.process("7", "mnt:[7]", owner=2)
    initial.mount("/mine", "900:1", pid="7")
    assert shape(initial.plan()) == {"/proc/7/root/mine": ("freeze", 1)}


def test_a_device_that_was_removed_has_nothing_to_freeze(initial: Machine) -> None:
    superblock(initial, "ext4", "sdx1")
    assert shape(initial.plan()) == {}


def test_none_is_looked_for_in_a_container(initial: Machine) -> None:
    device(initial, "900:1", "vdb1")
    superblock(initial, "ext4", "vdb1")
    (initial.proc / "self/ns/pid").unlink()
    (initial.proc / "self/ns/pid").symlink_to("pid:[4026532200]")
    assert shape(initial.plan()) == {}


@pytest.mark.parametrize(
    ("options", "action"),
    [
        ({"only": ("/dev/vdb1",)}, "freeze"),
        ({"only": ("/dev/*",)}, "freeze"),
        ({"only": ("/srv",)}, "skip"),
        ({"exclude": ("/dev/vdb1",)}, "skip"),
    ],
)
def test_it_is_selected_by_its_path(
    initial: Machine, options: dict[str, tuple[str, ...]], action: str
) -> None:
    device(initial, "900:1", "vdb1")
    superblock(initial, "ext4", "vdb1")
    plan = initial.plan(**options)
    assert shape(plan)["/dev/vdb1"][0] == action
    assert "/dev/vdb1" not in (*plan.unmatched, *plan.idle)
