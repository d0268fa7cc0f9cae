# SPDX-License-Identifier: Apache-2.0
"""Filesystems that are mounted, and in no mount table that can be read: each is frozen all the
same, or said to be missing."""

from __future__ import annotations

import fcntl
import json
import os
import shlex
import struct
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from vmsnap.freeze import new_mount

from . import kernel, strange
from .faults import kill_all, kill_both
from .lab import MKFS, Lab, call, end
from .strange import Disk, point
from .test_damaged_filesystems import GOING_DOWN, NO_LOG_FLUSH
from .test_operations_that_hold_off_a_freeze import scrubbing
from .test_stacks_of_filesystems import the_log_of_an_xfs
from .test_thaw_alone import python

# asm-generic/unistd.h, linux/mount.h, linux/fcntl.h
OPEN_TREE, OPEN_TREE_CLONE, AT_FDCWD = 428, 1, -100
MOVE_MOUNT, MOVE_MOUNT_F_EMPTY_PATH = 429, 4

SCRUB_CANCEL = 0x941C  # linux/btrfs.h: BTRFS_IOC_SCRUB_CANCEL
REPOSITORY = Path(__file__).parents[2]

# Mounts the device in a namespace of its own, keeps a descriptor of it, and waits.
NAMESPACE = """
import ctypes, os, sys, threading
how, device, mount, jail, events = sys.argv[1:]
libc = ctypes.CDLL(None)
def check(result):
    assert result == 0, "failed"
def enter():
    check(libc.unshare(0x00020000))
    check(libc.mount(b"none", b"/", None, 0x4000 | 0x40000, None))
    check(libc.mount(device.encode(), mount.encode(), b"ext4", 0, None))
    os.dup2(os.open(mount, os.O_RDONLY), 9)
    said = os.open(events, os.O_WRONLY)
    if how == "chroot":
        os.chroot(jail)
    os.write(said, b"there\\n")
    threading.Event().wait()
threading.Thread(target=enter).start() if how == "thread" else enter()
"""


def loop_device(lab: Lab, fstype: str = "ext4") -> str:
    """Of a filesystem that is not mounted yet."""
    size, command = MKFS.get(fstype) or (32, ("mkfs." + fstype, "-q", "-F"))
    image = lab.directory / f"{next(lab.images)}.img"
    with image.open("wb") as file:
        file.truncate(size << 20)
    call(*command, image)
    device = call("losetup", "--find", "--show", image).strip()
    lab.undo.callback(call, "losetup", "--detach", device)
    return device


def namespace(lab: Lab, how: str, device: str) -> tuple[subprocess.Popen[bytes], Disk]:
    mount, jail = point(lab, "inside"), point(lab, "jail")
    argv = [sys.executable, "-IBc", NAMESPACE, how, device, mount, jail, lab.events.path]
    helper = lab.helper(f"exec {shlex.join(map(str, argv))}")
    lab.undo.callback(end, helper)
    lab.events.wait("there")
    return helper, strange.watch(lab, Path(f"/proc/{helper.pid}/fd/9"), Path(device))


def let_go_at_the_end(lab: Lab, fd: int) -> None:
    lab.undo.callback(os.close, fd)


# --- ways to hide --------------------------------------------------------------------------------


def in_a_chroot(lab: Lab, device: str) -> Disk:
    return namespace(lab, "chroot", device)[1]


def in_a_thread(lab: Lab, device: str) -> Disk:
    return namespace(lab, "thread", device)[1]


def kept_by_a_descriptor(lab: Lab, device: str) -> Disk:
    helper, disk = namespace(lab, "process", device)
    let_go_at_the_end(lab, os.open(f"/proc/{helper.pid}/ns/mnt", os.O_RDONLY))
    end(helper)
    return disk


def kept_by_a_bind_mount(lab: Lab, device: str) -> Disk:
    """As `unshare --mount=FILE` and `ip netns` do."""
    helper, disk = namespace(lab, "process", device)
    kept = lab.shm / "namespace"
    kept.touch()
    kernel.bind(Path(f"/proc/{helper.pid}/ns/mnt"), kept)
    lab.undo.callback(kernel.unmount, kept)
    end(helper)
    return disk


def unmounted_lazily(lab: Lab, device: str, fstype: str = "ext4", options: str = "") -> Disk:
    mount = point(lab, f"gone{len(lab.mounts)}{device.rpartition('/')[2]}")
    kernel.mount(device, mount, fstype, options)
    disk = strange.watch(lab, mount, Path(device))
    kernel.detach(mount)
    return disk


