# SPDX-License-Identifier: Apache-2.0
"""A booted Debian whose `/` is an ext4 superblock of its own: here `/` can really be frozen.

What it mounts, it mounts in a mount namespace of its own ("the stage"), where `/run` and os-release
are a tmpfs before systemd-nspawn hands them to the container: nothing of the machine's root
filesystem is ever visible inside. Nothing is to be unmounted either: the namespace, the loop
devices and the (deleted) images end with the container, even if the test run is killed.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import select
import shutil
import signal
import socket
import stat
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from tests.fs import kernel, rescue
from tests.fs.lab import MKFS, call
from tests.fs.processes import reap, wait_for_end

from . import image
from .stage import cgroups

REPOSITORY = Path(__file__).parents[2]
TOOLS = ("systemd-nspawn", "nsenter", "losetup", "mount", "umount", "make", "mkfs.xfs")
BOOT, POWEROFF, PATIENCE = 90.0, 20.0, 5.0  # seconds after which something is wrong
RESCUE = 30.0  # seconds after which everything is thawed, whatever a test waits for
POWER_OFF = signal.SIGRTMIN + 4  # systemd(1), SIGNALS
ENVIRONMENT = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "LANG": "C.UTF-8", "HOME": "/root"}
# Only cgroup v2 inside, whatever the machine has: systemd 256 and later start with nothing else.
NSPAWN = {"SYSTEMD_NSPAWN_UNIFIED_HIERARCHY": "1"}
# What tests change and `reset` puts back as it was installed.
RESTORED = ("etc/vmsnap", "etc/systemd/system", "var/lib/vmsnap")
# Filesystems without a disk: they cannot be frozen. The machine's root is none of them.
VIRTUAL = {
    *("autofs", "binfmt_misc", "bpf", "cgroup", "cgroup2", "configfs", "debugfs", "devpts"),
    *("devtmpfs", "fuse", "fusectl", "hugetlbfs", "mqueue", "nsfs", "proc", "pstore", "ramfs"),
    *("securityfs", "sysfs", "tmpfs", "tracefs"),
}


class UnsafeError(Exception):
    """A filesystem that is not ours is visible inside: vmsnap must not be run there."""


class TimedOutError(AssertionError):
    """A command inside the container did not end in time; it was killed."""


class Container:
    """One container, from the copy of its image to the end of all it was."""

    def __init__(
        self,
        recipe: image.Recipe = image.BOOKWORM,
        prepare: Callable[[Path], object] | None = None,
    ) -> None:
        """`prepare` is called with the root before the boot; by default it installs vmsnap."""
        self.directory = Path(tempfile.mkdtemp(prefix="vmsnap-test-", dir="/var/lib"))
        self.log = self.directory / "console"
        self.thawers: dict[str, int] = {}  # an open descriptor of each filesystem, by its device
        self.processes: list[subprocess.Popen[str]] = []
        self.added = contextlib.ExitStack()
        self.stage: subprocess.Popen[bytes] | None = None
        self.leader = 0
        self.cursor = ""
        try:
            self._set_stage(image.ensure(recipe))
            (prepare or install)(self.root)
            self._keep()
            self._boot()
            self.active = self._active_units()
        except BaseException as e:
            console = self.console  # gone with the directory
            self.close()
            if isinstance(e, Exception) and not isinstance(e, UnsafeError):
                raise RuntimeError(f"the container did not boot: {e}\n{console[-4000:]}") from e
            raise

    # --- boot ----------------------------------------------------------------------------------

    def _set_stage(self, source: Path) -> None:
        copy = self.directory / "root.img"
        call("cp", "--sparse=always", source, copy)
        (self.directory / "root").mkdir(mode=0o700)
        for cgroup in cgroups(self.directory):
            cgroup.mkdir()
        self._mount(copy)
        copy.unlink()  # the loop device keeps it for as long as it is needed
        self._own(self.root)

    def _mount(self, disk: Path) -> None:
        argv = [sys.executable, "-B", "-m", "tests.system.stage", str(self.directory), str(disk)]
        with self.log.open("wb") as log:
            self.stage = subprocess.Popen(
                argv, cwd=REPOSITORY, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log,
                env={**ENVIRONMENT, **NSPAWN, "NOTIFY_SOCKET": str(self.directory / "notify")},
                start_new_session=True,
            )  # fmt: skip
        assert self.stage.stdout
        assert self.stage.stdout.readline() == b"ready\n", "nothing to boot from"

    def _keep(self) -> None:
        for name in RESTORED:
            if (self.root / name).exists():
                (self.directory / "installed" / name).parent.mkdir(parents=True, exist_ok=True)
                call("cp", "-a", self.root / name, self.directory / "installed" / name)

    def reboot(self) -> None:
        """Power it off and boot it again: what is on its disk is as it was, and nothing else."""
        self._end_commands()
        assert self.stage
        self._end_stage(self.stage)
        self.leader = 0  # by now it may be the number of any process
        (device,) = self.thawers  # which keeps the loop device as well
        self._mount(Path("/dev/loop" + device.partition(":")[2]))
        self._boot()

    def _boot(self) -> None:
        with self.guarded(BOOT):
            self._start()
            self.assert_only_own_filesystems()
        self.cursor = self._last_cursor()

    def _start(self) -> None:
        assert self.stage
        assert self.stage.stdin
        (self.directory / "notify").unlink(missing_ok=True)
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as notify:
            notify.bind(str(self.directory / "notify"))
            self.stage.stdin.write(b"boot\n")
            self.stage.stdin.close()
            pidfd = os.pidfd_open(self.stage.pid)
            deadline = time.monotonic() + BOOT
            try:
                words: list[str] = []
                while "READY=1" not in words:
                    left = max(0.0, deadline - time.monotonic())
                    ready = select.select([notify, pidfd], [], [], left)[0]
                    assert notify in ready, "it ended" if ready else "no READY=1 in time"
                    words = notify.recv(8192).decode().split("\n")
                    for word in words:
                        if word.startswith("X_NSPAWN_LEADER_PID="):
                            self.leader = int(word.partition("=")[2])
            finally:
                os.close(pidfd)
        state = self.run("systemctl", "is-system-running", "--wait", timeout=BOOT).stdout.strip()
        assert state in {"running", "degraded"}, f"it is {state!r}"

    @property
    def console(self) -> str:
        return self.log.read_text(errors="replace") if self.log.exists() else ""

    @property
    def root(self) -> Path:
        """The root filesystem as the stage sees it, before, during and after the boot."""
        assert self.stage
        return Path(f"/proc/{self.stage.pid}/root{self.directory}/root")

    @property
    def _on_stage(self) -> tuple[str, ...]:
        assert self.stage
        return ("nsenter", f"--mount=/proc/{self.stage.pid}/ns/mnt", "--")

    # --- safety --------------------------------------------------------------------------------

    def assert_only_own_filesystems(self) -> None:
        """Raise unless all that any process inside can see is ours or has no disk."""
        for pid in self.pids():
            with contextlib.suppress(OSError):  # EINVAL of one that is just ending
                for line in Path(f"/proc/{pid}/mountinfo").read_text().splitlines():
                    device, fstype = line.split(" ")[2], line.split(" - ")[1].split(" ")[0]
                    virtual = device.startswith("0:") and fstype.partition(".")[0] in VIRTUAL
                    if device == device_of(Path("/")) or not (virtual or device in self.thawers):
                        raise UnsafeError(f"visible inside the container: {line}")

    @contextlib.contextmanager
    def guarded(self, seconds: float = RESCUE) -> Iterator[None]:
        """Within it, another process thaws everything after a while, or if we die.

        It lives on the stage, which so outlasts nspawn: the filesystems have their names there.
        """
        argv = [*self._on_stage, sys.executable, "-ISB", str(rescue.__file__)]
        argv += [str(seconds), str(self.directory)]
        process = subprocess.Popen(argv, stdin=subprocess.PIPE, start_new_session=True)
        try:
            yield
        finally:
            assert process.stdin
            process.stdin.close()
            code = process.wait()
        assert not code & 2, "the rescue had to thaw"
        assert not code & 1, "a filesystem was left frozen"

    def _own(self, mount: Path) -> str:
        device = device_of(mount)
        self.thawers[device] = os.open(mount, os.O_RDONLY)
        return device

    def thaw(self) -> list[str]:
        """Thaw whatever is frozen, from outside; return the devices that were."""
        return [device for device, fd in self.thawers.items() if thaw(fd)]

    # --- commands ------------------------------------------------------------------------------

    def popen(self, *argv: str, env: Mapping[str, str] | None = None, **more: Any) -> Any:
        """Start a command inside; a subprocess.Popen[str] (of nsenter, its parent)."""
        streams = {"stdin": subprocess.DEVNULL, "text": True, **more}
        process = subprocess.Popen(
            # A test run in the background ignores SIGINT, and all that it starts would too.
            [
                *("env", "--default-signal=INT"),
                "nsenter",
                "--target",
                str(self.leader),
                "--all",
                "--",
                *argv,
            ],
            env={**ENVIRONMENT, **(env or {})},
            start_new_session=True,  # so that killing the group reaches below nsenter
            **streams,
        )
        self.processes.append(process)
        return process

    def run(
        self,
        *argv: str,
        timeout: float = 30.0,
        check: bool = False,
        input: str | None = None,
        env: Mapping[str, str] | None = None,
    ) -> subprocess.CompletedProcess[str]:
        streams: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        if input is not None:
            streams["stdin"] = subprocess.PIPE
        process = self.popen(*argv, env=env, **streams)
        try:
            out, err = process.communicate(input, timeout)
        except subprocess.TimeoutExpired:
            raise TimedOutError(f"{argv} took more than {timeout} s\n{end(process)}") from None
        except BaseException:
            end(process)
            raise
        finally:
            self.processes.remove(process)
        done = subprocess.CompletedProcess(argv, process.returncode, out, err)
        assert not (check and done.returncode), f"{argv}: {done.returncode}\n{out}{err}"
        return done

    def systemctl(self, *argv: str, **more: Any) -> subprocess.CompletedProcess[str]:
        return self.run("systemctl", "--no-pager", *argv, **more)

    def show(self, unit: str, *properties: str) -> dict[str, str]:
        wanted = [f"--property={name}" for name in properties]
        shown = self.systemctl("show", *wanted, unit, check=True).stdout
        return {name: value for name, _, value in (x.partition("=") for x in shown.splitlines())}

    def status(self, unit: str, *argv: str) -> str:
        """What `systemctl status` shows, the journal's last lines too. Not while `/` is frozen."""
        self.run("journalctl", "--sync", check=True)
        return self.systemctl("status", *argv, unit).stdout

    def journal(self, *argv: str, sync: bool = True) -> list[dict[str, Any]]:
        """Records since the last `reset`. Pass sync=False while `/` is frozen: it would wait."""
        if sync:
            self.run("journalctl", "--sync", check=True)
        # Not --after-cursor: with a match, it skips the first record that does (systemd 252).
        since = [f"--cursor={self.cursor}"] if self.cursor else []
        shown = self.run("journalctl", "-q", "-o", "json", "-a", *since, *argv, check=True).stdout
        records = [json.loads(line) for line in shown.splitlines()]
        return [record for record in records if record["__CURSOR"] != self.cursor]

    def _last_cursor(self) -> str:
        self.run("journalctl", "--sync", check=True)
        shown = self.run("journalctl", "-n0", "--show-cursor", check=True).stdout
        return shown.strip().rpartition("cursor: ")[2]

    # --- files, filesystems, processes ---------------------------------------------------------

    def path(self, inside: str | Path) -> Path:
        """Where the test run finds a path of the container; absolute symlinks lead astray."""
        return Path(f"/proc/{self.leader}/root/{str(inside).lstrip('/')}")

    def write(self, inside: str | Path, text: str, mode: int = 0o600) -> Path:
        path = self.path(inside)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        path.chmod(mode)
        return path

    def read(self, inside: str | Path) -> str:
        return self.path(inside).read_text()

    def frozen(self, inside: str | Path = "/") -> bool:
        """Not while a freeze may be about to begin: it would be told EBUSY."""
        return kernel.is_frozen(self.path(inside))

    def add_filesystem(self, mountpoint: str, fstype: str = "ext4", mib: int = 0) -> None:
        """Mount a new loop filesystem inside, until the next `reset`."""
        assert self.stage
        size, mkfs = MKFS[fstype]
        file, mount = self.directory / "added.img", Path(tempfile.mkdtemp(dir=self.directory))
        with file.open("wb") as opened:
            opened.truncate((mib or size) << 20)
        call(*mkfs, file)
        loop = call("losetup", "--find", "--show", file).strip()
        try:
            call(*self._on_stage, "mount", loop, mount)  # here the rescue finds it
            self.added.callback(call, *self._on_stage, "umount", mount)
            device = self._own(Path(f"/proc/{self.stage.pid}/root{mount}"))
            self.added.callback(lambda: os.close(self.thawers.pop(device)))
            self._mount_inside(loop, mountpoint)
        finally:
            call("losetup", "--detach", loop)  # detaches itself after the last umount
            file.unlink()

    def _mount_inside(self, loop: str, mountpoint: str) -> None:
        node = self.path(loop)
        if not node.exists():
            os.mknod(node, stat.S_IFBLK | 0o600, Path(loop).stat().st_rdev)
        self.path(mountpoint).mkdir(parents=True, exist_ok=True)
        self.run("mount", loop, mountpoint, check=True)
        self.added.callback(self.run, "umount", "--lazy", mountpoint)

    def pids(self, name: str = "") -> list[int]:
        """The machine's numbers of the container's processes (of this name), oldest first."""
        return [p for p, now in self._processes() if now["Name"] == name or not name]

    def outside(self, pid: int) -> int:
        """The machine's number of a process that the container calls `pid`."""
        (found,) = [p for p, now in self._processes() if now["NSpid"].split()[-1] == str(pid)]
        return found

    def _processes(self, zombies: bool = False) -> list[tuple[int, dict[str, str]]]:
        found = []
        for pid in sorted(int(name) for name in os.listdir("/proc") if name.isdigit()):
            with contextlib.suppress(OSError):
                now = status(pid)
                inside = Path(f"/proc/{pid}/ns/pid").readlink()
                if inside == Path(f"/proc/{self.leader}/ns/pid").readlink():
                    found.append((pid, now))
        return [(pid, now) for pid, now in found if zombies or not now["State"].startswith("Z")]

    def kill(self, pid: int, number: signal.Signals = signal.SIGKILL) -> None:
        """Send a signal to a process that the container calls `pid`, such as a MainPID."""
        os.kill(self.outside(pid), number)

    # --- between tests, and the end ------------------------------------------------------------

    def _active_units(self) -> list[str]:
        shown = self.systemctl("list-units", "--plain", "--no-legend", "--state=active", "vmsnap*")
        return [line.split()[0] for line in shown.stdout.splitlines()]

    def reset(self) -> None:
        """As after the boot: nothing frozen, failed or running, files as installed."""
        self.thaw()
        self._end_commands()
        self.systemctl("stop", "vmsnap*", timeout=60.0)
        self.thaw()  # what was about to be frozen at first
        self.added.close()
        shutil.rmtree(self.path("/run/vmsnap"), ignore_errors=True)
        for name in RESTORED:
            shutil.rmtree(self.path(name))
            call("cp", "-a", self.directory / "installed" / name, self.path(name))
        self.systemctl("daemon-reload", check=True)
        self.systemctl("reset-failed")
        if self.active:
            self.systemctl("start", *self.active, check=True)
        self.assert_only_own_filesystems()
        self.cursor = self._last_cursor()

    def _end_commands(self) -> None:
        """Kill what came in through `popen` and all that it started: it is in no cgroup of ours.

        A dead one that nobody reaps would stop the poweroff.
        """
        while self.processes:
            end(self.processes.pop())
        for pid, _ in self._processes(zombies=True):
            with contextlib.suppress(OSError):
                ours = self.directory.name in Path(f"/proc/{pid}/cgroup").read_text()
                if not ours and pid != self.leader:
                    os.kill(pid, signal.SIGKILL)
                    wait_for_end(pid, PATIENCE)
                    reap(pid)  # our child if we are a subreaper, as in tests/fs

    def close(self) -> None:
        """End it in whatever state it is; thaw first, for what is frozen cannot end."""
        self.thaw()
        self._end_commands()
        if self.stage:
            self._end_stage(self.stage)
        for fd in self.thawers.values():
            os.close(fd)
        self.thawers.clear()
        remove(self.directory)

    def _end_stage(self, stage: subprocess.Popen[bytes]) -> None:
        if self.leader:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.leader, POWER_OFF)
            if not wait_for_end(self.leader, POWEROFF):
                self.thaw()
                with contextlib.suppress(ProcessLookupError):
                    os.kill(self.leader, signal.SIGKILL)  # and the kernel kills the others
                wait_for_end(self.leader, POWEROFF)
            reap(self.leader)  # ours if nspawn was killed and we are a subreaper
        if not self.leader or not wait_for_end(stage.pid, PATIENCE):
            stage.kill()
        stage.wait()
        for pipe in (stage.stdin, stage.stdout):
            if pipe:
                pipe.close()


