# SPDX-License-Identifier: Apache-2.0
"""Another program has frozen a filesystem: for a moment, for longer, or in a pre-script. Its freeze
is waited for, and never thawed by us."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from . import kernel, strange
from .lab import Filesystem, Lab
from .processes import is_stuck, look_at, wait_for_end, wait_until
from .running import Session

LIMIT = 20.0  # seconds


def witness(session: Session, filesystem: Filesystem) -> int:
    """Wait until the session waits for the thaw of this filesystem; return who does."""

    def waits() -> bool:
        return any(is_stuck(pid, filesystem.mount) for pid in session.below("vmsnap-witness"))

    wait_until(waits)
    (pid,) = session.below("vmsnap-witness")
    return pid


def begin(lab: Lab, *options: str) -> Session:
    return lab.start(f"{lab.say('held')}; {lab.stop_at('release')}; exit $word", *options)


# --- for a moment --------------------------------------------------------------------------------


@pytest.mark.parametrize("fstype", ["ext4", "xfs", "btrfs"])
def test_a_freeze_that_ends_costs_nothing(lab: Lab, fstype: str) -> None:
    lab.filesystem()
    theirs = lab.filesystem(fstype)
    kernel.freeze(theirs.mount)
    session = begin(lab)
    witness(session, theirs)
    kernel.thaw(theirs.mount)
    lab.events.wait("held", session)
    assert lab.frozen == ["fs0", "fs1"]
    lab.release()
    outcome = session.finish()
    assert outcome.subjects == []
    assert outcome.verdict == ("success", "filesystem", 0)
    assert lab.frozen == []


def test_several_that_end_one_after_another_cost_nothing(lab: Lab) -> None:
    theirs = [lab.filesystem() for _ in range(3)]
    lab.mount("-o", "remount,bind,ro", theirs[1].mount)
    for filesystem in theirs:
        kernel.freeze(filesystem.mount)
    session = begin(lab)
    for filesystem in theirs:
        witness(session, filesystem)
        kernel.thaw(filesystem.mount)
    lab.events.wait("held", session)
    assert len(lab.frozen) == 3
    lab.release()
    assert session.finish().verdict == ("success", "filesystem", 0)


def test_nobody_else_is_stalled_while_it_is_waited_for(lab: Lab) -> None:
    other, theirs = lab.filesystem(), lab.filesystem()
    kernel.freeze(theirs.mount)
    session = begin(lab)
    witness(session, theirs)
    assert not other.is_frozen
    (other.mount / "file").write_text("written")
    kernel.thaw(theirs.mount)
    lab.events.wait("held", session)
    lab.release()
    assert session.finish().verdict == ("success", "filesystem", 0)


def test_a_freeze_by_others_changes_nothing_in_the_filesystem(lab: Lab) -> None:
    theirs = lab.filesystem()
    before = theirs.mount.stat()
    kernel.freeze(theirs.mount)
    session = begin(lab)
    witness(session, theirs)
    kernel.thaw(theirs.mount)
    lab.events.wait("held", session)
    lab.release()
    session.finish()
    assert theirs.mount.stat() == before
    assert os.listxattr(theirs.mount) == []


def state_of(pid: int) -> str:
    process = look_at(pid)
    return process.state if process else ""


# Whoever reads a directory has its lock; here until a server answers, of whose file the memory is
# into which it reads.
READ_DIRECTORY = """
import ctypes, os, sys
libc = ctypes.CDLL(None)
libc.mmap.restype = ctypes.c_void_p
libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t] + [ctypes.c_int] * 3 + [ctypes.c_long]
file, directory = (os.open(path, os.O_RDONLY) for path in sys.argv[1:])
page = libc.mmap(None, 4096, 3, 2, file, 0)
print(flush=True)
input()
libc.syscall({"x86_64": 217}.get(os.uname().machine, 61), directory, ctypes.c_void_p(page), 4096)
"""


def test_a_user_who_has_the_lock_of_the_directory_holds_no_freeze_off(lab: Lab) -> None:
    lab.conf("[freeze]\ntimeout = 3\n")
    filesystem = lab.filesystem()
    data = lab.directory / "data"
    data.write_bytes(b"x" * 4096)
    mount, server = strange.hanging(lab, backing=data)
    reader = subprocess.Popen(
        [sys.executable, "-IBc", READ_DIRECTORY, mount / "file", filesystem.mount],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    lab.helpers.append(reader)
    assert reader.stdin
    assert reader.stdout
    reader.stdout.readline()
    server.hang()
    wait_until(lambda: state_of(server.process.pid) == "T")
    reader.stdin.write(b"\n")
    reader.stdin.close()
    call = Path(f"/proc/{reader.pid}/syscall")
    wait_until(lambda: call.read_text().split()[0] in ("217", "61"))  # it waits there
    outcome = lab.run("exit 0")
    server.go_on()
    assert outcome.subjects == []
    assert outcome.verdict == ("success", "filesystem", 0)


# --- for longer ----------------------------------------------------------------------------------


def test_a_freeze_that_stays_is_named_and_left_alone(lab: Lab) -> None:
    lab.conf("[freeze]\ntimeout = 1\n")
    other, theirs = lab.filesystem(), lab.filesystem()
    kernel.freeze(theirs.mount)
    session = begin(lab)
    waits = witness(session, theirs)
    lab.events.wait("held", session)
    assert lab.frozen == ["fs1"]
    lab.release()
    outcome = session.finish()
    assert outcome.verdict == ("success", "crash", 0)
    assert outcome.subjects == [("FreezeFailed", str(theirs.mount))]
    (error,) = outcome.result["errors"]
    assert "frozen by another program" in error["message"]
    assert "pre-script" not in error["message"]
    lab.umount(other.mount)  # what is left behind holds nothing but what is frozen
    lab.filesystems.remove(other)
    kernel.thaw(theirs.mount)
    assert wait_for_end(waits)


def test_whoever_reads_the_output_does_not_wait_for_what_is_left_behind(lab: Lab) -> None:
    lab.conf("[freeze]\ntimeout = 1\n")
    theirs = lab.filesystem()
    kernel.freeze(theirs.mount)
    read, write = os.pipe()
    session = lab.start("exit 0", stdout=write, stderr=write)
    os.close(write)
    waits = witness(session, theirs)
    session.process.wait()
    with open(read, "rb") as pipe:
        os.set_blocking(read, False)
        while data := pipe.read():
            pass
        assert data == b"", "somebody has it open still"
    assert theirs.is_frozen
    kernel.thaw(theirs.mount)
    assert wait_for_end(waits)


def test_a_signal_ends_the_wait(lab: Lab) -> None:
    lab.app(pre=lab.say("quiesced"), post=lab.say("resumed"))
    theirs = lab.filesystem()
    kernel.freeze(theirs.mount)
    session = begin(lab)
    witness(session, theirs)
    session.kill(signal.SIGTERM)
    outcome = session.finish()
    assert outcome.verdict == ("failed", "none", 1)
    assert lab.events.heard == ["quiesced", "resumed"]
    assert theirs.is_frozen
    kernel.thaw(theirs.mount)


@pytest.mark.parametrize("alive", ["engine", "guard", "nobody"])
def test_who_is_killed_while_it_is_waited_for_leaves_the_freeze_of_others_alone(
    lab: Lab, alive: str
) -> None:
    lab.conf("[freeze]\ntimeout = 1\n")
    other, theirs = lab.filesystem(), lab.filesystem()
    kernel.freeze(theirs.mount)
    session = begin(lab)
    waits = witness(session, theirs)
    engine, guard = session.pid, session.guard
    for name, pid in (("engine", engine), ("guard", guard)):
        if name != alive:
            os.kill(pid, signal.SIGKILL)
    os.kill(waits, signal.SIGKILL)  # of which it hears when it is thawed
    lab.open("release")
    session.process.wait()
    assert wait_for_end(guard)
    assert lab.vmsnap("thaw", "--force").code == 0
    assert (other.is_frozen, theirs.is_frozen) == (False, True)
    kernel.thaw(theirs.mount)
    assert wait_for_end(waits)
    lab.wait_for_rest()
    assert lab.frozen == []


# --- in a pre-script -----------------------------------------------------------------------------


@pytest.mark.parametrize("fstype", ["ext4", "xfs", "btrfs"])
def test_a_pre_script_that_freezes_by_itself_is_told_that_it_must_not(
    lab: Lab, fstype: str
) -> None:
    lab.conf("[freeze]\ntimeout = 1\n")
    theirs, other = lab.filesystem(fstype), lab.filesystem()
    lab.app(
        pre=f"echo x >{theirs.mount}/dirty; fsfreeze -f {theirs.mount}",
        post=f"fsfreeze -u {theirs.mount} && {lab.say('resumed')}",
    )
    session = lab.start(lab.say("taken"))
    outcome = session.finish(LIMIT)
    assert lab.events.heard == ["taken", "resumed"]
    assert outcome.verdict == ("success", "crash", 0)
    assert outcome.subjects == [("FreezeFailed", str(theirs.mount))]
    (error,) = outcome.result["errors"]
    assert "pre-script" in error["message"]
    assert "vmsnap freezes by itself" in error["message"]
    assert not theirs.is_frozen
    assert not other.is_frozen


def test_a_pre_script_that_freezes_is_told_so_even_if_it_freezes_all(lab: Lab) -> None:
    lab.conf("[freeze]\ntimeout = 1\n")
    mounts = " ".join(str(lab.filesystem().mount) for _ in range(2))
    lab.app(
        pre=f"for m in {mounts}; do fsfreeze -f $m || exit 1; done",
        post=f"for m in {mounts}; do fsfreeze -u $m || exit 1; done",
    )
    outcome = lab.start(lab.say("taken"), "--require=application").finish(LIMIT)
    assert outcome.verdict == ("failed", "none", 1)
    assert {name for name, _ in outcome.subjects} == {"FreezeFailed"}
    assert lab.events.heard == []
    assert lab.frozen == []


@pytest.mark.parametrize("command", ["plan", "check"])
def test_neither_plan_nor_check_waits_for_what_others_have_frozen(lab: Lab, command: str) -> None:
    theirs = lab.filesystem("xfs")
    kernel.freeze(theirs.mount)
    outcome = lab.begin(command, f"--only={theirs.mount}").finish(LIMIT)
    assert outcome.code == 0
    assert theirs.is_frozen
    kernel.thaw(theirs.mount)
