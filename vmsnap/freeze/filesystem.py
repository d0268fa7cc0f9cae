# SPDX-License-Identifier: Apache-2.0
"""Opening the filesystems of a plan so that they are certainly those, and stay them.

While the descriptor is open, umount fails instead of hiding a frozen superblock. What only another
mount namespace has is opened in a child: the path there is not ours and may lead anywhere, also to
a server that never answers, and so the engine itself looks at none of it.

Runs in: engine, caller (`vmsnap check`). While frozen: no file, no journal, no import.
"""

from __future__ import annotations

import contextlib
import os
import select
import stat
import threading
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from vmsnap.errors import Kind, Problem, Severity, VmsnapError
from vmsnap.freeze.blockers import Blocker
from vmsnap.freeze.plan import Entry, Plan
from vmsnap.result import FilesystemResult
from vmsnap.system.files import mount_id
from vmsnap.system.process import fork

if TYPE_CHECKING:
    from socket import socket

OPEN_PATIENCE = 2.0  # seconds for all that is opened in a child
MESSAGE_BYTES = 4096


@dataclass
class Filesystem:
    """One filesystem of the plan, pinned by a descriptor, and what the guard has sent about it.

    Times are seconds on the monotonic clock. Until `frozen_at` or `error` is set after
    `freezing_at`, it is not known whether it is frozen.
    """

    entry: Entry
    fd: int
    freezing_at: float | None = None
    frozen_at: float | None = None
    synced_at: float | None = None
    thawed_at: float | None = None
    error: int = 0  # of FIFREEZE or syncfs
    thaw_error: int = 0
    blockers: tuple[Blocker, ...] = ()  # who kept it from freezing in time

    @property
    def maybe_frozen(self) -> bool:
        return self.freezing_at is not None and not self.error and self.thawed_at is None

    @property
    def step(self) -> int:
        return self.entry.step or 0

    def result(self, thawing_at: float | None) -> FilesystemResult:
        def ms(begin: float | None, end: float | None) -> float | None:
            return None if begin is None or end is None else round((end - begin) * 1000, 3)

        error = self.error or self.thaw_error
        return FilesystemResult(
            mount=self.entry.mount,
            fstype=self.entry.mounts[0].fstype,
            device=self.entry.device,
            step=self.entry.step,
            freeze_ms=ms(self.freezing_at, self.frozen_at),
            held_ms=ms(self.frozen_at, self.thawed_at),
            thaw_ms=ms(thawing_at, self.thawed_at) if self.frozen_at else None,
            error=os.strerror(error) if error else None,
        )

    def events(self) -> Iterable[tuple[float, str]]:
        for name in ("freezing", "frozen", "synced", "thawed"):
            at = getattr(self, f"{name}_at")
            if at is not None:
                yield at, name


class MountOpenError(VmsnapError):
    """A filesystem of the plan could not be opened, or is no longer what was planned."""


def open_plan(plan: Plan, run_dir: Path) -> tuple[list[Filesystem], list[Problem]]:
    """Open every filesystem that the plan acts on. The caller closes what it gets.

    Nothing may be frozen if there is any error: a filesystem cannot be opened, a pattern of --only
    names nothing, nothing is left to freeze, or the run directory would be frozen as well. What
    cannot be opened and only a foreign user namespace has is left out with a warning: else any user
    could end every freeze.
    """
    pinned: list[Filesystem] = []
    failures = [warning(note) for note in plan.notes]

    def fail(kind: Kind, subject: str, message: str) -> None:
        failures.append(Problem(kind, message, "freeze", subject))

    run_mount = mount_of(run_dir)
    elsewhere = open_elsewhere([e for e in plan.acted_on if e.mounts[0].pid is not None])
    for entry in plan.acted_on:
        try:
            fd = descriptor(entry, elsewhere)
        except MountOpenError as e:
            if entry.foreign:
                message = f"{entry.mount}: left out, as only a foreign user namespace has it: {e}"
                failures.append(warning(message, entry.mount))
            else:
                fail(Kind.MOUNT_OPEN_FAILED, entry.mount, f"{entry.mount}: {e}")
            continue
        pinned.append(Filesystem(entry, fd))
        if run_mount in {mount.id for mount in entry.mounts}:
            message = (
                f"{entry.mount}: found the run directory {run_dir} on it, expected it on a tmpfs, "
                "since vmsnap cannot write there while it is frozen"
            )
            fail(Kind.FREEZE_FAILED, entry.mount, message)
    for pattern in plan.unmatched:
        fail(Kind.MOUNT_OPEN_FAILED, pattern, f"{pattern!r}: found nothing mounted there")
    if not pinned and all(entry.foreign for entry in plan.acted_on):
        fail(Kind.FREEZE_FAILED, "", "found no filesystem to freeze; `vmsnap plan` says why")
    return pinned, failures


