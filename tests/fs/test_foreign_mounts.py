# SPDX-License-Identifier: Apache-2.0
"""What is mounted in other mount namespaces, by containers and by users without privileges."""

from __future__ import annotations

import os
import select
import shlex
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from vmsnap.errors import Problem, Severity
from vmsnap.freeze.filesystem import open_plan
from vmsnap.freeze.mountinfo import every_mount
from vmsnap.freeze.plan import Entry, Plan, make_plan

from . import kernel
from .lab import Filesystem, Lab, call, end
from .processes import PATIENCE, wait_for_end

ATTACKER = Path(__file__).with_name("attacker.py")
PYTHON = str(Path(sys.executable).resolve())  # a virtual environment is not for everybody to read
FUSE = Path("/dev/fuse")


class User:
    """A user without privileges, who is root in a user namespace of his own (attacker.py)."""

    def __init__(self, lab: Lab) -> None:
        argv = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", "unshare", "-Urm"]
        self.process = subprocess.Popen(
            [*argv, PYTHON, "-ISBc", ATTACKER.read_text()],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            start_new_session=True,
        )
        # First of all: what hangs at his server, hangs until that has ended.
        lab.undo.callback(self.end)
        self.do("mount('mine', '/mnt', 'tmpfs')")

    def do(self, *lines: str) -> None:
        assert self.process.stdin
        assert self.process.stdout
        for line in lines:
            self.process.stdin.write(f"{line}\n".encode())
            self.process.stdin.flush()
            assert select.select([self.process.stdout], [], [], PATIENCE)[0]
            assert self.process.stdout.readline() == b"ready\n", line

    def end(self) -> None:
        os.killpg(self.process.pid, signal.SIGKILL)  # with the FUSE servers
        end(self.process)
        for pipe in filter(None, (self.process.stdin, self.process.stdout)):
            pipe.close()


@pytest.fixture
def user(lab: Lab) -> User:
    let_everybody_use_fuse(lab)
    return User(lab)


def let_everybody_use_fuse(lab: Lab) -> None:
    """As every distribution does."""
    if FUSE.stat().st_mode & 0o006 != 0o006:
        node = lab.directory / "dev-fuse"
        os.mknod(node, 0o020666, FUSE.stat().st_rdev)
        node.chmod(0o666)
        kernel.bind(node, FUSE)
        lab.undo.callback(kernel.unmount, FUSE)


@contextmanager
def public(lab: Lab, filesystem: Filesystem) -> Iterator[Path]:
    """The filesystem is mounted where everybody can reach it, and nowhere else; in the end it is
    mounted nowhere in our namespace."""
    point = Path(tempfile.mkdtemp(prefix="vmsnap-test.", dir="/tmp"))
    lab.undo.callback(point.rmdir)  # not before: it would unmount what others have mounted there
    point.chmod(0o755)
    lab.mount("--bind", filesystem.mount, point)
    lab.umount(filesystem.mount)
    lab.filesystems.remove(filesystem)
    try:
        yield point
    finally:
        lab.umount(point)


def planned(mount: Path) -> str:
    status = mount.stat()
    return f"{os.major(status.st_dev)}:{os.minor(status.st_dev)}"


def entry_of(device: str) -> Entry:
    return next(entry for entry in make_plan().entries if entry.device == device)


def opened(lab: Lab, *entries: Entry) -> tuple[list[str], list[Problem]]:
    """The devices that could be opened, and what was wrong. Nothing is frozen."""
    opened = open_plan(Plan(entries), lab.run_directory)
    opened.close()
    devices = [filesystem.entry.device for filesystem in opened.filesystems]
    return devices, [*opened.left_out, *opened.refused]


# --- sources -------------------------------------------------------------------------------------


@pytest.mark.parametrize("command", ["plan", "check", "run"])
def test_a_source_that_leads_to_a_server_that_never_answers_is_not_looked_at(
    lab: Lab, user: User, command: str
) -> None:
    """An overlay looks with its mounter's credentials, so that FUSE does not protect root."""
    filesystem = lab.filesystem()
    user.do(
        "fuse('/mnt/fuse')",
        "overlay('/mnt/merged', '/mnt/fuse')",
        "overlay('/mnt/trap', '/mnt/lower', f'/proc/{os.getpid()}/root/mnt/merged/device')",
        "fall_silent()",
    )
    if command == "run":
        assert lab.run("exit 0").verdict == ("success", "filesystem", 0)
    else:
        outcome = lab.vmsnap(command, f"--only={filesystem.mount}")
        assert outcome.code == 0, outcome.out.decode() + outcome.err


# --- foreign user namespaces ---------------------------------------------------------------------


def test_what_a_user_mounts_for_himself_does_not_count_as_mounted(lab: Lab, user: User) -> None:
    lab.filesystem()
    data = str(lab.directory / "data")
    user.do("mount('mine', '/var/lib', 'tmpfs')", f"mount('mine', {data!r}, 'tmpfs')")
    outcome = lab.run("exit 0", only=[*lab.mounts, data])
    assert outcome.subjects == [("MountOpenFailed", data)]
    assert outcome.verdict == ("success", "crash", 0)


