# SPDX-License-Identifier: Apache-2.0
"""The laboratory of one test: loop filesystems, configuration, and sessions of the real vmsnap.

Sessions talk to the test through FIFOs on a tmpfs, so nothing here ever waits by sleeping: a script
or snapshot command says a word with `lab.say(...)`, and waits at a gate with `lab.stop_at(...)`.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from . import kernel
from .processes import PATIENCE, Process, children, look_at, reap, wait_for_end
from .running import Events, Fifo, Outcome, Session

VMSNAP = Path(sys.executable).with_name("vmsnap")
RESCUE = 30.0  # seconds after which everything is thawed, whatever the test waits for
MKFS: Mapping[str, tuple[int, tuple[str, ...]]] = {
    "ext4": (32, ("mkfs.ext4", "-q", "-F", "-E", "lazy_itable_init=0,nodiscard")),
    "xfs": (300, ("mkfs.xfs", "-q", "-f", "-K")),
    "btrfs": (128, ("mkfs.btrfs", "-q", "-f", "-K")),
}
TOOLS = (
    *("mount", "umount", "losetup", "fsfreeze", "unshare", "setsid", "partx"),
    *("dumpe2fs", "e2fsck", "xfs_repair", "btrfs", *(command[0] for _, command in MKFS.values())),
)


@dataclass(frozen=True)
class Filesystem:
    mount: Path
    image: Path

    @property
    def is_frozen(self) -> bool:
        return kernel.is_frozen(self.mount)


class Lab:
    """Everything that one test makes, and the end of all of it."""

    def __init__(self, run_options: str = "size=16m") -> None:
        self.strangers = {p.pid for p in children(os.getpid())}  # as another tier's gpg-agent
        self.directory = Path(tempfile.mkdtemp(prefix="vmsnap-test.", dir="/var/lib"))
        self.etc, self.state, self.run_directory, self.shm, self.programs = (
            self._make(name) for name in ("etc", "state", "run", "shm", "programs")
        )
        (self.etc / "vmsnap/apps.d").mkdir(mode=0o700, parents=True)
        self.filesystems: list[Filesystem] = []
        self.images = itertools.count()
        self.sessions: list[Session] = []
        self.helpers: list[subprocess.Popen[Any]] = []
        self.mount("-t", "tmpfs", "-o", f"mode=0700,{run_options}", "tmpfs", self.run_directory)
        self.mount("-t", "tmpfs", "-o", "mode=0700", "tmpfs", self.shm)
        self.events = Events(self.shm / "events")
        self.gates: dict[str, Fifo] = {}
        self.undo = contextlib.ExitStack()  # what a test adds to the end of it all
        rescue = [sys.executable, "-ISB", str(Path(__file__).with_name("rescue.py"))]
        self.rescue = subprocess.Popen(
            [*rescue, str(RESCUE), str(self.directory)], stdin=subprocess.PIPE
        )

    def _make(self, name: str) -> Path:
        path = self.directory / name
        path.mkdir(mode=0o700)
        return path

    # --- filesystems ---------------------------------------------------------------------------

    def filesystem(
        self, fstype: str = "ext4", name: str = "", on: Filesystem | None = None, mib: int = 0
    ) -> Filesystem:
        """Make a loop filesystem and mount it; its image lies on the filesystem `on`."""
        name = name or f"fs{len(self.filesystems)}"
        size, command = MKFS[fstype]
        image = (on.mount if on else self.directory) / f"{next(self.images)}.img"
        with image.open("wb") as file:
            file.truncate((mib or size) << 20)
        call(*command, image)
        mount = self._make(name)
        self.mount("-o", "loop", image, mount)
        made = Filesystem(mount, image)
        self.filesystems.append(made)
        return made

    def mount(self, *arguments: str | Path) -> None:
        call("mount", *arguments)

    def umount(self, mount: Path) -> None:
        call("umount", mount)

    @property
    def frozen(self) -> list[str]:
        """The names of those of our filesystems that are frozen."""
        return [f.mount.name for f in self.filesystems if f.is_frozen]

    @property
    def mounts(self) -> list[str]:
        return [str(f.mount) for f in self.filesystems]

    # --- configuration -------------------------------------------------------------------------

    def conf(self, text: str) -> None:
        self.write(self.etc / "vmsnap/vmsnap.conf", text, 0o600)

    def write(self, path: Path, text: str, mode: int) -> Path:
        path.write_text(text)
        path.chmod(mode)
        return path

    def program(self, name: str, *lines: str, shebang: str = "#!/bin/sh") -> Path:
        text = "\n".join([shebang, *lines, ""] if shebang else [*lines, ""])
        return self.write(self.programs / name, text, 0o700)

    def app(self, name: str = "db", pre: str = "", post: str = "", **keys: Any) -> Path:
        """Configure an app with the shell commands of its two scripts."""
        document: dict[str, object] = {"pluginName": "ScriptRunner"}
        for phase, text in (("pre", pre), ("post", post)):
            if text:
                path = self.program(f"{name}-{phase}", text)
                document[f"{phase}ScriptLocation"] = str(path)
        path = self.etc / "vmsnap/apps.d" / f"{name}.json"
        return self.write(path, json.dumps({**document, **keys}), 0o600)

    # --- what scripts and commands do ----------------------------------------------------------

    def say(self, words: str) -> str:
        """A shell command that says a line to the test; variables are expanded."""
        return f'echo "{words}" >{self.events.path}'

    def stop_at(self, gate: str) -> str:
        """A shell command that waits for `open(gate)` and reads its word into $word."""
        return f"read word <{self.gate(gate).path}"

    def gate(self, name: str) -> Fifo:
        if name not in self.gates:
            self.gates[name] = Fifo(self.shm / f"gate-{name}")
        return self.gates[name]

    def open(self, gate: str, word: str = "0") -> None:
        os.write(self.gate(gate).fd, f"{word}\n".encode())

    # --- sessions ------------------------------------------------------------------------------

    def start(
        self,
        command: str | Sequence[str | Path],
        *options: str | Path,
        only: Sequence[str] | None = None,
        json: bool = True,
        env: Mapping[str, str] | None = None,
        program: Sequence[str] = (str(VMSNAP),),
        **more: Any,
    ) -> Session:
        """Start `vmsnap run`; the command is an argument list or a line for the shell."""
        selected = self.mounts if only is None else only
        assert selected, "a session without --only would freeze this machine"
        argv = [*program, "run", *self.places(), *(f"--only={mount}" for mount in selected)]
        words = ["/bin/sh", "-c", command] if isinstance(command, str) else command
        argv += [*(["--json"] if json else []), *map(str, options), "--", *map(str, words)]
        session = Session(self.directory, argv, self.environment(env), **more)
        self.sessions.append(session)
        return session

    def run(
        self, command: str | Sequence[str | Path], *options: str | Path, **more: Any
    ) -> Outcome:
        return self.start(command, *options, **more).finish()

    def hold(
        self, *options: str | Path, last: str = "", seconds: float = PATIENCE, **more: Any
    ) -> Session:
        """Start a session and return when it holds: `release()` ends its snapshot command."""
        session = self.start(
            f"{self.say('held $$')}; {self.stop_at('release')}; {last or ':'}; exit $word",
            *options,
            **more,
        )
        try:
            self.events.wait("held", session, seconds)
        except AssertionError:
            session.kill(signal.SIGKILL)  # so that it does nothing when it is let go of
            raise
        return session

    def release(self, code: int = 0) -> None:
        self.open("release", str(code))

    def places(self) -> list[str]:
        return [f"--etc={self.etc}", f"--run={self.run_directory}", f"--state={self.state}"]

    def environment(self, env: Mapping[str, str] | None = None) -> dict[str, str]:
        return {"PATH": os.environ["PATH"], "LANG": "C.UTF-8", **(env or {})}

    def begin(
        self,
        *arguments: str | Path,
        env: Mapping[str, str] | None = None,
        program: Sequence[str] = (str(VMSNAP),),
    ) -> Session:
        """Start another command of vmsnap."""
        argv = [*program, str(arguments[0]), *self.places(), *map(str, arguments[1:])]
        session = Session(self.directory, argv, self.environment(env))
        self.sessions.append(session)
        return session

    def vmsnap(self, *arguments: str | Path, **more: Any) -> Outcome:
        """Run another command of vmsnap to its end."""
        return self.begin(*arguments, **more).finish()

    def helper(self, command: str) -> subprocess.Popen[bytes]:
        """Start a shell command beside the session."""
        process = subprocess.Popen(["/bin/sh", "-c", command], stdin=subprocess.DEVNULL, cwd="/")
        self.helpers.append(process)
        return process

    def writer(self, filesystem: Filesystem) -> subprocess.Popen[bytes]:
        """A process that writes to a filesystem and says when it has: the thaw, seen by a user."""
        path = shlex.quote(str(filesystem.mount / "written-by-test"))
        name = filesystem.mount.name
        return self.helper(
            f"{self.say(f'writing-{name}')}; echo x >{path}; {self.say(f'wrote-{name}')}"
        )

    def wait_for_thaw(self, *filesystems: Filesystem) -> None:
        """Wait until the filesystems can be written to."""
        for filesystem in filesystems or self.filesystems:
            self.writer(filesystem)
        for filesystem in filesystems or self.filesystems:
            self.events.wait(f"wrote-{filesystem.mount.name}")

    # --- what is left --------------------------------------------------------------------------

    def left(self) -> list[Process]:
        """What still runs of sessions whose engine has ended."""
        ours = {self.rescue.pid, *(s.pid for s in self.sessions), *(h.pid for h in self.helpers)}
        return [p for p in children(os.getpid()) if p.pid not in ours | self.strangers]

    def wait_for_rest(self) -> None:
        """Wait until everything that the ended sessions left behind has ended."""
        while left := self.left():
            assert wait_for_end(left[0].pid), f"left running: {left}"
            reap(left[0].pid)

    def end(self, pid: int) -> None:
        """End a process that was meant to be left behind."""
        os.kill(pid, signal.SIGKILL)
        assert wait_for_end(pid)
        reap(pid)

    # --- the end -------------------------------------------------------------------------------

    def close(self) -> None:
        """Thaw, end, unmount and remove everything; then say what the test left behind."""
        complaints = []
        self.undo.close()
        assert self.rescue.stdin
        self.rescue.stdin.close()
        code = self.rescue.wait()
        if code & 1:
            complaints.append("a filesystem was left frozen")
        if code & 2:
            complaints.append("the rescue had to thaw")
        for session in self.sessions:
            if look_at(session.pid):
                complaints.append("vmsnap was still running")
                end(session.process)
            session.process.wait()
        for helper in self.helpers:
            end(helper)
        complaints += [f"left running: {process}" for process in self.end_rest()]
        for fifo in (self.events, *self.gates.values()):
            fifo.close()
        for point in reversed(kernel.mounts_below(self.directory)):
            if code & 2:  # what a test froze after the rescue, umount would hide and not thaw
                kernel.ioctl(Path(point), kernel.FITHAW)
            if subprocess.run(["umount", point], check=False).returncode:
                complaints.append(f"{point} could not be unmounted")
                subprocess.run(["umount", "--lazy", point], check=False)
        shutil.rmtree(self.directory)
        with contextlib.suppress(ChildProcessError):
            while os.waitpid(-1, os.WNOHANG)[0]:  # the dead that vmsnap left to us
                pass
        assert not complaints, complaints

    def end_rest(self) -> list[Process]:
        """Give what runs below us a moment to end by itself; kill the rest."""
        found = []
        while left := self.left():
            if not wait_for_end(left[0].pid, 5.0):
                found.append(left[0])
                with contextlib.suppress(ProcessLookupError):
                    os.kill(left[0].pid, signal.SIGKILL)
                if not wait_for_end(left[0].pid, 10.0):
                    return found
            reap(left[0].pid)
        return found


def end(process: subprocess.Popen[Any]) -> None:
    """A stopped process hears SIGKILL as well."""
    process.kill()
    process.wait()


def call(*argv: str | Path) -> str:
    """Run a tool; what it complains of becomes the test's failure."""
    done = subprocess.run(list(map(str, argv)), capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{shlex.join(map(str, argv))}: {done.stderr}{done.stdout}"
    return done.stdout


def missing_tools() -> list[str]:
    return [tool for tool in sorted(set(TOOLS)) if shutil.which(tool) is None]
