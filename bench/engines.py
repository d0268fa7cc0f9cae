# SPDX-License-Identifier: Apache-2.0
"""The engines that are compared. Each does the same: freeze all, run `true`, thaw all.

`Nothing` does nothing for a second: what writes take without any freeze.
"""

from __future__ import annotations

import contextlib
import json
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

PATIENCE_S = 120.0
VMSNAP = Path(sys.executable).with_name("vmsnap")


class EngineError(Exception):
    """An engine did not do what it was asked for."""


@dataclass(frozen=True)
class Session:
    """`begin` and `end` on CLOCK_MONOTONIC; `freeze` in seconds, until all were frozen."""

    begin: float
    end: float
    freeze: float


class Engine(Protocol):
    name: str

    def session(self, mounts: tuple[Path, ...]) -> Session: ...


class Nothing:
    name = "no freeze"

    def session(self, mounts: tuple[Path, ...]) -> Session:
        begin = time.monotonic()
        time.sleep(1.0)  # this is what is measured
        return Session(begin, time.monotonic(), 0.0)


class Vmsnap:
    """A whole `vmsnap run`, from the start of its process to the end of it."""

    name = "vmsnap"

    def __init__(self, home: Path, run: Path) -> None:
        self.home, self.run = home, run
        for directory in (self.etc, self.state):
            directory.mkdir(mode=0o700)

    @property
    def etc(self) -> Path:
        return self.home / "etc"

    @property
    def state(self) -> Path:
        return self.home / "state"

    def command(self, verb: str, *options: str, only: tuple[Path, ...] = ()) -> list[str]:
        directories = ["--etc", str(self.etc), "--run", str(self.run), "--state", str(self.state)]
        selection = [word for mount in only for word in ("--only", str(mount))]
        return [str(VMSNAP), verb, *directories, *selection, *options]

    def result(self, mounts: tuple[Path, ...]) -> dict[str, Any]:
        """The JSON of a session around `true`."""
        command = self.command("run", "--json", "--", "true", only=mounts)
        result: dict[str, Any] = json.loads(said(command))
        return result

    def session(self, mounts: tuple[Path, ...]) -> Session:
        begin = time.monotonic()
        result = self.result(mounts)
        end = time.monotonic()
        frozen = [f for f in result["filesystems"] if f["freeze_ms"] is not None]
        if len(frozen) != len(mounts):
            raise EngineError(f"vmsnap froze {len(frozen)} of {len(mounts)} filesystems")
        events = result["timeline"]
        first = min(event["at"] for event in events if event["event"] == "freezing")
        held = next(event["at"] for event in events if event["event"] == "held")
        return Session(begin, end, held - first)


class QemuGuestAgent:
    """The agent runs and is connected to beforehand, as in a virtual machine."""

    name = "qemu-ga"

    def __init__(self, connection: socket.socket) -> None:
        self.connection = connection
        self.answers = connection.makefile("rb")

    def session(self, mounts: tuple[Path, ...]) -> Session:
        begin = time.monotonic()
        self.ask("guest-fsfreeze-freeze-list", len(mounts), mountpoints=[str(m) for m in mounts])
        frozen = time.monotonic()
        said(["true"])
        self.ask("guest-fsfreeze-thaw", len(mounts))
        return Session(begin, time.monotonic(), frozen - begin)

    def ask(self, command: str, expected: int, **arguments: object) -> None:
        request = json.dumps({"execute": command, "arguments": arguments})
        self.connection.sendall(request.encode() + b"\n")
        answer = json.loads(self.answers.readline())
        if answer.get("return") != expected:
            raise EngineError(f"qemu-ga answered {command} with {answer}, expected {expected}")


@contextlib.contextmanager
def qemu_guest_agent(directory: Path) -> Iterator[QemuGuestAgent]:
    """`directory` is on a tmpfs: for its socket and its state."""
    path = directory / "qemu-ga.sock"
    process = subprocess.Popen(
        ["qemu-ga", "-m", "unix-listen", "-p", str(path), "-t", str(directory)],
        stdin=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,  # a Ctrl-C is the bench's to handle
    )
    try:
        with socket.socket(socket.AF_UNIX) as connection:
            connection.settimeout(PATIENCE_S)
            connect(connection, path, process)
            yield QemuGuestAgent(connection)
    finally:
        process.terminate()
        process.wait(PATIENCE_S)


def connect(connection: socket.socket, path: Path, process: subprocess.Popen[bytes]) -> None:
    """It does not say when it listens, so its socket is tried until it answers."""
    deadline = time.monotonic() + PATIENCE_S
    while True:
        try:
            connection.connect(str(path))
            return
        except (FileNotFoundError, ConnectionRefusedError):
            if process.poll() is not None or time.monotonic() > deadline:
                raise EngineError("qemu-ga did not start") from None
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(0.01)


class Fsfreeze:
    """util-linux, one filesystem after the other."""

    name = "fsfreeze"

    def session(self, mounts: tuple[Path, ...]) -> Session:
        begin = time.monotonic()
        for mount in mounts:
            said(["fsfreeze", "-f", str(mount)])
        frozen = time.monotonic()
        said(["true"])
        for mount in mounts:
            said(["fsfreeze", "-u", str(mount)])
        return Session(begin, time.monotonic(), frozen - begin)


def said(command: list[str]) -> str:
    """What the command says on stdout. EngineError if it fails."""
    done = subprocess.run(
        command,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        errors="replace",
        timeout=PATIENCE_S,
        check=False,
    )
    if done.returncode != 0:
        words = (done.stderr or done.stdout).strip()[:1500]
        raise EngineError(f"{Path(command[0]).name} ended with {done.returncode}: {words}")
    return done.stdout
