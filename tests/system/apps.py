# SPDX-License-Identifier: Apache-2.0
"""Apps inside the container whose scripts say words to the test and wait for it, and sessions.

The FIFOs lie on a tmpfs, so a word can be said while everything is frozen.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from tests.fs.processes import children
from tests.fs.running import Events, Fifo, Outcome

from .container import Container

UNIT = "vmsnap-session.service"
BEGINS = "test-begins.service"
DIRECTORY = Path("/run/vmsnap-test")
UNIT_FAILED = "MESSAGE_ID=d9b373ed55a64feb8242e02dbe79a49c"  # sd-messages.h
PATIENCE = 25.0  # seconds; the rescue comes after 30


class Running:
    """A command of vmsnap that has not ended yet."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self.process = process

    @property
    def below(self) -> list[int]:
        """The machine's numbers of vmsnap (first) and of what it has started."""
        found = [self.process.pid]
        for pid in found:
            found += [child.pid for child in children(pid)]
        return found[1:]

    def finish(self) -> Outcome:
        out, err = self.process.communicate(timeout=PATIENCE)
        return Outcome(self.process.returncode, out.encode(), err)


class Scene:
    """What a test does with vmsnap inside."""

    def __init__(self, container: Container) -> None:
        self.container = container
        shutil.rmtree(container.path(DIRECTORY), ignore_errors=True)
        container.path(DIRECTORY).mkdir(mode=0o700)
        self.events = Events(container.path(DIRECTORY / "events"))
        self.gates: dict[str, Fifo] = {}
        self.writers: list[subprocess.Popen[bytes]] = []  # ended before their filesystems

    def close(self) -> None:
        """End the session in progress, whose scripts may yet say a word, and hear no more."""
        for writer in self.writers:
            writer.kill()
            writer.wait()
        self.container.systemctl("stop", UNIT)
        for fifo in (self.events, *self.gates.values()):
            fifo.close()

    # --- what scripts do ---

    def say(self, words: str) -> str:
        """A shell command that says a line to the test; variables are expanded."""
        return f'echo "{words}" >{DIRECTORY}/events'

    def stop_at(self, gate: str) -> str:
        """A shell command that waits for `open(gate)`."""
        if gate not in self.gates:
            self.gates[gate] = Fifo(self.container.path(DIRECTORY / gate))
        return f"read word <{DIRECTORY}/{gate}"

    def open(self, gate: str) -> None:
        os.write(self.gates[gate].fd, b"\n")

    def app(self, name: str = "db", pre: str = "", post: str = "", **keys: Any) -> None:
        """Configure an app with the shell commands of its two scripts."""
        document: dict[str, object] = {"pluginName": "ScriptRunner", **keys}
        for phase, text in (("pre", pre), ("post", post)):
            if text:
                path = f"/etc/vmsnap/scripts/{name}-{phase}"
                self.container.write(path, f"#!/bin/sh\n{text}\n", 0o700)
                document[f"{phase}ScriptLocation"] = path
        self.container.write(f"/etc/vmsnap/apps.d/{name}.json", json.dumps(document))

    def database(self, pre: str = ":", **keys: Any) -> None:
        """An app that says "quiesced", and "resumed" with what the session came to."""
        post = self.say("resumed $VMSNAP_OUTCOME $VMSNAP_CONSISTENCY")
        self.app(pre=f"{self.say('quiesced')}; {pre}", post=post, **keys)

    # --- vmsnap and its unit ---

    def vmsnap(self, *words: str, timeout: float = PATIENCE) -> Outcome:
        done = self.container.run("vmsnap", *words, timeout=timeout)
        return Outcome(done.returncode, done.stdout.encode(), done.stderr)

    def start(self, *words: str, program: str = "vmsnap") -> Running:
        streams: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        return Running(self.container.popen(program, *words, **streams))

    def freeze(self, *options: str) -> dict[str, Any]:
        """Begin a session; return what is said of it once it holds."""
        outcome = self.vmsnap("freeze", "--json", *options)
        assert outcome.code == 0, outcome.err
        assert outcome.result["outcome"] == "held"
        return outcome.result

    def thaw(self) -> Outcome:
        return self.vmsnap("thaw", "--json")

    def run(self, *options: str) -> Running:
        """Start `vmsnap run`, and return when it holds, until the gate "release" is opened."""
        command = f"{self.say('held')}; {self.stop_at('release')}"
        running = self.start("run", "--json", *options, "--", "/bin/sh", "-c", command)
        self.events.wait("held")
        return running

    @property
    def state(self) -> tuple[str, str]:
        shown = self.container.show(UNIT, "ActiveState", "Result")
        return shown["ActiveState"], shown["Result"]

    @property
    def status_text(self) -> str:
        return self.container.show(UNIT, "StatusText")["StatusText"]

    @property
    def engine(self) -> int:
        """The number that the container has for the unit's main process."""
        return int(self.container.show(UNIT, "MainPID")["MainPID"])

    @property
    def guard(self) -> int:
        """The machine's number of the guard."""
        (guard,) = self.container.pids("vmsnap-guard")
        return guard

    def settings(self, *lines: str) -> None:
        """Change what the unit says in its [Service] section."""
        path = f"/etc/systemd/system/{UNIT}.d/test.conf"
        self.container.write(path, "\n".join(["[Service]", *lines, ""]))
        self.container.systemctl("daemon-reload", check=True)

    def begin_when_stopped(self, unit: str, *options: str) -> None:
        """Let a session begin when somebody stops this unit, who then waits until it holds."""
        command = " ".join(("/usr/bin/vmsnap", "freeze", *options))
        lines = ["[Unit]", f"PartOf={unit}", f"After={unit}", "[Service]", "Type=oneshot"]
        lines += ["RemainAfterExit=yes", "ExecStart=true", f"ExecStop={command}", ""]
        written = self.container.write(f"/run/systemd/system/{BEGINS}", "\n".join(lines))
        self.container.added.callback(written.unlink)
        self.container.systemctl("daemon-reload", check=True)
        self.container.systemctl("start", BEGINS, check=True)

    def wait_for_failure(self) -> None:
        """Wait until systemd says that the unit has failed."""
        self.wait_for_record(f"UNIT={UNIT}", UNIT_FAILED)

    def wait_for_record(self, *matches: str) -> dict[str, Any]:
        """Wait until the journal has a record since the last reset; while `/` is frozen it takes
        none."""
        argv = ["journalctl", "-q", "-f", "--no-tail", "-o", "json", "-a"]
        argv.append(f"--cursor={self.container.cursor}")
        process = self.container.popen(*argv, *matches, stdout=subprocess.PIPE)
        fd, deadline, lines = process.stdout.fileno(), time.monotonic() + PATIENCE, b""
        while select.select([fd], [], [], max(0.0, deadline - time.monotonic()))[0]:
            lines += os.read(fd, 65536)
            for line in lines.split(b"\n")[:-1]:
                record: dict[str, Any] = json.loads(line)
                if record["__CURSOR"] != self.container.cursor:
                    return record
        raise AssertionError(f"no record with {matches} came")


@contextlib.contextmanager
def scene_of(container: Container) -> Iterator[Scene]:
    made = Scene(container)
    try:
        yield made
    finally:
        made.close()


def until(condition: Callable[[], object]) -> None:
    """For what systemd and the kernel show but do not announce."""
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
