# SPDX-License-Identifier: Apache-2.0
"""The list of what may be frozen, in the run directory: written before the first FIFREEZE, removed
when nothing in it is frozen any more or can become so, and how to thaw by it when engine and guard
are gone.

Runs in: engine, supervisor, caller (`vmsnap thaw --force`), forks of them. While frozen: no file
but the list and the mount points in it, no import.
"""

from __future__ import annotations

import collections
import contextlib
import errno
import json
import os
import signal
import threading
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vmsnap.errors import VmsnapError
from vmsnap.freeze.blockers import Blocker, blockers
from vmsnap.freeze.reopen import Item, open_again
from vmsnap.freeze.states import ASKED, NOT_FROZEN, States
from vmsnap.freeze.thaw import (
    STEP_PATIENCE,
    THAWED,
    Suspect,
    is_read_only,
    restore_rcu,
    thaw_for_guard,
)
from vmsnap.system.proc import ProcessId, has_ended
from vmsnap.system.process import SHORTAGE

FROZEN_LIST = "frozen.json"
UNPUBLISHED = ".frozen.json.new"
IN_PROGRESS = "still inside a freeze; it is thawed as soon as that ends"


class FrozenListError(VmsnapError):
    """There is a list of what may be frozen, but it cannot be read."""


@dataclass(frozen=True)
class FrozenList:
    """`guard` is that of the session, `invocation` that of the unit it runs in (systemd.exec(5),
    INVOCATION_ID)."""

    session: str
    invocation: str
    guard: ProcessId
    items: tuple[Item, ...]
    states: States
    path: Path
    inode: int

    def remove(self) -> None:
        """Unless it is a later session's by now."""
        with contextlib.suppress(FileNotFoundError):
            if self.path.stat().st_ino == self.inode:
                self.path.unlink()


# --- writing -------------------------------------------------------------------------------------


def create(run_dir: Path) -> int:
    """Open the list before it has a content or its name, for the guard to inherit. Raises
    OSError."""
    discard(run_dir)
    return os.open(run_dir / UNPUBLISHED, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)


def discard(run_dir: Path) -> None:
    """Remove a list that was not published."""
    (run_dir / UNPUBLISHED).unlink(missing_ok=True)


def publish(
    fd: int,
    run_dir: Path,
    session: str,
    guard: ProcessId,
    items: Iterable[Item],
) -> None:
    """Before the first FIFREEZE: what may be frozen from then on, for the process that has to thaw
    in the guard's place. Raises OSError."""
    listed = [vars(item) for item in items]
    document = {
        "states": NOT_FROZEN * (len(listed) + 1),
        "session": session,
        "invocation": os.environ.get("INVOCATION_ID", ""),
        "guard": guard.pid,
        "guard_started": guard.started,
        "filesystems": listed,
    }
    data = json.dumps(document).encode()
    if os.pwrite(fd, data, 0) < len(data):  # a tmpfs that was filled up by a part of it
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    (run_dir / UNPUBLISHED).rename(run_dir / FROZEN_LIST)


# --- reading -------------------------------------------------------------------------------------


@contextlib.contextmanager
def opened(run_dir: Path) -> Iterator[FrozenList]:
    """Raises FileNotFoundError and FrozenListError."""
    path = run_dir / FROZEN_LIST
    try:
        fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    except OSError:  # on what has become read-only nothing can be marked as settled
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        yield parse(fd, path)
    finally:
        os.close(fd)


def parse(fd: int, path: Path) -> FrozenList:
    try:
        document: dict[str, Any] = json.loads(os.pread(fd, os.fstat(fd).st_size, 0))
        items = [item_of(listed) for listed in document["filesystems"]]
        return FrozenList(
            str(document.get("session", "")),
            str(document.get("invocation", "")),
            ProcessId(int(document["guard"]), int(document.get("guard_started", 0))),
            tuple(items),
            States(fd, len(items)),
            path,
            os.fstat(fd).st_ino,
        )
    except (ValueError, KeyError, TypeError, RecursionError) as e:
        raise FrozenListError(
            f"{path}: found no list of frozen filesystems that can be read ({e}); thaw each mount "
            "point with `fsfreeze --unfreeze`, then remove the file"
        ) from None


def item_of(listed: dict[str, Any]) -> Item:
    """Raises KeyError and TypeError."""
    item = Item(
        listed["mount"],
        listed["st_dev"],
        int(listed["step"]),
        str(listed.get("device", "")),
        str(listed.get("fstype", "")),
        tuple(map(str, listed.get("disks", ()))),
        str(listed.get("subvolume", "")),
    )
    if not (isinstance(item.mount, str) and isinstance(item.st_dev, int)):
        raise TypeError(f"found {item!r}")
    return item


def unanswered(run_dir: Path) -> dict[str, list[Blocker]]:
    """The mount points of filesystems whose FIFREEZE has not returned, and who keeps it from
    that."""
    with contextlib.suppress(OSError, FrozenListError), opened(run_dir) as listed:
        states = zip(listed.items, listed.states.read())
        return {item.mount: blockers(item.st_dev) for item, state in states if state == ASKED}
    return {}


# --- thawing by it -------------------------------------------------------------------------------