def remove(directory: Path) -> None:
    """Remove what a container leaves behind if the test run is killed."""
    shutil.rmtree(directory)
    for cgroup in cgroups(directory):
        for below, _, _ in os.walk(cgroup, topdown=False):
            Path(below).rmdir()


def install(root: Path) -> None:
    """Install vmsnap below `root`."""
    call("make", "-C", REPOSITORY, "install", f"DESTDIR={root}")


def device_of(path: Path) -> str:
    """MAJOR:MINOR, as mountinfo writes it."""
    number = path.stat().st_dev
    return f"{os.major(number)}:{os.minor(number)}"


def status(pid: int) -> dict[str, str]:
    """proc(5), /proc/PID/status."""
    lines = Path(f"/proc/{pid}/status").read_text(errors="replace").splitlines()
    return {name: value.strip() for name, _, value in (line.partition(":") for line in lines)}


def thaw(fd: int) -> bool:
    """Whether it was frozen."""
    try:
        fcntl.ioctl(fd, kernel.FITHAW, 0)
    except OSError:
        return False
    return True


def end(process: subprocess.Popen[str]) -> str:
    """Kill a command and what it started; return what it had printed. Never waits long."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()  # nsenter, which waits for nothing
    try:
        out, err = process.communicate(timeout=1.0)
    except subprocess.TimeoutExpired:
        for pipe in (process.stdin, process.stdout, process.stderr):
            if pipe:
                pipe.close()
        return "and it cannot be killed: does it wait for a frozen filesystem?"
    return (out or "") + (err or "")


def missing_tools() -> list[str]:
    return [tool for tool in (*TOOLS, *image.TOOLS) if shutil.which(tool) is None]
