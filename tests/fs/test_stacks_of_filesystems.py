# SPDX-License-Identifier: Apache-2.0
"""A filesystem is frozen before what it lies on, however that is mounted, named or reached."""

from __future__ import annotations

import contextlib
import os
import shlex
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from . import kernel, strange
from .lab import Filesystem, Lab, call
from .test_plan import steps

LIMIT = 20.0  # seconds


@dataclass
class Stack:
    """Two filesystems, the upper of which lies on the lower. `look` are paths at which the test
    sees them, if these are not their mount points."""

    lower: Path
    upper: Path
    look: dict[Path, Path] = field(default_factory=dict)

    @property
    def frozen(self) -> tuple[bool, bool]:
        at = [self.look.get(path, path) for path in (self.lower, self.upper)]
        return kernel.is_frozen(at[0]), kernel.is_frozen(at[1])


def losetup(lab: Lab, *arguments: str | Path) -> str:
    device = call("losetup", "--find", "--show", *arguments).strip()
    lab.undo.callback(lab.helper, f"losetup --detach {device}")
    return device


def lower(lab: Lab, fstype: str = "ext4", name: str = "lower") -> Filesystem:
    return lab.filesystem(fstype, name=name, mib=400 if fstype == "xfs" else 160)


def upper(lab: Lab, image: Path, *options: str) -> Path:
    mount = strange.point(lab, "upper")
    lab.mount("-o", ",".join(("loop", *options)), image, mount)
    return mount


# --- loop devices --------------------------------------------------------------------------------


def an_image_mounted_over_its_own_directory(lab: Lab) -> Stack:
    below = lower(lab)
    app = below.mount / "app"
    app.mkdir()
    image = strange.image(lab, "app", directory=app)
    lab.mount("-o", "loop", image, app)
    return Stack(below.mount, app)


def the_directory_of_the_image_is_mounted_over_later(lab: Lab) -> Stack:
    below = lower(lab)
    images = below.mount / "images"
    images.mkdir()
    above = upper(lab, strange.image(lab, "c", directory=images))
    lab.mount("-o", "loop", strange.image(lab, "other"), images)
    return Stack(below.mount, above)


def the_directory_of_the_image_is_mounted_over_by_a_tmpfs(lab: Lab) -> Stack:
    below = lower(lab)
    images = below.mount / "images"
    images.mkdir()
    above = upper(lab, strange.image(lab, "c", directory=images))
    lab.mount("-t", "tmpfs", "tmpfs", images)
    return Stack(below.mount, above)


def the_image_was_deleted(lab: Lab) -> Stack:
    below = lower(lab)
    image = strange.image(lab, "c", directory=below.mount)
    above = upper(lab, image)
    image.unlink()
    return Stack(below.mount, above)


def the_image_was_deleted_and_its_directory_mounted_over(lab: Lab) -> Stack:
    below = lower(lab)
    images = below.mount / "images"
    images.mkdir()
    image = strange.image(lab, "c", directory=images)
    above = upper(lab, image)
    image.unlink()
    lab.mount("-o", "loop", strange.image(lab, "other"), images)
    return Stack(below.mount, above)


def the_lower_was_moved(lab: Lab) -> Stack:
    below = lower(lab)
    above = upper(lab, strange.image(lab, "c", directory=below.mount))
    moved = strange.point(lab, "moved")
    lab.mount("--move", below.mount, moved)
    lab.mount("-o", "loop", strange.image(lab, "other"), below.mount)
    return Stack(moved, above)


def the_lower_is_left_as_a_bind_mount(lab: Lab) -> Stack:
    """The path that the kernel gives for the image is one of a mount that is gone."""
    below = lower(lab)
    (below.mount / "images").mkdir()
    above = upper(lab, strange.image(lab, "c", directory=below.mount / "images"))
    bind = strange.point(lab, "bind")
    lab.mount("--bind", below.mount / "images", bind)
    kernel.detach(below.mount)
    lab.filesystems.clear()
    return Stack(bind, above)


