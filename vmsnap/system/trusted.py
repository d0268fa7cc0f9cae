# SPDX-License-Identifier: Apache-2.0
"""Opening files that only root can have changed, without ever blocking or reading without end.

Every step of the path is opened relative to the one before and checked by its descriptor, so
nothing can be exchanged between the check and the use. What a file means is not decided here.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import stat
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO, NamedTuple

from vmsnap.system.files import mount_id

Check = Callable[[int, str], None]  # of a descriptor and the name of a step

# Filesystems whose data is on another machine, which may never answer.
REMOTE = {
    *("nfs", "nfs4", "cifs", "smb3", "smbfs", "ceph", "afs", "lustre", "9p", "virtiofs", "coda"),
    *("ncpfs", "orangefs", "vboxsf", "vmhgfs", "prl_fs"),
}
OCTAL = re.compile(rb"\\([0-7]{3})")  # in /proc/PID/mountinfo
MAX_BYTES = 1 << 20
MAX_SYMLINKS = 40  # as the kernel: path_resolution(7)


class InsecurePathError(Exception):
    """Another user than root owns or can change `step`, one of the steps of a path."""

    def __init__(self, step: str, found: str, expected: str) -> None:
        super().__init__(step, found, expected)
        self.step, self.found, self.expected = step, found, expected

    def __str__(self) -> str:
        return f"{self.step}: found {self.found}, expected {self.expected}"


class MayWaitError(InsecurePathError):
    """A path leads to `step`, a mount that another machine or an automounter has to answer for, and
    that may be never. It was not looked at. See patient() and bounded.py."""

    def __init__(self, step: str, fstype: str) -> None:
        what = (
            "an automount" if fstype == "autofs" else f"a filesystem of another machine ({fstype})"
        )
        super().__init__(step, what, "a local filesystem")
        self.args = (step, fstype)


class UnreadableFileError(Exception):
    """A file is there, but not what a configuration can be read from."""


def encodable(word: str) -> bool:
    """Whether the system can take it: JSON can spell halves of UTF-16 pairs, which it cannot."""
    try:
        os.fsencode(word)
    except UnicodeEncodeError:
        return False
    return True


def check_owner(status: os.stat_result, step: str) -> None:
    if status.st_uid != 0:
        raise InsecurePathError(step, f"owner uid {status.st_uid}", "owner root (uid 0)")


def check_mode(status: os.stat_result, step: str, forbidden: int) -> None:
    mode = stat.S_IMODE(status.st_mode)
    if mode & forbidden:
        raise InsecurePathError(
            step, f"mode {mode:04o}", f"mode {mode & ~forbidden:04o} or stricter"
        )


def open_trusted(path: str | Path, forbidden: int = 0o7177) -> int:
    """Open a regular file for reading and return its descriptor.

    The file and every directory and symbolic link on the way must belong to root; no directory may
    be writable by group or others (the sticky bit does not excuse it); the file may have no bit of
    `forbidden` in its mode. Raises InsecurePathError for all that, UnreadableFileError if it is no
    regular file, and OSError as open(2) does."""
    with walk(path) as (pinned, step):
        return open_checked(pinned, step, forbidden)


class Step(NamedTuple):
    """One step of a path: an O_PATH descriptor, its name, the mount that it lies on, and whether
    that is of an automounter."""

    fd: int
    name: str
    mount: int
    automount: bool = False


waits = False  # this process may wait for other machines and automounters


def patient() -> None:
    """From here on this process does: nobody waits for it longer than he wants to."""
    global waits  # noqa: PLW0603 - of a process, as what it says
    waits = True


@contextlib.contextmanager
def walk(path: str | Path, check: Check | None = None) -> Iterator[tuple[int, str]]:
    """Follow a path, and give an O_PATH descriptor of its last step, and that one's name.

    Links are followed that root has made. Every directory on the way must pass `check`, which is
    check_directory if none is given; what the path leads to is left to the caller. No step of it
    may lie on FUSE or, unless this process is patient(), on another machine or below an automount
    with nothing mounted; and none is asked for anything before that is known. Raises as
    open_trusted, and MayWaitError."""
    check = check or check_directory
    names = [name for name in reversed(os.fspath(path).split("/")) if name not in ("", ".")]
    if not os.fspath(path).startswith("/") or not names or os.fspath(path).endswith("/"):
        raise UnreadableFileError(
            f"{path}: found a path that names no file, expected an absolute path"
        )
    if "\0" in os.fspath(path):
        raise UnreadableFileError(f"{str(path)!r}: found a NUL byte in the path")
    if not encodable(os.fspath(path)):
        raise UnreadableFileError(f"{str(path)!r}: found a path with half a character in it")
    with contextlib.ExitStack() as opened:
        root = os.open("/", os.O_PATH | os.O_DIRECTORY)
        opened.callback(os.close, root)
        steps = [checked(Step(root, "", mount_id(root)))]
        check(root, "/")
        links = 0
        waiting = {} if waits else waiting_points()
        while names:
            name = names.pop()
            if name == "..":
                steps = steps[:-1] or steps
                continue
            above = steps[-1]
            if f"{above.name}/{name}" in waiting:
                raise MayWaitError(f"{above.name}/{name}", waiting[f"{above.name}/{name}"])
            step = next_step(above, name, opened)
            if step.automount and waits:
                with contextlib.suppress(NotADirectoryError):
                    step = next_step(above, name, opened, os.O_DIRECTORY)
            fd = step.fd
            status = os.fstat(fd)
            if stat.S_ISLNK(status.st_mode):
                check_owner(status, step.name)
                links += 1
                if links > MAX_SYMLINKS:
                    raise OSError(errno.ELOOP, os.strerror(errno.ELOOP), os.fspath(path))
                target = os.readlink("", dir_fd=fd)
                if target.startswith("/"):
                    steps = steps[:1]
                names += [part for part in reversed(target.split("/")) if part not in ("", ".")]
                continue
            if names:
                check(fd, step.name)
            steps.append(step)
        yield steps[-1].fd, steps[-1].name or "/"


def next_step(above: Step, name: str, opened: contextlib.ExitStack, how: int = 0) -> Step:
    """Look a name up. O_DIRECTORY has an automounter mount something there
    (Documentation/filesystems/path-lookup.rst)."""
    fd = os.open(name, os.O_PATH | os.O_NOFOLLOW | how, dir_fd=above.fd)
    opened.callback(os.close, fd)
    step = Step(fd, f"{above.name}/{name}", mount_id(fd), above.automount)
    return step if step.mount == above.mount else checked(step)


def checked(step: Step) -> Step:
    """The first step on another mount. Raises InsecurePathError.

    A FUSE server, which may be any user's program, says what it likes of owners and modes, and
    may never answer. So it is not asked: fstatfs(2) and fstat(2) are requests to it, and the mount
    table is not. Other filesystems whose servers could lie (nfs, cifs, 9p, virtiofs, ...) only root
    can mount: it trusts them."""
    fstype = fstype_of(step.mount)
    if is_fuse(fstype):
        raise InsecurePathError(
            step.name or "/", "a FUSE filesystem", "one of the kernel's own filesystems"
        )
    # Taken away in this moment, by whoever may unmount it. Where vmsnap is in a chroot, the table
    # has no "/".
    if not fstype and step.name:
        raise InsecurePathError(step.name, "a filesystem that has been unmounted", "a mounted one")
    return step._replace(automount=fstype == "autofs")


def is_fuse(fstype: str) -> bool:
    return fstype in ("fuse", "fuseblk") or fstype.startswith(("fuse.", "fuseblk."))


def waiting_points() -> dict[str, str]:
    """Where other machines' filesystems are mounted, and automounts with nothing on them, and the
    type. Even to open such a place with O_PATH can be a question to the server, or wait for a mount
    that has begun (fs/namei.c, complete_walk; nfs_weak_revalidate; autofs_d_manage)."""
    table = Path("/proc/self/mountinfo").read_bytes()
    types = b"|".join(re.escape(fstype.encode()) for fstype in (*REMOTE, "autofs"))
    found = {}
    for line in re.finditer(rb"^\d+ \d+ \S+ \S+ (\S+) .* - (%s) " % types, table, re.M):
        covered = re.compile(rb"^\d+ \d+ \S+ \S+ %s " % re.escape(line[1]), re.M)
        if not covered.search(table, line.end()):
            found[unescape(line[1])] = line[2].decode()
    return found


def unescape(point: bytes) -> str:
    return os.fsdecode(OCTAL.sub(lambda match: bytes([int(match[1], 8)]), point))


def fstype_of(mount: int) -> str:
    """The type of the filesystem of a mount (proc(5), mountinfo); "" if it is not in the table."""
    with open("/proc/self/mountinfo", "rb") as table:
        for line in table:
            if line.startswith(b"%d " % mount):
                return line.partition(b" - ")[2].split(b" ", 1)[0].decode("ascii", "replace")
    return ""


def is_directory(fd: int, step: str) -> None:
    if not stat.S_ISDIR(os.fstat(fd).st_mode):
        raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), step)


def check_directory(fd: int, step: str) -> None:
    is_directory(fd, step)
    status = os.fstat(fd)
    check_owner(status, step)
    check_mode(status, step, 0o022)


def open_checked(pinned: int, step: str, forbidden: int) -> int:
    """Turn an O_PATH descriptor into one that can be read."""
    status = os.fstat(pinned)
    check_regular(status, step)
    check_owner(status, step)
    check_mode(status, step, forbidden)
    return reopened(pinned)


def check_regular(status: os.stat_result, step: str) -> None:
    """What is never opened are FIFOs and devices."""
    if not stat.S_ISREG(status.st_mode):
        raise UnreadableFileError(
            f"{step}: found {kind_of(status.st_mode)}, expected a regular file"
        )


def reopened(pinned: int) -> int:
    return os.open(f"/proc/self/fd/{pinned}", os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY)


def kind_of(mode: int) -> str:
    for test, word in (
        (stat.S_ISDIR, "a directory"),
        (stat.S_ISFIFO, "a FIFO"),
        (stat.S_ISSOCK, "a socket"),
        (stat.S_ISBLK, "a block device"),
        (stat.S_ISCHR, "a character device"),
    ):
        if test(mode):
            return word
    return "no regular file"


def read_text(path: str | Path, forbidden: int = 0o7177) -> str:
    """Read a trusted text file of at most 1 MiB. Raises as open_trusted and text_of."""
    fd = open_trusted(path, forbidden)
    with open(fd, "rb") as file:
        return text_of(file, path)


def read_anybodys_text(path: str | Path) -> str:
    """The same of a file that anybody may have written, in a directory that may be his. Of links
    on the way only root's are followed, and still no FUSE and no automounter is asked."""
    with walk(Path(path).absolute(), is_directory) as (pinned, step):
        check_regular(os.fstat(pinned), step)
        fd = reopened(pinned)
    with open(fd, "rb") as file:
        return text_of(file, path)


def text_of(file: BinaryIO, path: str | Path) -> str:
    """Raises UnreadableFileError for more than 1 MiB and for what is not UTF-8 text."""
    data = file.read(MAX_BYTES + 1)
    if len(data) > MAX_BYTES:
        raise UnreadableFileError(
            f"{path}: found more than {MAX_BYTES} bytes, expected at most 1 MiB"
        )
    for mark, encoding in ((b"\xff\xfe", "UTF-16"), (b"\xfe\xff", "UTF-16")):
        if data.startswith(mark):
            raise UnreadableFileError(f"{path}: found {encoding} text, expected UTF-8")
    try:
        text = data.decode("utf-8-sig")  # a byte order mark is harmless: Windows editors write it
    except UnicodeDecodeError as e:
        raise UnreadableFileError(
            f"{path}: found byte 0x{data[e.start]:02x} at offset {e.start}, expected UTF-8 text"
        ) from None
    if "\0" in text:
        raise UnreadableFileError(f"{path}: found a NUL byte, expected text")
    return text
