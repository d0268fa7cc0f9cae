# SPDX-License-Identifier: Apache-2.0
"""An operation is running that FIFREEZE would wait for, for hours: it is not begun."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from . import kernel, strange
from .lab import Filesystem, Lab, call
from .processes import wait_until

LIMIT = 20.0  # seconds
SLOW = "500k"  # bytes per second


@dataclass(frozen=True)
class Busy:
    """A filesystem in the middle of an operation; `word` is what that is called."""

    filesystem: Filesystem
    word: str


def sysfs(filesystem: Filesystem) -> Path:
    shown = call("btrfs", "filesystem", "show", filesystem.mount)
    return Path("/sys/fs/btrfs", shown.split("uuid: ")[1].split()[0])


def slowly(filesystem: Filesystem) -> None:
    """Have whatever scrubs its devices take minutes."""
    for device in (sysfs(filesystem) / "devinfo").iterdir():
        (device / "scrub_speed_max").write_text(SLOW)


def filled(lab: Lab) -> Filesystem:
    filesystem = lab.filesystem("btrfs", name="busy", mib=300)
    (filesystem.mount / "data").write_bytes(b"x" * (48 << 20))
    call("sync", "--file-system", filesystem.mount)
    slowly(filesystem)
    return filesystem


def begin(lab: Lab, *command: str | Path) -> None:
    process = subprocess.Popen(
        list(map(str, command)), stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL
    )
    lab.helpers.append(process)


def scrubbing(lab: Lab) -> Busy:
    filesystem = filled(lab)
    begin(lab, "btrfs", "scrub", "start", "-B", filesystem.mount)
    stop = ["btrfs", "scrub", "cancel", str(filesystem.mount)]
    lab.undo.callback(subprocess.run, stop, capture_output=True, check=False)
    wait_until(lambda: "running" in call("btrfs", "scrub", "status", filesystem.mount))
    return Busy(filesystem, "scrub")


def scrubbing_read_only(lab: Lab) -> Busy:
    filesystem = filled(lab)
    begin(lab, "btrfs", "scrub", "start", "-B", "-r", filesystem.mount)
    stop = ["btrfs", "scrub", "cancel", str(filesystem.mount)]
    lab.undo.callback(subprocess.run, stop, capture_output=True, check=False)
    wait_until(lambda: "running" in call("btrfs", "scrub", "status", filesystem.mount))
    return Busy(filesystem, "scrub")


def scrubbing_its_second_device(lab: Lab) -> Busy:
    """Which is not the one that the mount table names."""
    filesystem = lab.filesystem("btrfs", name="busy", mib=300)
    second = lab.directory / "second.img"
    with second.open("wb") as file:
        file.truncate(300 << 20)
    device = call("losetup", "--find", "--show", second).strip()
    lab.undo.callback(lab.helper, f"losetup --detach {device}")
    call("btrfs", "device", "add", "-f", "-K", device, filesystem.mount)
    call("btrfs", "balance", "start", "-dconvert=raid1", "-mconvert=raid1", filesystem.mount)
    (filesystem.mount / "data").write_bytes(b"x" * (48 << 20))
    call("sync", "--file-system", filesystem.mount)
    slowly(filesystem)
    begin(lab, "btrfs", "scrub", "start", "-B", device)
    stop = ["btrfs", "scrub", "cancel", device]
    lab.undo.callback(subprocess.run, stop, capture_output=True, check=False)
    wait_until(lambda: "running" in call("btrfs", "scrub", "status", device))
    return Busy(filesystem, "scrub")


def balancing(lab: Lab) -> Busy:
    """On a device that is slow beyond all measure, since what it lies on is frozen."""
    below = lab.filesystem(name="below", mib=400)
    filesystem = lab.filesystem("btrfs", name="busy", on=below, mib=300)
    lab.filesystems.remove(below)
    for number in range(3):
        (filesystem.mount / f"data{number}").write_bytes(b"x" * (32 << 20))
    call("sync", "--file-system", filesystem.mount)
    kernel.freeze(below.mount)
    begin(lab, "btrfs", "balance", "start", "--full-balance", filesystem.mount)
    lab.undo.callback(kernel.thaw, below.mount)
    operation = sysfs(filesystem) / "exclusive_operation"
    wait_until(lambda: operation.read_text().strip() == "balance")
    return Busy(filesystem, "balance")


def replacing_a_device(lab: Lab) -> Busy:
    filesystem = filled(lab)
    target = lab.directory / "target.img"
    with target.open("wb") as file:
        file.truncate(300 << 20)
    device = call("losetup", "--find", "--show", target).strip()
    lab.undo.callback(lab.helper, f"losetup --detach {device}")
    begin(lab, "btrfs", "replace", "start", "-f", "-B", "-K", "1", device, filesystem.mount)
    stop = ["btrfs", "replace", "cancel", str(filesystem.mount)]
    lab.undo.callback(subprocess.run, stop, capture_output=True, check=False)
    operation = sysfs(filesystem) / "exclusive_operation"
    wait_until(lambda: "replace" in operation.read_text())
    return Busy(filesystem, "replace")


BUSY = [scrubbing, scrubbing_its_second_device, balancing]
HARMLESS = [scrubbing_read_only, replacing_a_device]  # they hold nothing off


def writes_do_not_wait(lab: Lab, busy: Busy) -> None:
    if busy.word != "balance":  # there nobody can write, frozen or not
        lab.writer(busy.filesystem)
        lab.events.wait("wrote-busy", seconds=LIMIT)
    assert lab.left() == [], "a guard that is inside a FIFREEZE"


@pytest.mark.parametrize("make", BUSY)
def test_nobodys_writes_wait_for_the_end_of_it(lab: Lab, make: Callable[[Lab], Busy]) -> None:
    lab.conf("[freeze]\ntimeout = 2\n")
    busy = make(lab)
    outcome = lab.start("exit 0").finish(LIMIT)
    writes_do_not_wait(lab, busy)
    (error,) = outcome.result["errors"]
    assert (error["name"], error["subject"]) == ("FreezeFailed", str(busy.filesystem.mount))
    assert busy.word in error["message"]
    assert outcome.verdict == ("success", "crash", 0)


@pytest.mark.parametrize("make", HARMLESS)
def test_one_that_holds_nothing_off_is_no_trouble_or_is_named(
    lab: Lab, make: Callable[[Lab], Busy]
) -> None:
    """The kernel does not tell a scrub that only reads from one that writes."""
    lab.conf("[freeze]\ntimeout = 2\n")
    busy = make(lab)
    outcome = lab.start("exit 0").finish(LIMIT)
    writes_do_not_wait(lab, busy)
    if outcome.errors:
        assert outcome.subjects == [("FreezeFailed", str(busy.filesystem.mount))]
        assert busy.word in outcome.result["errors"][0]["message"]


@pytest.mark.parametrize("make", BUSY)
def test_all_others_are_frozen(lab: Lab, make: Callable[[Lab], Busy]) -> None:
    lab.conf("[freeze]\ntimeout = 2\n")
    other = lab.filesystem()
    make(lab)
    session = lab.hold(seconds=LIMIT)
    frozen = other.is_frozen
    lab.release()
    session.finish(LIMIT)
    assert frozen


@pytest.mark.parametrize("make", BUSY)
def test_check_says_which_operation_is_running(lab: Lab, make: Callable[[Lab], Busy]) -> None:
    busy = make(lab)
    outcome = lab.begin("check", f"--only={busy.filesystem.mount}", "--json").finish(LIMIT)
    found = [p for p in outcome.result["problems"] if busy.word in p["message"]]
    assert [str(busy.filesystem.mount) in p["message"] for p in found] == [True]


def test_nothing_is_quiesced_when_it_is_running_and_the_application_is_required(lab: Lab) -> None:
    lab.conf("[freeze]\ntimeout = 2\n")
    scrubbing(lab)
    lab.app(pre=lab.say("quiesced"), post=lab.say("resumed"))
    outcome = lab.start("exit 0", "--require=application").finish(LIMIT)
    assert outcome.code == 1
    assert lab.events.heard == []


def test_one_that_the_pre_script_has_ended_is_no_trouble(lab: Lab) -> None:
    """Which is what an administrator's pre-script would do about it."""
    busy = scrubbing(lab)
    lab.app(pre=f"btrfs scrub cancel {busy.filesystem.mount}")
    outcome = lab.start("exit 0").finish(LIMIT)
    assert outcome.verdict == ("success", "application", 0)


