# SPDX-License-Identifier: Apache-2.0
"""Connecting vmsnap to the agent of a platform, and undoing that exactly.

What has been connected is kept in /var/lib/vmsnap/integration.json: so `vmsnap check` misses what
somebody has removed (soundness.py), and a removal knows what was not there before. What there is to
write for which agent is in connection.py.
"""

from __future__ import annotations

import contextlib
import json
import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from vmsnap import host
from vmsnap.connection import CONNECTIONS, Connection, ours, with_addition, without
from vmsnap.errors import Impossible
from vmsnap.files import File, is_there, make_private, sync, write, write_atomically
from vmsnap.process import output_of
from vmsnap.trusted import Unreadable, Untrusted, open_trusted

RECORD = "integration.json"
PATHS = ("files", "additions", "created", "directories")  # of Connected, in its order
ROOT = Path("/")


class NotPossible(Impossible):
    """A file is in the way of one of ours, or cannot be added to."""


@dataclass(frozen=True)
class Connected:
    """What there is for one agent: paths of the files that are ours, of those that have an
    addition, and, of what was not there before, the latter and the directories, the innermost
    last."""

    agent: str
    files: tuple[str, ...]
    additions: tuple[str, ...]
    created: tuple[str, ...] = ()
    directories: tuple[str, ...] = ()


@dataclass(frozen=True)
class Changes:
    """What was done, or would be: paths, and the unit that has started anew. `left`: files that
    are not ours any more."""

    written: tuple[str, ...] = ()
    unchanged: tuple[str, ...] = ()
    removed: tuple[str, ...] = ()
    left: tuple[str, ...] = ()
    restarted: str = ""


def this_platforms_agent() -> str:
    """Raises NotPossible if nobody knows one."""
    found = host.agent()
    if not found:
        hardware = host.hypervisor() or host.virtualization() or "unknown hardware"
        raise NotPossible(
            f"found no agent that vmsnap knows on {hardware}; name the one that is to call it, as "
            "in `vmsnap integrate qemu`. Without one, there are `vmsnap run` and `vmsnap freeze`"
        )
    return found


def connect(
    agent: str, state: Path, *, dry_run: bool = False, wait: bool = True, root: Path = ROOT
) -> Changes:
    """Write what the agent needs to call us, unless it is there, and have it read that; `wait`
    until it has started again. Raises NotPossible, and OSError with nothing written."""
    connection = CONNECTIONS[agent](root)
    wanted = [*(free(file) for file in connection.files), *added(connection)]
    missing = [file for file in wanted if not is_there(file)]
    written = tuple(str(file.path) for file in missing)
    unchanged = tuple(str(file.path) for file in wanted if file not in missing)
    if dry_run:
        return Changes(written, unchanged)
    before = recorded(state)
    mine = connected(agent, connection, before.get(agent))
    keep({**before, agent: mine}, state)  # first, so that what is half-done can be undone
    try:
        write(missing)
    except BaseException:
        keep(before, state)
        raise
    relabel(connection)
    restarted = restart(connection, wait, root) if missing else ""
    return Changes(written, unchanged, restarted=restarted)


def disconnect(
    agent: str, state: Path, *, dry_run: bool = False, wait: bool = True, root: Path = ROOT
) -> Changes:
    """Take back what `connect` has written; what somebody has put in its place is left alone."""
    connection = CONNECTIONS[agent](root)
    before = recorded(state)
    mine = before.get(agent) or connected(agent, connection, None)
    there = [Path(path) for path in mine.files if os.path.lexists(path)]
    removed = [path for path in there if ours(path)]
    restored = []
    for path in (Path(os.path.realpath(name)) for name in mine.additions):
        text = content(path)
        rest = without(text)
        if rest == "" and str(path) in mine.created:
            removed += [path] if path.exists() else []
        elif rest != text:
            restored.append(File(path, encoded(rest), permissions(path)))
    changes = Changes(
        written=tuple(str(file.path) for file in restored),
        removed=tuple(map(str, removed)),
        left=tuple(str(path) for path in there if path not in removed),
    )
    if dry_run:
        return changes
    write(restored)
    for path in removed:
        path.unlink()
        sync(path.parent)
    for name in reversed(mine.directories):
        with contextlib.suppress(OSError):  # there is something else in it now
            Path(name).rmdir()
    keep({name: other for name, other in before.items() if name != agent}, state)
    restarted = restart(connection, wait, root) if restored or removed else ""
    return replace(changes, restarted=restarted)