def test_a_filesystem_that_only_a_users_namespace_has_is_opened(lab: Lab) -> None:
    filesystem = lab.filesystem()
    device = planned(filesystem.mount)
    with public(lab, filesystem):
        User(lab)
    entry = entry_of(device)
    assert entry.foreign
    assert opened(lab, entry) == ([device], [])


def test_a_filesystem_that_a_user_has_covered_does_not_end_the_freeze_of_others(
    lab: Lab,
) -> None:
    filesystem, other = lab.filesystem(), lab.filesystem()
    devices = planned(filesystem.mount), planned(other.mount)
    with public(lab, filesystem) as point:
        User(lab).do(f"mount('mine', '{point}', 'tmpfs')")
    pinned, problems = opened(lab, *map(entry_of, devices))
    assert pinned == [devices[1]]
    assert [problem.severity for problem in problems] == [Severity.WARNING]
    assert "something else is mounted there" in problems[0].message
    assert lab.run("exit 0").verdict == ("success", "filesystem", 0)


def test_a_way_to_a_filesystem_that_leads_past_a_silent_server_holds_nobody_up(
    lab: Lab, user: User
) -> None:
    filesystem, other = lab.filesystem(), lab.filesystem()
    devices = planned(filesystem.mount), planned(other.mount)
    with public(lab, filesystem) as point:
        user = User(lab)
        user.do(f"bind('{point}', '/mnt/here/in')", f"mount('mine', '{point}', 'tmpfs')")
    entries = [entry_of(device) for device in devices]
    assert [m.point for m in entries[0].mounts] == [str(point), "/mnt/here/in"]
    # The kernel revalidates a mount point as root, whom FUSE refuses; but not a new name.
    user.do(
        "fuse('/mnt/fuse')",
        "os.rename('/mnt/here', '/mnt/there')",
        "overlay('/mnt/here', '/mnt/fuse')",
        "fall_silent()",
    )
    begin = time.monotonic()
    pinned, problems = opened(lab, *entries)
    assert time.monotonic() - begin < 20  # it hung without end
    assert pinned == [devices[1]]
    assert [problem.severity for problem in problems] == [Severity.WARNING]
    assert "could not be opened within" in problems[0].message


def test_a_namespace_of_a_user_is_foreign_and_one_of_root_is_not(lab: Lab, user: User) -> None:
    with public(lab, lab.filesystem()):
        inside = f"{lab.say('there')}; {lab.stop_at('leave')}"
        helper = lab.helper(f"exec unshare -m /bin/sh -c {shlex.quote(inside)}")
        lab.events.wait("there")
    found = [m.foreign for m in every_mount() if m.pid == helper.pid]
    assert found
    assert not any(found)
    lab.open("leave")
    assert helper.wait() == 0


# --- containers ----------------------------------------------------------------------------------

CHROOTED_FIRST = """
import os, sys, time
image, mount, jail, events = sys.argv[1:]
said = open(events, "w")
os.system(f"mount -o loop '{image}' '{mount}'")
first = os.getpid()
if os.fork() == 0:
    while os.getppid() == first:
        time.sleep(0.1)
    sys.exit()
os.chroot(jail)
print("there", file=said, flush=True)
time.sleep(1000)
"""


def test_a_disk_of_a_container_whose_first_process_is_in_a_chroot_is_frozen(lab: Lab) -> None:
    image, mount, jail = (lab.directory / name for name in ("hidden.img", "hidden", "jail"))
    with image.open("wb") as file:
        file.truncate(16 << 20)
    call("mkfs.ext4", "-q", "-F", image)
    mount.mkdir(mode=0o700)
    jail.mkdir()
    argv = ["unshare", "-m", PYTHON, "-IBc", CHROOTED_FIRST]
    argv += map(str, (image, mount, jail, lab.events.path))
    lab.helper(f"exec {shlex.join(argv)}")
    lab.events.wait("there")
    outcome = lab.run("exit 0", only=[str(mount)])
    assert outcome.verdict == ("success", "filesystem", 0)
    assert len(outcome.result["filesystems"]) == 1


# --- writeback -----------------------------------------------------------------------------------


def write_back(lab: Lab, filesystem: Filesystem) -> subprocess.Popen[bytes]:
    """What the session has a child do before it freezes; SIGALRM ends it when it takes too long."""
    program = "import sys; from vmsnap.freeze.writeback import flush; flush({int(sys.argv[1])})"
    device = str(filesystem.mount.stat().st_dev)
    process = subprocess.Popen([sys.executable, "-IBc", program, device])
    lab.helpers.append(process)
    return process


def test_an_open_file_at_a_server_that_never_answers_is_not_asked_for(lab: Lab, user: User) -> None:
    filesystem = lab.filesystem()
    user.do(
        "fuse('/mnt/fuse')",
        "overlay('/mnt/merged', '/mnt/fuse')",
        "os.open('/mnt/merged/in', os.O_PATH)",
        "fall_silent()",
    )
    process = write_back(lab, filesystem)
    assert wait_for_end(process.pid, 20.0), "it hangs"
    assert process.wait() == 0


def test_a_sparse_file_of_terabytes_does_not_take_all_the_time(lab: Lab) -> None:
    filesystem = lab.filesystem("xfs")
    with (filesystem.mount / "sparse").open("wb") as file:
        file.truncate(12 << 40)
        assert write_back(lab, filesystem).wait() == 0