def only_the_image_is_left_as_a_bind_mount(lab: Lab) -> Stack:
    """As containers get their files."""
    below = lower(lab)
    image = strange.image(lab, "c", directory=below.mount)
    file = lab.directory / "one-file"
    file.touch()
    lab.mount("--bind", image, file)
    above = upper(lab, file)
    kernel.detach(below.mount)
    lab.filesystems.clear()
    return Stack(file, above)


def the_name_of_the_image_looks_deleted(lab: Lab) -> Stack:
    below = lower(lab)
    (below.mount / "x (deleted)").mkdir()
    above = upper(lab, strange.image(lab, "c", directory=below.mount / "x (deleted)"))
    return Stack(below.mount, above)


def the_image_lies_in_an_overlay(lab: Lab) -> Stack:
    below = lower(lab)
    parts = [below.mount / name for name in ("lower", "upper", "work")]
    for part in parts:
        part.mkdir()
    merged = strange.point(lab, "merged")
    options = ",".join(f"{part.name}dir={part}" for part in parts)
    lab.mount("-t", "overlay", "overlay", "-o", options, merged)
    return Stack(below.mount, upper(lab, strange.image(lab, "c", directory=merged)))


def the_image_lies_in_a_layer_that_is_not_written_to(lab: Lab) -> Stack:
    """A database image of a container's base, opened for writing through the overlay's copy."""
    below = lower(lab)
    for name in ("lower", "upper", "work"):
        (below.mount / name).mkdir()
    image = strange.image(lab, "c", directory=below.mount / "lower")
    merged = strange.point(lab, "merged")
    options = ",".join(f"{name}dir={below.mount / name}" for name in ("lower", "upper", "work"))
    lab.mount("-t", "overlay", "overlay", "-o", options, merged)
    return Stack(below.mount, upper(lab, merged / image.name))


def the_overlay_was_mounted_by_names_that_mean_something_else_now(lab: Lab) -> Stack:
    below = lower(lab)
    parts = [below.mount / name for name in ("lower", "upper", "work")]
    for part in parts:
        part.mkdir()
    merged = strange.point(lab, "merged")
    options = ",".join(f"{part.name}dir={part}" for part in parts)
    lab.mount("-t", "overlay", "overlay", "-o", options, merged)
    above = upper(lab, strange.image(lab, "c", directory=merged))
    moved = strange.point(lab, "moved")
    lab.mount("--move", below.mount, moved)
    lab.filesystems.clear()
    return Stack(moved, above)


def a_loop_device_over_a_loop_device(lab: Lab) -> Stack:
    below = lower(lab)
    first = losetup(lab, strange.image(lab, "c", directory=below.mount))
    second = losetup(lab, first)
    mount = strange.point(lab, "upper")
    lab.mount(second, mount)
    return Stack(below.mount, mount)


def a_loop_device_over_a_deleted_node_of_a_loop_device(lab: Lab) -> Stack:
    """The backing file is a device node that nobody can look up any more."""
    below = lower(lab)
    first = losetup(lab, strange.image(lab, "c", directory=below.mount))
    node = lab.directory / "node"
    os.mknod(node, 0o060600, Path(first).stat().st_rdev)
    second = losetup(lab, node)
    node.unlink()
    mount = strange.point(lab, "upper")
    lab.mount(second, mount)
    return Stack(below.mount, mount)


def an_offset_into_the_image(lab: Lab) -> Stack:
    below = lower(lab)
    inner = strange.image(lab, "inner")
    image = below.mount / "disk.img"
    with image.open("wb") as file:
        file.seek(1 << 20)
        file.write(inner.read_bytes())
    return Stack(below.mount, upper(lab, image, "offset=1048576"))


def a_btrfs_subvolume_below(lab: Lab) -> Stack:
    """stat(2) and the loop device give the device number of the subvolume, and no mount table
    has it."""
    below = lab.filesystem("btrfs", name="lower", mib=300)
    call("btrfs", "subvolume", "create", below.mount / "sub")
    above = upper(lab, strange.image(lab, "c", directory=below.mount / "sub"))
    lab.mount("-t", "tmpfs", "tmpfs", below.mount / "sub")
    return Stack(below.mount, above)