# --- files ---


def free(file: File) -> File:
    """The same, unless something that is not ours is in its place."""
    if os.path.lexists(file.path) and not ours(file.path):
        raise NotPossible(
            f"{file.path}: found a file that vmsnap has not written, expected none. If it quiesces "
            "an application, give it to vmsnap as a pre-script (`vmsnap init`), and move it away"
        )
    return file


def added(connection: Connection) -> Iterator[File]:
    for addition in connection.additions:
        path = Path(os.path.realpath(addition.path))
        yield File(path, encoded(with_addition(content(path), addition.text)), permissions(path))


def content(path: Path) -> str:
    """Of a configuration file, "" if there is none. Raises NotPossible if others can change it."""
    if not os.path.lexists(path):
        return ""
    try:
        with open(open_trusted(path, 0o022), "rb") as file:
            return file.read().decode("utf-8", "surrogateescape")
    except (Untrusted, Unreadable) as e:
        raise NotPossible(str(e)) from None


def encoded(text: str) -> bytes:
    return text.encode("utf-8", "surrogateescape")


def permissions(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode) if path.exists() else 0o644


# --- record ---


def connected(agent: str, connection: Connection, before: Connected | None) -> Connected:
    """What will be there, and was not when the agent was first connected."""
    files = [file.path for file in connection.files]
    additions = [addition.path for addition in connection.additions]
    missing = [str(path) for path in additions if not path.exists()]
    parents = {parent for path in files + additions for parent in path.parents}
    directories = [str(parent) for parent in sorted(parents) if not parent.exists()]
    return Connected(
        agent,
        tuple(map(str, files)),
        tuple(map(str, additions)),
        before.created if before else tuple(missing),
        before.directories if before else tuple(directories),
    )


def recorded(state: Path) -> dict[str, Connected]:
    """By agent. None if nobody can read what was written."""
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
        found = json.loads((state / RECORD).read_text(encoding="utf-8"))
        return {
            agent: Connected(agent, *(tuple(map(str, told[key])) for key in PATHS))
            for agent, told in found["agents"].items()
            if agent in CONNECTIONS
        }
    return {}


def keep(connections: dict[str, Connected], state: Path) -> None:
    make_private(state)
    if not connections:
        (state / RECORD).unlink(missing_ok=True)
        return
    agents = {name: {key: getattr(one, key) for key in PATHS} for name, one in connections.items()}
    text = json.dumps({"version": 1, "agents": agents}, indent=2) + "\n"
    write_atomically(state / RECORD, text.encode(), 0o600)


# --- agents ---


def relabel(connection: Connection) -> None:
    """As the policy has it; a label that stays wrong is told by the check."""
    if connection.label and Path("/sys/fs/selinux/enforce").exists():
        with contextlib.suppress(OSError):
            output_of(["restorecon", "-F", *(str(file.path) for file in connection.files)])


def restart(connection: Connection, wait: bool, root: Path) -> str:
    """Have the agent read its configuration; return the unit that was restarted, if any. One that
    was installed after the boot may not run although it could (Debian's qemu-guest-agent)."""
    booted = Path("/run/systemd/system").exists() and root == ROOT  # sd_booted(3)
    if not connection.restart or not booted:
        return ""
    output_of(["systemctl", "daemon-reload"])
    startable = connection.channel and (root / connection.channel).exists()
    for unit in connection.units:
        if startable or output_of(["systemctl", "is-active", "--quiet", unit])[0] == 0:
            code, _, _ = output_of(
                ["systemctl", "restart", *([] if wait else ["--no-block"]), unit]
            )
            return unit if code == 0 else ""
    return ""
