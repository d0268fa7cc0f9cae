# SPDX-License-Identifier: Apache-2.0
"""Filesystems that can no longer be written, after an error or by intent."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from .lab import Filesystem, Lab, call


def fail(filesystem: Filesystem) -> None:
    """As an ext4 that has found its metadata damaged."""
    device = filesystem.mount.stat().st_dev
    name = Path(f"/sys/dev/block/{os.major(device)}:{os.minor(device)}").resolve().name
    call("mount", "-o", "remount,errors=remount-ro", filesystem.mount)
    Path(f"/sys/fs/ext4/{name}/trigger_fs_error").write_text("1")


def problems(lab: Lab) -> list[tuple[str, str, str]]:
    found = lab.vmsnap("check", "--json", *(f"--only={mount}" for mount in lab.mounts)).result
    return [(p["severity"], p["name"], p["path"]) for p in found["problems"]]


def test_one_that_failed_is_named_and_all_others_are_frozen(lab: Lab) -> None:
    others = [lab.filesystem("xfs"), lab.filesystem("btrfs")]
    broken = lab.filesystem()
    fail(broken)
    assert problems(lab) == [("error", "BecameReadOnly", str(broken.mount))]
    outcome = lab.run("exit 0")
    assert outcome.subjects == [("BecameReadOnly", str(broken.mount))]
    assert outcome.verdict == ("success", "crash", 0)
    frozen = {f["mount"]: f["freeze_ms"] is not None for f in outcome.result["filesystems"]}
    assert frozen == {str(other.mount): True for other in others}


def test_one_that_failed_costs_nothing_if_it_is_excluded(lab: Lab) -> None:
    lab.filesystem("xfs")
    broken = lab.filesystem()
    fail(broken)
    outcome = lab.run("exit 0", f"--exclude={broken.mount}")
    assert outcome.verdict == ("success", "filesystem", 0)
    assert outcome.errors == []


@pytest.mark.parametrize("fstype", ["ext4", "xfs", "btrfs"])
def test_what_is_mounted_read_only_by_intent_is_no_problem(lab: Lab, fstype: str) -> None:
    """Mounted so, remounted so, and shown writable by a bind mount that cannot be written to."""
    lab.filesystem()
    at_first, later = lab.filesystem(fstype), lab.filesystem(fstype)
    lab.umount(at_first.mount)
    lab.mount("-o", "loop,ro", at_first.image, at_first.mount)
    lab.mount("-o", "remount,ro", later.mount)
    shown = lab.directory / "shown"
    shown.mkdir(mode=0o700)
    lab.mount("--bind", at_first.mount, shown)
    lab.mount("-o", "remount,bind,rw", shown)
    assert problems(lab) == []
    assert lab.run("exit 0").verdict == ("success", "filesystem", 0)