def test_one_that_the_pre_script_has_begun_is_seen_too(lab: Lab) -> None:
    lab.conf("[freeze]\ntimeout = 2\n")
    filesystem = filled(lab)
    stop = ["btrfs", "scrub", "cancel", str(filesystem.mount)]
    lab.undo.callback(subprocess.run, stop, capture_output=True, check=False)
    lab.app(pre=f"btrfs scrub start {filesystem.mount}")
    outcome = lab.start("exit 0").finish(LIMIT)
    assert outcome.subjects == [("FreezeFailed", str(filesystem.mount))]
    assert "scrub" in outcome.result["errors"][0]["message"]


def test_a_balance_that_is_paused_is_no_trouble(lab: Lab) -> None:
    """It is an exclusive operation in sysfs, and holds nothing off."""
    filesystem = lab.filesystem("btrfs", name="busy", mib=300)
    for number in range(3):
        (filesystem.mount / f"data{number}").write_bytes(b"x" * (32 << 20))
    call("sync", "--file-system", filesystem.mount)
    begin(lab, "btrfs", "balance", "start", "--full-balance", filesystem.mount)
    operation = sysfs(filesystem) / "exclusive_operation"
    wait_until(lambda: operation.read_text().startswith("balance"))
    subprocess.run(
        ["btrfs", "balance", "pause", str(filesystem.mount)], capture_output=True, check=False
    )
    if operation.read_text().strip() != "balance paused":
        pytest.skip("the balance was over before it could be paused")
    outcome = lab.start("exit 0").finish(LIMIT)
    call("btrfs", "balance", "cancel", filesystem.mount)
    assert outcome.verdict == ("success", "filesystem", 0)


def test_a_frozen_backing_filesystem_is_named(lab: Lab) -> None:
    """What lies on it cannot be frozen either, and its FIFREEZE would wait."""
    lab.conf("[freeze]\ntimeout = 2\n")
    below = lab.filesystem(name="below", mib=96)
    image = strange.image(lab, "above", directory=below.mount)
    mount = strange.point(lab, "above")
    lab.mount("-o", "loop", image, mount)
    (mount / "dirty").write_bytes(b"x" * (1 << 20))
    kernel.freeze(below.mount)
    lab.undo.callback(kernel.thaw, below.mount)
    outcome = lab.start("exit 0", only=[str(mount)]).finish(LIMIT)
    assert outcome.result["consistency"] == "crash"
    assert str(below.mount) in outcome.result["errors"][0]["message"]
