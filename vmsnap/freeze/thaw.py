# SPDX-License-Identifier: Apache-2.0
"""Thawing without the guard: many filesystems at once, and what a list left behind says is
frozen."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import select
import signal
import threading
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, TypeVar

FITHAW = 0xC0045878  # linux/fs.h: _IOWR('X', 120, int)
RCU_EXPEDITED = Path("/sys/kernel/rcu_expedited")
STEP_PATIENCE = 5.0  # seconds for one step of a thaw; as in the guard
FROZEN_LIST = "frozen.json"

What = TypeVar("What")


class Call:
    """One FITHAW in a thread of its own, which may never return. `error` is None until it does."""

    def __init__(self, fd: int) -> None:
        self.fd = fd
        self.error: int | None = None
        self._thread = threading.Thread(target=self._thaw, daemon=True)

    def start(self) -> None:
        try:
            self._thread.start()
        except RuntimeError:  # no more threads or memory, which is when things get killed
            self._thaw()

    def wait(self, deadline: float) -> None:
        if self.error is None:
            self._thread.join(max(0.0, deadline - time.monotonic()))

    def _thaw(self) -> None:
        try:
            fcntl.ioctl(self.fd, FITHAW, 0)
            self.error = 0
        except OSError as e:
            self.error = e.errno or errno.EIO


def thaw_all(filesystems: Iterable[tuple[int, int, What]]) -> list[tuple[What, int]]:
    """Thaw (step, descriptor, what), carriers first, each step at once. Return (what, errno)."""
    calls = [(step, Call(fd), what) for step, fd, what in filesystems]
    for current in sorted({step for step, _, _ in calls}, reverse=True):
        deadline = time.monotonic() + STEP_PATIENCE
        of_step = [call for step, call, _ in calls if step == current]
        for call in of_step:
            call.start()
        for call in of_step:
            call.wait(deadline)
    return [(what, errno.ETIMEDOUT if c.error is None else c.error) for _, c, what in calls]


def restore_rcu(before: str) -> None:
    """Undo what a guard that was killed while freezing could not undo (guard.py, expedited_rcu)."""
    with contextlib.suppress(OSError):
        if before == "0":
            RCU_EXPEDITED.write_text("0")


def rcu_expedited() -> str:
    """ "0" or "1"; "" if this kernel has no such switch."""
    with contextlib.suppress(OSError):
        return RCU_EXPEDITED.read_text().strip()
    return ""


class ListUnreadable(Exception):
    """There is a list of what may be frozen, but nobody can read it."""


def read_list(path: Path) -> dict[str, Any]:
    try:
        listed: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        for item in listed["filesystems"]:
            if not (isinstance(item["mount"], str) and isinstance(item["st_dev"], int)):
                raise TypeError(f"found {item!r}")
            int(item["step"])
        int(listed["guard"]), str(listed["rcu_expedited"])
    except (ValueError, KeyError, TypeError, RecursionError) as e:
        raise ListUnreadable(
            f"{path}: found no list of frozen filesystems that can be read ({e}); thaw each mount "
            "point with `fsfreeze --unfreeze`, then remove the file"
        ) from None
    return listed


def thaw_listed(
    run: Path, tell: Callable[[str], None], forget: bool = True, session: str = ""
) -> bool:
    """Thaw what the list in the run directory says may be frozen.

    If all of it is thawed, `forget` the list, which is right unless the session it belongs to is
    still alive. With `session`, the list of another one is left alone. False if anything may stay
    frozen. Raises FileNotFoundError and ListUnreadable.
    """
    path = run / FROZEN_LIST
    good = True
    opened: list[tuple[int, int, str]] = []
    listed = read_list(path)
    if session not in ("", listed.get("session")):
        return True
    for item in listed["filesystems"]:
        mount = item["mount"]
        try:
            fd = os.open(mount, os.O_RDONLY | os.O_NONBLOCK)
        except OSError as e:
            tell(f"{mount}: {e.strerror}")
            good = False
            continue
        if os.fstat(fd).st_dev == item["st_dev"]:
            opened.append((item["step"], fd, mount))
        else:
            tell(f"{mount}: something else is mounted there now; left alone")
            good = False
            os.close(fd)
    for mount, error in thaw_all(opened):
        if error == errno.EINVAL:
            tell(f"{mount}: was not frozen")
        elif error == errno.ETIMEDOUT:
            tell(f"{mount}: still inside a freeze; it is thawed as soon as that ends")
            good = False
        else:
            tell(f"{mount}: {os.strerror(error) if error else 'thawed'}")
            good = good and not error
    for _, fd, _ in opened:
        os.close(fd)
    restore_rcu(listed["rcu_expedited"])
    if good and forget:
        path.unlink(missing_ok=True)
    return good


def thaw_earlier(run: Path, tell: Callable[[str], None]) -> str:
    """Thaw what a session that is over has left frozen. Return in words what may stay so."""
    try:
        if thaw_listed(run, tell):
            return ""
    except FileNotFoundError:
        return ""
    except ListUnreadable as e:
        return str(e)
    return (
        "what an earlier session had frozen cannot all be thawed; if it is no longer there, remove "
        f"{run / FROZEN_LIST}"
    )


def thaw_after_death(run: Path, patience: float | None = STEP_PATIENCE) -> None:
    """For a process that outlived the engine. The guard thaws then, so wait for its end; only if
    the list is still there after that, thaw in its place. A guard that lives is left alone: it may
    be inside a FIFREEZE, and it knows better than the list what it has frozen. With a `patience` of
    None it is waited for without limit."""
    with contextlib.suppress(OSError, ListUnreadable):
        listed = read_list(run / FROZEN_LIST)
        if has_ended(int(listed["guard"]), patience):
            thaw_listed(run, lambda _: None)


def has_ended(guard: int, patience: float | None) -> bool:
    """Wake the guard should it be stopped, and give it time to end. Nothing but its state tells
    that it was killed while it is inside a FIFREEZE, so that is looked at now and then."""
    try:
        process = os.pidfd_open(guard)
    except ProcessLookupError:
        return True
    try:
        if not decides(guard):
            return True
        os.kill(guard, signal.SIGCONT)
        while True:
            wait = STEP_PATIENCE if patience is None else patience
            if select.select([process], [], [], wait)[0] or not decides(guard):
                return True
            if patience is not None:
                return False
    except ProcessLookupError:
        return True
    finally:
        os.close(process)


def decides(guard: int) -> bool:
    """Whether this process is a guard that may yet thaw. One that was killed inside a FIFREEZE is
    not, though its process lasts as long as the call: its main thread is dead (proc(5), stat)."""
    try:
        stat = Path(f"/proc/{guard}/stat").read_bytes()
    except (FileNotFoundError, ProcessLookupError):
        return False
    return b" (vmsnap-guard) " in stat and b") Z " not in stat
