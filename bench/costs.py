# SPDX-License-Identifier: Apache-2.0
"""What vmsnap itself costs: time around scripts, start, plan, memory, and the end after a kill."""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import select
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from bench.disks import libc, output, thaw
from bench.engines import PATIENCE_S, VMSNAP, EngineError, Vmsnap, said
from bench.quiet import Quiet
from bench.stalls import Tell, milliseconds

INSIDE = Path(__file__).with_name("inside.py")
MS_BIND = 4096  # linux/mount.h
APP = "bench"
NOTHING = "#!/bin/sh\nexit 0\n"

Measured = TypeVar("Measured")


@dataclass(frozen=True)
class Costs:
    """Milliseconds and MiB, of each round."""

    whole: list[float]  # `vmsnap run -- true`, without an app
    with_app: list[float]  # the same with an app whose two scripts do nothing, in turns with it
    phases: list[float]  # pre and post together, by the timeline
    plan: dict[int, list[float]]  # by the number of mounts
    guard_mib: list[float]
    engine_mib: list[float]
    kill: list[float]
    left_running: int


def costs(
    tool: Vmsnap,
    mounts: tuple[Path, ...],
    sizes: tuple[int, ...],
    rounds: int,
    quiet: Quiet,
    tell: Tell,
) -> Costs:
    def times(measure: Callable[[], Measured]) -> list[Measured]:
        measured = []
        for _ in range(rounds):
            quiet.wait()
            measured.append(measure())
        return measured

    tell("cost of a session")
    four = mounts[:4]
    whole, with_app = [], []
    for _ in range(rounds):
        quiet.wait()
        whole.append(whole_process(tool, four))
        with app(tool):
            with_app.append(whole_process(tool, four))
    with app(tool):
        phases = times(lambda: script_phases(tool.result(four)))
    tell("memory")
    memory = times(lambda: resident(tool, mounts))
    tell("thaw after SIGKILL of the engine")
    kill = times(lambda: thaw_after_kill(tool, mounts[:16]))
    left = left_running(tool)
    plan = {}
    for size in sizes:
        tell(f"plan with {size} mounts")
        with mounts_in_all(tool.home / "many", mounts[0], size):
            plan[size] = times(lambda: timed(tool.command("plan")))
    return Costs(
        whole=whole,
        with_app=with_app,
        phases=phases,
        plan=plan,
        guard_mib=[round(kib["guard"] / 1024, 1) for kib in memory],
        engine_mib=[round(kib["engine"] / 1024, 1) for kib in memory],
        kill=kill,
        left_running=left,
    )


# --- a session ---------------------------------------------------------------------------------


def whole_process(tool: Vmsnap, mounts: tuple[Path, ...]) -> float:
    return timed(tool.command("run", "--", "true", only=mounts))


def timed(command: list[str]) -> float:
    begin = time.monotonic()
    said(command)
    return milliseconds(time.monotonic() - begin)


@contextlib.contextmanager
def app(tool: Vmsnap) -> Iterator[None]:
    """One app, both of whose scripts do nothing."""
    written = json.loads(said([str(VMSNAP), "init", APP, "--etc", str(tool.etc), "--json"]))
    for phase in ("pre", "post"):
        Path(written[phase]).write_text(NOTHING)  # mode and owner stay
    try:
        yield
    finally:
        for path in written.values():
            Path(path).unlink()


def script_phases(result: dict[str, Any]) -> float:
    at = {event["event"]: event["at"] for event in result["timeline"] if not event["subject"]}
    if result["consistency"] != "application" or len(result["apps"]) != 1:
        raise EngineError(f"vmsnap did not run the scripts: {result['errors']}")
    return milliseconds(at["presync"] - at["pre"] + at["report"] - at["post"])


def resident(tool: Vmsnap, mounts: tuple[Path, ...]) -> dict[str, int]:
    """KiB of guard and engine during the hold."""
    command = tool.command("run", "--", sys.executable, "-ISB", str(INSIDE), only=mounts)
    kib: dict[str, int] = json.loads(said(command))
    return kib


