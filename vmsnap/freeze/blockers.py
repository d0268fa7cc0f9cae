# SPDX-License-Identifier: Apache-2.0
"""Who keeps a FIFREEZE from returning: a thread that is inside a write to the filesystem.

Such a thread holds write access until its call returns, be it that it splices from a pipe into
which nothing comes, or writes a page of a FUSE server that does not answer. The freeze waits for
it, and all other writers of the filesystem wait for the freeze (fs/super.c, sb_wait_write): they
too are inside a write, but wait in percpu_rwsem_wait.

Runs in: engine, caller, forks of them. While frozen: no file but /proc.
"""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vmsnap.freeze.writeback import AT_FDCWD, look_at
from vmsnap.system.proc import ProcessId, ask_each, started

# The calls that write, and which argument is the descriptor that is written to
# (asm/unistd_64.h of x86, asm-generic/unistd.h of the others).
WRITES = {
    1: ("write", 0),
    18: ("pwrite64", 0),
    20: ("writev", 0),
    40: ("sendfile", 0),
    275: ("splice", 2),
    285: ("fallocate", 0),
    296: ("pwritev", 0),
    326: ("copy_file_range", 2),
    328: ("pwritev2", 0),
}
if os.uname().machine != "x86_64":
    WRITES = {
        47: ("fallocate", 0),
        64: ("write", 0),
        66: ("writev", 0),
        68: ("pwrite64", 0),
        70: ("pwritev", 0),
        71: ("sendfile", 0),
        76: ("splice", 2),
        285: ("copy_file_range", 2),
        287: ("pwritev2", 0),
    }
WAITS_FOR_THE_FREEZE = "percpu"  # part of the function in which it does: proc(5), wchan


@dataclass(frozen=True)
class Blocker:
    """A process that is inside a call which writes to a filesystem."""

    process: ProcessId
    name: str
    uid: int
    call: str

    def __str__(self) -> str:
        return (
            f"process {self.process.pid} ({self.name}) of uid {self.uid} is inside {self.call}(2)"
        )

    def to_json(self) -> dict[str, object]:
        return {"pid": self.process.pid, "name": self.name, "uid": self.uid, "call": self.call}

    def kill(self) -> None:
        process = self.process.open()
        if process is not None:
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(process, signal.SIGKILL)
            os.close(process)


def blockers(device: int) -> list[Blocker]:
    """Those of the filesystem with this st_dev, one of each process."""

    def ask(pid: int) -> list[Any] | None:
        process = Path(f"/proc/{pid}")
        for call in writes_of(process, device):
            name = (process / "comm").read_text(errors="replace").strip()
            return [started(pid), name, process.stat().st_uid, call]
        return None

    found = ask_each(ask)
    return [Blocker(ProcessId(pid, begun), *rest) for pid, (begun, *rest) in found.items()]


def writes_of(process: Path, device: int) -> Iterator[str]:
    for task in (process / "task").iterdir():
        number, *arguments = (task / "syscall").read_text().split()  # proc(5)
        if not arguments or int(number) not in WRITES:
            continue
        call, index = WRITES[int(number)]
        if WAITS_FOR_THE_FREEZE in (task / "wchan").read_text():
            continue
        # It may be a file of a server that does not answer: not asked, but as the kernel has it.
        fd = process / "fd" / str(int(arguments[index], 16))
        if look_at(AT_FDCWD, str(fd))[1] == device:
            yield call
