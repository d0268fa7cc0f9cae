# SPDX-License-Identifier: Apache-2.0
"""The rescue of one test, a process of its own: thaws everything below a directory.

    rescue.py SECONDS DIRECTORY

It does so when its stdin ends (the test is over, or pytest was killed) or after SECONDS. Exit code:
1 if anything was frozen, plus 2 if the time ran out. It opens filesystems only then, since a
descriptor held open would make every umount fail and so hide what vmsnap itself holds.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import select
import sys
import threading
from pathlib import Path

FITHAW = 0xC0045878  # linux/fs.h: _IOWR('X', 120, int)
PATIENCE = 10.0  # seconds for FITHAW to return


def ways(directory: str) -> list[list[bytes]]:
    """For each superblock mounted below `directory`, the paths at which to open it, in any mount
    namespace. Not of what is on no disk: its server may never answer."""
    found: dict[bytes, list[bytes]] = {}
    for name in ["self", *(n for n in os.listdir("/proc") if n.isdigit())]:
        with contextlib.suppress(OSError):
            for line in Path("/proc", name, "mountinfo").read_bytes().split(b"\n"):
                fields, fstype = line.split(b" "), line.partition(b" - ")[2].split(b" ")[0]
                if directory.encode() not in line or fstype.startswith((b"fuse", b"autofs")):
                    continue
                point = re.sub(rb"\\([0-7]{3})", lambda m: bytes([int(m[1], 8)]), fields[4])
                found.setdefault(fields[2], []).append(f"/proc/{name}/root".encode() + point)
    return list(found.values())


def main() -> int:
    seconds, directory = float(sys.argv[1]), sys.argv[2]
    fired = not select.select([0], [], [], seconds)[0]
    thawed: list[bytes] = []

    def thaw(paths: list[bytes]) -> None:
        for path in paths:
            with contextlib.suppress(OSError):
                fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
                break
        else:
            return
        with contextlib.suppress(OSError):
            fcntl.ioctl(fd, FITHAW, 0)
            thawed.append(path)

    # All at once: thawing a filesystem may wait for the one that carries it, and opening one for a
    # server.
    threads = [threading.Thread(target=thaw, args=(w,), daemon=True) for w in ways(directory)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(PATIENCE)
    return bool(thawed) + 2 * fired


if __name__ == "__main__":
    code = main()
    os._exit(code)
