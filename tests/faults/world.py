# SPDX-License-Identifier: Apache-2.0
"""What the rounds of one process share: filesystems of each type with a writer on each, two apps,
and the processes that a session leaves.

Scripts and command use nothing but what the shell has built in, since a round may leave them no
process to fork; they wait at a FIFO until the round lets them go on.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import os
import signal
import struct
import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from tests.fs import kernel, rescue
from tests.fs.lab import MKFS, Filesystem, Lab, call
from tests.fs.processes import Process, look_at, wait_for_end

FSTYPES = {"one": "ext4", "two": "xfs", "three": "btrfs", "four": "ext4"}
APPS = ("db", "web")
PACE = 0.002  # seconds between two writes
RECORD = struct.Struct("ddi")  # when a write began and ended, and its errno

PRE = """\
echo "pre-start {app} $VMSNAP_SESSION $VMSNAP_ATTEMPT $$" >{events}
echo $$ >{shm}/{app}-$VMSNAP_SESSION
read word <{gate}
echo "pre-end {app} $VMSNAP_SESSION $word" >{events}
exit $word"""
POST = """\
alive=no
{{
    read pid <{shm}/{app}-$VMSNAP_SESSION && while read key state rest; do
        case $key$state in State:[ZX]) ;; State:*) alive=yes ;; esac
    done </proc/$pid/status
}} 2>/dev/null
echo "post-start {app} $VMSNAP_SESSION $VMSNAP_ATTEMPT $$ $alive $VMSNAP_CONSISTENCY" >{events}
read word <{gate}
echo "post-end {app} $VMSNAP_SESSION $word" >{events}
exit $word"""


@dataclass(frozen=True)
class Write:
    began: float
    ended: float
    error: int


def enter() -> None:
    """Leave the machine's mount namespace, adopt what sessions leave behind, and put a file over
    the kernel's switch, which this process has for itself then."""
    kernel.enter_private_namespace()
    kernel.become_subreaper()
    call("mount", "-t", "tmpfs", "tmpfs", "/mnt")
    switch = Path("/mnt") / kernel.RCU_EXPEDITED.name
    switch.write_text("0\n")
    kernel.bind(switch, kernel.RCU_EXPEDITED)