def mounted_without_a_mount_point(lab: Lab, device: str) -> Disk:
    fd = new_mount.detached("ext4", {"source": device}, ())
    disk = strange.watch(lab, Path(f"/proc/self/fd/{fd}/."), Path(device))
    let_go_at_the_end(lab, fd)
    return disk


def cloned_without_a_mount_point(lab: Lab, device: str) -> Disk:
    mount = point(lab, "cloned")
    kernel.mount(device, mount, "ext4", "")
    fd = new_mount.system_call(OPEN_TREE, AT_FDCWD, str(mount), OPEN_TREE_CLONE | os.O_CLOEXEC)
    kernel.unmount(mount)
    disk = strange.watch(lab, Path(f"/proc/self/fd/{fd}/."), Path(device))
    let_go_at_the_end(lab, fd)
    return disk


HIDING = [
    in_a_chroot,
    in_a_thread,
    kept_by_a_descriptor,
    kept_by_a_bind_mount,
    unmounted_lazily,
    mounted_without_a_mount_point,
    cloned_without_a_mount_point,
]
hidden = pytest.mark.parametrize("hide", HIDING, ids=lambda hide: hide.__name__)
fstypes = pytest.mark.parametrize("fstype", ["ext4", "ext3", "xfs", "btrfs"])


def planned(lab: Lab, *options: str) -> list[dict[str, Any]]:
    outcome = lab.vmsnap("plan", "--json", *options)
    assert outcome.code == 0, outcome.err
    document: list[dict[str, Any]] = json.loads(outcome.out)
    return document


def actions(lab: Lab, device: str, *options: str) -> list[str]:
    """What the plan says of what has this device."""
    return [e["action"] for e in planned(lab, *options) if e["source"] == device]


# --- it is frozen --------------------------------------------------------------------------------


@hidden
def test_it_is_planned_and_frozen_and_thawed(lab: Lab, hide: Callable[[Lab, str], Disk]) -> None:
    device = loop_device(lab)
    disk = hide(lab, device)
    assert actions(lab, device) == ["freeze"]
    session = lab.hold(only=[device])
    assert disk.is_frozen
    lab.release()
    outcome = session.finish()
    assert outcome.verdict == ("success", "filesystem", 0), outcome.result["errors"]
    assert [f["mount"] for f in outcome.result["filesystems"]] == [device]
    assert not disk.is_frozen


@fstypes
def test_so_it_is_of_every_type(lab: Lab, fstype: str) -> None:
    device = loop_device(lab, fstype)
    disk = unmounted_lazily(lab, device, fstype)
    session = lab.hold(only=[device])
    assert disk.is_frozen
    lab.release()
    outcome = session.finish()
    assert outcome.verdict == ("success", "filesystem", 0), outcome.result["errors"]
    assert not disk.is_frozen


def test_a_btrfs_of_two_devices_is_one(lab: Lab) -> None:
    devices = [loop_device(lab, "btrfs") for _ in range(2)]
    call("mkfs.btrfs", "-q", "-f", *devices)
    disk = unmounted_lazily(lab, devices[0], "btrfs", f"device={devices[1]}")
    assert sum(len(actions(lab, device)) for device in devices) == 1
    (name,) = (e["mount"] for e in planned(lab) if e["source"] in devices)
    session = lab.hold(only=[name])
    assert disk.is_frozen
    lab.release()
    outcome = session.finish()
    assert outcome.verdict == ("success", "filesystem", 0), outcome.result["errors"]


def test_it_is_frozen_before_what_it_lies_on(lab: Lab) -> None:
    below = lab.filesystem()
    inner = below.mount / "inner.img"
    with inner.open("wb") as file:
        file.truncate(16 << 20)
    call("mkfs.ext4", "-q", "-F", inner)
    device = call("losetup", "--find", "--show", inner).strip()
    lab.undo.callback(call, "losetup", "--detach", device)
    unmounted_lazily(lab, device)
    outcome = lab.run("exit 0", only=[*lab.mounts, device])
    assert outcome.verdict == ("success", "filesystem", 0)
    steps = {f["mount"]: f["step"] for f in outcome.result["filesystems"]}
    assert steps[device] < steps[str(below.mount)]


def test_the_log_of_an_xfs_may_lie_on_any_of_the_others(lab: Lab) -> None:
    """Its options, in no mount table, would say so."""
    stack = the_log_of_an_xfs(lab)
    device = next(source for mount, source in kernel.mounts("self") if mount == str(stack.upper))
    disk = strange.watch(lab, stack.upper, Path(device))
    kernel.detach(stack.upper)
    session = lab.hold(only=[*lab.mounts, device])
    assert disk.is_frozen
    lab.release()
    outcome = session.finish()
    assert outcome.verdict == ("success", "filesystem", 0), outcome.result["errors"]
    steps = {f["mount"]: f["step"] for f in outcome.result["filesystems"]}
    assert steps[device] < steps[str(stack.lower)]


