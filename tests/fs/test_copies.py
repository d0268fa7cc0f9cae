# SPDX-License-Identifier: Apache-2.0
"""Copies of the disks taken during the hold are complete and clean, with log replay forbidden."""

from __future__ import annotations

import hashlib
import os
import shlex
from pathlib import Path

from .lab import Filesystem, Lab, call

FILES = 50


def write_files(filesystem: Filesystem) -> dict[str, str]:
    """Write without any sync; return the checksum of each file."""
    written = {}
    for number in range(FILES):
        data = os.urandom(1000 + 997 * number)
        (filesystem.mount / f"file{number}").write_bytes(data)
        written[f"file{number}"] = hashlib.sha256(data).hexdigest()
    return written


def files_of(mount: Path) -> dict[str, str]:
    paths = [path for path in mount.iterdir() if path.is_file()]
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in paths}


def copy_in_the_hold(lab: Lab, filesystem: Filesystem) -> Path:
    """Take a snapshot by copying the image, while somebody tries to write all the time."""
    copy = lab.directory / "copy.img"
    words = [*map(shlex.quote, map(str, (filesystem.image, copy)))]
    session = lab.hold(last=f"cp --sparse=always {words[0]} {words[1]}")
    lab.writer(filesystem)
    lab.events.wait(f"writing-{filesystem.mount.name}")
    lab.release()
    outcome = session.finish()
    assert outcome.verdict == ("success", "filesystem", 0)
    lab.events.wait(f"wrote-{filesystem.mount.name}")
    return copy


def mounted(lab: Lab, copy: Path, options: str) -> dict[str, str]:
    mount = lab.directory / "copy"
    mount.mkdir(mode=0o700, exist_ok=True)
    lab.mount("-o", f"loop,{options}", copy, mount)
    try:
        return files_of(mount)
    finally:
        lab.umount(mount)


def test_a_copy_of_ext4_is_complete_and_its_journal_empty(lab: Lab) -> None:
    filesystem = lab.filesystem("ext4")
    written = write_files(filesystem)
    copy = copy_in_the_hold(lab, filesystem)
    assert "needs_recovery" not in call("dumpe2fs", "-h", copy)
    call("e2fsck", "-f", "-n", copy)
    assert mounted(lab, copy, "ro,noload") == written


def test_a_copy_of_xfs_is_complete_without_its_log(lab: Lab) -> None:
    filesystem = lab.filesystem("xfs")
    written = write_files(filesystem)
    copy = copy_in_the_hold(lab, filesystem)
    assert mounted(lab, copy, "ro,norecovery,nouuid") == written
    # A frozen log holds one record of the superblock's counters, which `xfs_repair -n` leaves out.
    assert mounted(lab, copy, "nouuid") == written
    call("xfs_repair", "-n", copy)


def test_a_copy_of_btrfs_is_complete(lab: Lab) -> None:
    filesystem = lab.filesystem("btrfs")
    written = write_files(filesystem)
    copy = copy_in_the_hold(lab, filesystem)
    # The kernel takes a copy for the original as long as that is mounted.
    lab.umount(filesystem.mount)
    lab.filesystems.clear()
    call("btrfs", "check", "--readonly", copy)
    assert mounted(lab, copy, "ro,rescue=nologreplay") == written


def test_a_copy_of_a_filesystem_within_a_filesystem_is_complete(lab: Lab) -> None:
    parent = lab.filesystem("ext4", name="parent", mib=96)
    child = lab.filesystem("ext4", name="child", on=parent)
    written = write_files(child)
    copy = copy_in_the_hold(lab, parent)
    outer, inner = lab.directory / "outer", lab.directory / "inner.img"
    outer.mkdir(mode=0o700)
    lab.mount("-o", "loop,ro,noload", copy, outer)
    inner.write_bytes((outer / child.image.name).read_bytes())
    lab.umount(outer)
    assert "needs_recovery" not in call("dumpe2fs", "-h", inner)
    assert mounted(lab, inner, "ro,noload") == written
