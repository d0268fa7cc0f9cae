# SPDX-License-Identifier: Apache-2.0
"""The kernel's mount tables as data. The lines are as proc(5) describes them."""

from __future__ import annotations

import tracemalloc
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vmsnap.freeze.mountinfo import Mount, every_mount, parse, read, unescape, ways_to

from ..worlds import Machine, escape, line

# Any name that a path may have, as Python shows it: undecodable bytes are lone surrogates.
NAMES = st.binary(min_size=1, max_size=30).map(
    lambda name: name.replace(b"\0", b"x").decode("utf-8", "surrogateescape")
)


def one(text: str) -> Mount:
    (mount,) = parse(text.split("\n"))
    return mount


def test_a_line_from_the_manual_is_read() -> None:
    text = "36 35 98:0 /mnt1 /mnt2 rw,noatime master:1 - ext3 /dev/root rw,errors=continue\n"
    assert one(text) == Mount(
        36, "98:0", "/mnt1", "/mnt2", "ext3", "/dev/root", "rw,errors=continue"
    )


@pytest.mark.parametrize(
    "optional", ["", "shared:1 ", "shared:1 master:2 ", "master:2 propagate_from:3 unbindable "]
)
def test_any_number_of_optional_fields_is_passed_over(optional: str) -> None:
    mount = one(line("/srv", "8:1", optional=optional, source="/dev/sda1"))
    assert (mount.point, mount.fstype, mount.source) == ("/srv", "ext4", "/dev/sda1")


@pytest.mark.parametrize(
    ("written", "name"),
    [
        ("/a\\040b", "/a b"),
        ("/a\\011b", "/a\tb"),
        ("/a\\012b", "/a\nb"),
        ("/a\\134b", "/a\\b"),
        ("/a\\043b", "/a#b"),
        ("/a\\134040b", "/a\\040b"),
        ("/\\040\\040", "/  "),
        ("/plain", "/plain"),
        ("/a\\9b", "/a\\9b"),
    ],
)
def test_octal_escapes_become_the_characters_they_stand_for(written: str, name: str) -> None:
    assert unescape(written) == name


@pytest.mark.parametrize("source", ["", "none", "- ext4 -", "/dev/disk/by-label/my disk", "a:/b"])
def test_any_source_is_read_even_an_empty_one(source: str) -> None:
    mount = one(line("/srv", "8:1", source=source))
    assert (mount.source, mount.options) == (source, "rw")


def test_a_mount_point_that_was_deleted_cannot_be_reached() -> None:
    gone, there = one(line("/srv//deleted", "8:1")), one(line("/srv/deleted", "8:1"))
    assert (gone.reachable, there.reachable) == (False, True)


@pytest.mark.parametrize(
    ("options", "read_only"),
    [("ro", True), ("ro,noatime", True), ("rw,errors=remount-ro", False), ("rw,root=ro", False)],
)
def test_what_counts_is_whether_the_superblock_is_read_only(options: str, read_only: bool) -> None:
    assert one(line("/srv", "8:1", options=options)).read_only is read_only


def test_a_read_only_mount_of_a_writable_superblock_is_not_read_only() -> None:
    assert not one("36 35 8:1 / /srv ro - ext4 /dev/sda1 rw\n").read_only


def test_empty_and_cut_lines_are_passed_over() -> None:
    assert [m.point for m in parse(["\n", line("/a", "8:1"), "36 35 8:1"])] == ["/a"]


@given(NAMES, NAMES, NAMES)
def test_whatever_the_kernel_escapes_is_read_back(root: str, point: str, source: str) -> None:
    mount = one(line(f"/{point}", "8:1", source=source, root=f"/{root}"))
    assert (mount.root, mount.point, mount.source) == (f"/{root}", f"/{point}", source)


@given(NAMES)
def test_unescaping_undoes_escaping(name: str) -> None:
    assert unescape(escape(name)) == name


# --- every namespace ---------------------------------------------------------------------------


