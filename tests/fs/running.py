# SPDX-License-Identifier: Apache-2.0
"""A running vmsnap, what it printed, and the words that its scripts and commands say meanwhile."""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import subprocess
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .processes import PATIENCE, children, kernel_stack, wait_for_end


@dataclass(frozen=True)
class Outcome:
    """What a command of vmsnap printed, and its exit code."""

    code: int
    out: bytes
    err: str

    @property
    def result(self) -> dict[str, Any]:
        try:
            document: dict[str, Any] = json.loads(self.out)
        except ValueError:
            raise AssertionError(f"no JSON: {self.out[:2000]!r}\n{self.err[-4000:]}") from None
        return document

    @property
    def errors(self) -> list[str]:
        return [error["name"] for error in self.result["errors"]]

    @property
    def subjects(self) -> list[tuple[str, str]]:
        return [(error["name"], error["subject"]) for error in self.result["errors"]]

    @property
    def verdict(self) -> tuple[str, str, int]:
        """What a caller acts on: outcome, consistency, exit code."""
        return self.result["outcome"], self.result["consistency"], self.code

    def events(self, *names: str) -> list[tuple[str, str]]:
        """(event, subject) of the timeline, in its order."""
        timeline = self.result["timeline"]
        return [(e["event"], e["subject"]) for e in timeline if e["event"] in names]


class Session:
    """A running vmsnap. Its output goes to files, so that nobody has to drain anything."""

    def __init__(
        self, directory: Path, argv: Sequence[str], env: Mapping[str, str], **more: Any
    ) -> None:
        number = len(list(directory.glob("out.*")))
        self.out, self.err = (directory / f"{name}.{number}" for name in ("out", "err"))
        with self.out.open("wb") as out, self.err.open("wb") as err:
            streams = {"stdin": subprocess.DEVNULL, "stdout": out, "stderr": err, **more}
            self.process = subprocess.Popen(
                argv, env=dict(env), cwd="/", start_new_session=True, **streams
            )

    @property
    def pid(self) -> int:
        return self.process.pid

    def below(self, name: str) -> list[int]:
        """The engine's child processes of this name."""
        return [p.pid for p in children(self.pid) if p.name == name]

    @property
    def guards(self) -> list[int]:
        return self.below("vmsnap-guard")

    @property
    def guard(self) -> int:
        (guard,) = self.guards
        return guard

    def kill(self, number: signal.Signals) -> None:
        os.kill(self.pid, number)

    def finish(self, seconds: float = PATIENCE) -> Outcome:
        """Wait for its end. What hangs is killed, so that it does nothing when it is let go of."""
        if not wait_for_end(self.pid, seconds):
            where = kernel_stack(self.pid)
            self.kill(signal.SIGKILL)
            raise AssertionError(f"vmsnap hangs\n{where}\n{self.words}")
        return Outcome(self.process.wait(), self.out.read_bytes(), self.words)

    @property
    def words(self) -> str:
        return self.err.read_bytes().decode("utf-8", "replace")


class Fifo:
    """A FIFO that is open for reading and writing, so that nobody's open() blocks."""

    def __init__(self, path: Path) -> None:
        os.mkfifo(path, 0o600)
        self.path = path
        self.fd = os.open(path, os.O_RDWR | os.O_NONBLOCK)

    def close(self) -> None:
        os.close(self.fd)


class Events(Fifo):
    """The words that scripts, commands and writers have said, in their order."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self._rest = b""
        self._heard: list[str] = []

    @property
    def heard(self) -> list[str]:
        with contextlib.suppress(BlockingIOError):
            while True:
                *lines, self._rest = (self._rest + os.read(self.fd, 65536)).split(b"\n")
                self._heard += [line.decode() for line in lines]
        return self._heard

    def wait(self, word: str, during: Session | None = None, seconds: float = PATIENCE) -> str:
        """Wait for a word, or for a line that begins with it; return the rest of the line."""
        pidfd = os.pidfd_open(during.pid) if during else -1
        deadline = time.monotonic() + seconds
        try:
            while True:
                for line in self.heard:
                    if line.split(" ")[0] == word:
                        return line[len(word) + 1 :]
                fds = [self.fd] if pidfd < 0 else [self.fd, pidfd]
                ready = select.select(fds, [], [], max(0.0, deadline - time.monotonic()))[0]
                words = during.words if during else ""
                assert ready, f"nobody said {word!r}, only {self._heard}\n{words}"
                assert self.fd in ready, f"vmsnap ended before {word!r} was said\n{words}"
        finally:
            if pidfd >= 0:
                os.close(pidfd)
