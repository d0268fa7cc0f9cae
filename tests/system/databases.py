# SPDX-License-Identifier: Apache-2.0
"""A real database server under load, and its snapshot: copies of its two disks, taken while they
are frozen, and put in the place of the disks."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tests.fs.lab import call
from tests.fs.processes import wait_for_end
from tests.fs.running import Outcome
from vmsnap.scripts.engine import SUPERVISOR

from .apps import DIRECTORY, UNIT, Scene, scene_of
from .container import Container, device_of
from .image import DATABASES

QUIESCE = "/usr/lib/vmsnap/quiesce"
DATA, LOG = "/srv/data", "/srv/log"  # a disk each
POSITION = f"{DATA}/vmsnap"
SERVICE = "database.service"
WORKERS = 4
PRE, POST = "Pre-ScriptExecutionFailed", "Post-ScriptExecutionFailed"
OURS = (
    f"{QUIESCE}/",
    "--no-psqlrc",
    "--skip-reconnect",
)  # in the arguments of quiescers' processes
# Commits one transaction after another through the server's own client, and writes down each that
# was acknowledged, on a tmpfs. {id} is a number that no other transaction has.
LOADER = """
import os, subprocess, sys
worker, transaction, *client = sys.argv[1:]
process = subprocess.Popen(client, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
acknowledged = os.open(f"{directory}/acknowledged", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
for number in range(1, 1000000):
    id = f"{worker}{number:06}"
    process.stdin.write(transaction.replace("{id}", id))
    process.stdin.flush()
    while (line := process.stdout.readline()) != f"{id}\\n":
        if not line:
            sys.exit()
    os.write(acknowledged, f"{id}\\n".encode())
    if number == 100:
        os.write(os.open(f"{directory}/events", os.O_WRONLY), f"busy-{worker}\\n".encode())
"""


class Machine(Container):
    """A container with the three servers, none of which runs."""

    def __init__(self) -> None:
        super().__init__(DATABASES)

    def copy(self, mountpoint: str) -> Path:
        """What is on the disk now, past all caches; where it is mounted nothing is changed."""
        disk = "/dev/loop" + device_of(self.path(mountpoint)).partition(":")[2]
        copy = Path(tempfile.mkstemp(dir=self.directory, suffix=".copy")[1])
        call("dd", f"if={disk}", f"of={copy}", "iflag=direct", "bs=1M", "conv=sparse")
        return copy

    def exchange(self, mountpoint: str, copy: Path) -> None:
        """Mount a copy in the place of the disk, until the next `reset`."""
        self.run("umount", mountpoint, check=True)
        mount = Path(tempfile.mkdtemp(dir=self.directory))
        loop = call("losetup", "--find", "--show", copy).strip()
        try:
            call(*self._on_stage, "mount", loop, mount)
            self.added.callback(call, *self._on_stage, "umount", mount)
            device = self._own(Path(f"/proc/{self.stage_pid}/root{mount}"))
            self.added.callback(lambda: os.close(self.thawers.pop(device)))
            self._mount_inside(loop, mountpoint)
        finally:
            call("losetup", "--detach", loop)
            copy.unlink()

    @property
    def stage_pid(self) -> int:
        assert self.stage
        return self.stage.pid


@contextmanager
def booted() -> Iterator[Machine]:
    machine = Machine()
    try:
        yield machine
    finally:
        machine.close()


class Site:
    """One server, its two disks, and the app that quiesces it."""

    def __init__(self, machine: Machine, scene: Scene, quiescer: str, user: str) -> None:
        self.machine, self.scene, self.quiescer, self.user = machine, scene, quiescer, user
        self.loads: list[Any] = []

    # --- the server ---

    def start(self, *argv: str) -> None:
        """Start the server; return when it says that it is ready."""
        service = ("--service-type=notify", f"--uid={self.user}", "--working-directory=/")
        argv = ("systemd-run", "--collect", f"--unit={SERVICE}", *service, *argv)
        done = self.machine.run(*argv, timeout=60.0)
        said = [record["MESSAGE"] for record in self.machine.journal(f"--unit={SERVICE}")]
        assert done.returncode == 0, "\n".join(said)

    def stop(self) -> None:
        self.machine.systemctl("stop", SERVICE, timeout=60.0)

    def kill(self) -> None:
        """As the kernel does when it is out of memory. What waits for a frozen disk dies later."""
        self.machine.systemctl("kill", "--signal=KILL", SERVICE, check=True)

    def root(self, *argv: str, **more: Any) -> str:
        return str(self.machine.run(*argv, check=True, **more).stdout)

    # --- load ---

    def load(self, transaction: str, *client: str) -> None:
        """Return when all workers have committed a good many transactions and go on."""
        text = LOADER.replace("{directory}", str(DIRECTORY))
        for worker in range(1, WORKERS + 1):
            argv = ("python3", "-c", text, str(worker), transaction, *client)
            self.loads.append(self.machine.popen(*argv, stderr=subprocess.DEVNULL))
        for worker in range(1, WORKERS + 1):
            self.scene.events.wait(f"busy-{worker}")

    @property
    def acknowledged(self) -> set[int]:
        """The transactions that have been committed, as their clients know."""
        return {int(line) for line in self.machine.read(DIRECTORY / "acknowledged").splitlines()}

    # --- sessions ---

    def app(self, *parameters: str, timeout: int = 30, **keys: Any) -> None:
        program = f"{QUIESCE}/{self.quiescer}"
        parameters = (f"--position={POSITION}", *parameters)
        document = {
            "pluginName": "ScriptRunner",
            "preScriptLocation": program,
            "preScriptParams": parameters,
            "postScriptLocation": program,
            "postScriptParams": parameters,
            "timeoutInSeconds": timeout,
            **keys,
        }
        self.machine.write("/etc/vmsnap/apps.d/db.json", json.dumps(document))

    def init(self, server: str) -> None:
        """As an administrator does it, and nothing else."""
        self.machine.path("/etc/vmsnap/apps.d/db.json").unlink()
        self.root("vmsnap", "init", "--quiesce", server)
        self.root("vmsnap", "check")

    def freeze(self, *options: str) -> dict[str, Any]:
        return self.scene.freeze(f"--only={DATA}", f"--only={LOG}", *options)

    def run(self) -> Outcome:
        """A session around a command that does nothing, without a freeze."""
        return self.scene.vmsnap("run", "--json", "--no-fsfreeze", "--", "true")

    def assert_refused(self, words: str) -> None:
        """The pre-script fails, and that is all that goes wrong; it says these words."""
        said = explained(self.run(), PRE)
        assert words in said, said

    def snapshot(self) -> dict[str, Path]:
        """Copy both disks; they are frozen, and stay so."""
        assert self.machine.frozen(DATA)
        assert self.machine.frozen(LOG)
        return {mountpoint: self.machine.copy(mountpoint) for mountpoint in (DATA, LOG)}

    def restore(self, copies: dict[str, Path]) -> None:
        """End the server without a last write, and have the copies where the disks were."""
        self.kill()
        self.stop()
        for mountpoint, copy in copies.items():
            self.machine.exchange(mountpoint, copy)

    @property
    def position(self) -> dict[str, Any]:
        position: dict[str, Any] = json.loads(self.machine.read(f"{POSITION}/position.json"))
        return position

    @property
    def said(self) -> str:
        """What the scripts have said, last and first."""
        records = self.machine.journal("-t", "vmsnap-script")
        return "\n".join(record["MESSAGE"] for record in records)

    @property
    def left(self) -> list[int]:
        """The machine's numbers of quiescers and of the clients that they have started."""
        return [pid for pid in self.machine.pids() if any(x in words_of(pid) for x in OURS)]

    @property
    def holder(self) -> int:
        (pid,) = [pid for pid in self.left if QUIESCE in words_of(pid)]
        return pid

    def assert_nothing_is_left(self) -> None:
        for pid in self.left:
            assert wait_for_end(pid, 10.0), f"left running: {words_of(pid)}"

    def kill_vmsnap(self) -> None:
        """All of a held session but what the pre-scripts left: nobody will run a post-script."""
        self.scene.settings("ExecStopPost=")
        engine = self.machine.outside(self.scene.engine)
        doomed = [*self.machine.pids(SUPERVISOR), engine, *self.machine.pids("vmsnap-guard")]
        for pid in doomed:
            os.kill(pid, signal.SIGKILL)
        for pid in doomed:
            assert wait_for_end(pid)

    def close(self) -> None:
        self.machine.systemctl("stop", UNIT)
        self.machine.thaw()
        for load in self.loads:
            load.kill()
        self.machine.systemctl("kill", "--signal=KILL", SERVICE)
        self.stop()


def words_of(pid: int) -> str:
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/cmdline").read_text().replace("\0", " ")
    return ""


@contextmanager
def site_of(machine: Machine, quiescer: str, user: str) -> Iterator[Site]:
    """Two disks that belong to the server's user, and nothing running."""
    machine.reset()
    for mountpoint in (DATA, LOG):
        machine.add_filesystem(mountpoint, mib=384)
        machine.run("chown", user, mountpoint, check=True)
    with scene_of(machine) as scene:
        site = Site(machine, scene, quiescer, user)
        try:
            yield site
        finally:
            site.close()


def explained(outcome: Outcome, name: str) -> str:
    """The message of the only error of a session, which has this name."""
    (error,) = outcome.result["errors"]
    assert error["name"] == name, error
    return str(error["message"])
