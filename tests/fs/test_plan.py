# SPDX-License-Identifier: Apache-2.0
"""Which filesystems a session freezes, and in which order."""

from __future__ import annotations

import os
import shlex
import struct
from pathlib import Path
from typing import Any

import pytest

from . import kernel
from .lab import Filesystem, Lab, call
from .running import Outcome


def steps(outcome: Outcome) -> dict[str, int]:
    return {Path(f["mount"]).name: f["step"] for f in outcome.result["filesystems"]}


def planned(lab: Lab, *options: str) -> dict[str, dict[str, Any]]:
    """What `vmsnap plan` says of the mount points of this laboratory."""
    outcome = lab.vmsnap("plan", "--json", *options)
    entries: Any = outcome.result
    return {e["mount"]: e for e in entries if e["mount"].startswith(str(lab.directory))}


# --- order ---------------------------------------------------------------------------------------


def test_a_loop_filesystem_is_frozen_before_the_one_that_carries_it_and_thawed_after(
    lab: Lab,
) -> None:
    parent = lab.filesystem(name="parent", mib=96)
    child = lab.filesystem(name="child", on=parent)
    (child.mount / "dirty").write_bytes(b"x" * (4 << 20))
    session = lab.hold()
    assert lab.frozen == ["parent", "child"]
    lab.release()
    outcome = session.finish()
    assert outcome.verdict == ("success", "filesystem", 0)
    assert steps(outcome) == {"child": 1, "parent": 2}
    assert outcome.events("freezing", "frozen", "thawed") == [
        ("freezing", str(child.mount)),
        ("frozen", str(child.mount)),
        ("freezing", str(parent.mount)),
        ("frozen", str(parent.mount)),
        ("thawed", str(parent.mount)),
        ("thawed", str(child.mount)),
    ]


def test_three_levels_take_three_steps(lab: Lab) -> None:
    bottom = lab.filesystem("xfs", name="bottom", mib=400)
    middle = lab.filesystem("ext4", name="middle", on=bottom, mib=96)
    lab.filesystem("ext4", name="top", on=middle, mib=16)
    lab.filesystem("ext4", name="alone", mib=16)
    session = lab.hold()
    assert lab.frozen == ["bottom", "middle", "top", "alone"]
    lab.release()
    outcome = session.finish()
    assert outcome.verdict == ("success", "filesystem", 0)
    assert steps(outcome) == {"top": 1, "alone": 1, "middle": 2, "bottom": 3}
    assert lab.frozen == []


def test_a_level_that_is_not_selected_does_not_break_the_order(lab: Lab) -> None:
    bottom = lab.filesystem(name="bottom", mib=128)
    middle = lab.filesystem(name="middle", on=bottom, mib=64)
    top = lab.filesystem(name="top", on=middle, mib=16)
    outcome = lab.run("exit 0", only=[str(bottom.mount), str(top.mount)])
    assert outcome.verdict == ("success", "filesystem", 0)
    assert steps(outcome) == {"top": 1, "bottom": 2}


def test_a_partition_on_a_loop_device_is_frozen_before_its_carrier(lab: Lab) -> None:
    parent = lab.filesystem(name="parent", mib=128)
    image = parent.mount / "disk.img"
    with image.open("wb") as file:
        file.truncate(64 << 20)
        # The classic partition table: one entry of type 0x83, and the signature.
        entry = struct.pack("<B3sB3sII", 0, b"", 0x83, b"", 2048, 98304)
        file.seek(446)
        file.write(entry.ljust(64, b"\0") + b"\x55\xaa")
    device = call("losetup", "--find", "--show", image).strip()
    try:
        call("partx", "--add", device)
        partition = Path(f"{device}p1")
        call("mkfs.ext4", "-q", "-F", partition)
        mount = lab.directory / "child"
        mount.mkdir(mode=0o700)
        lab.mount(partition, mount)
        lab.filesystems.append(Filesystem(mount, image))
        outcome = lab.run("exit 0")
        assert outcome.verdict == ("success", "filesystem", 0)
        assert steps(outcome) == {"child": 1, "parent": 2}
        lab.umount(mount)
        lab.filesystems.pop()
    finally:
        lab.helper(f"partx --delete {device}; losetup --detach {device}").wait()


# --- what is frozen, written out, left alone -----------------------------------------------------


def test_tmpfs_is_skipped_with_a_reason(lab: Lab) -> None:
    filesystem = lab.filesystem()
    outcome = lab.run("exit 0", only=[str(lab.shm), str(filesystem.mount)])
    assert outcome.verdict == ("success", "filesystem", 0)
    assert list(steps(outcome)) == ["fs0"]
    entry = planned(lab)[str(lab.shm)]
    assert entry["action"] == "skip"
    assert "virtual" in entry["reason"]


