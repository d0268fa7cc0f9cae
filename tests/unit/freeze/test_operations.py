# SPDX-License-Identifier: Apache-2.0
"""Which operations hold a freeze off, as /proc and sysfs show them."""

from __future__ import annotations

from pathlib import Path

import pytest

from vmsnap.freeze import operations
from vmsnap.freeze.mountinfo import Mount
from vmsnap.freeze.operations import (
    IOCTL,
    READ_ONLY,
    SCRUB,
    exclusive_operation,
    only_reads,
    operations_of,
)
from vmsnap.freeze.plan import Action, Entry

from ..worlds import Machine

BALANCE, CLONE = 0xC4009420, 0x40049409


def process(machine: Machine, *calls: str, memory: bytes = b"") -> Path:
    """A process with a thread in each of these calls, which has a file of 0:45 open as 3."""
    machine.process("60", "mnt:[2]")
    machine.mount("/other", "0:44", "btrfs", pid="60")
    machine.mount("/mnt", "0:45", "btrfs", pid="60")
    made = machine.proc / "60"
    (made / "fdinfo").mkdir()
    (made / "fdinfo/3").write_text(f"pos:\t0\nflags:\t0100000\nmnt_id:\t{machine.mounts}\n")
    (made / "mem").write_bytes(memory)
    for number, call in enumerate(calls):
        (made / f"task/{60 + number}").mkdir(parents=True)
        (made / f"task/{60 + number}/syscall").write_text(f"{call}\n")
    return made


def call(command: int, argument: int = 0, number: int = IOCTL, fd: int = 3) -> str:
    return f"{number} {fd:#x} {command:#x} {argument:#x} 0x0 0x0 0x0 0x7ffe 0x7f12"


def test_any_thread_may_be_in_it(machine: Machine) -> None:
    found = process(machine, "running", call(BALANCE, number=9999), call(BALANCE))
    assert [*operations_of(found)] == [("0:45", "btrfs balance")]


@pytest.mark.parametrize(
    "line",
    ["running", "-1 0x7ffe 0x7f12", call(CLONE), call(BALANCE, number=9999), call(BALANCE, fd=9)],
)
def test_nothing_else_is_an_operation(machine: Machine, line: str) -> None:
    assert [*operations_of(process(machine, line))] == []


@pytest.mark.parametrize(("flags", "found"), [(0, True), (1, False), (2, True), (3, False)])
def test_a_scrub_that_only_reads_holds_nothing_off(
    machine: Machine, flags: int, found: bool
) -> None:
    memory = bytes(64 + 24) + flags.to_bytes(8, "little") + bytes(900)
    calls = process(machine, call(SCRUB, argument=64), memory=memory)
    assert bool([*operations_of(calls)]) == found


@pytest.mark.parametrize(
    ("operation", "told"),
    [
        ("none", ""),
        ("balance", "btrfs balance"),
        ("balance paused", ""),
        ("device remove", "btrfs device remove"),
        ("device replace", ""),
        ("", ""),
    ],
)
def test_what_btrfs_does_by_itself_is_seen_in_sysfs(
    machine: Machine, operation: str, told: str
) -> None:
    disk = machine.block("900:1", "vda")
    (machine.sys / "class/block").mkdir(parents=True)
    (machine.sys / "class/block/vda").symlink_to(disk)
    (machine.sys / "fs/btrfs/features").mkdir(parents=True)
    pool = machine.sys / "fs/btrfs/0f0f-aa"
    (pool / "devices").mkdir(parents=True)
    (pool / "devices/vda").symlink_to(disk)
    (pool / "exclusive_operation").write_text(f"{operation}\n")
    mount = Mount(1, "0:45", "/", "/mnt", "btrfs", "/dev/vda", "rw")
    entry = Entry((mount,), Action.FREEZE, 1, "")
    assert exclusive_operation(entry, machine.sys) == told


def test_the_numbers_of_the_ioctls_say_their_size() -> None:
    """linux/ioctl.h: direction, size, type and number, of which a typing error breaks one."""
    types = {command >> 8 & 0xFF for command in operations.OPERATIONS}
    assert types == {0x94, ord("f"), ord("X"), 0xF5}
    assert SCRUB >> 16 & 0x3FFF == 1024


def test_a_process_whose_memory_ends_says_nothing_of_its_scrub(tmp_path: Path) -> None:
    (tmp_path / "mem").write_bytes(bytes(READ_ONLY[0] + 2))
    assert not only_reads(tmp_path, 0)
