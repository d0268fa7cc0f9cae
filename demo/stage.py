# SPDX-License-Identifier: Apache-2.0
"""Sets the scene and clears it away again, on every way out: directories, disks, application."""

from __future__ import annotations

import contextlib
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from demo import disks
from demo.disks import Disk
from demo.proof import Copies
from demo.story import fact
from demo.tool import CHECKOUT, ENDING_S, DemoError

# Root-owned and writable by nobody else all the way up, as vmsnap demands of a configuration
# (/var/tmp is not), and on a disk.
PARENT = Path("/var/lib")
PREFIX = "vmsnap-demo."


@dataclass(frozen=True)
class Stage:
    home: Path

    @property
    def accounts(self) -> Disk:
        return Disk("ext4", self.home / "accounts.img", self.home / "accounts")

    @property
    def ledger(self) -> Disk:
        return Disk("xfs", self.home / "ledger.img", self.home / "ledger")

    @property
    def live(self) -> tuple[Disk, Disk]:
        return self.accounts, self.ledger

    @property
    def memory(self) -> Path:
        return self.home / "memory"

    @property
    def socket(self) -> Path:
        return self.memory / "ledger.socket"

    @property
    def said(self) -> Path:
        return self.memory / "said"

    def copies(self, name: str) -> Copies:
        """The two disks as copied into the directory `name`."""
        shelf = self.home / name
        return Copies(
            Disk("ext4", shelf / "accounts.img", shelf / "accounts"),
            Disk("xfs", shelf / "ledger.img", shelf / "ledger"),
        )

    def copying(self, name: str) -> tuple[str, ...]:
        """The command that makes these copies."""
        (self.home / name).mkdir()
        copies = self.copies(name)
        pairs = ((self.accounts, copies.accounts), (self.ledger, copies.ledger))
        images = [str(image) for live, copy in pairs for image in (live.image, copy.image)]
        return (sys.executable, "-B", "-m", "demo.copy", *images)


@contextlib.contextmanager
def home() -> Iterator[Stage]:
    directory = Path(tempfile.mkdtemp(prefix=PREFIX, dir=PARENT))
    try:
        yield Stage(directory)
    finally:
        shutil.rmtree(directory)


@contextlib.contextmanager
def application(stage: Stage) -> Iterator[None]:
    """The ledger as a process of its own. It stops when its standard input is closed."""
    places = (stage.accounts.mount, stage.ledger.mount, stage.socket)
    process = subprocess.Popen(
        (sys.executable, "-B", "-m", "demo.ledger", *map(str, places)),
        cwd=CHECKOUT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    try:
        assert process.stdin and process.stdout
        if process.stdout.readline() != b"ready\n":
            raise DemoError("the application did not start")
        yield
    finally:
        with contextlib.ExitStack() as stack:
            stack.callback(leave, process)
            # A writer on a frozen filesystem cannot end, not even by SIGKILL.
            for disk in stage.live:
                stack.callback(thaw_if_left, disk)


def thaw_if_left(disk: Disk) -> None:
    if disks.thaw(disk.mount):
        fact(f"{disk.mount} had been left frozen and is thawed now")


def leave(process: subprocess.Popen[bytes]) -> None:
    assert process.stdin and process.stdout
    process.stdin.close()
    try:
        process.wait(ENDING_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
    process.stdout.close()
