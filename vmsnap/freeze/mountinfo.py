# SPDX-License-Identifier: Apache-2.0
"""The kernel's mount tables (proc(5), /proc/PID/mountinfo), of every mount namespace, as data.

Runs in: engine, caller. Not while this session has anything frozen.
"""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path

OCTAL = re.compile(r"\\([0-7]{3})")


@dataclass(frozen=True)
class Mount:
    """One line of a mount table. `device` is the superblock's MAJOR:MINOR."""

    id: int
    device: str
    root: str
    point: str
    fstype: str
    source: str
    options: str  # of the superblock, not of this mount
    pid: int | None = None  # a process that sees it, if it is not in our mount namespace

    @property
    def path(self) -> str:
        """Where this process can open it."""
        return self.point if self.pid is None else f"/proc/{self.pid}/root{self.point}"

    @property
    def read_only(self) -> bool:
        return "ro" in self.options.split(",")

    @property
    def reachable(self) -> bool:
        """False if the directory it was mounted on has been deleted."""
        return not self.point.endswith("//deleted")


def unescape(field: str) -> str:
    """Space, tab, newline, backslash and # stand as octal escapes."""
    if "\\" not in field:
        return field
    return OCTAL.sub(lambda match: chr(int(match[1], 8)), field)


def parse(text: str, pid: int | None = None, unless: Collection[str] = ()) -> Iterator[Mount]:
    """Parse a mount table, leaving out the superblocks named in `unless`."""
    for line in text.split("\n"):
        left, dash, right = line.partition(" - ")
        if not dash:
            continue
        # The optional fields between the sixth and the dash are not used.
        mount_id, _parent, device, root, point, *_ = left.split(" ")
        if device in unless:
            continue
        fstype, source, options = (right.split(" ") + ["", ""])[:3]
        yield Mount(
            int(mount_id),
            device,
            unescape(root),
            unescape(point),
            fstype,
            unescape(source),
            unescape(options),
            pid,
        )


def read(path: Path) -> str:
    return os.fsdecode(path.read_bytes())


def every_mount(proc: Path = Path("/proc")) -> list[Mount]:
    """All mounts of our namespace, and from the others those of superblocks that ours lacks."""
    mounts = list(parse(read(proc / "self/mountinfo")))
    known = {mount.device for mount in mounts}
    for pid in other_namespaces(proc):
        # A process may end while we look at it; its mounts then end with it or are seen elsewhere.
        with contextlib.suppress(OSError):
            new = list(parse(read(proc / str(pid) / "mountinfo"), pid, known))
            mounts += new
            known |= {mount.device for mount in new}
    return mounts


def other_namespaces(proc: Path) -> list[int]:
    """One process, the oldest, of each mount namespace that is not ours."""
    pids = sorted(int(entry.name) for entry in os.scandir(proc) if entry.name.isdigit())
    seen = {(proc / "self/ns/mnt").readlink()}
    found = []
    for pid in pids:
        with contextlib.suppress(OSError):
            namespace = (proc / str(pid) / "ns/mnt").readlink()
            if namespace not in seen:
                seen.add(namespace)
                found.append(pid)
    return found
