# SPDX-License-Identifier: Apache-2.0
"""A machine with the agents of platforms on it: it pretends to be of one, and runs its agent.

The agents are Debian's. Where one needs a hypervisor to run at all, something else runs as its
unit, and a test calls the hooks as its source does.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import socket
import stat
from collections.abc import Iterator
from pathlib import Path

from tests.fs.lab import call
from tests.fs.running import Outcome

from .apps import Scene, until
from .container import Container
from .image import AGENTS

SOCKET, CHANNEL = "/run/qga.sock", "/dev/virtio-ports/org.qemu.guest_agent.0"
QEMU_UNIT = "qemu-guest-agent.service"
# Without BindsTo= of the channel, which no drop-in takes back, and with a socket for it.
QEMU_GA = f"/usr/sbin/qemu-ga -m unix-listen -p {SOCKET} -t /run"
STRICT = "[snapshot]\nrequire = application\n"
# What an agent may find changed, besides what every test puts back.
CHANGED = (
    *("etc/qemu", "etc/qemu-ga", "etc/sysconfig", "etc/vmware-tools", "etc/default", "etc/google"),
    *("etc/azure", "usr/local", "var/lib/waagent"),
)
Tree = dict[str, tuple[int, int, int, bytes]]


class Host:
    """The other end of qemu-ga's channel."""

    def __init__(self, container: Container) -> None:
        self.container = container
        self.connection = socket.socket(socket.AF_UNIX)
        self.connection.settimeout(25.0)
        until(self.connected)
        self.answers = self.connection.makefile("rb")

    def connected(self) -> bool:
        with contextlib.suppress(FileNotFoundError, ConnectionRefusedError):
            self.connection.connect(str(self.container.path(SOCKET)))
            return True
        return False

    def ask(self, command: str) -> object:
        """What it returns, or the description of its error."""
        self.send(command)
        return self.hear()

    def send(self, command: str) -> None:
        self.connection.sendall(json.dumps({"execute": command}).encode() + b"\n")

    def hear(self) -> object:
        answer = json.loads(self.answers.readline())
        return answer["return"] if "return" in answer else answer["error"]["desc"]

    def close(self) -> None:
        self.answers.close()
        self.connection.close()


class Platform(Scene):
    """What a test does with agents, apps and vmsnap inside."""

    @property
    def etc(self) -> Tree:
        return self.tree("/etc", "/usr/local")

    def tree(self, *directories: str) -> Tree:
        """All that is below: mode, owner, group, and content."""
        found: Tree = {}
        for directory in directories:
            for path in [top := self.container.path(directory), *top.rglob("*")]:
                status = path.lstat()
                data = b""
                if stat.S_ISLNK(status.st_mode):
                    data = os.readlink(path).encode()
                elif stat.S_ISREG(status.st_mode):
                    data = path.read_bytes()
                name = Path(directory) / path.relative_to(top)
                found[str(name)] = (status.st_mode, status.st_uid, status.st_gid, data)
        return found

    def unit(self, name: str, *settings: str) -> None:
        """Start a unit that is written anew, whatever its package says."""
        path = self.container.path(f"/etc/systemd/system/{name}")
        path.unlink(missing_ok=True)  # it may be masked
        # qemu-ga does not end while it takes the machine for frozen, as after a test that failed.
        lines = ("[Service]", "TimeoutStopSec=1", *settings, "")
        self.container.write(path_of(name), "\n".join(lines), 0o644)
        self.container.systemctl("daemon-reload", check=True)
        self.container.added.callback(self.container.systemctl, "stop", name)
        self.container.systemctl("start", name, check=True)

    def main_pid(self, unit: str) -> str:
        return self.container.show(unit, "MainPID")["MainPID"]

    def idle(self, name: str) -> None:
        """Let the unit of an agent run that does nothing."""
        self.unit(name, "ExecStart=sleep infinity")

    def pretend(self, vendor: str = "", word: str = "none") -> None:
        """Be a machine of this vendor, for which systemd-detect-virt says this word."""
        dmi, program = "/sys/class/dmi/id", "/usr/bin/systemd-detect-virt"
        if self.container.path(dmi).exists():
            self.mount("-t", "tmpfs", "tmpfs", dmi)
            self.container.path(f"{dmi}/sys_vendor").write_text(f"{vendor}\n")
        self.container.write("/run/vmsnap-test/virt", f"#!/bin/sh\necho {word}\n", 0o755)
        self.mount("--bind", "/run/vmsnap-test/virt", program)

    def mount(self, *words: str) -> None:
        """Until the next reset."""
        self.container.run("mount", *words, check=True)
        self.container.added.callback(self.container.run, "umount", "--lazy", words[-1])

    def hide(self, program: str) -> None:
        """As if its package were not installed."""
        path = self.container.path(program)
        hidden = path.rename(path.with_name("hidden-by-a-test"))
        self.container.added.callback(hidden.rename, path)

    def strict(self) -> None:
        self.container.write("/etc/vmsnap/vmsnap.conf.d/strict.conf", STRICT)

    # --- vmsnap ---

    def integrate(self, *words: str) -> Outcome:
        return self.vmsnap("integrate", *words)

    def connect(self, agent: str) -> Outcome:
        done = self.integrate(agent)
        assert done.code == 0, done.err
        return done

    @property
    def complaints(self) -> list[str]:
        """What `vmsnap check` says of the connections; "warning" before what is none the worse."""
        done = self.vmsnap("check", "--json")
        problems = [p for p in done.result["problems"] if p["name"] == "IncorrectIntegration"]
        errors = [p for p in done.result["problems"] if p["severity"] == "error"]
        assert done.code == bool(errors)
        return [
            ("warning: " if p["severity"] == "warning" else "") + p["message"] for p in problems
        ]

    @property
    def last(self) -> tuple[str, str, list[str]]:
        """Outcome, consistency and errors of the last session."""
        result = self.vmsnap("status", "--json").result["last"]
        names = [error["name"] for error in result["errors"]]
        return result["outcome"], result["consistency"], names


def path_of(unit: str) -> str:
    return f"/etc/systemd/system/{unit}"


@contextlib.contextmanager
def container_of_agents() -> Iterator[Container]:
    made = Container(AGENTS)
    try:
        for name in CHANGED:
            if made.path(f"/{name}").exists():
                kept = made.directory / "agents" / name
                kept.parent.mkdir(parents=True, exist_ok=True)
                call("cp", "-a", made.path(f"/{name}"), kept)
        made.write(CHANNEL, "")
        yield made
    finally:
        made.close()


@contextlib.contextmanager
def platform_in(container: Container) -> Iterator[Platform]:
    """With everything as its package has installed it, and nothing connected."""
    container.reset()
    for name in CHANGED:
        kept = container.directory / "agents" / name
        shutil.rmtree(container.path(f"/{name}"), ignore_errors=True)
        if kept.exists():
            call("cp", "-a", kept, container.path(f"/{name}"))
    made = Platform(container)
    with container.guarded():
        try:
            yield made
        finally:
            container.thaw()  # what an agent has frozen, should the test have failed
            made.close()
