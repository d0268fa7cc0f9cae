# SPDX-License-Identifier: Apache-2.0
"""The process that becomes systemd-nspawn, in a mount namespace of its own: the stage.

    python -m tests.system.stage DIRECTORY DISK

mounts DISK (an image, or a loop device), says "ready", and boots it when it gets a word on stdin.
What it mounts ends with it. container.py does the rest.
"""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

from tests.fs import kernel
from tests.fs.lab import call

PR_SET_PDEATHSIG = 1  # linux/prctl.h
CGROUPS = ("/sys/fs/cgroup", "/sys/fs/cgroup/unified")  # pure v2, or v2 beside v1
NSPAWN = (
    *("systemd-nspawn", "--quiet", "--register=no", "--keep-unit", "--private-network"),
    *("--resolv-conf=off", "--timezone=off", "--link-journal=no", "--settings=no"),
    *("--notify-ready=yes", "--boot"),
)


def cgroups(directory: Path) -> list[Path]:
    """Of our own: nspawn takes the name "payload", where another container may be."""
    bases = [Path(base) for base in CGROUPS]
    return [base / directory.name for base in bases if (base / "cgroup.procs").exists()]


def stage(directory: Path, disk: str) -> None:
    """The process that becomes systemd-nspawn: makes its mounts, waits for a word, and boots."""
    # nspawn takes SIGTERM for "shut it down"; killed, it would leave the container running.
    kernel.check(kernel.libc.prctl(PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0))
    kernel.enter_private_namespace()
    for cgroup in cgroups(directory):
        (cgroup / "cgroup.procs").write_text("0")
    root = directory / "root"
    call("mount", disk, root)
    # Of these nspawn binds parts into the container, which must not be the machine's disk.
    release = Path("/usr/lib/os-release").resolve()
    text = release.read_bytes()
    call("mount", "-t", "tmpfs", "-o", "mode=0755", "tmpfs", "/run")
    Path("/run/os-release").write_bytes(text)
    call("mount", "--bind", "/run/os-release", release)
    os.write(1, b"ready\n")
    if os.read(0, 100):
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        os.dup2(2, 1)
        os.execvp(NSPAWN[0], [*NSPAWN, "--directory", str(root)])


if __name__ == "__main__":
    stage(Path(sys.argv[1]), sys.argv[2])