def test_the_upper_layer_of_an_overlay_is_still_written_to(lab: Lab) -> None:
    """The overlay has a mount of its own of it, which is in no table."""
    device, layer, overlay = loop_device(lab), point(lab, "layer"), point(lab, "overlay")
    kernel.mount(device, layer, "ext4", "")
    for name in ("upper", "work"):
        (layer / name).mkdir()
    options = f"lowerdir={point(lab, 'below')},upperdir={layer}/upper,workdir={layer}/work"
    kernel.mount("overlay", overlay, "overlay", options)
    lab.undo.callback(kernel.detach, overlay)
    kernel.unmount(layer)
    session = lab.hold(only=[device])
    fd = new_mount.mounted("ext4", {"source": device}, lambda: True)
    let_go_at_the_end(lab, fd)
    assert strange.watch(lab, Path(f"/proc/self/fd/{fd}"), Path(device)).is_frozen
    lab.release()
    outcome = session.finish()
    assert outcome.verdict == ("success", "filesystem", 0), outcome.result["errors"]
    assert [f["mount"] for f in outcome.result["filesystems"]] == [device]


# --- it is thawed --------------------------------------------------------------------------------


@fstypes
def test_it_is_thawed_by_the_list_when_all_were_killed(lab: Lab, fstype: str) -> None:
    device = loop_device(lab, fstype)
    disk = unmounted_lazily(lab, device, fstype)
    kill_all(lab.hold(only=[device]))
    lab.release()
    lab.wait_for_rest()
    assert disk.is_frozen
    forced = lab.vmsnap("thaw", "--force")
    assert (forced.code, f"{device}: thawed" in forced.out.decode()) == (0, True)
    assert not disk.is_frozen


@hidden
def test_it_is_thawed_by_a_supervisor(lab: Lab, hide: Callable[[Lab, str], Disk]) -> None:
    device = loop_device(lab)
    disk = hide(lab, device)
    kill_both(lab.hold(only=[device]))
    lab.release()
    lab.wait_for_rest()
    assert not disk.is_frozen


# --- the level is true ---------------------------------------------------------------------------

NO_NEW_MOUNT = """
import errno, os, sys
from vmsnap.cli import main
from vmsnap.freeze import new_mount
def refused(*_):
    raise OSError(errno.EPERM, os.strerror(errno.EPERM))
new_mount.detached = refused
sys.exit(main.main())
"""


@fstypes
def test_what_cannot_be_opened_is_named_and_the_others_are_frozen(lab: Lab, fstype: str) -> None:
    other, device = lab.filesystem(), loop_device(lab, fstype)
    unmounted_lazily(lab, device, fstype)
    program = python(NO_NEW_MOUNT)
    outcome = lab.run("exit 0", only=[*lab.mounts, device], program=program)
    assert outcome.subjects == [("MountOpenFailed", device)]
    assert outcome.verdict == ("success", "crash", 0)
    assert [f["mount"] for f in outcome.result["filesystems"]] == [str(other.mount)]


@pytest.mark.parametrize("fstype", ["ext4", "xfs"])
def test_one_that_is_damaged_leaves_the_others_frozen(lab: Lab, fstype: str) -> None:
    """Any user may have kept it: of a disk that fails, or that is gone."""
    other, device = lab.filesystem(), loop_device(lab, fstype)
    disk = unmounted_lazily(lab, device, fstype)
    fcntl.ioctl(disk.fd, GOING_DOWN, struct.pack("I", NO_LOG_FLUSH))
    session = lab.hold(only=[*lab.mounts, device])
    assert kernel.is_frozen(other.mount)
    lab.release()
    outcome = session.finish()
    assert [subject for _, subject in outcome.subjects] == [device]
    assert outcome.verdict == ("success", "crash", 0)


def test_an_operation_that_holds_its_freeze_off_is_seen(lab: Lab) -> None:
    """By a process in whose mount table it is not either."""
    busy, other = scrubbing(lab).filesystem, lab.filesystem()
    mounted = dict(kernel.mounts("self"))
    device = mounted[str(busy.mount)]
    disk = strange.watch(lab, busy.mount, Path(device))
    lab.undo.callback(fcntl.ioctl, disk.fd, SCRUB_CANCEL)
    kernel.detach(busy.mount)
    lab.filesystems.remove(busy)
    outcome = lab.run("exit 0", only=[str(other.mount), device])
    assert outcome.subjects == [("FreezeFailed", device)]
    assert "left out, as btrfs scrub" in outcome.result["errors"][0]["message"]
    assert outcome.verdict == ("success", "crash", 0)