def an_image_that_was_renamed(lab: Lab) -> Stack:
    below = lower(lab)
    image = strange.image(lab, "c", directory=below.mount)
    above = upper(lab, image)
    (below.mount / "archive").mkdir()
    image.rename(below.mount / "archive/old.img")
    lab.mount("-t", "tmpfs", "tmpfs", below.mount / "archive")
    return Stack(below.mount, above)


# --- FUSE over a local disk ----------------------------------------------------------------------


def a_loop_file_on_a_fuse_over_a_local_disk(lab: Lab) -> Stack:
    """As of bindfs, mergerfs, gocryptfs."""
    below = lower(lab)
    image = strange.image(lab, "x", directory=below.mount)
    mount, _ = strange.hanging(lab, "fuse", backing=image)
    return Stack(below.mount, upper(lab, mount / "file"))


def a_loop_file_on_a_fuse_that_is_mounted_over(lab: Lab) -> Stack:
    below = lower(lab)
    image = strange.image(lab, "x", directory=below.mount)
    mount, _ = strange.hanging(lab, "fuse", backing=image)
    above = upper(lab, mount / "file")
    lab.mount("-t", "tmpfs", "tmpfs", mount)
    lab.undo.callback(kernel.detach, mount)
    return Stack(below.mount, above)


def a_loop_file_on_a_fuse_over_what_lies_on_another(lab: Lab) -> Stack:
    """Three floors, of which the middle one is a FUSE."""
    ground = lower(lab, name="ground")
    middle = strange.point(lab, "lower")
    lab.mount("-o", "loop", strange.image(lab, "m", 64, ground.mount), middle)
    image = strange.image(lab, "x", directory=middle)
    mount, _ = strange.hanging(lab, "fuse", backing=image)
    return Stack(middle, upper(lab, mount / "file"))


# --- more devices than one -----------------------------------------------------------------------


def the_log_of_an_xfs(lab: Lab) -> Stack:
    below = lower(lab)
    log = below.mount / "log.img"
    with log.open("wb") as file:
        file.truncate(64 << 20)
    data = lab.directory / "data.img"
    with data.open("wb") as file:
        file.truncate(300 << 20)
    devices = losetup(lab, log), losetup(lab, data)
    call("mkfs.xfs", "-q", "-f", "-K", "-l", f"logdev={devices[0]}", devices[1])
    mount = strange.point(lab, "upper")
    lab.mount("-o", f"logdev={devices[0]}", devices[1], mount)
    return Stack(below.mount, mount)


def the_journal_of_an_ext4(lab: Lab) -> Stack:
    below = lower(lab)
    journal = below.mount / "journal.img"
    with journal.open("wb") as file:
        file.truncate(16 << 20)
    data = lab.directory / "data.img"
    with data.open("wb") as file:
        file.truncate(32 << 20)
    devices = losetup(lab, journal), losetup(lab, data)
    call("mkfs.ext4", "-q", "-F", "-b", "4096", "-O", "journal_dev", devices[0])
    call("mkfs.ext4", "-q", "-F", "-b", "4096", "-J", f"device={devices[0]}", devices[1])
    mount = strange.point(lab, "upper")
    lab.mount(devices[1], mount)
    return Stack(below.mount, mount)


def the_second_member_of_a_btrfs(lab: Lab) -> Stack:
    """Its first member lies on a filesystem that is not selected."""
    below = lower(lab)
    images = lab.directory / "one.img", below.mount / "two.img"
    for image in images:
        with image.open("wb") as file:
            file.truncate(128 << 20)
    devices = [losetup(lab, image) for image in images]
    call("mkfs.btrfs", "-q", "-f", "-K", "-d", "raid1", "-m", "raid1", *devices)
    mount = strange.point(lab, "upper")
    lab.mount("-o", ",".join(f"device={d}" for d in devices), devices[0], mount)
    return Stack(below.mount, mount)


def a_member_that_was_added_later(lab: Lab) -> Stack:
    below = lower(lab)
    above = lab.filesystem("btrfs", name="upper")
    image = below.mount / "two.img"
    with image.open("wb") as file:
        file.truncate(128 << 20)
    call("btrfs", "device", "add", "-f", "-K", losetup(lab, image), above.mount)
    lab.filesystems.remove(above)
    return Stack(below.mount, above.mount)


# --- containers ----------------------------------------------------------------------------------


