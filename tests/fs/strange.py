# SPDX-License-Identifier: Apache-2.0
"""Mounts that do not answer: dead servers, automounts, disks below them.

The end of the test lets go of whoever waits for one. Until then no test may look at such a path
itself: it would hang in the kernel, where no timeout of pytest reaches it.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import select
import struct
import threading
from dataclasses import dataclass
from pathlib import Path

from . import kernel
from .fuse import Server, serving
from .lab import Lab, call

# linux/auto_fs.h: _IO(0x93, ...)
AUTOFS_IOC_READY, AUTOFS_IOC_CATATONIC = 0x9360, 0x9362
AUTOFS_PACKET = struct.Struct("<iiI")  # version, type and token, and more that is not needed


def point(lab: Lab, name: str) -> Path:
    path = lab.directory / name
    path.mkdir(mode=0o700, exist_ok=True)
    return path


def dead(
    lab: Lab, name: str = "dead", source: str = "server:/x", fstype: str = "fuse.sshfs"
) -> Path:
    """A filesystem whose server never answers, as of a network that is gone. `{}` in the source
    becomes the mount point."""
    mount = point(lab, name)
    fd = os.open("/dev/fuse", os.O_RDWR)
    options = f"fd={fd},rootmode=40000,user_id=0,group_id=0,allow_other"
    kernel.mount(source.format(mount), mount, fstype, options)
    lab.undo.callback(kernel.detach, mount)
    lab.undo.callback(os.close, fd)  # whoever waits gets an error now
    return mount


def hanging(lab: Lab, name: str = "hanging", backing: Path | None = None) -> tuple[Path, Server]:
    """A filesystem whose server answers until it is told to hang."""
    mount = point(lab, name)
    server = lab.undo.enter_context(serving(mount, backing=backing))
    lab.helpers.append(server.process)
    return mount, server


class Automount:
    """A mount point at which a daemon mounts something as soon as anybody looks at it. This daemon
    never does. The process group of the test may look."""

    def __init__(
        self, lab: Lab, name: str = "auto", source: str = "systemd-1", kind: str = "direct"
    ) -> None:
        self.mount = point(lab, name)
        self.asked, daemon = os.pipe()
        options = f"fd={daemon},pgrp={os.getpgrp()},minproto=5,maxproto=5,{kind}"
        kernel.mount(source.format(self.mount), self.mount, "autofs", options)
        os.close(daemon)
        self.fd = os.open(self.mount, os.O_RDONLY)  # the automounter's own, not what it mounts
        lab.undo.callback(os.close, self.asked)
        lab.undo.callback(kernel.detach, self.mount)
        lab.undo.callback(self.give_up)

    def give_up(self) -> None:
        """Let go of whoever waits."""
        with contextlib.suppress(OSError):
            fcntl.ioctl(self.fd, AUTOFS_IOC_CATATONIC, 0)
        os.close(self.fd)

    def live(self, source: Path) -> None:
        """Mount this directory there as soon as anybody looks."""

        def daemon() -> None:
            packet = os.read(self.asked, 4096)
            token = AUTOFS_PACKET.unpack_from(packet)[2]
            call("mount", "--bind", source, self.mount)
            fcntl.ioctl(self.fd, AUTOFS_IOC_READY, token)

        thread = threading.Thread(target=daemon, daemon=True)
        thread.start()

    @property
    def triggered(self) -> bool:
        return bool(select.select([self.asked], [], [], 0)[0])


@dataclass(frozen=True)
class Disk:
    """A filesystem to which the test keeps a descriptor, since its mount point may not answer."""

    mount: Path
    image: Path
    fd: int

    @property
    def is_frozen(self) -> bool:
        return kernel.is_frozen(Path(f"/proc/self/fd/{self.fd}"))


def image(lab: Lab, name: str, mib: int = 16, directory: Path | None = None) -> Path:
    """An ext4 that is not mounted yet."""
    path = (directory or lab.directory) / f"{name}.img"
    with path.open("wb") as file:
        file.truncate(mib << 20)
    call("mkfs.ext4", "-q", "-F", "-E", "lazy_itable_init=0,nodiscard", path)
    return path


def disk(lab: Lab, mount: Path, image: Path) -> Disk:
    """Mount it; the end of the test thaws it by the descriptor."""
    lab.mount("-o", "loop", image, mount)
    return watch(lab, mount, image)


def watch(lab: Lab, mount: Path, image: Path, through: str = "") -> Disk:
    fd = os.open(f"{through}{mount}", os.O_RDONLY)
    lab.undo.callback(os.close, fd)

    def thaw() -> None:
        with contextlib.suppress(OSError):
            fcntl.ioctl(fd, kernel.FITHAW, 0)

    lab.undo.callback(thaw)
    return Disk(mount, image, fd)