def test_in_a_chroot_it_may_have_the_run_directory(lab: Lab) -> None:
    """The guard would wait for its own list."""
    device = loop_device(lab)
    jail = point(lab, "jail")
    kernel.mount(device, jail, "ext4", "")
    lab.undo.callback(kernel.detach, jail)
    system = jail / "system"
    (system / "run").mkdir(parents=True)
    needed = ("/usr", "/lib", "/lib64", "/bin", "/dev", "/proc", "/sys", sys.prefix)
    for path in filter(Path.exists, (*map(Path, needed), REPOSITORY)):
        inside = system / path.relative_to("/")
        inside.mkdir(parents=True, exist_ok=True)
        kernel.bind(path.resolve(), inside)
    chroot = ["chroot", str(system), sys.executable, "-Im", "vmsnap"]
    argv = [*chroot, "check", "--json", "--run=/run/vmsnap", f"--only={device}"]
    outcome = subprocess.run(argv, capture_output=True, check=False, cwd="/")
    problems = json.loads(outcome.stdout)["problems"]
    (found,) = (p["message"] for p in problems if p["message"].startswith(f"{device}: "))
    assert "found the run directory /run/vmsnap on it" in found


def test_one_that_another_program_has_frozen_leaves_the_others_frozen(lab: Lab) -> None:
    other, device = lab.filesystem(), loop_device(lab)
    disk = unmounted_lazily(lab, device)
    fcntl.ioctl(disk.fd, kernel.FIFREEZE, 0)
    session = lab.hold(only=[*lab.mounts, device])
    assert kernel.is_frozen(other.mount)
    lab.release()
    outcome = session.finish()
    assert outcome.subjects == [("FreezeFailed", device)]
    assert outcome.verdict == ("success", "crash", 0)
    assert disk.is_frozen


def test_what_is_hidden_during_the_session_is_told(lab: Lab) -> None:
    """Mounted, written to, unmounted lazily: at the end no mount table has it."""
    lab.filesystem()
    device = loop_device(lab)
    session = lab.hold(only=[*lab.mounts, f"[/]{device[1:]}"])
    disk = unmounted_lazily(lab, device)
    lab.release()
    outcome = session.finish()
    assert outcome.subjects == [("NotFrozen", device)]
    assert outcome.verdict == ("success", "crash", 0)
    assert not disk.is_frozen


@fstypes
@pytest.mark.parametrize("when", ["before", "during"])
def test_what_is_read_only_is_not_missed(lab: Lab, fstype: str, when: str) -> None:
    other, device = lab.filesystem(), loop_device(lab, fstype)

    def hide() -> None:
        mount = point(lab, "gone")
        lab.mount("-t", fstype, "-o", "ro", device, mount)
        let_go_at_the_end(lab, os.open(mount, os.O_RDONLY))
        kernel.detach(mount)

    if when == "before":
        hide()
    session = lab.hold(only=[*lab.mounts, f"[/]{device[1:]}"])
    if when == "during":
        hide()
    lab.release()
    outcome = session.finish()
    assert outcome.verdict == ("success", "filesystem", 0), outcome.result["errors"]
    assert [f["mount"] for f in outcome.result["filesystems"]] == [str(other.mount)]


def test_it_is_still_read_only_afterwards(lab: Lab) -> None:
    device = loop_device(lab, "btrfs")
    mount = point(lab, "gone")
    lab.mount("-t", "btrfs", "-o", "ro", device, mount)
    fd = os.open(mount, os.O_RDONLY)
    let_go_at_the_end(lab, fd)
    kernel.detach(mount)
    lab.filesystem()
    assert lab.run("exit 0", only=[*lab.mounts, device]).code == 0
    assert os.fstatvfs(fd).f_flag & os.ST_RDONLY


# --- and nothing else ----------------------------------------------------------------------------


def test_it_is_selected_by_its_device(lab: Lab) -> None:
    device, other = loop_device(lab), lab.filesystem()
    disk = unmounted_lazily(lab, device)
    assert actions(lab, device, f"--only={other.mount}") == ["skip"]
    assert actions(lab, device, f"--exclude={device}") == ["skip"]
    session = lab.hold()
    assert not disk.is_frozen
    lab.release()
    outcome = session.finish()
    assert outcome.verdict == ("success", "filesystem", 0), outcome.result["errors"]


