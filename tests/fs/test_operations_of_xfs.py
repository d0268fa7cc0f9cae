# SPDX-License-Identifier: Apache-2.0
"""An xfs that is being enlarged: a sibling of test_operations_that_hold_off_a_freeze.py."""

from __future__ import annotations

import subprocess
from pathlib import Path

from . import kernel
from .lab import Filesystem, Lab, call
from .processes import wait_until
from .test_operations_that_hold_off_a_freeze import LIMIT, begin


def is_enlarging(pid: str) -> bool:
    try:
        return "0x4010586e" in Path(f"/proc/{pid}/syscall").read_text()
    except OSError:
        return False


def enlarging(lab: Lab) -> Filesystem:
    """On a device that does not write, since what it lies on is frozen."""
    below = lab.filesystem(name="below", mib=900)
    filesystem = lab.filesystem("xfs", name="busy", on=below, mib=320)
    lab.filesystems.remove(below)
    device = call("findmnt", "-nro", "SOURCE", filesystem.mount).strip()
    image = Path(call("losetup", "-nO", "BACK-FILE", device).strip())
    with image.open("r+b") as file:
        file.truncate(700 << 20)
    call("losetup", "--set-capacity", device)
    kernel.freeze(below.mount)
    begin(lab, "xfs_growfs", filesystem.mount)
    lab.undo.callback(kernel.thaw, below.mount)
    wait_until(lambda: any(is_enlarging(p.name) for p in Path("/proc").glob("[0-9]*")))
    return filesystem


def test_it_is_left_out_and_the_others_are_frozen(lab: Lab) -> None:
    lab.conf("[freeze]\ntimeout = 2\n")
    other = lab.filesystem()
    busy = enlarging(lab)
    session = lab.hold(seconds=LIMIT)
    frozen = other.is_frozen
    lab.release()
    outcome = session.finish(LIMIT)
    assert lab.left() == []
    assert (frozen, outcome.subjects) == (True, [("FreezeFailed", str(busy.mount))])
    assert "xfs_growfs" in outcome.result["errors"][0]["message"]


def test_an_fstrim_is_no_trouble(lab: Lab) -> None:
    lab.filesystem()
    subprocess.run(["fstrim", lab.mounts[0]], capture_output=True, check=False)
    assert lab.start("exit 0").finish(LIMIT).verdict == ("success", "filesystem", 0)