def test_a_name_that_is_no_utf_8_survives(machine: Machine) -> None:
    machine.mount("/srv/\udcff\udcfe", "900:1")
    assert [mount.point for mount in every_mount(machine.proc)] == ["/srv/\udcff\udcfe"]


def test_what_only_another_namespace_sees_is_reached_through_one_of_its_processes(
    machine: Machine,
) -> None:
    machine.mount("/", "900:1")
    machine.process("70", "mnt:[2]")
    machine.mount("/", "900:1", pid="70")
    machine.mount("/data", "900:2", pid="70")
    assert [mount.path for mount in every_mount(machine.proc)] == ["/", "/proc/70/root/data"]


def test_each_namespace_is_read_once_through_its_oldest_process(machine: Machine) -> None:
    for pid in ("9", "70", "800"):
        machine.process(pid, "mnt:[2]")
        machine.mount(f"/seen/by/{pid}", f"900:{pid}", pid=pid)
    machine.process("10", "mnt:[1]")  # ours
    machine.mount("/seen/twice", "900:99", pid="10")
    assert [mount.path for mount in every_mount(machine.proc)] == ["/proc/9/root/seen/by/9"]


def test_a_superblock_in_several_other_namespaces_is_taken_from_the_first(
    machine: Machine,
) -> None:
    for pid in ("5", "6"):
        machine.process(pid, f"mnt:[{pid}]")
        machine.mount("/data", "900:2", pid=pid)
    assert [mount.path for mount in every_mount(machine.proc)] == ["/proc/5/root/data"]


def test_a_process_that_ends_meanwhile_is_passed_over(machine: Machine) -> None:
    (machine.proc / "50").mkdir()
    machine.process("60", "mnt:[6]")
    (machine.proc / "60/mountinfo").unlink()
    machine.process("70", "mnt:[7]")
    machine.mount("/data", "900:7", pid="70")
    assert [mount.path for mount in every_mount(machine.proc)] == ["/proc/70/root/data"]


def test_a_process_in_a_chroot_is_passed_over_for_one_that_sees_the_whole_namespace(
    machine: Machine,
) -> None:
    machine.process("60", "mnt:[2]", root="/host")
    machine.mount("/", "900:1", pid="60")
    machine.process("70", "mnt:[2]")
    machine.mount("/host", "900:1", pid="70")
    machine.mount("/data", "900:2", pid="70")
    assert [m.path for m in every_mount(machine.proc)] == [
        "/proc/70/root/host",
        "/proc/70/root/data",
    ]


def test_where_all_are_in_a_chroot_each_of_them_counts(machine: Machine) -> None:
    for pid, root in (("60", "/a"), ("61", "/a"), ("62", "/b")):
        machine.process(pid, "mnt:[2]", root=root)
        machine.mount(f"/in{root}", f"900:{root}", pid=pid)
    assert [m.path for m in every_mount(machine.proc)] == [
        "/proc/60/root/in/a",
        "/proc/62/root/in/b",
    ]


# --- namespaces that a foreign user namespace owns ----------------------------------------------


def test_of_a_foreign_user_namespace_only_what_may_be_on_a_disk_is_kept(machine: Machine) -> None:
    machine.process("60", "mnt:[2]", owner=7)
    kinds = {
        "900:1": "ext4",
        "0:51": "tmpfs",
        "0:52": "overlay",
        "0:53": "fuse.evil",
        "900:2": "fuseblk",
        "0:54": "btrfs",
        "0:55": "nfs4",
    }
    for device, fstype in kinds.items():
        machine.mount(f"/{fstype}", device, fstype, pid="60")
    found = every_mount(machine.proc)
    assert [(m.point, m.foreign) for m in found] == [("/ext4", True), ("/btrfs", True)]


def test_what_a_namespace_of_ours_has_as_well_is_not_reached_through_a_foreign_one(
    machine: Machine,
) -> None:
    machine.process("60", "mnt:[2]", owner=7)
    machine.mount("/trap", "900:1", pid="60")
    machine.process("70", "mnt:[3]")
    machine.mount("/data", "900:1", pid="70")
    assert [m.path for m in every_mount(machine.proc)] == ["/proc/70/root/data"]