@fstypes
def test_what_was_left_out_and_is_hidden_during_the_session_stays_left_out(
    lab: Lab, fstype: str
) -> None:
    lab.filesystem()
    device, mount = loop_device(lab, fstype), point(lab, "excluded")
    kernel.mount(device, mount, fstype, "")
    only = [*lab.mounts, f"[/]{device[1:]}", str(mount)]
    session = lab.hold(f"--exclude={mount}", only=only)
    let_go_at_the_end(lab, os.open(mount, os.O_RDONLY))
    kernel.detach(mount)
    lab.release()
    outcome = session.finish()
    assert outcome.verdict == ("success", "filesystem", 0), outcome.result["errors"]


@fstypes
def test_what_was_frozen_and_is_hidden_during_the_session_was_frozen(lab: Lab, fstype: str) -> None:
    device, mount = loop_device(lab, fstype), point(lab, "frozen")
    kernel.mount(device, mount, fstype, "")
    session = lab.hold(only=[str(mount), f"[/]{device[1:]}"])
    strange.watch(lab, mount, Path(device))
    kernel.detach(mount)
    lab.release()
    outcome = session.finish()
    assert outcome.verdict == ("success", "filesystem", 0), outcome.result["errors"]


@pytest.mark.parametrize("fstype", ["ext4", "xfs", "btrfs"])
def test_what_a_mount_table_has_is_not_planned_twice(lab: Lab, fstype: str) -> None:
    device, mount = loop_device(lab, fstype), point(lab, "seen")
    kernel.mount(device, mount, fstype, "")
    assert actions(lab, device) == ["freeze"]
    assert actions(lab, device, f"--only={mount}") == ["freeze"]
    outcome = lab.run("exit 0", only=[str(mount)])
    assert outcome.verdict == ("success", "filesystem", 0)


def test_a_btrfs_whose_source_says_nothing_is_not_frozen_twice(lab: Lab) -> None:
    device, mount = loop_device(lab, "btrfs"), point(lab, "seen")
    hidden, node = loop_device(lab, "btrfs"), lab.shm / "node"
    os.mknod(node, 0o060600, Path(device).stat().st_rdev)
    kernel.mount(str(node), mount, "btrfs", "")
    assert str(node) in Path("/proc/self/mountinfo").read_text()
    disk = unmounted_lazily(lab, hidden, "btrfs")
    session = lab.hold(only=[str(mount), f"[/]{device[1:]}", hidden])
    assert disk.is_frozen
    lab.release()
    outcome = session.finish()
    assert outcome.verdict == ("success", "filesystem", 0), outcome.result["errors"]
    assert {f["mount"] for f in outcome.result["filesystems"]} == {str(mount), hidden}


def test_a_btrfs_keeps_the_name_of_its_device(lab: Lab) -> None:
    """It shows the path by which it was mounted last."""
    device, mount = loop_device(lab, "btrfs"), point(lab, "seen")
    fd = new_mount.detached("btrfs", {"source": device}, ())
    let_go_at_the_end(lab, fd)
    outcome = lab.run("exit 0", only=[device])
    assert outcome.verdict == ("success", "filesystem", 0), outcome.result["errors"]
    new_mount.system_call(MOVE_MOUNT, fd, "", AT_FDCWD, str(mount), MOVE_MOUNT_F_EMPTY_PATH)
    assert (str(mount), device) in kernel.mounts("self")


def test_a_user_is_shown_none(lab: Lab) -> None:
    """He cannot read the mount tables of others, so all that is only there would be among them."""
    device = loop_device(lab)
    unmounted_lazily(lab, device)
    user = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups"]
    argv = [*user, sys.executable, "-Im", "vmsnap", "plan", "--json"]
    outcome = subprocess.run(argv, capture_output=True, check=False, cwd="/")
    assert outcome.returncode == 0, outcome.stderr
    assert device not in {entry["source"] for entry in json.loads(outcome.stdout)}


def test_those_of_the_host_are_not_a_containers(lab: Lab) -> None:
    """sysfs shows them there too."""
    device = loop_device(lab)
    unmounted_lazily(lab, device)
    plan = ("unshare", "--pid", "--fork", "--mount-proc")
    outcome = lab.begin("plan", "--json", program=[*plan, sys.executable, "-Im", "vmsnap"]).finish()
    assert outcome.code == 0, outcome.err
    assert device not in {entry["source"] for entry in json.loads(outcome.out)}