def test_a_session_with_nothing_to_freeze_claims_nothing(lab: Lab) -> None:
    outcome = lab.run("exit 0", only=[str(lab.shm)])
    assert outcome.verdict == ("success", "crash", 0)
    assert outcome.errors == ["FreezeFailed"]


def test_a_mount_point_that_is_none_is_an_error(lab: Lab) -> None:
    lab.filesystem()
    missing = str(lab.directory / "no-such-mount")
    outcome = lab.run("exit 0", only=[*lab.mounts, missing])
    assert outcome.subjects == [("MountOpenFailed", missing)]
    assert outcome.verdict == ("success", "crash", 0)
    assert outcome.result["frozen_seconds"] == 0


def test_a_read_only_filesystem_is_skipped(lab: Lab) -> None:
    lab.filesystem()
    readonly = lab.filesystem()
    lab.mount("-o", "remount,ro", readonly.mount)
    session = lab.hold()
    lab.mount("-o", "remount,rw", readonly.mount)  # would hang if it were frozen
    lab.mount("-o", "remount,ro", readonly.mount)
    lab.release()
    outcome = session.finish()
    assert outcome.verdict == ("success", "filesystem", 0)
    assert list(steps(outcome)) == ["fs0"]


def test_an_overlay_is_frozen_through_its_layers(lab: Lab) -> None:
    filesystem = lab.filesystem()
    parts = [filesystem.mount / name for name in ("lower", "upper", "work")]
    for part in parts:
        part.mkdir()
    merged = lab.directory / "merged"
    merged.mkdir()
    options = ",".join(f"{part.name}dir={part}" for part in parts)
    lab.mount("-t", "overlay", "overlay", "-o", options, merged)
    session = lab.hold()
    blocked = lab.helper(f"echo x >{merged}/file; {lab.say('wrote')}")
    assert planned(lab)[str(merged)]["action"] == "skip"
    lab.release()
    outcome = session.finish()
    assert outcome.verdict == ("success", "filesystem", 0)
    assert blocked.wait() == 0


def test_excluded_filesystems_are_left_alone(lab: Lab) -> None:
    lab.filesystem()
    lab.filesystem()
    session = lab.hold("--exclude", f"{lab.directory}/fs1")
    assert lab.frozen == ["fs0"]
    lab.release()
    assert session.finish().verdict == ("success", "filesystem", 0)


@pytest.mark.parametrize("where", ["vmsnap.conf", "vmbackup.conf"])
def test_the_settings_exclude_filesystems(lab: Lab, where: str) -> None:
    lab.filesystem()
    lab.filesystem()
    if where == "vmsnap.conf":
        lab.conf(f"[freeze]\nonly = {lab.directory}/fs*\nexclude = {lab.directory}/fs1\n")
    else:
        (lab.etc / "azure").mkdir(mode=0o700)
        text = f"[SnapshotThread]\nMountsToSkip = /nothing, {lab.directory}/fs1\n"
        lab.write(lab.etc / "azure/vmbackup.conf", text, 0o600)
    assert list(steps(lab.run("exit 0"))) == ["fs0"]


def test_globs_select_filesystems(lab: Lab) -> None:
    for name in ("data1", "data2", "other"):
        lab.filesystem(name=name, mib=16)
    outcome = lab.run("exit 0", only=[f"{lab.directory}/data*"])
    assert sorted(steps(outcome)) == ["data1", "data2"]


# --- mounts --------------------------------------------------------------------------------------


def test_a_filesystem_with_many_mounts_is_frozen_once(lab: Lab) -> None:
    filesystem = lab.filesystem()
    (filesystem.mount / "sub").mkdir()
    (filesystem.mount / "file").touch()
    bind, file = lab.directory / "bind", lab.directory / "file"
    bind.mkdir()
    file.touch()
    lab.mount("--bind", filesystem.mount / "sub", bind)
    lab.mount("--bind", filesystem.mount / "file", file)
    outcome = lab.run("exit 0", only=[*lab.mounts, str(bind), str(file)])
    assert outcome.verdict == ("success", "filesystem", 0)
    assert [f["mount"] for f in outcome.result["filesystems"]] == lab.mounts


