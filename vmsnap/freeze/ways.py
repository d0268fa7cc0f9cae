# SPDX-License-Identifier: Apache-2.0
"""Ways into a filesystem: mount points, of which any may lead to a server that never answers.

They are opened in a child, each in a thread of its own, and the descriptors come back over a
socket. Whoever waits for them does so with a limit; a child that hangs is left to itself, and has
nothing of ours but that socket. What was opened is compared with what is meant.

Runs in: engine, supervisor, caller, forks of them. While frozen: no file but the mount points, no
journal, no import.
"""

from __future__ import annotations

import contextlib
import os
import select
import stat
import threading
import time
from collections import Counter
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from socket import AF_UNIX, SOCK_SEQPACKET, recv_fds, send_fds, socket, socketpair

from vmsnap.errors import VmsnapError
from vmsnap.freeze.mountinfo import Mount
from vmsnap.system.files import mount_id
from vmsnap.system.process import fork

OPEN_PATIENCE = 2.0  # seconds for all that is opened in a child
TOGETHER = 0.1  # seconds for which what has answered waits for the rest, so as to be in order
MESSAGE_BYTES = 4096
CHILDREN = 3  # that are tried, should they be killed
LATE = f"it could not be opened within {OPEN_PATIENCE:g} s"
KILLED = "the processes that tried to open it were killed"
SOMETHING_ELSE = "something else is mounted there now"

# Opens a filesystem, or raises OSError or MountOpenError.
Way = Callable[[], int]


class MountOpenError(VmsnapError):
    """A filesystem could not be opened, or is not the one that is meant."""


# --- in a child ----------------------------------------------------------------------------------


def open_ways(ways: Sequence[tuple[int, Way]]) -> Iterator[dict[int, int | str]]:
    """Try all ways at once. Each is given with the number of what it leads to; there may be several
    with the same number, of which the first that leads there counts.

    Yield a descriptor, or why there is none, by number: what answers at once together, the others
    as they come, and in the end all that did not answer. Raises OSError if there can be no child.
    """
    deadline = time.monotonic() + OPEN_PATIENCE
    return answers_to(ways, begin(ways, deadline), deadline)


def begin(ways: Sequence[tuple[int, Way]], deadline: float) -> tuple[int, socket]:
    """Start a child that tries these ways; return its pid, and where it answers. Raises OSError."""
    ours, theirs = socketpair(AF_UNIX, SOCK_SEQPACKET)
    with theirs:
        try:
            child = fork(
                lambda: send_descriptors(theirs, ways, deadline),
                "vmsnap-open",
                {2, theirs.fileno()},
            )
        except OSError:
            ours.close()
            raise
    return child, ours


def answers_to(
    ways: Sequence[tuple[int, Way]], child: tuple[int, socket], deadline: float
) -> Iterator[dict[int, int | str]]:
    """What one child did not answer, having been killed, another one is asked."""
    for children in range(1, CHILDREN + 1):
        unanswered = Counter(number for number, _ in ways)
        killed = yield from received(*child, unanswered, deadline)
        ways = [(number, way) for number, way in ways if unanswered[number] > 0]
        if not killed or not ways or children == CHILDREN:
            break
        try:
            child = begin(ways, deadline)
        except OSError:
            break
    yield {number: KILLED if killed else LATE for number, _ in ways}


def open_all(ways: Sequence[tuple[int, Way]]) -> dict[int, int | str]:
    """What open_ways yields, together."""
    if not ways:
        return {}
    try:
        batches = [*open_ways(ways)]
    except OSError as e:
        reason = f"cannot start a process for it: {e.strerror}"
        return {number: reason for number, _ in ways}
    return {number: answer for batch in batches for number, answer in batch.items()}