class World(Lab):
    """The images lie in memory, unless `disk`: what else the machine does there would take its time
    here as well."""

    def __init__(self, disk: bool = False) -> None:
        super().__init__("size=8m")
        self._rescue_only_at_the_end()
        images = Filesystem(self._make("images"), Path("/dev/null"))
        if not disk:
            for path in (images.mount, self.state):
                self.mount("-t", "tmpfs", "-o", "mode=0700", "tmpfs", path)
        self.helping: set[int] = set()  # forks of this process
        self.writers: dict[str, int] = {}
        self.logs: dict[str, Path] = {}
        for name, fstype in FSTYPES.items():
            self.filesystem(fstype, name, on=images, mib=64 if fstype == "ext4" else 0)
        for f in self.filesystems:
            self.start_writer(f)
        self.configs = {name: self._app(name) for name in APPS}

    def _rescue_only_at_the_end(self) -> None:
        """The rescue thaws when this process has ended, however; until then we look ourselves."""
        assert self.rescue.stdin
        self.rescue.stdin.close()
        self.rescue.wait()
        argv = [sys.executable, "-ISB", rescue.__file__, "1000000", str(self.directory)]
        self.rescue = subprocess.Popen(argv, stdin=subprocess.PIPE)

    def mount_run_directory(self) -> None:
        self.mount("-t", "tmpfs", "-o", "mode=0700,size=8m", "tmpfs", self.run_directory)

    def _app(self, name: str) -> str:
        words = {"app": name, "events": self.events.path, "shm": self.shm}
        pre = PRE.format(gate=self.gate(f"pre-{name}").path, **words)
        post = POST.format(gate=self.gate(f"post-{name}").path, **words)
        path = self.app(name, pre, post, timeoutInSeconds=6)
        text = path.read_text()
        path.unlink()
        return text

    def command(self) -> str:
        return f"{self.say('held $$')}; {self.stop_at('release')}; exit $word"

    def configure(self, apps: tuple[str, ...], timeout: float, hold: float) -> None:
        self.conf(f"[freeze]\ntimeout = {timeout}\nhold = {hold}\n[scripts]\nkill_grace = 0.3\n")
        for name, text in self.configs.items():
            path = self.etc / "vmsnap/apps.d" / f"{name}.json"
            if name in apps:
                self.write(path, text, 0o600)
            else:
                path.unlink(missing_ok=True)

    # --- forks of ours -------------------------------------------------------------------------

    def fork(self, body: Callable[[], object], keep: Iterable[int] = ()) -> int:
        """Run this in a process of its own, which may hang in the kernel. It has no descriptors
        but `keep`, or no pipe of ours would ever end."""
        pid = os.fork()
        if pid == 0:
            code = 1
            try:
                for fd in {int(name) for name in os.listdir("/proc/self/fd")}.difference(
                    {0, 1, 2, self.events.fd, *keep}
                ):
                    with contextlib.suppress(OSError):
                        os.close(fd)
                for number in (signal.SIGINT, signal.SIGTERM):
                    signal.signal(number, signal.SIG_DFL)
                os.setsid()
                body()
                code = 0
            finally:
                os._exit(code)
        self.helping.add(pid)
        return pid

    def send(self, words: str) -> None:
        """For forks: say something to the round, as scripts do."""
        os.write(self.events.fd, f"{words}\n".encode())

    def start_writer(self, f: Filesystem) -> None:
        """A process that writes all the time, and logs on the tmpfs when each write began and
        ended: it knows which went through while nothing should have been written."""
        name = f.mount.name
        log = self.logs[name] = self.shm / f"log-{name}"
        log.touch()

        def write() -> None:
            libc = ctypes.CDLL(None)
            libc.prctl(1, signal.SIGKILL, 0, 0, 0)  # PR_SET_PDEATHSIG, linux/prctl.h
            out = os.open(log, os.O_WRONLY | os.O_APPEND)
            fd, number = -1, 0
            while True:
                began, error = time.monotonic(), 0
                try:
                    if fd < 0:
                        fd = os.open(f.mount / "writes", os.O_RDWR | os.O_CREAT, 0o600)
                    os.pwrite(fd, b"%016d" % number, number % 4096 * 16)
                except OSError as e:
                    error = e.errno or errno.EIO
                os.write(out, RECORD.pack(began, time.monotonic(), error))
                number += 1
                time.sleep(PACE)

        self.writers[name] = self.fork(write)

    def writes(self, name: str) -> list[Write]:
        data = self.logs[name].read_bytes()
        return [
            Write(*record)
            for record in RECORD.iter_unpack(data[: len(data) // RECORD.size * RECORD.size])
        ]

    def stalled(self, names: list[str], seconds: float) -> list[str]:
        """Those of these filesystems to which nothing was written from now on for so long."""
        now, deadline, left = time.monotonic(), time.monotonic() + seconds, list(names)
        while left and time.monotonic() < deadline:
            left = [n for n in left if not any(w.began > now for w in self.writes(n)[-2:])]
            if left:
                time.sleep(PACE)
        return left

    def renew(self, f: Filesystem) -> None:
        """Make a new filesystem in the place of one that is read-only for good."""
        name = f.mount.name
        self.end_helper(self.writers[name])
        call("umount", f.mount)
        call(*MKFS[FSTYPES[name]][1], f.image)
        self.mount("-o", "loop", f.image, f.mount)
        self.start_writer(f)

    def end_helper(self, pid: int) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
        wait_for_end(pid, 10.0)
        with contextlib.suppress(ChildProcessError):
            os.waitpid(pid, os.WNOHANG)
        self.helping.discard(pid)

    # --- processes of sessions -----------------------------------------------------------------

    def processes(self) -> list[Process]:
        """All that live of sessions, whoever their parent is by now. The dead are reaped."""
        spare = {self.rescue.pid, *self.helping, *(h.pid for h in self.helpers)}
        found: list[Process] = []
        queue = [pid for pid in children(os.getpid()) if pid not in spare]
        sessions = {s.pid for s in self.sessions}
        while queue:
            pid = queue.pop()
            process = look_at(pid)
            if process:
                found.append(process)
                queue += children(pid)
            elif pid not in sessions:
                with contextlib.suppress(ChildProcessError):
                    os.waitpid(pid, os.WNOHANG)
        return found

    def is_alone(self) -> bool:
        """Looked at twice, since one may get another parent, us, while we look."""
        return not self.processes() and not self.processes()

    @property
    def lock_is_free(self) -> bool:
        try:
            with (self.run_directory / "lock").open("rb") as file:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except FileNotFoundError:
            return True
        except BlockingIOError:
            return False
        return True

    def reset(self) -> None:
        """Between two rounds."""
        for session in self.sessions:
            session.process.poll()
            session.out.unlink(missing_ok=True)
            session.err.unlink(missing_ok=True)
        self.sessions.clear()
        for fifo in (self.events, *self.gates.values()):
            with contextlib.suppress(BlockingIOError):
                while os.read(fifo.fd, 65536):
                    pass
        self.events.heard.clear()
        for path in self.shm.glob("*-*-*-*-*-*"):
            path.unlink()
        for log in self.logs.values():
            os.truncate(log, 0)
        for directory in (self.run_directory, self.state):
            (directory / "last-result.json").unlink(missing_ok=True)

    def close(self) -> None:
        for f in self.filesystems:  # or the writers could not be ended
            if f.is_frozen:
                kernel.ioctl(f.mount, kernel.FITHAW)
        for pid in tuple(self.helping):
            self.end_helper(pid)
        super().close()


def children(pid: int) -> list[int]:
    found: list[int] = []
    with contextlib.suppress(OSError):
        for task in os.listdir(f"/proc/{pid}/task"):
            with contextlib.suppress(OSError):
                found += map(int, Path(f"/proc/{pid}/task/{task}/children").read_text().split())
    return found
