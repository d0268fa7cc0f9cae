# SPDX-License-Identifier: Apache-2.0
"""The plan, from mount tables and a sysfs tree: what is frozen, in which order, and why not."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import pytest

from vmsnap.errors import Kind, Severity
from vmsnap.freeze import stacking
from vmsnap.freeze.failures import left_out
from vmsnap.freeze.loops import Backing
from vmsnap.freeze.mountinfo import every_mount
from vmsnap.freeze.plan import Plan, count_disks
from vmsnap.freeze.stacking import block_devices, look

from ..worlds import Machine, shape


def reason(plan: Plan, point: str) -> str:
    return next(entry.reason for entry in plan.entries if entry.mount == point)


def step(plan: Plan, point: str) -> int:
    number = next(entry.step for entry in plan.entries if entry.mount == point)
    assert number is not None
    return number


# --- freeze, sync, skip ------------------------------------------------------------------------


@pytest.mark.parametrize(
    "fstype",
    ["ext2", "ext3", "ext4", "xfs", "f2fs", "jfs", "nilfs2", "reiserfs", "gfs2", "ocfs2", "newfs"],
)
def test_a_writable_filesystem_on_a_block_device_is_frozen(machine: Machine, fstype: str) -> None:
    machine.mount("/srv", "900:1", fstype)
    assert shape(machine.plan()) == {"/srv": ("freeze", 1)}


@pytest.mark.parametrize("fstype", ["btrfs", "bcachefs"])
def test_a_filesystem_with_an_anonymous_device_number_is_frozen_all_the_same(
    machine: Machine, fstype: str
) -> None:
    machine.mount("/srv", "0:45", fstype)
    assert shape(machine.plan()) == {"/srv": ("freeze", 1)}


@pytest.mark.parametrize("fstype", ["vfat", "exfat", "ntfs3", "msdos", "udf"])
def test_what_cannot_be_frozen_is_written_out(machine: Machine, fstype: str) -> None:
    machine.mount("/boot/efi", "900:1", fstype)
    assert shape(machine.plan()) == {"/boot/efi": ("sync", 1)}
    assert fstype in reason(machine.plan(), "/boot/efi")


@pytest.mark.parametrize(
    ("device", "fstype", "options", "word"),
    [
        ("0:22", "proc", "rw", "virtual"),
        ("0:23", "tmpfs", "rw", "virtual"),
        ("0:24", "cgroup2", "rw", "virtual"),
        ("0:50", "nfs", "rw", "remote"),
        ("0:50", "nfs4", "rw", "remote"),
        ("0:50", "cifs", "rw", "remote"),
        ("0:50", "ceph", "rw", "remote"),
        ("0:51", "fuse.sshfs", "rw", "FUSE"),
        ("0:51", "fuse", "rw", "FUSE"),
        ("900:5", "fuseblk", "rw", "FUSE"),
        ("0:52", "overlay", "rw,lowerdir=/a,upperdir=/b,workdir=/c", "overlay"),
        ("0:53", "zfs", "rw", "ZFS"),
        ("900:3", "ext4", "ro", "read-only"),
        ("0:54", "btrfs", "ro", "read-only"),
        ("7:3", "squashfs", "ro", "read-only"),
        ("900:3", "iso9660", "ro", "read-only"),
    ],
)
def test_everything_else_is_skipped_and_says_why(
    machine: Machine, device: str, fstype: str, options: str, word: str
) -> None:
    machine.mount("/x", device, fstype, options=options)
    plan = machine.plan()
    assert shape(plan) == {"/x": ("skip", None)}
    assert word in reason(plan, "/x")
    assert plan.acted_on == []


def test_only_what_is_frozen_may_lack_a_reason(machine: Machine) -> None:
    for number, fstype in enumerate(["ext4", "vfat", "squashfs"]):
        machine.mount(f"/{fstype}", f"900:{number}", fstype)
    machine.mount("/proc", "0:5", "proc")
    for entry in machine.plan(exclude=("/squashfs",)).entries:
        assert entry.reason or entry.action.value == "freeze"


# --- what has become read-only -------------------------------------------------------------------


def failed(plan: Plan) -> list[str]:
    return [problem.subject for problem in left_out(plan)]


@pytest.mark.parametrize(
    ("fstype", "options"),
    [
        ("ext4", "rw,errors=remount-ro,emergency_ro"),
        ("ext4", "rw,shutdown"),
        ("ext4", "ro,errors=remount-ro"),  # before Linux 6.15
        ("btrfs", "ro,subvolid=5,subvol=/"),
        ("f2fs", "ro"),
        ("vfat", "ro,errors=remount-ro"),
    ],
)
def test_what_was_mounted_writable_and_is_not_is_left_out_and_named(
    machine: Machine, fstype: str, options: str
) -> None:
    machine.mount("/broken", "0:60" if fstype == "btrfs" else "900:1", fstype, options=options)
    machine.mount("/good", "900:2")
    plan = machine.plan()
    assert shape(plan) == {"/broken": ("skip", None), "/good": ("freeze", 1)}
    (problem,) = left_out(plan)
    assert (problem.kind, problem.subject) == (Kind.BECAME_READ_ONLY, "/broken")
    assert problem.severity is Severity.ERROR


@pytest.mark.parametrize("fstype", ["ext4", "xfs", "btrfs", "vfat"])
def test_what_was_mounted_read_only_is_in_order(machine: Machine, fstype: str) -> None:
    device = "0:60" if fstype == "btrfs" else "900:1"
    options = "ro,errors=remount-ro"
    machine.mount("/ro", device, fstype, options=options, flags="ro,relatime")
    assert failed(machine.plan()) == []


@pytest.mark.parametrize("fstype", ["iso9660", "squashfs", "erofs", "udf", "hfsplus"])
def test_what_can_only_be_read_is_in_order(machine: Machine, fstype: str) -> None:
    machine.mount("/media", "7:1", fstype, options="ro")
    assert failed(machine.plan()) == []


def test_a_writable_bind_of_what_was_mounted_read_only_is_in_order(machine: Machine) -> None:
    machine.mount("/archive", "900:1", options="ro", flags="ro", root="/sub")
    machine.mount("/srv", "900:1", options="ro")
    machine.mount("/", "0:52", "overlay", options="rw,lowerdir=/archive,upperdir=/b,workdir=/c")
    assert failed(machine.plan()) == []


def test_a_read_only_bind_hides_no_failure(machine: Machine) -> None:
    machine.mount("/data", "900:1", options="ro", root="/sub")
    machine.mount("/jail/data", "900:1", options="ro", flags="ro")
    assert failed(machine.plan()) == ["/jail/data"]


def test_a_read_only_mount_of_a_writable_superblock_is_frozen(machine: Machine) -> None:
    machine.mount("/data", "900:1", flags="ro")
    plan = machine.plan()
    assert (shape(plan), failed(plan)) == ({"/data": ("freeze", 1)}, [])


def test_of_another_namespace_only_what_ext4_says_counts(machine: Machine) -> None:
    """The mount that shows how it was mounted may be elsewhere."""
    machine.process("42", "mnt:[2]")
    machine.mount("/volume", "900:1", options="ro", pid="42")
    machine.mount("/disk", "900:2", options="rw,emergency_ro", pid="42")
    assert failed(machine.plan()) == ["/proc/42/root/disk"]


def test_a_failure_that_only_a_users_namespace_has_is_a_warning(machine: Machine) -> None:
    machine.process("42", "mnt:[2]", owner=2)
    machine.block("900:2", "vda")
    machine.mount("/disk", "900:2", options="rw,emergency_ro", pid="42")
    (problem,) = left_out(machine.plan())
    assert problem.severity is Severity.WARNING


def test_a_failure_that_is_excluded_or_not_selected_is_nobodys_business(machine: Machine) -> None:
    machine.mount("/broken", "900:1", options="rw,emergency_ro")
    machine.mount("/good", "900:2")
    assert failed(machine.plan(exclude=("/broken",))) == []
    assert failed(machine.plan(only=("/good",))) == []


# --- one entry for each superblock ---------------------------------------------------------------


def test_bind_mounts_are_one_entry_named_by_the_mount_of_the_whole(machine: Machine) -> None:
    machine.mount("/var/www", "900:1", root="/www")
    machine.mount("/srv", "900:1")
    machine.mount("/home/www", "900:1", root="/www")
    assert shape(machine.plan()) == {"/srv": ("freeze", 1)}


def test_btrfs_subvolumes_are_one_entry(machine: Machine) -> None:
    for point, root in (("/", "/@"), ("/home", "/@home"), ("/snapshots", "/@snapshots")):
        machine.mount(point, "0:45", "btrfs", root=root)
    assert shape(machine.plan()) == {"/": ("freeze", 1)}


def test_a_mount_point_that_is_a_file_is_an_entry_like_any_other(machine: Machine) -> None:
    machine.mount("/etc/resolv.conf", "900:1", root="/resolv.conf")
    assert shape(machine.plan()) == {"/etc/resolv.conf": ("freeze", 1)}


def test_an_entry_is_named_by_a_mount_that_can_be_reached(machine: Machine) -> None:
    machine.mount("/gone//deleted", "900:1")
    machine.mount("/there", "900:1", root="/sub")
    assert list(shape(machine.plan())) == ["/there"]


def test_a_filesystem_of_another_namespace_is_in_the_plan(machine: Machine) -> None:
    machine.mount("/", "900:1")
    machine.process("70", "mnt:[2]")
    machine.mount("/data", "900:2", pid="70")
    assert shape(machine.plan())["/proc/70/root/data"][0] == "freeze"


def test_the_json_of_an_entry_is_exactly_what_plan_json_promises(machine: Machine) -> None:
    machine.mount("/srv", "900:1", "xfs", "/dev/vdb1")
    assert [entry.to_json() for entry in machine.plan().entries] == [
        {
            "mount": "/srv",
            "source": "/dev/vdb1",
            "fstype": "xfs",
            "device": "900:1",
            "action": "freeze",
            "step": 1,
            "reason": "",
        }
    ]


# --- selection ---------------------------------------------------------------------------------


@pytest.fixture
def four(machine: Machine) -> Machine:
    for number, point in enumerate(["/", "/srv", "/srv/a", "/srv/b"], start=1):
        machine.mount(point, f"900:{number}")
    machine.mount("/proc", "0:5", "proc")
    return machine


@pytest.mark.parametrize(
    ("only", "exclude", "frozen"),
    [
        ((), (), {"/", "/srv", "/srv/a", "/srv/b"}),
        (("/srv",), (), {"/srv"}),
        (("/srv/",), (), {"/srv"}),
        (("/",), (), {"/"}),
        (("/srv/*",), (), {"/srv/a", "/srv/b"}),
        (("/srv/?", "/"), (), {"/", "/srv/a", "/srv/b"}),
        (("/srv/[ab]",), ("/srv/b",), {"/srv/a"}),
        ((), ("/srv*",), {"/"}),
        ((), ("/srv/",), {"/", "/srv/a", "/srv/b"}),
        (("/srv",), ("/srv",), set()),
        ((), ("/SRV",), {"/", "/srv", "/srv/a", "/srv/b"}),
    ],
)
def test_only_and_exclude_select_by_mount_point(
    four: Machine, only: tuple[str, ...], exclude: tuple[str, ...], frozen: set[str]
) -> None:
    plan = four.plan(only, exclude)
    assert {entry.mount for entry in plan.acted_on} == frozen
    assert plan.unmatched == ()
    for entry in plan.entries:
        if entry.action.value == "skip" and not entry.virtual:
            assert entry.reason in ("excluded", "not selected")


def test_any_mount_of_a_filesystem_selects_it(machine: Machine) -> None:
    machine.mount("/srv", "900:1")
    machine.mount("/var/www", "900:1", root="/www")
    assert shape(machine.plan(only=("/var/www",))) == {"/srv": ("freeze", 1)}
    assert shape(machine.plan(exclude=("/var/www",))) == {"/srv": ("skip", None)}


def test_selecting_does_not_freeze_what_cannot_be(four: Machine) -> None:
    assert four.plan(only=("/proc",)).acted_on == []


@pytest.mark.parametrize(
    ("only", "unmatched"),
    [
        (("/srv/c",), ("/srv/c",)),
        (("/srv", "/sr", "/srv/a/deep"), ("/sr", "/srv/a/deep")),
        (("/nothing*",), ()),
    ],
)
def test_a_name_that_is_no_mount_point_is_said_but_a_glob_may_match_nothing(
    four: Machine, only: tuple[str, ...], unmatched: tuple[str, ...]
) -> None:
    assert four.plan(only).unmatched == unmatched


# --- order -------------------------------------------------------------------------------------


def test_independent_filesystems_freeze_in_one_step_with_root(four: Machine) -> None:
    assert {entry.step for entry in four.plan().acted_on} == {1}


def test_a_loop_filesystem_freezes_before_the_one_that_holds_its_file(machine: Machine) -> None:
    machine.mount("/", "900:1")
    machine.mount("/srv", "900:2")
    machine.mount("/mnt", "907:0")
    machine.loop("907:0", "loop0", "/srv/images/disk.img")
    plan = machine.plan()
    assert (step(plan, "/mnt"), step(plan, "/srv"), step(plan, "/")) == (1, 2, 2)


def test_loops_upon_loops_freeze_from_the_top(machine: Machine) -> None:
    machine.mount("/", "900:1")
    for number in range(5):
        below = f"/l{number - 1}" if number else ""
        machine.mount(f"/l{number}", f"907:{number}")
        machine.loop(f"907:{number}", f"loop{number}", f"{below}/no-such-image")
    steps = {entry.mount: entry.step for entry in machine.plan().entries}
    assert steps == {"/l4": 1, "/l3": 2, "/l2": 3, "/l1": 4, "/l0": 5, "/": 6}


def test_a_loop_file_whose_name_was_deleted_still_lies_where_it_lay(machine: Machine) -> None:
    machine.mount("/srv", "900:2")
    machine.mount("/mnt", "907:0")
    machine.loop("907:0", "loop0", "/srv/disk.img (deleted)")
    plan = machine.plan()
    assert step(plan, "/mnt") < step(plan, "/srv")


def test_a_partition_on_a_loop_device_lies_on_the_loops_file(machine: Machine) -> None:
    machine.mount("/srv", "900:2")
    machine.mount("/mnt", "959:1")
    disk = machine.loop("907:0", "loop0", "/srv/disk.img")
    machine.block("959:1", "loop0p1", below=disk)
    plan = machine.plan()
    assert step(plan, "/mnt") < step(plan, "/srv")


def test_crypt_on_lvm_on_raid_on_a_partition_on_a_loop_is_followed_to_the_file(
    machine: Machine,
) -> None:
    machine.mount("/", "900:1")
    machine.mount("/srv", "900:2")
    machine.mount("/mnt", "953:1")
    disk = machine.loop("907:0", "loop0", "/srv/disk.img")
    other = machine.loop("907:1", "loop1", "/no-such-image")  # on /
    partition = machine.block("959:1", "loop0p1", below=disk)
    raid = machine.stacked("909:0", "md0", partition, other)
    volume = machine.stacked("953:0", "dm-0", raid)
    machine.stacked("953:1", "dm-1", volume)
    plan = machine.plan()
    assert step(plan, "/mnt") < step(plan, "/srv")
    assert step(plan, "/mnt") < step(plan, "/")


def test_device_mapper_on_a_real_disk_is_carried_by_nobody(machine: Machine) -> None:
    machine.mount("/", "900:1")
    machine.mount("/srv", "953:0")
    machine.stacked("953:0", "dm-0", machine.block("908:0", "vdb"))
    assert {entry.step for entry in machine.plan().acted_on} == {1}


def test_every_device_of_a_btrfs_counts(machine: Machine) -> None:
    machine.mount("/srv", "900:2")
    machine.mount("/mnt", "0:45", "btrfs", "/dev/loop0")
    devices = machine.sys / "fs/btrfs/0f0f-aa/devices"
    devices.mkdir(parents=True)
    (machine.sys / "class/block").mkdir(parents=True)
    for link in (
        machine.block("907:0", "loop0"),
        machine.loop("907:1", "loop1", "/srv/second.img"),
    ):
        (devices / link.name).symlink_to(link)
        (machine.sys / "class/block" / link.name).symlink_to(link)
    plan = machine.plan()
    assert step(plan, "/mnt") < step(plan, "/srv")


def test_a_filesystem_in_a_file_on_an_overlay_freezes_before_the_upper_layers_one(
    machine: Machine,
) -> None:
    machine.mount("/", "900:1")
    machine.mount("/var/lib/containers", "900:2")
    machine.mount(
        "/merged",
        "0:60",
        "overlay",
        options="rw,lowerdir=/l,upperdir=/var/lib/containers/u,workdir=/w",
    )
    machine.mount("/mnt", "907:0")
    machine.loop("907:0", "loop0", "/merged/disk.img")
    plan = machine.plan()
    assert shape(plan)["/merged"] == ("skip", None)
    assert step(plan, "/mnt") < step(plan, "/var/lib/containers")


def test_what_is_left_out_still_orders_what_lies_above_and_below_it(machine: Machine) -> None:
    machine.mount("/", "900:1")
    machine.mount("/middle", "907:0")
    machine.loop("907:0", "loop0", "/no-such-image")
    machine.mount("/top", "907:1")
    machine.loop("907:1", "loop1", "/middle/image")
    plan = machine.plan(exclude=("/middle",))
    assert {mount: number for mount, (_, number) in shape(plan).items()} == {
        "/top": 1,
        "/middle": None,
        "/": 2,
    }


def test_root_is_in_the_last_step_also_when_another_chain_is_longer(machine: Machine) -> None:
    machine.mount("/", "900:1")
    machine.mount("/srv", "900:2")
    machine.mount("/a", "907:0")
    machine.loop("907:0", "loop0", "/srv/image")
    machine.mount("/b", "907:1")
    machine.loop("907:1", "loop1", "/a/image")
    plan = machine.plan()
    assert step(plan, "/") == step(plan, "/srv") == max(e.step or 0 for e in plan.entries) == 3


def test_what_is_only_written_out_has_its_place_in_the_order(machine: Machine) -> None:
    machine.mount("/", "900:1")
    machine.mount("/boot/efi", "907:0", "vfat")
    machine.loop("907:0", "loop0", "/no-such-image")
    assert shape(machine.plan()) == {"/": ("freeze", 2), "/boot/efi": ("sync", 1)}


def test_a_loop_file_on_a_tmpfs_is_carried_by_nothing_that_is_frozen(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stacking, "ask_loops", lambda *_: {"907:0": Backing("0:30", "")})
    machine.mount("/", "900:1")
    machine.mount("/scratch", "0:30", "tmpfs")
    machine.mount("/mnt", "907:0")
    machine.loop("907:0", "loop0", "/scratch/image")
    assert {entry.step for entry in machine.plan().acted_on} == {1}


# --- what others write into mount tables --------------------------------------------------------


@pytest.mark.parametrize("fstype", ["overlay", "nfs4", "fuse.evil", "tmpfs", "zfs"])
def test_a_source_is_not_looked_at(
    machine: Machine, tmp_path: Path, fstype: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    trap = tmp_path / "trap"
    machine.mount("/mnt", "0:60", fstype, str(trap))
    stat_it = Path.stat

    def stat(path: Path, **more: Any) -> os.stat_result:
        assert path != trap
        return stat_it(path, **more)

    monkeypatch.setattr(Path, "stat", stat)
    machine.plan()


@pytest.mark.parametrize(
    ("source", "found"),
    [
        ("/dev/loop0", True),
        ("/dev/mapper/vg-data", True),
        ("/dev/cciss/c0d0", True),
        ("loop0", False),
        ("/tmp/trap", False),
        ("/dev/../loop0", False),
        ("", False),
    ],
)
def test_the_device_of_a_btrfs_elsewhere_is_found_by_the_kernels_names_alone(
    machine: Machine, source: str, found: bool
) -> None:
    machine.mount("/srv", "900:2")
    machine.process("60", "mnt:[2]")
    machine.mount("/mnt", "0:45", "btrfs", source, pid="60")
    devices = (
        machine.loop("907:0", "loop0", "/srv/a.img"),
        machine.loop("907:1", "cciss!c0d0", "/srv/b.img"),
        machine.stacked("953:0", "dm-0", machine.sys / "dev/block/907:0"),
    )
    (devices[2] / "dm").mkdir()
    (devices[2] / "dm/name").write_text("vg-data\n")
    (machine.sys / "class/block").mkdir(parents=True)
    for path in devices:
        (machine.sys / "class/block" / path.name).symlink_to(path)
    mount = next(m for m in every_mount(machine.proc) if m.fstype == "btrfs")
    assert bool(block_devices(mount, machine.sys)) == found


def test_what_lies_on_something_unknown_is_frozen_first(machine: Machine) -> None:
    machine.mount("/", "900:1")
    machine.mount("/other", "0:46", "btrfs", "/dev/none")
    plan = machine.plan()
    assert step(plan, "/other") < step(plan, "/")
    assert reason(plan, "/other").startswith("comes first")
    assert reason(plan, "/") == ""


def test_an_overlay_elsewhere_orders_nothing_by_its_names(machine: Machine) -> None:
    machine.mount("/srv", "900:2")
    machine.process("60", "mnt:[2]")
    machine.mount("/merged", "0:60", "overlay", options="rw,upperdir=/srv/u", pid="60")
    overlay = next(m for m in every_mount(machine.proc) if m.fstype == "overlay")
    assert look({"0:60": [overlay]}, machine.proc, machine.sys).hints == []


def test_the_mount_points_of_foreign_user_namespaces_select_nothing(machine: Machine) -> None:
    machine.mount("/", "900:1")
    machine.process("60", "mnt:[2]", owner=7)
    machine.mount("/data", "900:2", pid="60")
    machine.mount("/tmpfs", "0:77", "tmpfs", pid="60")
    machine.block("900:2", "vdc")
    plan = machine.plan(only=("/data", "/tmpfs"), exclude=("/data",))
    assert plan.unmatched == ("/data", "/tmpfs")
    assert plan.idle == ("/data",)
    assert plan.acted_on == []
    plan = machine.plan(exclude=("/data", "*"))
    assert shape(plan) == {"/": ("skip", None), "/proc/60/root/data": ("freeze", 1)}
    assert [entry.foreign for entry in plan.entries] == [False, True]


def test_an_unplugged_disk_that_a_user_keeps_mounted_is_left_alone(machine: Machine) -> None:
    machine.mount("/", "900:1")
    machine.process("60", "mnt:[2]", owner=7)
    machine.mount("/media/usb", "900:2", pid="60")
    assert shape(machine.plan())["/proc/60/root/media/usb"] == ("skip", None)
    machine.block("900:2", "sdb")
    assert shape(machine.plan())["/proc/60/root/media/usb"] == ("freeze", 1)


# --- cost --------------------------------------------------------------------------------------


def calls_of_plan(machine: Machine) -> int:
    count = 0

    def count_calls(_frame: object, event: str, _argument: object) -> None:
        nonlocal count
        count += event in ("call", "c_call")

    sys.setprofile(count_calls)
    try:
        machine.plan(("/srv/*",), ("/srv/*7",))
    finally:
        sys.setprofile(None)
    return count


@pytest.mark.parametrize("same_superblock", [False, True])
def test_the_work_for_5000_mounts_is_five_times_that_for_1000(
    tmp_path: Path, same_superblock: bool
) -> None:
    """Counted in function calls, of Python and of C."""
    counts = []
    for number in (1000, 5000):
        machine = Machine(tmp_path / str(number))
        table = machine.proc / "self/mountinfo"
        with open(table, "w", encoding="ascii") as file:
            for i in range(number):
                device = "900:1" if same_superblock else f"900:{i}"
                file.write(f"{i} 1 {device} / /srv/{i} rw shared:1 - ext4 /dev/d{i} rw\n")
        counts.append(calls_of_plan(machine))
    assert counts[1] < 5.5 * counts[0]


# --- disks -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("disks", "count"),
    [
        ((), 0),
        (("vda",), 1),
        (("sda", "sdb", "nvme0n1", "xvdf", "mmcblk0"), 5),
        (("vda", "loop0", "loop17", "ram0", "zram0", "sr0", "dm-0", "dm-12", "fd0"), 1),
    ],
)
def test_loop_ram_zram_optical_and_device_mapper_are_no_disks(
    machine: Machine, disks: tuple[str, ...], count: int
) -> None:
    for disk in disks:
        machine.disk(disk, 2048)
    assert count_disks(machine.sys) == count


def test_an_empty_drive_is_no_disk(machine: Machine) -> None:
    machine.disk("vda", 2048)
    machine.disk("sdb", 0)  # a card reader without a card; nbd devices that nobody uses
    assert count_disks(machine.sys) == 1


@pytest.mark.parametrize("label", ["cidata", "CIDATA", "config-2", "CONFIG-2"])
def test_a_seed_of_cloud_init_is_no_disk(machine: Machine, label: str) -> None:
    machine.label(machine.disk("vda", 1 << 24), "254:0", "")
    machine.label(machine.disk("vdb", 1 << 17), "254:16", label)
    assert count_disks(machine.sys, machine.udev) == 1


def test_what_is_too_small_for_anything_else_is_no_disk_without_udev(machine: Machine) -> None:
    machine.disk("vda", 1 << 24)
    machine.disk("vdb", 732)
    assert count_disks(machine.sys, machine.udev) == 1


def test_what_is_read_only_is_no_disk(machine: Machine) -> None:
    for name, read_only in (("vda", "0"), ("vdb", "1")):
        (machine.disk(name, 1 << 24) / "ro").write_text(f"{read_only}\n")
    assert count_disks(machine.sys, machine.udev) == 1


@pytest.mark.parametrize("label", ["data", "cidata2", "my cidata", ""])
def test_other_labels_make_no_seed(machine: Machine, label: str) -> None:
    for number, name in enumerate(("vda", "vdb")):
        machine.label(machine.disk(name, 1 << 17), f"254:{number}", label)
    assert count_disks(machine.sys, machine.udev) == 2


@pytest.mark.parametrize(("labels", "count"), [(("config-2",), 0), (("config-2", "root"), 1)])
def test_a_disk_on_which_there_is_more_than_a_seed_counts(
    machine: Machine, labels: tuple[str, ...], count: int
) -> None:
    disk = machine.disk("vda", 1 << 24)
    machine.label(disk, "254:0", "")
    for number, label in enumerate(labels, start=1):
        partition = disk / f"vda{number}"
        partition.mkdir()
        (partition / "partition").write_text(f"{number}\n")
        machine.label(partition, f"254:{number}", label)
    assert count_disks(machine.sys, machine.udev) == count