@pytest.mark.parametrize("kind", ["directory", "file"])
def test_a_filesystem_is_frozen_through_a_bind_mount_alone(lab: Lab, kind: str) -> None:
    filesystem = lab.filesystem()
    source, bind = filesystem.mount / "source", lab.directory / "bind"
    (source.mkdir if kind == "directory" else source.touch)()
    (bind.mkdir if kind == "directory" else bind.touch)()
    lab.mount("--bind", source, bind)
    lab.umount(filesystem.mount)
    lab.filesystems = [Filesystem(bind, filesystem.image)]
    session = lab.hold()
    assert lab.frozen == ["bind"]
    lab.release()
    assert session.finish().verdict == ("success", "filesystem", 0)


def test_btrfs_subvolumes_are_one_filesystem(lab: Lab) -> None:
    filesystem = lab.filesystem("btrfs")
    device = kernel.mounts("self")[-1][1]
    for name in ("one", "two"):
        call("btrfs", "subvolume", "create", filesystem.mount / name)
        (lab.directory / name).mkdir()
        lab.mount("-o", f"subvol={name}", device, lab.directory / name)
    only = [*lab.mounts, str(lab.directory / "one"), str(lab.directory / "two")]
    session = lab.hold(only=only)
    assert kernel.is_frozen(lab.directory / "one")
    lab.release()
    outcome = session.finish()
    assert outcome.verdict == ("success", "filesystem", 0)
    assert len(outcome.result["filesystems"]) == 1
    assert not kernel.is_frozen(lab.directory / "two")


@pytest.mark.parametrize(
    "name", ["two words", "new\nline", "tab\there", "back\\slash", "ünïcode", "hash#mark", "\\040"]
)
def test_mount_points_of_any_name_are_frozen(lab: Lab, name: str) -> None:
    lab.filesystem(name=name)
    session = lab.hold()
    assert lab.frozen == [name]
    lab.release()
    outcome = session.finish()
    assert outcome.verdict == ("success", "filesystem", 0)
    assert [f["mount"] for f in outcome.result["filesystems"]] == lab.mounts
    table = lab.vmsnap("plan", *(f"--only={mount}" for mount in lab.mounts))
    assert table.code == 0


def test_a_mount_point_whose_name_is_no_text_is_frozen(lab: Lab) -> None:
    lab.filesystem(name="latin-\udce9")
    session = lab.hold()
    assert lab.frozen == ["latin-\udce9"]
    lab.release()
    assert session.finish().verdict == ("success", "filesystem", 0)


def test_a_filesystem_covered_by_another_is_frozen_as_well(lab: Lab) -> None:
    covered = lab.filesystem()
    fd = os.open(covered.mount, os.O_RDONLY)
    inside = Path(f"/proc/self/fd/{fd}")
    above = lab.filesystem()
    lab.mount("--bind", above.mount, covered.mount)
    try:
        session = lab.hold(only=[str(covered.mount)])
        assert kernel.is_frozen(inside)
        assert above.is_frozen
        lab.release()
        outcome = session.finish()
        assert not kernel.is_frozen(inside)
    finally:
        lab.umount(covered.mount)
        os.close(fd)
    assert outcome.verdict == ("success", "filesystem", 0)


def test_a_covered_filesystem_is_frozen_through_another_of_its_mounts(lab: Lab) -> None:
    filesystem = lab.filesystem()
    bind = lab.directory / "bind"
    bind.mkdir()
    lab.mount("--bind", filesystem.mount, bind)
    lab.mount("-t", "tmpfs", "tmpfs", filesystem.mount)
    session = lab.hold(only=[str(bind)])
    assert kernel.is_frozen(bind)
    lab.release()
    assert session.finish().verdict == ("success", "filesystem", 0)
    lab.umount(filesystem.mount)


def test_a_filesystem_of_another_mount_namespace_is_frozen(lab: Lab) -> None:
    image, mount = lab.directory / "hidden.img", lab.directory / "hidden"
    with image.open("wb") as file:
        file.truncate(16 << 20)
    call("mkfs.ext4", "-q", "-F", image)
    mount.mkdir(mode=0o700)
    inside = f"mount -o loop {image} {mount} && {lab.say('mounted $$')}; {lab.stop_at('leave')}"
    helper = lab.helper(f"exec unshare -m /bin/sh -c {shlex.quote(inside + f'; umount {mount}')}")
    pid = lab.events.wait("mounted")
    hidden = Path(f"/proc/{pid}/root{mount}")
    session = lab.hold(only=[str(mount)])
    assert kernel.is_frozen(hidden)
    lab.release()
    outcome = session.finish()
    assert outcome.verdict == ("success", "filesystem", 0)
    assert len(outcome.result["filesystems"]) == 1
    assert not kernel.is_frozen(hidden)
    lab.open("leave")
    assert helper.wait() == 0