# --- the plan ----------------------------------------------------------------------------------


@contextlib.contextmanager
def mounts_in_all(base: Path, mount: Path, size: int) -> Iterator[None]:
    """As many more as it takes to have `size`: filesystems of their own (tmpfs) and further mounts
    of one that is there (bind), in turn."""
    base.mkdir()
    output("mount", "-t", "tmpfs", "bench", str(base))
    try:
        have = len(Path("/proc/self/mountinfo").read_text().splitlines())
        if have > size:
            raise EngineError(f"found {have} mounts on this machine already, wanted {size}")
        for number in range(size - have):
            target = base / str(number)
            target.mkdir()
            if number % 2:
                attach(str(mount), str(target), None, MS_BIND)
            else:
                attach("bench", str(target), b"tmpfs", 0)
        yield
    finally:
        output("umount", "--lazy", "--recursive", str(base))
        base.rmdir()


def attach(source: str, target: str, fstype: bytes | None, flags: int) -> None:
    if libc.mount(source.encode(), target.encode(), fstype, ctypes.c_ulong(flags), None):
        raise OSError(ctypes.get_errno(), "mount", target)


# --- after a SIGKILL ---------------------------------------------------------------------------


def thaw_after_kill(tool: Vmsnap, mounts: tuple[Path, ...]) -> float:
    """Milliseconds from the SIGKILL of the engine until the last of the writes that were begun
    while frozen, one on each filesystem, has returned."""
    frozen = tool.home / "frozen"
    os.mkfifo(frozen, 0o600)
    # Opened for both, so that neither side waits for the other.
    marker = os.open(frozen, os.O_RDWR | os.O_NONBLOCK)
    files = [os.open(m / "kill", os.O_WRONLY | os.O_CREAT | os.O_DSYNC, 0o600) for m in mounts]
    shell = f"echo frozen > {frozen}; exec sleep 60"
    engine = subprocess.Popen(
        tool.command("run", "--", "sh", "-c", shell, only=mounts),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        if not select.select([marker], [], [], PATIENCE_S)[0]:
            raise EngineError("vmsnap did not run its command")
        writes = [Write(file) for file in files]
        for write in writes:
            write.wait_until_stalled()
        engine.send_signal(signal.SIGKILL)
        begin = time.monotonic()
        for write in writes:
            write.thread.join(PATIENCE_S)
        return milliseconds(max(write.end for write in writes) - begin)
    finally:
        engine.kill()
        engine.wait()
        for mount in mounts:
            thaw(mount)
        for descriptor in (marker, *files):
            os.close(descriptor)
        frozen.unlink()


class Write:
    """A write in a thread of its own, as it hangs until the thaw."""

    def __init__(self, file: int) -> None:
        self.file, self.end = file, float("inf")
        self.thread = threading.Thread(target=self.run, daemon=True)
        self.thread.start()

    def run(self) -> None:
        os.pwrite(self.file, bytes(4096), 0)
        self.end = time.monotonic()

    def wait_until_stalled(self) -> None:
        """State D is what a frozen filesystem does to a writer; nothing announces it."""
        path = Path(f"/proc/self/task/{self.thread.native_id}/stat")
        deadline = time.monotonic() + PATIENCE_S
        while path.read_text().rpartition(")")[2].split()[0] != "D":
            if not self.thread.is_alive() or time.monotonic() > deadline:
                raise EngineError("a write did not stall during the hold")
            self.thread.join(0.001)


def left_running(tool: Vmsnap) -> int:
    """How many processes of our sessions there still are when they have had time to end."""
    survivors = 0
    deadline = time.monotonic() + 5.0
    for directory in Path("/proc").iterdir():
        if not directory.name.isdigit() or int(directory.name) == os.getpid():
            continue
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):  # it has ended
            if str(tool.run) in (directory / "cmdline").read_bytes().decode("utf-8", "replace"):
                process = os.pidfd_open(int(directory.name))
                left = max(0.0, deadline - time.monotonic())
                survivors += not select.select([process], [], [], left)[0]
                os.close(process)
    return survivors