def warning(message: str, subject: str = "") -> Problem:
    return Problem(Kind.MOUNT_OPEN_FAILED, message, "freeze", subject, severity=Severity.WARNING)


def descriptor(entry: Entry, elsewhere: Mapping[str, int | str]) -> int:
    answer = elsewhere.get(entry.device)
    if isinstance(answer, str):
        raise MountOpenError(answer)
    return open_filesystem(entry) if answer is None else answer


def open_elsewhere(entries: Sequence[Entry]) -> dict[str, int | str]:
    """Open what other mount namespaces have. Return for each device a descriptor, or why there is
    none. A child that hangs is left to itself."""
    if not entries:
        return {}
    from socket import AF_UNIX, SOCK_SEQPACKET, recv_fds, socketpair  # late: seldom needed

    opened: dict[str, int | str] = {
        entry.device: f"it could not be opened within {OPEN_PATIENCE:g} s" for entry in entries
    }
    ours, theirs = socketpair(AF_UNIX, SOCK_SEQPACKET)
    with ours:
        deadline = time.monotonic() + OPEN_PATIENCE
        with theirs:
            try:
                child = fork(
                    lambda: send_descriptors(theirs, entries, deadline),
                    "vmsnap-open",
                    {2, theirs.fileno()},
                )
            except OSError as e:
                return dict.fromkeys(opened, f"cannot start a process for it: {e.strerror}")
        poll = select.poll()  # select(2) knows no descriptor above 1023
        poll.register(ours, select.POLLIN)
        while (left := deadline - time.monotonic()) > 0 and poll.poll(left * 1000):
            message, descriptors, *_ = recv_fds(ours, MESSAGE_BYTES, 1)
            if not message:
                break
            device, _, reason = os.fsdecode(message).partition(" ")
            opened[device] = reason
            for fd in descriptors:
                os.set_inheritable(fd, False)
                opened[device] = fd
    with contextlib.suppress(ChildProcessError):
        os.waitpid(child, os.WNOHANG)
    return opened


def send_descriptors(to: socket, entries: Sequence[Entry], deadline: float) -> None:
    """Open each in a thread of its own, so that none waits for another's server."""
    from socket import send_fds

    def send(entry: Entry) -> None:
        with contextlib.suppress(OSError):  # nobody waits any more
            try:
                fd = open_filesystem(entry)
            except MountOpenError as e:
                to.send(os.fsencode(f"{entry.device} {e}"))
            else:
                send_fds(to, [os.fsencode(f"{entry.device} no descriptor is free")], [fd])

    threads = []
    for entry in entries:
        thread = threading.Thread(target=send, args=(entry,))
        with contextlib.suppress(RuntimeError):  # no more of them: this one cannot be opened
            thread.start()
            threads.append(thread)
    for thread in threads:
        thread.join(max(0.0, deadline - time.monotonic()))


def open_filesystem(entry: Entry) -> int:
    """Open one superblock through any of its mounts and make sure that it is the one planned."""
    reason = "it has no mount point that can be reached"
    for mount in entry.mounts:
        if not mount.reachable:
            continue
        try:
            pinned = os.open(mount.path, os.O_PATH | os.O_NOFOLLOW)
        except OSError as e:
            reason = e.strerror or str(e)
            continue
        try:
            # The mount id first: the kernel has it without asking what else may be mounted there.
            if mount_id(pinned) != mount.id:
                reason = "something else is mounted there now"
                continue
            status = os.fstat(pinned)
            if not same_device(status, mount.device):
                reason = "something else is mounted there now"
            elif not (stat.S_ISDIR(status.st_mode) or stat.S_ISREG(status.st_mode)):
                reason = "it is mounted on a special file"
            else:
                return os.open(f"/proc/self/fd/{pinned}", os.O_RDONLY | os.O_NONBLOCK)
        except OSError as e:
            reason = e.strerror or str(e)
        finally:
            os.close(pinned)
    raise MountOpenError(reason)


def mount_of(path: Path) -> int:
    """The mount id of a path, or of where it will be made."""
    fd = os.open(next(p for p in (path, *path.parents) if p.exists()), os.O_PATH)
    try:
        return mount_id(fd)
    finally:
        os.close(fd)


def same_device(status: os.stat_result, device: str) -> bool:
    """btrfs gives subvolumes device numbers that no mount table shows; the mount id decides."""
    return (
        device.startswith("0:") or device == f"{os.major(status.st_dev)}:{os.minor(status.st_dev)}"
    )
