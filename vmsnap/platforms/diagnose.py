# SPDX-License-Identifier: Apache-2.0
"""Whether what `vmsnap integrate` has connected is still so: the agent is installed and runs, what
was written for it is in place, and nothing else keeps it from calling us."""

from __future__ import annotations

import contextlib
import os
import stat
from collections.abc import Collection, Iterator
from dataclasses import replace
from pathlib import Path

from vmsnap.config.checks import Inspection
from vmsnap.errors import Problem
from vmsnap.platforms.additions import has_addition, ours, text_of
from vmsnap.platforms.agent import VMSNAP, Agent, Connection, error, warning
from vmsnap.platforms.agent_service import is_running, outdated
from vmsnap.platforms.integrate import RECORD, ROOT, readable, unfinished
from vmsnap.platforms.registry import agents
from vmsnap.system.files import File, is_there
from vmsnap.system.trusted import InsecurePathError, UnreadableFileError, open_trusted


def inspect(
    found: Inspection,
    state: Path,
    root: Path = ROOT,
    running: bool = True,
    only: Collection[str] | None = None,
) -> None:
    """Note what is wrong, with `only` these agents if any. `running`: they should be."""
    connections = readable(state)
    if connections is None:
        connections = {}
        message = "found a record that cannot be read; run `vmsnap integrate`"
        found.problems.append(error(state / RECORD, f"{state / RECORD}: {message}"))
    for name, agent in agents().items():
        if only is None or name in only:
            if name in connections:
                for problem in problems_of(agent, root, running):
                    found.problems.append(replace(problem, message=f"{name}: {problem.message}"))
            found.problems += agent.overlap(found.apps, name in connections, root)


def problems_of(agent: Agent, root: Path, should_run: bool) -> Iterator[Problem]:
    connection = agent.connection(root)
    for file in connection.files:
        yield from of_file(file)
    for path in (*(f.path for f in connection.files), *(a.path for a in connection.additions)):
        with contextlib.suppress(OSError, UnreadableFileError):
            try:
                os.close(open_trusted(path, 0o022))
            except InsecurePathError as e:
                yield error(path, str(e))
    for path in unfinished(connection):
        yield error(path, f"{path}: found a half-written file; run `vmsnap integrate`")
    for addition in connection.additions:
        if not has_addition(addition.path):
            yield error(addition.path, f"{addition.path}: found nothing of vmsnap's in it")
    if connection.label and text_of(root / "sys/fs/selinux/enforce").strip() == "1":
        yield from of_selinux(connection, root)
    if not any((root / program).exists() for program in connection.programs):
        program = root / connection.programs[0]
        yield error(program, f"the agent is not installed; install {connection.package}")
        return
    if connection.channel and not (root / connection.channel).exists():
        message = f"/{connection.channel} is missing: the host gives this machine no channel to it"
        yield warning(root / connection.channel, message)
        return
    running = [unit for unit in connection.units if should_run and is_running(unit)]
    for unit in running:
        if outdated(connection, unit):
            yield error(root, f"{unit} has not read its settings; run `systemctl restart {unit}`")
    yield from agent.checks(connection, running, root)
    if should_run and not running:
        yield error(
            root,
            f"{connection.units[0]} is not running, so vmsnap is not called; see "
            f"`systemctl status {connection.units[0]}`",
        )


def of_file(file: File) -> Iterator[Problem]:
    path = file.path
    try:
        status = path.lstat()
    except OSError as e:
        yield error(path, f"{path}: {e.strerror}; run `vmsnap integrate`")
        return
    mode = stat.S_IMODE(status.st_mode)
    lines = text_of(path).splitlines()
    calls = any(f"{VMSNAP} hook" in line and not line.startswith("#") for line in lines)
    if not stat.S_ISREG(status.st_mode) or not ours(path) or (file.mode & 0o100 and not calls):
        yield error(path, f"{path}: found a file that was not written by vmsnap")
    elif status.st_uid != 0 or mode & ~file.mode or file.mode & ~mode & 0o100:
        yield error(
            path,
            f"{path}: found owner uid {status.st_uid} and mode {mode:04o}, "
            f"expected root and {file.mode:04o}",
        )
    elif not is_there(file):
        message = "it is not what vmsnap would write now; run `vmsnap integrate`"
        yield warning(path, f"{path}: {message}")


def of_selinux(connection: Connection, root: Path) -> Iterator[Problem]:
    for path in (file.path for file in connection.files if file.mode & 0o100):
        with contextlib.suppress(OSError):
            label = os.getxattr(path, "security.selinux").decode(errors="replace").strip("\0")
            if connection.label not in label.split(":"):
                message = f"found the SELinux label {label}, expected the type {connection.label}"
                yield error(path, f"{path}: {message}; run restorecon {path}")
    boolean = root / "sys/fs/selinux/booleans" / connection.boolean
    if text_of(boolean).startswith("0"):  # "0 0": what is, and what is pending
        yield error(
            boolean,
            f"SELinux does not let the agent's hooks do anything; run "
            f"`setsebool -P {connection.boolean} on`",
        )