def thaw_listed(
    run_dir: Path,
    report: Callable[[str], None],
    remove: bool = True,
    session: str = "",
    end_patience: float = STEP_PATIENCE,
) -> Iterator[bool]:
    """Thaw what the list in the run directory says may be frozen. Yield whether all of it is thawed
    now; if not, since the guard is still inside a freeze after `end_patience` seconds, go on to
    wait for that without limit and yield again.

    When all is thawed, `remove` the list, which is right unless the session it belongs to is still
    alive. As long as anything is left of the guard it stays, since what is not asked for yet may
    be: that guard removes it, or who comes after its death. With `session`, the list of another
    one is left alone. Raises FileNotFoundError and FrozenListError.
    """
    with contextlib.ExitStack() as stack:
        listed = stack.enter_context(opened(run_dir))
        if session not in ("", listed.session):
            yield True
            return
        suspects: list[Suspect] = []
        unreached: dict[int, str] = {}

        def batches() -> Iterator[list[Suspect]]:
            wanted = {index: listed.items[index] for index in listed.states.maybe_frozen()}
            for opened in open_again(wanted, unreached):
                batch = [Suspect(i, wanted[i].step, fd) for i, fd in opened.items()]
                for suspect in batch:
                    stack.callback(os.close, suspect.fd)
                suspects.extend(batch)
                yield batch

        guard = listed.guard.open()
        if guard is not None:
            stack.callback(os.close, guard)
        reported: dict[int, int] = {}
        missing = False
        for results in thaw_for_guard(guard, listed.states, batches(), end_patience):
            while unreached:
                index, reason = unreached.popitem()
                missing = True
                report(f"{listed.items[index].mount}: cannot be reached: {reason}")
            for index, error in results.items():
                if reported.get(index) != error:
                    mount = listed.items[index].mount
                    report(f"{mount}: {meaning(error)}")
                    if error == errno.EINPROGRESS:
                        for blocker in blockers(listed.items[index].st_dev):
                            report(f"{mount}: its writers wait; {blocker}")
            reported = results
            for suspect in suspects:
                if results[suspect.index] == 0 and is_read_only(suspect.fd):
                    report(f"{listed.items[suspect.index].mount}: has become read-only")
            good = not missing and not any(e not in THAWED for e in results.values())
            restore_rcu(listed.states)
            if good and remove and (guard is None or has_ended(guard, 0.0)):
                listed.remove()
            yield good


def meaning(error: int) -> str:
    if error in (errno.EINPROGRESS, errno.ETIMEDOUT):
        return IN_PROGRESS
    if error == errno.EINVAL:
        return "was not frozen"
    return os.strerror(error) if error else "thawed"


def thaw_after_death(
    run_dir: Path,
    report: Callable[[str], None] = lambda _: None,
    session: str = "",
    patience: float = STEP_PATIENCE,
    end_patience: float = STEP_PATIENCE,
) -> Iterator[bool]:
    """For whoever outlived the engine, or comes after it. The guard thaws then, so give it
    `patience` seconds; if the list is still there, thaw in its place, whatever state it is in.
    Yields as thaw_listed does; nothing if there is no list any more. Raises OSError for a shortage,
    after which it is to be done again."""
    try:
        with opened(run_dir) as listed:
            guard = listed.guard
        stops_deciding(guard, patience)
        yield from thaw_listed(run_dir, report, session=session, end_patience=end_patience)
    except FrozenListError:
        return
    except OSError as e:
        if e.errno in SHORTAGE:
            raise


def go_on(thaws: Iterator[object]) -> threading.Thread:
    """Do what is left of a thaw in a thread, for whose end the process has to wait; an engine does
    so by itself. Raises RuntimeError if there are no more threads."""
    thread = threading.Thread(target=collections.deque, args=(thaws, 0))
    thread.start()
    return thread


def rest_is_guards(run_dir: Path) -> bool:
    """Whether nothing that may be frozen is left but what a guard that lives will thaw: its
    FIFREEZE has not returned."""
    try:
        with opened(run_dir) as listed:
            left = set(listed.states.read()) - {NOT_FROZEN}
            return not left or (left == {ASKED} and not stops_deciding(listed.guard, 0.0))
    except FileNotFoundError:
        return True
    except (OSError, FrozenListError):
        return False


def stops_deciding(guard: ProcessId, patience: float) -> bool:
    """Wake the guard should it be stopped, and wait until it has ended or been killed; False if it
    still decides. A kill while it is inside a FIFREEZE ends nothing but its main thread."""
    process = guard.open()
    if process is None:
        return True
    try:
        with contextlib.suppress(ProcessLookupError):
            signal.pidfd_send_signal(process, signal.SIGCONT)
        return not is_guard(guard.pid) or has_ended(process, patience) or not is_guard(guard.pid)
    finally:
        os.close(process)


def is_guard(pid: int) -> bool:
    """Whether this process is a guard that may yet thaw. One that was killed inside a FIFREEZE is
    not, though its process lasts as long as the call: its main thread is dead (proc(5), stat)."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_bytes()
    except (FileNotFoundError, ProcessLookupError):
        return False
    return b" (vmsnap-guard) " in stat and b") Z " not in stat
