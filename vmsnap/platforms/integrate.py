# SPDX-License-Identifier: Apache-2.0
"""Connecting vmsnap to the agent of a platform, and undoing that exactly.

What has been connected is kept in /var/lib/vmsnap/integration.json: so `vmsnap check` finds what
was removed since (diagnose.py), and a removal knows what was not there before. What there is to
write for which agent is in the module of its platform.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import stat
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from vmsnap.errors import CommandError
from vmsnap.platforms import detect
from vmsnap.platforms.additions import has_addition, ours, with_addition, without
from vmsnap.platforms.agent import Connection
from vmsnap.platforms.agent_service import relabel, restart
from vmsnap.platforms.registry import agents
from vmsnap.session.lock import prepare_state
from vmsnap.system.bounded import bounded
from vmsnap.system.files import (
    File,
    is_there,
    make_directories,
    sync,
    write,
    write_atomically,
)
from vmsnap.system.trusted import (
    InsecurePathError,
    UnreadableFileError,
    open_trusted,
    read_anybodys_text,
)

RECORD = "integration.json"
PATHS = ("files", "additions", "created", "directories")  # of Connected, in its order
ROOT = Path("/")


class IntegrationError(CommandError):
    """A file is in the way of one of ours, or cannot be added to."""


@dataclass(frozen=True)
class Connected:
    """What there is for one agent: paths of the files that are ours, of those that have an
    addition, and, of what was not there before, the latter and the directories, the innermost
    last."""

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
    """Raises IntegrationError if none is known."""
    found = detect.agent()
    if not found:
        hardware = (
            detect.hypervisor() or f"a machine that systemd calls {detect.virtualization()!r}"
        )
        raise IntegrationError(
            f"found no agent that vmsnap knows on {hardware}; name the one that is to call it, as "
            "in `vmsnap integrate qemu`. Without one, there are `vmsnap run` and `vmsnap freeze`"
        )
    return found


def connect(
    agent: str, state: Path, *, dry_run: bool = False, wait: bool = True, root: Path = ROOT
) -> Changes:
    """Write what the agent needs to call us, unless it is there, and have it read that; `wait`
    until it has started again. Raises IntegrationError, and OSError with nothing written."""
    connection = agents()[agent].connection(root)
    wanted = [*(free(file) for file in connection.files), *added(connection)]
    missing = [file for file in wanted if not is_there(file)]
    written = tuple(str(file.path) for file in missing)
    unchanged = tuple(str(file.path) for file in wanted if file not in missing)
    if dry_run:
        return Changes(written, unchanged)
    remove_unfinished(connection)
    before = recorded(state)
    mine = connected(connection)
    known = before.get(agent, mine)
    if (known.files, known.additions) != (mine.files, mine.additions):
        # The distribution's way has changed: its package was installed since, or exchanged.
        disconnect(agent, state, wait=wait, root=root)
        return connect(agent, state, wait=wait, root=root)
    keep({**before, agent: known}, state)  # first, to be undone from any moment
    made: list[Path] = []
    try:
        for file in missing:
            made += make_directories(file.path.parent, 0o755)
        write(missing)
    except BaseException:
        for directory in reversed(made):
            with contextlib.suppress(OSError):  # there is something else in it now
                directory.rmdir()
        keep(before, state)
        raise
    relabel(connection)
    restarted = restart(connection, wait, bool(missing), start=True) if root == ROOT else ""
    return Changes(written, unchanged, restarted=restarted)


def disconnect(
    agent: str, state: Path, *, dry_run: bool = False, wait: bool = True, root: Path = ROOT
) -> Changes:
    """Take back what `connect` has written; what stands in its place by now is left alone.
    The agent forgets its hook before that is gone: one that it cannot find is a failure."""
    connection = agents()[agent].connection(root)
    before = recorded(state)
    mine = before.get(agent) or connected(connection)
    there = [Path(path) for path in mine.files if os.path.lexists(path)]
    removed = [path for path in there if ours(path)]
    restored = []
    for path in map(Path, mine.additions):
        text = content(path)
        rest = without(text)
        if rest == "" and str(path) in mine.created and path.exists():
            removed.append(path)
        elif rest != text:
            restored.append(as_it_is(path, rest))
    changes = Changes(
        written=tuple(str(file.path) for file in restored),
        removed=tuple(map(str, removed)),
        left=tuple(str(path) for path in there if path not in removed),
    )
    if dry_run:
        return changes
    remove_unfinished(connection)
    programs = [path for path in removed if os.access(path, os.X_OK)]
    write(restored)
    unlink(path for path in removed if path not in programs)
    changed = bool(restored or removed)
    restarted = restart(connection, wait, changed) if root == ROOT else ""
    unlink(programs)
    for name in reversed(mine.directories):
        with contextlib.suppress(OSError):  # there is something else in it now
            Path(name).rmdir()
    keep({name: other for name, other in before.items() if name != agent}, state)
    return replace(changes, restarted=restarted)


def traces(state: Path, root: Path = ROOT) -> list[str]:
    """The agents of which there is anything to disconnect, be it without a record."""
    known = recorded(state)
    return [agent for agent in agents() if agent in known or any_of_ours(agent, root)]


def any_of_ours(agent: str, root: Path) -> bool:
    connection = agents()[agent].connection(root)
    return any(ours(file.path) for file in connection.files) or any(
        has_addition(addition.path) for addition in connection.additions
    )


# --- files ---------------------------------------------------------------------------------------


def free(file: File) -> File:
    """The same, unless something that is not ours is in its place."""
    if file.path.suffix == ".json" and os.path.lexists(file.path) and not ours(file.path):
        raise IntegrationError(
            f"{file.path}: found an app's file, expected none. Let vmsnap have the app: move it to "
            "/etc/vmsnap/apps.d/azure.json"
        )
    if os.path.lexists(file.path) and not ours(file.path):
        raise IntegrationError(
            f"{file.path}: found a file that vmsnap has not written, expected none. If it quiesces "
            "an application, give it to vmsnap as a pre-script (`vmsnap init`), and move it away"
        )
    return file


def added(connection: Connection) -> Iterator[File]:
    for addition in connection.additions:
        path = Path(os.path.realpath(addition.path))
        yield as_it_is(path, with_addition(content(path), addition.text))


def as_it_is(path: Path, text: str) -> File:
    """The file with another text, and otherwise unchanged."""
    data = text.encode("utf-8", "surrogateescape")
    if not path.exists():
        return File(path, data, 0o644)
    status = path.stat()
    return File(path, data, stat.S_IMODE(status.st_mode), status.st_gid)


def unfinished(connection: Connection) -> Iterator[Path]:
    """What a killed process was about to write; some agents run whatever is there."""
    paths = [*(file.path for file in connection.files), *(a.path for a in connection.additions)]
    for path in paths:
        with contextlib.suppress(OSError):
            names = re.compile(rf"\.{re.escape(path.name)}\.[0-9a-f]{{8}}")
            yield from (other for other in path.parent.iterdir() if names.fullmatch(other.name))


def remove_unfinished(connection: Connection) -> None:
    unlink(unfinished(connection))


def unlink(paths: Iterable[Path]) -> None:
    for path in paths:
        path.unlink()
        sync(path.parent)


def content(path: Path) -> str:
    """Of a configuration file, "" if there is none. Raises IntegrationError if others can change
    it."""
    if not os.path.lexists(path):
        return ""
    try:
        with open(open_trusted(path, 0o022), "rb") as file:
            return file.read().decode("utf-8", "surrogateescape")
    except (InsecurePathError, UnreadableFileError) as e:
        raise IntegrationError(str(e)) from None


# --- record --------------------------------------------------------------------------------------


def connected(connection: Connection) -> Connected:
    """What there will be, and what of it is not there yet."""
    files = [file.path for file in connection.files]
    additions = [Path(os.path.realpath(addition.path)) for addition in connection.additions]
    parents = {parent for path in files + additions for parent in path.parents}
    return Connected(
        tuple(map(str, files)),
        tuple(map(str, additions)),
        created=tuple(str(path) for path in additions if not path.exists()),
        directories=tuple(str(parent) for parent in sorted(parents) if not parent.exists()),
    )


def recorded(state: Path) -> dict[str, Connected]:
    """By agent; empty if the record cannot be read."""
    return readable(state) or {}


def readable(state: Path) -> dict[str, Connected] | None:
    """None if there is a record that cannot be read."""
    try:
        found = json.loads(bounded(lambda: read_anybodys_text(state / RECORD)))
        return {
            agent: Connected(*(tuple(map(str, paths[key])) for key in PATHS))
            for agent, paths in found["agents"].items()
            if agent in agents()
        }
    except (FileNotFoundError, NotADirectoryError):
        return {}
    except (InsecurePathError, UnreadableFileError):
        return None
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None


def keep(connections: dict[str, Connected], state: Path) -> None:
    prepare_state(state)
    if not connections:
        (state / RECORD).unlink(missing_ok=True)
        return
    agents = {name: {key: getattr(one, key) for key in PATHS} for name, one in connections.items()}
    text = json.dumps({"version": 1, "agents": agents}, indent=2) + "\n"
    write_atomically(state / RECORD, text.encode(), 0o600)
