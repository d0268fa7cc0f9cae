# SPDX-License-Identifier: Apache-2.0
"""Writing files so that a reader, or a crash, sees the old content or the new one and nothing
else."""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path


@dataclass(frozen=True)
class File:
    """A file to be written, root's, with its permission bits and its group."""

    path: Path
    data: bytes
    mode: int
    group: int = 0


def write_atomically(path: Path, data: bytes, mode: int) -> None:
    """Write beside, fsync, rename, fsync the directory. After an OSError nothing is left behind."""
    write_all([File(path, data, mode)])


def write_all(files: Sequence[File]) -> None:
    """Write all of them or, after an exception, none: no name changes before all content is on the
    disk, and those that have changed are changed back. Each is written atomically."""
    beside = [file.path.with_name(f".{file.path.name}.{os.urandom(4).hex()}") for file in files]
    undo = contextlib.ExitStack()
    with contextlib.ExitStack() as cleanup:
        for file, temporary in zip(files, beside):
            cleanup.callback(remove, temporary)
            with naming(file.path):
                stage(temporary, file)
        try:
            for file, temporary in zip(files, beside):
                with naming(file.path):
                    if file is not files[-1]:  # after which there is nothing left to fail
                        undo.callback(going_back(file.path, cleanup))
                    temporary.rename(file.path)
        except BaseException:
            undo.close()
            raise
    for directory in {file.path.parent for file in files}:
        sync(directory)


@contextlib.contextmanager
def naming(path: Path) -> Iterator[None]:
    """What goes wrong is told of this file, and not of one beside it, or of none."""
    try:
        yield
    except OSError as e:
        wrong = errno.EISDIR if path.is_dir() else e.errno or errno.EIO
        raise OSError(wrong, os.strerror(wrong), os.fspath(path)) from None


def going_back(path: Path, cleanup: contextlib.ExitStack) -> Callable[[], object]:
    """What to call to have the file again that is there now, or none."""
    kept = path.with_name(f".{path.name}.{os.urandom(4).hex()}")
    try:
        os.link(path, kept, follow_symlinks=False)
    except FileNotFoundError:
        return partial(remove, path)
    cleanup.callback(remove, kept)
    return partial(kept.rename, path)


def remove(path: Path) -> None:
    with contextlib.suppress(OSError):
        path.unlink()


def stage(temporary: Path, file: File) -> None:
    fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, file.mode)
    with open(fd, "wb") as opened:
        if file.group:
            os.fchown(fd, 0, file.group)
        os.fchmod(fd, file.mode)  # whatever the umask
        opened.write(file.data)
        opened.flush()
        os.fsync(fd)


def sync(directory: Path) -> None:
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def make_private(path: Path) -> None:
    """Make a directory and those of its parents that are missing, for root alone."""
    make_directories(path, 0o700)


def make_directories(path: Path, mode: int) -> list[Path]:
    """Make a directory and those of its parents that are missing; return what was made, the
    innermost last."""
    if path.exists():
        return []
    made = make_directories(path.parent, mode)
    try:
        path.mkdir()
    except FileExistsError:  # by another process, in this moment
        return made
    path.chmod(mode)  # whatever the umask
    return [*made, path]


def write(files: Sequence[File]) -> None:
    """As write_all, with the directories that are missing, which a file that all may read makes
    readable for all."""
    made: list[Path] = []
    try:
        for file in files:
            made += make_directories(file.path.parent, 0o755 if file.mode & 0o004 else 0o700)
        write_all(files)
        for directory in made:
            sync(directory.parent)
    except BaseException:
        for directory in reversed(made):
            with contextlib.suppress(OSError):
                directory.rmdir()
        raise


def is_there(file: File) -> bool:
    try:
        status = file.path.lstat()
        return (
            stat.S_ISREG(status.st_mode)
            and (status.st_uid, status.st_gid) == (0, file.group)
            and stat.S_IMODE(status.st_mode) == file.mode
            and file.path.read_bytes() == file.data
        )
    except OSError:
        return False


def remove_tree(path: Path) -> None:
    """Remove a directory and what is in it, but nothing that is mounted below it: a mount
    that was not undone is not ours to empty. What cannot be removed stays."""
    with contextlib.suppress(OSError):
        fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
        try:
            empty(fd, mount_id(fd))
        finally:
            os.close(fd)
        path.rmdir()


def empty(directory: int, mount: int) -> None:
    for name in os.listdir(directory):
        with contextlib.suppress(OSError):
            try:
                fd = os.open(name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW, dir_fd=directory)
            except OSError:  # no directory
                os.unlink(name, dir_fd=directory)  # noqa: PTH108 - by descriptor
                continue
            try:
                if mount_id(fd) == mount:
                    empty(fd, mount)
            finally:
                os.close(fd)
            os.rmdir(name, dir_fd=directory)  # noqa: PTH106 - by descriptor


def mount_id(fd: int) -> int:
    """proc(5), /proc/PID/fdinfo."""
    for line in Path(f"/proc/self/fdinfo/{fd}").read_text().splitlines():
        if line.startswith("mnt_id:"):
            return int(line.split()[1])
    return -1
