# SPDX-License-Identifier: Apache-2.0
"""A filesystem whose FIFREEZE does not return: it lies on one that somebody else has frozen. Or one
whose FIFREEZE returns, and succeeds, only when the test lets it."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from subprocess import Popen

from . import kernel
from .lab import Filesystem, Lab
from .processes import is_stuck, wait_until
from .running import Session


@dataclass(frozen=True)
class Stuck:
    parent: Filesystem
    child: Filesystem
    other: Filesystem
    dirty: bool

    @property
    def only(self) -> list[str]:
        """What a session selects: the parent is the business of whoever froze it."""
        return [str(self.child.mount), str(self.other.mount)]


# splice(2) holds write access to the file while the FIFO is empty, and a freeze waits for all who
# have it (fs/super.c, freeze_super) before it can fail or succeed. Meanwhile FITHAW says EINVAL.
SPLICE = {"x86_64": 275}.get(os.uname().machine, 76)  # asm/unistd_64.h, asm-generic/unistd.h
WRITE_SOON = """
import ctypes, os, sys
fifo, path = sys.argv[1:]
libc = ctypes.CDLL(None, use_errno=True)
libc.splice.argtypes = [ctypes.c_int, ctypes.c_void_p] * 2 + [ctypes.c_size_t, ctypes.c_uint]
source, target = os.open(fifo, os.O_RDWR), os.open(path, os.O_WRONLY | os.O_CREAT)
assert libc.splice(source, None, target, None, 1, 0) == 1, os.strerror(ctypes.get_errno())
"""


def start_writer(fifo: Path, mount: Path, ended: list[Popen[bytes]]) -> Popen[bytes]:
    """One that has write access to a filesystem until something is written into the FIFO."""
    writer = Popen(
        [sys.executable, "-IBc", WRITE_SOON, fifo, mount / "soon"], stdin=subprocess.DEVNULL
    )
    ended.append(writer)
    call = Path(f"/proc/{writer.pid}/syscall")
    wait_until(lambda: call.read_text().split()[0] == str(SPLICE))
    return writer


class HeldBack:
    """A filesystem of which a FIFREEZE waits until `let_go`, and then succeeds."""

    def __init__(self, lab: Lab, filesystem: Filesystem) -> None:
        self.filesystem = filesystem
        self.gate = lab.gate(f"write-{filesystem.mount.name}")
        self.writer = start_writer(self.gate.path, filesystem.mount, lab.helpers)

    def wait_until_inside(self, guard: int) -> None:
        wait_until(lambda: is_stuck(guard, self.filesystem.mount, kernel.FIFREEZE))

    def let_go(self) -> None:
        os.write(self.gate.fd, b"x")


def prepare(lab: Lab, dirty: bool = False) -> Stuck:
    parent = lab.filesystem(name="parent", mib=96)
    child = lab.filesystem(name="child", on=parent)
    other = lab.filesystem(name="other")
    if dirty:
        (child.mount / "dirty").write_bytes(b"x" * (1 << 20))
    kernel.freeze(parent.mount)
    return Stuck(parent, child, other, dirty)


def wait_until_inside(session: Session, made: Stuck) -> int:
    """Wait until the guard is inside a call that does not return; return the guard's pid.

    With dirty data the call is the syncfs before the freeze; FIFREEZE otherwise.
    """
    request = None if made.dirty else kernel.FIFREEZE
    wait_until(lambda: any(is_stuck(pid, made.child.mount, request) for pid in session.guards))
    return session.guard


# A thread writes to a page of a frozen file; another one, that unmaps it, waits for the first with
# the memory's lock in its hands. Nobody can read /proc/PID/environ then, or run ps.
LOCK_MEMORY = """
import ctypes, os, sys, threading
libc = ctypes.CDLL(None)
libc.mmap.restype = ctypes.c_void_p
libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t] + [ctypes.c_int] * 3 + [ctypes.c_long]
libc.memset.argtypes = [ctypes.c_void_p, ctypes.c_int, ctypes.c_size_t]
libc.munmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t]
file = os.open(sys.argv[1], os.O_RDWR | os.O_CREAT)
os.ftruncate(file, 4096)
page = libc.mmap(None, 4096, 3, 1, file, 0)
print(flush=True)
input()
thread = threading.Thread(target=libc.memset, args=(page, 1, 1))
thread.start()
while open(f"/proc/self/task/{thread.native_id}/stat").read().split(") ")[1][0] != "D":
    pass
libc.munmap(page, 4096)
"""


def lock_memory(lab: Lab, filesystem: Filesystem) -> int:
    """Freeze it, and return the pid of a process whose memory is locked until the thaw."""
    process = subprocess.Popen(
        [sys.executable, "-IBc", LOCK_MEMORY, filesystem.mount / "mapped"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    lab.helpers.append(process)
    assert process.stdin
    assert process.stdout
    process.stdout.readline()
    process.stdout.close()
    kernel.freeze(filesystem.mount)
    process.stdin.write(b"\n")
    process.stdin.close()
    look = ["timeout", "-s", "KILL", "1", "cat", f"/proc/{process.pid}/environ"]
    wait_until(lambda: subprocess.run(look, stdout=subprocess.DEVNULL, check=False).returncode != 0)
    return process.pid