def received(
    child: int, ours: socket, unanswered: Counter[int], deadline: float
) -> Generator[dict[int, int | str], None, bool]:
    """Count down how many ways of each number are `unanswered`. Return whether the child was killed
    before it was done."""
    batch: dict[int, int | str] = {}
    until = time.monotonic() + TOGETHER
    killed = False
    poll = select.poll()  # select(2) knows no descriptor above 1023
    poll.register(ours, select.POLLIN)
    with ours:
        while +unanswered:
            if poll.poll(max(0.0, until - time.monotonic()) * 1000):
                number, answer = receive(ours)
                if number is None:
                    killed = time.monotonic() < deadline
                    break
                unanswered[number] -= 1
                if isinstance(answer, str):
                    if unanswered[number] == 0:
                        batch[number] = answer
                elif unanswered[number] >= 0:
                    batch[number], unanswered[number] = answer, 0
                else:
                    os.close(answer)
            elif until == deadline:
                break
            else:
                until = deadline
            if until == deadline and batch:
                yield batch
                batch = {}
    with contextlib.suppress(ChildProcessError):
        os.waitpid(child, os.WNOHANG)
    yield batch
    return killed


def receive(ours: socket) -> tuple[int | None, int | str]:
    message, descriptors, *_ = recv_fds(ours, MESSAGE_BYTES, 1)
    word, _, reason = os.fsdecode(message).partition(" ")
    for fd in descriptors:
        os.set_inheritable(fd, False)
        return int(word), fd
    return int(word) if word else None, reason


def send_descriptors(to: socket, ways: Iterable[tuple[int, Way]], deadline: float) -> None:
    """Open each in a thread of its own, so that none waits for another's server."""

    def send(number: int, way: Way) -> None:
        with contextlib.suppress(OSError):  # nobody waits any more
            try:
                fd = way()
            except (OSError, MountOpenError) as e:
                to.send(os.fsencode(f"{number} {reason_of(e)}"))
                return
            send_fds(to, [os.fsencode(f"{number} no descriptor is free")], [fd])
            os.close(fd)  # else one that hangs would keep it, and no other could be unmounted

    threads = []
    for number, way in ways:
        thread = threading.Thread(target=send, args=(number, way))
        try:
            thread.start()
        except RuntimeError:  # no more of them
            send(number, way)
        else:
            threads.append(thread)
    for thread in threads:
        thread.join(max(0.0, deadline - time.monotonic()))


def reason_of(error: OSError | MountOpenError) -> str:
    return (isinstance(error, OSError) and error.strerror) or str(error)


# --- one way -------------------------------------------------------------------------------------


def open_pinned(path: str, doubt: Callable[[int], str]) -> int:
    """Open what is at this path, unless `doubt`, which gets an O_PATH descriptor of it, says why
    not."""
    pinned = os.open(path, os.O_PATH | os.O_NOFOLLOW)
    try:
        reason = doubt(pinned)
        if reason:
            raise MountOpenError(reason)
        return os.open(f"/proc/self/fd/{pinned}", os.O_RDONLY | os.O_NONBLOCK)
    finally:
        os.close(pinned)


def open_mount(mount: Mount) -> int:
    """Open a mount and make sure that it is the one in the mount table."""

    def doubt(fd: int) -> str:
        # The mount id first: the kernel has it without asking what else may be mounted there.
        if mount_id(fd) != mount.id:
            return SOMETHING_ELSE
        status = os.fstat(fd)
        if not same_device(status, mount.device):
            return SOMETHING_ELSE
        if not (stat.S_ISDIR(status.st_mode) or stat.S_ISREG(status.st_mode)):
            return "it is mounted on a special file"
        return ""

    return open_pinned(mount.path, doubt)


def open_filesystem(mounts: Iterable[Mount]) -> int:
    """Open one superblock through any of its mounts. Raises MountOpenError."""
    reason = "it has no mount point that can be reached"
    for mount in mounts:
        if mount.reachable:
            try:
                return open_mount(mount)
            except (OSError, MountOpenError) as e:
                reason = reason_of(e)
    raise MountOpenError(reason)


def same_device(status: os.stat_result, device: str) -> bool:
    """btrfs gives subvolumes device numbers that no mount table shows; the mount id decides."""
    return (
        device.startswith("0:") or device == f"{os.major(status.st_dev)}:{os.minor(status.st_dev)}"
    )
