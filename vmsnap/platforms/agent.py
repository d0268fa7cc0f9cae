# SPDX-License-Identifier: Apache-2.0
"""What vmsnap knows of a guest agent, as a type: each platform's module has one `AGENT` of it. Here
is also what those modules share; what is done with an agent is in hook.py, integrate.py and
diagnose.py."""

from __future__ import annotations

import configparser
import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path

from vmsnap.config.app import App
from vmsnap.errors import Kind, Problem, Severity
from vmsnap.platforms.additions import WRITTEN
from vmsnap.system.files import File

VMSNAP = "/usr/bin/vmsnap"


class Act(Enum):
    """What an event asks for."""

    BEGIN = "begin a session"
    END = "end it: the snapshot has been taken"
    ABANDON = "end it: there is no snapshot"
    TRY = "check whether one could begin"


class HookOutcome(Enum):
    """How a call of `vmsnap hook` ends. AWS Data Lifecycle Manager distinguishes them all."""

    DONE = "done"
    NOT_BEGUN = "no session may be held, or there was no time for it"
    FAILED = "the session has failed"
    EXPIRED = "the session did not hold until the snapshot was taken"
    ANOTHER = "another session is in progress"
    NONE = "there is no session to end"
    NOT_READY = "vmsnap is not in order"


@dataclass(frozen=True)
class Addition:
    """Lines to be added to a configuration file of the agent's."""

    path: Path
    text: str


@dataclass(frozen=True)
class Connection:
    """What connects vmsnap to an agent below some root.

    `programs` and `units`: names that distributions give it, of which one is enough; `package`:
    what brings it. `restart`: it reads its configuration only when it starts. `label`: the SELinux
    type that programs among `files` need, and `boolean` what lets it count. `channel`: without this
    the agent does not start. `host`: how a snapshot is taken from outside.
    """

    programs: tuple[str, ...]
    units: tuple[str, ...]
    package: str
    host: str
    files: tuple[File, ...] = ()
    additions: tuple[Addition, ...] = ()
    restart: bool = False
    label: str = ""
    boolean: str = ""
    channel: str = ""


@dataclass(frozen=True)
class Detection:
    """By what a machine is recognized as one whose snapshots this agent is called for.

    `vendors`: how the firmware's vendor begins. `clouds`: what cloud-init calls the cloud.
    `hypervisors`: what systemd-detect-virt(1) prints. `sign`: something that decides alone, or only
    where otherwise the agent `instead_of` would be the one.
    """

    vendors: tuple[str, ...] = ()
    clouds: tuple[str, ...] = ()
    hypervisors: tuple[str, ...] = ()
    sign: Callable[[Path], bool] = lambda _: False
    instead_of: str = ""


def no_checks(_: Connection, __: Sequence[str], ___: Path) -> Iterator[Problem]:
    yield from ()


def no_overlap(_: Sequence[App], __: bool, ___: Path) -> Iterator[Problem]:
    yield from ()


@dataclass(frozen=True)
class Agent:
    """One guest agent.

    `events`: what it calls `vmsnap hook` with. `freezes`: it freezes and thaws by itself.
    `patience`: seconds that it waits for an answer, None if without limit. `codes`: exit codes of
    outcomes that are not 0 or 1. `writes`: where the agent itself writes before it has passed on
    our answer; the filesystems there are not frozen. `connection`: given a root, what connects us.
    `checks`: what only this agent needs, given its running units and a root. `overlap`: what is
    wrong with apps that the platform runs by itself, given whether the agent is connected.
    """

    name: str
    events: Mapping[str, Act]
    freezes: bool
    connection: Callable[[Path], Connection]
    detection: Detection
    patience: float | None = None
    codes: Mapping[HookOutcome, int] = field(default_factory=dict)
    writes: tuple[str, ...] = ()
    checks: Callable[[Connection, Sequence[str], Path], Iterator[Problem]] = no_checks
    overlap: Callable[[Sequence[App], bool, Path], Iterator[Problem]] = no_overlap

    @property
    def unfrozen(self) -> list[str]:
        """Mount points of the filesystems that are left out for the agent's sake."""
        return sorted({mount_point(Path(path)) for path in self.writes})


def mount_point(path: Path) -> str:
    """Of the filesystem on which this is, or would be."""
    path = path.resolve()
    while not path.is_mount():
        path = path.parent
    return str(path)


# --- what the platforms' modules share -----------------------------------------------------------


def program(agent: str, event: str, why: str) -> bytes:
    """The text of a program that does nothing but call vmsnap."""
    return f"#!/bin/sh\n{WRITTEN}\n# {why}\nexec {VMSNAP} hook {agent} {event}\n".encode()


def text_file(path: Path, lines: str) -> File:
    return File(path, f"{WRITTEN}\n{lines}\n".encode(), 0o644)


def inside(root: Path, path: Path) -> str:
    """The path as it is called on the machine whose root this is."""
    return f"/{path.relative_to(root)}"


def error(path: Path, message: str) -> Problem:
    return Problem(Kind.INCORRECT_INTEGRATION, message, path=str(path))


def warning(path: Path, message: str) -> Problem:
    return Problem(Kind.INCORRECT_INTEGRATION, message, path=str(path), severity=Severity.WARNING)


def ini(text: str) -> configparser.ConfigParser:
    """Keys in small letters, and section names too. What can't be read is left out."""
    parser = configparser.ConfigParser(strict=False, interpolation=None, allow_no_value=True)
    with contextlib.suppress(configparser.Error):
        lines = (line.lower() if line.startswith("[") else line for line in text.splitlines())
        parser.read_string("\n".join(("[ ]", *lines)))  # keys may come before any section
    return parser