@contextlib.contextmanager
def container(lab: Lab, *lines: str) -> Iterator[str]:
    words = "; ".join((*lines, lab.say("there $$"), lab.stop_at("never")))
    lab.helper(f"exec unshare -m /bin/sh -ec {shlex.quote(words)}")
    yield f"/proc/{lab.events.wait('there')}/root"


def both_in_a_container(lab: Lab) -> Stack:
    points = strange.point(lab, "lower"), strange.point(lab, "upper")
    first = strange.image(lab, "first", 96)
    make = f"mkfs.ext4 -q -F {points[0]}/x.img 16m"
    mounts = f"mount -o loop {first} {points[0]}", make, f"mount -o loop {points[0]}/x.img "
    with container(lab, *mounts[:2], f"{mounts[2]}{points[1]}") as root:
        return Stack(*points, {point: Path(f"{root}{point}") for point in points})


def both_in_a_container_whose_paths_mean_something_else_here(lab: Lab) -> Stack:
    points = strange.point(lab, "lower"), strange.point(lab, "upper")
    first = strange.image(lab, "first", 96)
    make = f"mkfs.ext4 -q -F {points[0]}/x.img 16m"
    mounts = f"mount -o loop {first} {points[0]}", make, f"mount -o loop {points[0]}/x.img "
    with container(lab, *mounts[:2], f"{mounts[2]}{points[1]}") as root:
        lab.mount("-t", "tmpfs", "tmpfs", points[0])
        return Stack(*points, {point: Path(f"{root}{point}") for point in points})


def the_upper_in_a_container(lab: Lab) -> Stack:
    below = lower(lab)
    image = strange.image(lab, "x", directory=below.mount)
    mount = strange.point(lab, "upper")
    elsewhere = strange.point(lab, "elsewhere")
    lines = f"mount --bind {below.mount} {elsewhere}", f"umount {below.mount}"
    with container(lab, *lines, f"mount -o loop {elsewhere}/{image.name} {mount}") as root:
        return Stack(below.mount, mount, {mount: Path(f"{root}{mount}")})


STACKS = [
    an_image_mounted_over_its_own_directory,
    the_directory_of_the_image_is_mounted_over_later,
    the_directory_of_the_image_is_mounted_over_by_a_tmpfs,
    the_image_was_deleted,
    the_image_was_deleted_and_its_directory_mounted_over,
    the_lower_was_moved,
    the_lower_is_left_as_a_bind_mount,
    only_the_image_is_left_as_a_bind_mount,
    the_name_of_the_image_looks_deleted,
    the_image_lies_in_an_overlay,
    the_image_lies_in_a_layer_that_is_not_written_to,
    the_overlay_was_mounted_by_names_that_mean_something_else_now,
    a_loop_device_over_a_loop_device,
    a_loop_device_over_a_deleted_node_of_a_loop_device,
    an_offset_into_the_image,
    a_btrfs_subvolume_below,
    an_image_that_was_renamed,
    a_loop_file_on_a_fuse_over_a_local_disk,
    a_loop_file_on_a_fuse_that_is_mounted_over,
    a_loop_file_on_a_fuse_over_what_lies_on_another,
    the_log_of_an_xfs,
    the_journal_of_an_ext4,
    the_second_member_of_a_btrfs,
    a_member_that_was_added_later,
    both_in_a_container,
    both_in_a_container_whose_paths_mean_something_else_here,
    the_upper_in_a_container,
]


@pytest.mark.parametrize("make", STACKS)
def test_the_upper_is_frozen_first_and_all_are_frozen(
    lab: Lab, make: Callable[[Lab], Stack]
) -> None:
    lab.conf("[freeze]\ntimeout = 3\n")
    stack = make(lab)
    only = [*lab.mounts, str(stack.lower), str(stack.upper)]
    session = lab.hold(only=only, seconds=LIMIT)
    frozen = stack.frozen
    lab.release()
    outcome = session.finish(LIMIT)
    assert outcome.verdict == ("success", "filesystem", 0), outcome.result["errors"]
    assert frozen == (True, True)
    order = steps(outcome)
    assert order[stack.upper.name] < order[stack.lower.name]
    assert stack.frozen == (False, False)
