# SPDX-License-Identifier: Apache-2.0
"""What lies on what: the order of any stack, and what sysfs says of devices."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vmsnap.freeze import loops, stacking
from vmsnap.freeze.loops import Backing
from vmsnap.freeze.mountinfo import Mount
from vmsnap.freeze.stacking import Stacking, look, order, reached

from ..worlds import Machine

DEVICES = [f"8:{number}" for number in range(9)]
SOME = st.sets(st.sampled_from(DEVICES), max_size=4)


@st.composite
def stackings(draw: st.DrawFn) -> tuple[Stacking, dict[str, set[str]]]:
    """What is known of a stack, and how it really is: a graph without a cycle, of which the edges
    of what is called unknown may be hidden. Hints are anything."""
    devices = draw(st.permutations(DEVICES))
    real: dict[str, set[str]] = {}
    for number, upper in enumerate(devices):
        real[upper] = draw(SOME) & set(devices[number + 1 :])
    unknown = draw(SOME)
    known = {d: lowers - draw(SOME) if d in unknown else lowers for d, lowers in real.items()}
    pair = st.tuples(st.sampled_from(sorted(unknown) or DEVICES), st.sampled_from(DEVICES))
    found = Stacking(known, unknown, draw(st.lists(pair)) if unknown else [], draw(SOME))
    return found, real


@given(stackings())
def test_each_comes_before_what_it_is_known_to_lie_on(
    made: tuple[Stacking, dict[str, set[str]]],
) -> None:
    found, _ = made
    ranks = order(found)
    for upper, lowers in found.below.items():
        for lower in lowers:
            assert ranks[upper] < ranks[lower]


@given(stackings())
def test_each_comes_before_what_it_really_lies_on_unless_that_is_unknown_too(
    made: tuple[Stacking, dict[str, set[str]]],
) -> None:
    found, real = made
    ranks = order(found)
    for upper in DEVICES:
        for lower in reached({upper}, real) - {upper}:
            doubtful = reached({lower}, found.below) & found.unknown
            if not doubtful:
                assert ranks[upper] < ranks[lower]


@given(stackings())
def test_what_carries_something_of_unknown_use_comes_last_of_what_is_known(
    made: tuple[Stacking, dict[str, set[str]]],
) -> None:
    found, _ = made
    found.hints = []
    ranks = order(found)
    unknown = {d for d in DEVICES if reached({d}, found.below) & found.unknown}
    carrying = reached(found.used, found.below) - unknown
    for other in ranks.keys() - carrying - unknown:
        assert all(ranks[other] < ranks[last] for last in carrying)


def test_a_cycle_that_cannot_be_is_no_endless_loop() -> None:
    assert order(Stacking({"8:1": {"8:2"}, "8:2": {"8:1"}})).keys() == {"8:1", "8:2"}


def test_a_long_chain_is_no_deep_recursion() -> None:
    below = {f"7:{n}": {f"7:{n + 1}"} for n in range(5000)}
    assert order(Stacking(below))["7:5000"] == (True, False, 5000)


# --- what the kernel shows -----------------------------------------------------------------------


def mount(device: str, fstype: str = "ext4", options: str = "rw") -> Mount:
    return Mount(1, device, "/", "/mnt", fstype, "/dev/none", options)


def seen(machine: Machine, one: Mount) -> Stacking:
    return look({one.device: [one]}, machine.proc, machine.sys)


def name_devices(machine: Machine, *paths: Path) -> None:
    (machine.sys / "class/block").mkdir(parents=True, exist_ok=True)
    for path in paths:
        (machine.sys / "class/block" / path.name).symlink_to(path)


@pytest.mark.parametrize("key", ["logdev", "rtdev"])
@pytest.mark.parametrize(("name", "known"), [("/dev/vdb", True), ("/mnt/node", False)])
def test_an_xfs_lies_on_its_log_and_its_real_time_device(
    machine: Machine, key: str, name: str, known: bool
) -> None:
    name_devices(machine, machine.block("900:1", "vda"), machine.block("900:2", "vdb"))
    found = seen(machine, mount("900:1", "xfs", f"rw,{key}={name},noquota"))
    assert found.below["900:1"] == ({"900:2"} if known else set())
    assert ("900:1" in found.unknown) != known


@pytest.mark.parametrize(
    ("thread", "below", "known"),
    [
        ("jbd2/vda-8", set(), True),
        ("jbd2/vdb", {"900:2"}, True),
        ("jbd2/vd", set(), True),  # cut off
        ("jbd2/gone", set(), False),
        ("somebody else", set(), True),
    ],
)
def test_an_ext4_lies_on_its_external_journal(
    machine: Machine, thread: str, below: set[str], known: bool
) -> None:
    name_devices(machine, machine.block("900:1", "vda"), machine.block("900:2", "vdb"))
    (machine.sys / "fs/ext4/vda").mkdir(parents=True)
    (machine.sys / "fs/ext4/vda/journal_task").write_text("77\n")
    (machine.proc / "77").mkdir()
    (machine.proc / "77/comm").write_text(f"{thread}\n")
    found = seen(machine, mount("900:1"))
    assert found.below["900:1"] == below
    assert ("900:1" not in found.unknown) == known


@pytest.mark.parametrize(
    ("path", "known"),
    [
        ("devices/virtual/block/nbd0", False),
        ("devices/virtual/block/ublkb0", False),
        ("devices/virtual/block/drbd0", False),
        ("devices/virtual/block/zram0", True),
        ("devices/pci0000:00/virtio1/block/vda", True),
        ("devices/virtual/nvme-subsystem/nvme-subsys0/nvme0n1", True),
    ],
)
def test_what_a_block_device_of_a_server_lies_on_is_unknown(
    machine: Machine, path: str, known: bool
) -> None:
    disk = machine.sys / path
    disk.mkdir(parents=True)
    (machine.sys / "dev/block/943:0").symlink_to(disk)
    assert ("943:0" not in seen(machine, mount("943:0")).unknown) == known


def test_the_bitmap_of_a_raid_can_be_a_file_that_nothing_names(machine: Machine) -> None:
    raid = machine.stacked("909:0", "md0", machine.block("900:1", "vda"))
    (raid / "md/bitmap").mkdir(parents=True)
    (raid / "md/bitmap/location").write_text("file\n")
    assert "909:0" in seen(machine, mount("909:0")).unknown


@pytest.mark.parametrize("fstype", ["overlay", "nfs4", "fuse.mergerfs", "9p", "zfs"])
def test_what_may_have_its_files_anywhere_is_unknown(machine: Machine, fstype: str) -> None:
    assert "0:70" in seen(machine, mount("0:70", fstype)).unknown


def test_a_loop_device_lies_where_the_kernel_says_and_not_where_its_path_leads(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine.mount("/srv", "900:2")
    machine.mount("/data", "900:3")
    machine.mount("/mnt", "907:0")
    machine.loop("907:0", "loop0", "/srv/disk.img")
    monkeypatch.setattr(stacking, "ask_loops", lambda *_: {"907:0": Backing("900:3", "")})
    steps = {entry.mount: entry.step for entry in machine.plan().acted_on}
    assert steps == {"/mnt": 1, "/srv": 1, "/data": 2}


def test_a_loop_device_that_can_only_be_read_orders_nothing(machine: Machine) -> None:
    machine.mount("/", "900:1")
    machine.mount("/srv", "900:2")
    machine.mount("/snap", "907:0", "squashfs")
    (machine.loop("907:0", "loop0", "/srv/x.snap") / "ro").write_text("1\n")
    assert {entry.step for entry in machine.plan().acted_on} == {1}


def test_what_carries_a_loop_that_nothing_explains_is_frozen_last(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It may be the second device of an f2fs, of which the kernel tells nothing."""
    machine.mount("/srv", "900:2")
    machine.mount("/data", "900:3")
    machine.loop("907:0", "loop0", "/srv/second.img")
    monkeypatch.setattr(stacking, "ask_loops", lambda *_: {"907:0": Backing("900:2", "")})
    steps = {entry.mount: entry.step for entry in machine.plan().acted_on}
    assert steps == {"/data": 1, "/srv": 2}


def test_a_loop_that_does_not_answer_keeps_none_of_the_others(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    never, end = os.pipe()

    def backing_of(device: str, _name: str) -> tuple[str, str]:
        if device == "7:1":
            os.read(never, 1)
            raise TimeoutError
        if device == "7:2":
            raise PermissionError
        return ("8:1", "") if device == "7:0" else ("0:5", "7:0")

    monkeypatch.setattr(loops, "backing_of", backing_of)
    ours, theirs = os.pipe()
    loops.answer(theirs, {f"7:{n}": (f"loop{n}", "") for n in range(4)}, time.monotonic() + 1)
    lines = os.read(ours, 4096).decode().splitlines()
    for fd in (end, never, ours, theirs):
        os.close(fd)
    assert sorted(lines) == ["7:0 8:1 ", "7:2", "7:3 0:5 7:0"]


def test_a_loop_over_a_block_device_lies_on_that() -> None:
    assert Backing("0:5", "7:0").below == "7:0"
