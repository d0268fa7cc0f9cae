# SPDX-License-Identifier: Apache-2.0
"""The list of what may be frozen, in the run directory: written before the first FIFREEZE, removed
when nothing in it is frozen any more, and how to thaw by it when engine and guard are gone.

Runs in: engine, supervisor, caller (`vmsnap thaw --force`), forks of them. While frozen: no file
but the list and the mount points in it, no import.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import select
import signal
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from vmsnap.errors import VmsnapError
from vmsnap.freeze.thaw import STEP_PATIENCE, restore_rcu, thaw_all
from vmsnap.system.files import write_atomically

FROZEN_LIST = "frozen.json"


class FrozenListError(VmsnapError):
    """There is a list of what may be frozen, but it cannot be read."""


def write_list(
    run_dir: Path,
    session: str,
    guard: int,
    rcu_expedited: str,
    filesystems: Iterable[tuple[str, int, int]],
) -> None:
    """Before the first FIFREEZE: what may be frozen from then on, for the process that has to thaw
    in the guard's place. `guard` is its pid, `rcu_expedited` what the kernel's switch was before,
    and `filesystems` are mount point, st_dev and step. Raises OSError."""
    listed = {
        "session": session,
        "invocation": os.environ.get("INVOCATION_ID", ""),
        "guard": guard,
        "rcu_expedited": rcu_expedited,
        "filesystems": [
            {"mount": mount, "st_dev": device, "step": step} for mount, device, step in filesystems
        ],
    }
    write_atomically(run_dir / FROZEN_LIST, json.dumps(listed).encode(), 0o600)


def read_list(path: Path) -> dict[str, Any]:
    try:
        listed: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        for item in listed["filesystems"]:
            if not (isinstance(item["mount"], str) and isinstance(item["st_dev"], int)):
                raise TypeError(f"found {item!r}")
            int(item["step"])
        int(listed["guard"]), str(listed["rcu_expedited"])
    except (ValueError, KeyError, TypeError, RecursionError) as e:
        raise FrozenListError(
            f"{path}: found no list of frozen filesystems that can be read ({e}); thaw each mount "
            "point with `fsfreeze --unfreeze`, then remove the file"
        ) from None
    return listed


def thaw_listed(
    run_dir: Path, report: Callable[[str], None], remove: bool = True, session: str = ""
) -> bool:
    """Thaw what the list in the run directory says may be frozen.

    If all of it is thawed, `remove` the list, which is right unless the session it belongs to is
    still alive. With `session`, the list of another one is left alone. False if anything may stay
    frozen. Raises FileNotFoundError and FrozenListError.
    """
    path = run_dir / FROZEN_LIST
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
            report(f"{mount}: {e.strerror}")
            good = False
            continue
        if os.fstat(fd).st_dev == item["st_dev"]:
            opened.append((item["step"], fd, mount))
        else:
            report(f"{mount}: something else is mounted there now; left alone")
            good = False
            os.close(fd)
    for mount, error in thaw_all(opened):
        if error == errno.EINVAL:
            report(f"{mount}: was not frozen")
        elif error == errno.ETIMEDOUT:
            report(f"{mount}: still inside a freeze; it is thawed as soon as that ends")
            good = False
        else:
            report(f"{mount}: {os.strerror(error) if error else 'thawed'}")
            good = good and not error
    for _, fd, _ in opened:
        os.close(fd)
    restore_rcu(listed["rcu_expedited"])
    if good and remove:
        path.unlink(missing_ok=True)
    return good


def thaw_earlier(run_dir: Path, report: Callable[[str], None]) -> str:
    """Thaw what a session that is over has left frozen. Return a message about what may stay so."""
    try:
        if thaw_listed(run_dir, report):
            return ""
    except FileNotFoundError:
        return ""
    except FrozenListError as e:
        return str(e)
    return (
        "what an earlier session had frozen cannot all be thawed; if it is no longer there, remove "
        f"{run_dir / FROZEN_LIST}"
    )


def thaw_after_death(run_dir: Path, patience: float | None = STEP_PATIENCE) -> None:
    """For a process that outlived the engine. The guard thaws then, so wait for its end; only if
    the list is still there after that, thaw in its place. A guard that lives is left alone: it may
    be inside a FIFREEZE, and it knows better than the list what it has frozen. With a `patience` of
    None it is waited for without limit."""
    with contextlib.suppress(OSError, FrozenListError):
        listed = read_list(run_dir / FROZEN_LIST)
        if has_ended(int(listed["guard"]), patience):
            thaw_listed(run_dir, lambda _: None)


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