def test_a_filesystem_has_a_few_ways_in_through_foreign_namespaces(machine: Machine) -> None:
    for pid in ("60", "70"):
        machine.process(pid, f"mnt:[{pid}]", owner=7)
        for number in range(3):
            machine.mount(f"/{number}", "900:1", pid=pid)
    assert [m.path for m in every_mount(machine.proc)] == [
        "/proc/60/root/0",
        "/proc/60/root/1",
        "/proc/60/root/2",
        "/proc/70/root/0",
    ]


def flood(machine: Machine, pid: str, count: int, device: str) -> None:
    machine.process(pid, f"mnt:[{pid}]", owner=7)
    with (machine.proc / pid / "mountinfo").open("w") as file:
        file.writelines(line(f"/{n}", device, "tmpfs", number=n) for n in range(count))


@pytest.mark.parametrize("device", ["0:99", "900:9"])
def test_a_flood_of_foreign_mounts_costs_no_memory_and_ends_no_watchdog(
    machine: Machine, device: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("vmsnap.freeze.mountinfo.TABLE_SECONDS", 600.0)  # not a measurement
    monkeypatch.setattr("vmsnap.freeze.mountinfo.ALL_SECONDS", 600.0)
    flood(machine, "60", 100_000, device)
    machine.process("70", "mnt:[70]", owner=8)
    machine.mount("/data", "900:2", pid="70")
    beats: list[int] = []
    tracemalloc.start()
    try:
        found = every_mount(machine.proc, pulse=lambda: beats.append(len(beats)))
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert "/proc/70/root/data" in [m.path for m in found]
    assert peak < 2 << 20
    assert len(beats) > 20


def test_what_is_not_read_in_time_is_said_and_does_not_hide_other_namespaces(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    flood(machine, "60", 5000, "0:99")
    machine.process("70", "mnt:[70]")
    machine.mount("/data", "900:2", pid="70")
    monkeypatch.setattr("vmsnap.freeze.mountinfo.TABLE_SECONDS", 0.0)
    notes: list[str] = []
    found = every_mount(machine.proc, notes.append)
    assert [m.path for m in found] == ["/proc/70/root/data"]
    assert len(notes) == 1
    assert "1 of their mount tables" in notes[0]


def test_a_process_that_enters_a_foreign_namespace_while_it_is_read_is_not_believed(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine.process("60", "mnt:[2]")
    machine.mount("/data", "0:77", "tmpfs", pid="60")

    def read_late(path: Path, pulse: Callable[[], object]) -> Iterator[str]:
        yield from read(path, pulse)
        if path.parent.name == "60":
            (machine.proc / "60/ns/mnt").unlink()
            (machine.proc / "60/ns/mnt").symlink_to("mnt:[3]")

    monkeypatch.setattr("vmsnap.freeze.mountinfo.read", read_late)
    notes: list[str] = []
    assert every_mount(machine.proc, notes.append) == []
    assert len(notes) == 1


# --- ways to a superblock ------------------------------------------------------------------------


def test_all_namespaces_lead_to_a_superblock_ours_first_and_foreign_ones_last(
    machine: Machine,
) -> None:
    machine.process("7", "mnt:[2]", owner=2)
    machine.process("8", "mnt:[3]")
    for pid in ("7", "8", "self"):
        machine.mount(f"/of-{pid}", "900:1", pid=pid)
        machine.mount("/other", "900:2", pid=pid)
    found = [mount.path for mount in ways_to({"900:1"}, machine.proc)]
    assert found == ["/of-self", "/proc/8/root/of-8", "/proc/7/root/of-7"]


def test_of_many_mounts_of_a_superblock_a_few_are_enough(machine: Machine) -> None:
    machine.mount("/gone//deleted", "900:1")
    for number in range(100):
        machine.mount(f"/{number}", "900:1")
    assert [m.point for m in ways_to({"900:1"}, machine.proc)] == ["/0", "/1", "/2", "/3"]
