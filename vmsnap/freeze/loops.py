# SPDX-License-Identifier: Apache-2.0
"""What a loop device lies on, as the kernel has it: LOOP_GET_STATUS64 (loop(4)).

The kernel asks the backing file's filesystem for it, which may be a server that never answers. So a
child asks, with a thread for each loop device, and is left to itself if it hangs.

Runs in: engine, caller, forks of them. Not while this session has anything frozen.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import select
import stat
import struct
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from vmsnap.system.process import fork

LOOP_GET_STATUS64 = 0x4C05  # linux/loop.h
LOOP_INFO64 = struct.Struct("=5Q4I64s64s32s2Q")
PATIENCE = 1.0  # seconds for all together
PULSE = 0.05  # seconds


@dataclass(frozen=True)
class Backing:
    """`device` is that of the backing file's filesystem, as stat(2) has it; `node` is the block
    device if the backing file is one."""

    device: str
    node: str

    @property
    def below(self) -> str:
        return self.node or self.device


def ask_loops(
    loops: Mapping[str, tuple[str, str]], pulse: Callable[[], object] = lambda: None
) -> dict[str, Backing]:
    """What each loop device, given by number with its name first, lies on. Those that do not answer
    in time are missing."""
    if not loops:
        return {}
    deadline = time.monotonic() + PATIENCE
    ours, theirs = os.pipe()
    try:
        child = fork(lambda: answer(theirs, loops, deadline), "vmsnap-loops", {2, theirs})
    except OSError:
        os.close(ours)
        return {}
    finally:
        os.close(theirs)
    found: dict[str, Backing] = {}
    received, answers = b"", 0
    poll = select.poll()  # select(2) knows no descriptor above 1023
    poll.register(ours, select.POLLIN)
    while answers < len(loops) and time.monotonic() < deadline:
        pulse()
        if not poll.poll(PULSE * 1000):
            continue
        data = os.read(ours, 65536)
        if not data:
            break
        *lines, received = (received + data).split(b"\n")
        answers += len(lines)
        for device, *backing in (line.decode().split(" ") for line in lines):
            if len(backing) == 2:
                found[device] = Backing(*backing)
    os.close(ours)
    with contextlib.suppress(ChildProcessError):
        os.waitpid(child, os.WNOHANG)
    return found


def answer(pipe: int, loops: Mapping[str, tuple[str, str]], deadline: float) -> None:
    """Send a line for each: its number, then that of its backing, if that is known."""

    def send(device: str, name: str) -> None:
        line = device
        with contextlib.suppress(OSError):
            line = " ".join([device, *backing_of(device, name)])
        with contextlib.suppress(OSError):  # nobody waits any more
            os.write(pipe, f"{line}\n".encode())

    threads = []
    for device, (name, _) in loops.items():
        thread = threading.Thread(target=send, args=(device, name))
        with contextlib.suppress(RuntimeError):  # no more of them
            thread.start()
            threads.append(thread)
    for thread in threads:
        thread.join(max(0.0, deadline - time.monotonic()))


def backing_of(device: str, name: str) -> tuple[str, str]:
    """Raises OSError."""
    pinned = os.open(f"/dev/{name}", os.O_PATH | os.O_NOFOLLOW)
    try:
        status = os.fstat(pinned)
        if not stat.S_ISBLK(status.st_mode) or numbers(status.st_rdev) != device:
            raise FileNotFoundError(f"/dev/{name}")
        fd = os.open(f"/proc/self/fd/{pinned}", os.O_RDONLY | os.O_NONBLOCK)
    finally:
        os.close(pinned)
    try:
        status64 = fcntl.ioctl(fd, LOOP_GET_STATUS64, bytes(LOOP_INFO64.size))
    finally:
        os.close(fd)
    backing, _inode, node, *_ = LOOP_INFO64.unpack(status64)
    return numbers(backing), numbers(node) if node else ""


def numbers(device: int) -> str:
    """MAJOR:MINOR of a number as the kernel gives it to programs."""
    return f"{os.major(device)}:{os.minor(device)}"
