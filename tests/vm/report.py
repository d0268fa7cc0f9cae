# SPDX-License-Identifier: Apache-2.0
"""Runs inside the machine, when cloud-init is done: freezes `/`, and tells what it has found.

    python3 report.py PATH...

prints one JSON document, with mode and owner of the paths.
"""

import errno
import fcntl
import json
import os
import stat
import subprocess
import sys
from pathlib import Path

FIFREEZE, FITHAW = 0xC0045877, 0xC0045878  # linux/fs.h


def told(*argv: str) -> "dict[str, object]":
    """What a command has said, and its exit code."""
    done = subprocess.run(argv, stdin=subprocess.DEVNULL, capture_output=True, check=False)
    return {
        "code": done.returncode,
        "out": done.stdout.decode(errors="replace"),
        "err": done.stderr.decode(errors="replace"),
    }


def frozen() -> bool:
    """Whether `/` is; nobody else may be about to freeze it."""
    fd = os.open("/", os.O_RDONLY)
    try:
        fcntl.ioctl(fd, FIFREEZE, 0)
        fcntl.ioctl(fd, FITHAW, 0)
    except OSError as e:
        return e.errno == errno.EBUSY
    finally:
        os.close(fd)
    return False


def access(path: str) -> "list[object]":
    if not Path(path).exists():
        return []
    found = os.lstat(path)
    return [oct(stat.S_IMODE(found.st_mode)), found.st_uid, found.st_gid]


def main() -> None:
    if not Path("/dev/disk/by-label/repository").exists():
        sys.exit("this is not the machine of the test: its `/` would be frozen")
    document: dict[str, object] = {
        "cloud-init": told("cloud-init", "status", "--format", "json"),
        "result": json.loads(Path("/run/cloud-init/result.json").read_text()),
        "failed": told("systemctl", "list-units", "--failed", "--plain", "--no-legend"),
        "check-unit": told("systemctl", "is-active", "vmsnap-check.service"),
        "check": told("vmsnap", "check", "--json"),
        "access": {path: access(path) for path in sys.argv[1:]},
    }
    seen = [frozen()]
    document["freeze"] = told("vmsnap", "freeze", "--json", "--hold", "60")
    seen.append(frozen())
    document["thaw"] = told("vmsnap", "thaw", "--json")
    seen.append(frozen())
    document["frozen"] = seen
    document["status"] = told("vmsnap", "status", "--json")
    document["traces"] = {p.name: p.read_text() for p in Path("/root/traces").glob("*")}
    print(json.dumps(document))


main()
