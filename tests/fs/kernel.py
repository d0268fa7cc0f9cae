# SPDX-License-Identifier: Apache-2.0
"""What the tests ask of the kernel: freeze, thaw, "is it frozen?", mounts, a namespace."""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import re
from pathlib import Path

FIFREEZE = 0xC0045877  # linux/fs.h: _IOWR('X', 119, int)
FITHAW = 0xC0045878  # linux/fs.h: _IOWR('X', 120, int)
CLONE_NEWNS = 0x00020000  # linux/sched.h
MS_BIND, MS_REC, MS_PRIVATE, MNT_DETACH = 0x1000, 0x4000, 0x40000, 2  # linux/mount.h
PR_SET_CHILD_SUBREAPER = 36  # linux/prctl.h

# A mount namespace can be bound only in an older one (fs/namespace.c, mnt_ns_loop), and the numbers
# that tell their age grow on each CPU by itself.
FIRST_CPU = min(os.sched_getaffinity(0))

RCU_EXPEDITED = Path("/sys/kernel/rcu_expedited")

libc = ctypes.CDLL(None, use_errno=True)


def check(result: int) -> None:
    if result:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


def ioctl(mount: Path, request: int) -> int:
    """Return the errno, 0 for success."""
    fd = os.open(mount, os.O_RDONLY)
    try:
        fcntl.ioctl(fd, request, 0)
    except OSError as e:
        return e.errno or errno.EIO
    finally:
        os.close(fd)
    return 0


def freeze(mount: Path) -> None:
    error = ioctl(mount, FIFREEZE)
    assert error == 0, f"{mount}: {os.strerror(error)}"


def thaw(mount: Path) -> None:
    error = ioctl(mount, FITHAW)
    assert error == 0, f"{mount}: {os.strerror(error)}"


def is_frozen(mount: Path) -> bool:
    """Ask without writing. Not while a freeze may be about to begin: it would be told EBUSY."""
    error = ioctl(mount, FIFREEZE)
    if error == 0:
        thaw(mount)
        return False
    assert error == errno.EBUSY, f"{mount}: {os.strerror(error)}"
    return True


def enter_private_namespace() -> None:
    """Leave the machine's mount namespace, and drop the copies of other people's loop mounts,
    which would keep their filesystems alive after they have unmounted them."""
    everywhere = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {FIRST_CPU})
    check(libc.unshare(CLONE_NEWNS))
    os.sched_setaffinity(0, everywhere)
    check(libc.mount(b"none", b"/", None, MS_REC | MS_PRIVATE, None))
    for point, source in reversed(mounts("self")):
        if source.startswith("/dev/loop"):
            libc.umount2(os.fsencode(point), MNT_DETACH)


def mount(source: str, target: Path, fstype: str, options: str) -> None:
    """Without mount(8), which would look at more than it is told to."""
    words = (os.fsencode(word) for word in (source, target, fstype))
    check(libc.mount(*words, 0, os.fsencode(options)))


def bind(source: Path, target: Path) -> None:
    check(libc.mount(os.fsencode(source), os.fsencode(target), None, MS_BIND, None))


def unmount(target: Path) -> None:
    check(libc.umount2(os.fsencode(target), 0))


def detach(target: Path) -> None:
    """With all that is mounted below, even if there is no way to that any more."""
    check(libc.umount2(os.fsencode(target), MNT_DETACH))


def become_subreaper() -> None:
    """What a killed engine leaves behind becomes our child: nothing is left over unnoticed."""
    check(libc.prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0))


def mounts(pid: str) -> list[tuple[str, str]]:
    """(mount point, source) of a process's mount table, in the order of mounting."""
    found = []
    for line in Path("/proc", pid, "mountinfo").read_bytes().split(b"\n")[:-1]:
        left, _, right = line.partition(b" - ")
        point = re.sub(rb"\\([0-7]{3})", lambda m: bytes([int(m[1], 8)]), left.split(b" ")[4])
        found.append((os.fsdecode(point), os.fsdecode(right.split(b" ")[1])))
    return found


def mounts_below(directory: Path) -> list[str]:
    return [point for point, _ in mounts("self") if Path(point).is_relative_to(directory)]
