# SPDX-License-Identifier: Apache-2.0
"""A filesystem does not freeze, is thawed by others, or the run directory cannot be written to."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from ..unit.journal.test_sender import Receiver
from . import kernel, stuck
from .lab import VMSNAP, Lab
from .processes import wait_for_end

# --- frozen by somebody else ---------------------------------------------------------------------


def test_a_filesystem_that_others_froze_fails_the_freeze_and_stays_frozen(lab: Lab) -> None:
    filesystems = [lab.filesystem(mib=16) for _ in range(5)]
    third = filesystems[2]
    kernel.freeze(third.mount)
    session = lab.hold()
    assert lab.frozen == ["fs2"]
    lab.release()
    outcome = session.finish()
    assert outcome.subjects == [("FreezeFailed", str(third.mount))]
    assert outcome.verdict == ("success", "crash", 0)
    assert lab.frozen == ["fs2"]
    kernel.thaw(third.mount)


def test_no_snapshot_is_taken_when_the_freeze_fails_and_more_is_required(lab: Lab) -> None:
    lab.filesystem()
    other = lab.filesystem()
    kernel.freeze(other.mount)
    outcome = lab.run(lab.say("taken"), "--require=filesystem")
    assert outcome.verdict == ("failed", "none", 1)
    assert outcome.errors == ["FreezeFailed"]
    assert outcome.result["snapshot"] is None
    assert lab.events.heard == []
    assert lab.frozen == ["fs1"]
    kernel.thaw(other.mount)


# What would take a user namespace of somebody's, and no --only.
FOREIGN = """
import sys
from vmsnap.cli import main
from vmsnap.freeze.plan import Entry
Entry.foreign = property(lambda entry: entry.mount.endswith("/foreign"))
sys.exit(main.main())
"""


def test_what_only_a_user_has_mounted_ends_no_freeze(lab: Lab) -> None:
    foreign = lab.filesystem(name="foreign")
    lab.filesystem("xfs")
    lab.filesystem("btrfs")
    kernel.freeze(foreign.mount)
    session = lab.hold(program=(sys.executable, "-IBc", FOREIGN))
    assert lab.frozen == ["foreign", "fs1", "fs2"]
    lab.release()
    outcome = session.finish()
    assert outcome.verdict == ("success", "filesystem", 0)
    assert outcome.errors == []
    assert "only a foreign user namespace has it" in outcome.err
    assert lab.frozen == ["foreign"]  # by somebody else
    kernel.thaw(foreign.mount)


def test_one_of_our_own_that_fails_beside_it_fails_the_freeze(lab: Lab) -> None:
    foreign, own = lab.filesystem(name="foreign"), lab.filesystem("xfs")
    lab.filesystem()
    kernel.freeze(foreign.mount)
    kernel.freeze(own.mount)
    outcome = lab.run("exit 0", program=(sys.executable, "-IBc", FOREIGN))
    assert outcome.subjects == [("FreezeFailed", str(own.mount))]
    assert outcome.verdict == ("success", "crash", 0)
    assert lab.frozen == ["foreign", "fs1"]
    for filesystem in (foreign, own):
        kernel.thaw(filesystem.mount)


def test_what_only_a_user_has_mounted_is_thawed_if_one_of_our_own_fails(lab: Lab) -> None:
    lab.filesystem(name="foreign")
    own = lab.filesystem("xfs")
    kernel.freeze(own.mount)
    lab.run("exit 0", program=(sys.executable, "-IBc", FOREIGN))
    assert lab.frozen == ["fs1"]
    kernel.thaw(own.mount)


# --- FIFREEZE does not return --------------------------------------------------------------------


@pytest.mark.parametrize("dirty", [False, True])
def test_a_freeze_that_does_not_return_is_given_up_and_undone_when_it_does(
    lab: Lab, dirty: bool
) -> None:
    lab.conf("[freeze]\ntimeout = 1\n")
    made = stuck.prepare(lab, dirty)
    session = lab.start(f"{lab.say('held')}; {lab.stop_at('release')}", only=made.only)
    guard = stuck.wait_until_inside(session, made)
    lab.events.wait("held", session)
    assert not made.other.is_frozen
    lab.release()
    outcome = session.finish()
    assert outcome.subjects == [("FreezeTimeout", str(made.child.mount))]
    assert outcome.verdict == ("success", "crash", 0)
    assert [p.pid for p in lab.left()] == [guard]
    second = lab.run("exit 0")
    assert (second.code, second.errors) == (75, ["SessionInProgress"])
    kernel.thaw(made.parent.mount)
    assert wait_for_end(guard)
    lab.wait_for_rest()
    assert lab.frozen == []


def test_no_snapshot_is_taken_when_a_freeze_does_not_return_and_more_is_required(lab: Lab) -> None:
    lab.conf("[freeze]\ntimeout = 1\n")
    made = stuck.prepare(lab)
    outcome = lab.run(lab.say("taken"), "--require=filesystem", only=made.only)
    assert outcome.subjects == [("FreezeTimeout", str(made.child.mount))]
    assert outcome.verdict == ("failed", "none", 1)
    assert lab.events.heard == []
    kernel.thaw(made.parent.mount)
    lab.wait_for_rest()
    assert lab.frozen == []


def test_the_death_of_a_guard_inside_a_freeze_leaves_nothing_frozen_in_the_end(lab: Lab) -> None:
    """A killed guard does not die before its FIFREEZE returns, and that one may yet succeed."""
    lab.conf("[freeze]\ntimeout = 1\n")
    made = stuck.prepare(lab)
    session = lab.start("exit 0", only=made.only)
    guard = stuck.wait_until_inside(session, made)
    os.kill(guard, signal.SIGKILL)
    outcome = session.finish()
    assert outcome.verdict == ("success", "crash", 0)
    assert "GuardLost" in outcome.errors
    assert not made.other.is_frozen
    kernel.thaw(made.parent.mount)
    assert wait_for_end(guard)
    lab.wait_for_rest()
    assert lab.frozen == []


def test_force_does_not_wait_for_a_freeze_that_does_not_return_and_names_it(lab: Lab) -> None:
    made = stuck.prepare(lab)
    session = lab.start(lab.say("taken"), only=made.only)
    guard = stuck.wait_until_inside(session, made)
    forced = lab.vmsnap("thaw", "--force")
    assert forced.code == 1
    words = "still inside a freeze; it is thawed as soon as that ends"
    assert f"{made.child.mount}: {words}" in forced.out.decode().splitlines()
    assert not made.other.is_frozen
    kernel.thaw(made.parent.mount)
    outcome = session.finish()
    assert outcome.result["consistency"] in ("crash", "none")
    assert wait_for_end(guard)
    lab.wait_for_rest()
    assert lab.frozen == []


def test_the_end_of_such_a_freeze_leaves_the_freezes_of_others_alone(lab: Lab) -> None:
    lab.conf("[freeze]\ntimeout = 1\n")
    made = stuck.prepare(lab)
    session = lab.start("exit 0", only=made.only)
    guard = stuck.wait_until_inside(session, made)
    os.kill(guard, signal.SIGKILL)
    session.finish()
    kernel.freeze(made.other.mount)
    kernel.thaw(made.parent.mount)
    assert wait_for_end(guard)
    lab.wait_for_rest()
    assert lab.frozen == ["other"]
    kernel.thaw(made.other.mount)


WITH_JOURNAL = """
mount -t tmpfs tmpfs /run && mkdir -p /run/systemd/journal && touch /run/systemd/journal/socket &&
mount --bind "$0" /run/systemd/journal/socket && exec "$@"
"""


def test_debugging_into_a_filesystem_that_cannot_be_thawed_delays_no_post_script(lab: Lab) -> None:
    lab.conf("[freeze]\ntimeout = 1\n")
    receiver = Receiver(lab.shm / "socket")
    lab.undo.callback(receiver.socket.close)
    filesystem = lab.filesystem()
    lab.app(pre="exit 0", post=lab.say("resumed"))
    program = ("unshare", "--mount", "sh", "-c", WITH_JOURNAL, receiver.path, str(VMSNAP))
    log = filesystem.mount / "log"
    held_back = stuck.HeldBack(lab, filesystem)
    with log.open("wb") as file:
        session = lab.start("exit 0", "--debug", program=program, stderr=file)
    lab.events.wait("resumed", session)
    held_back.let_go()
    assert session.finish().subjects == [("FreezeTimeout", str(filesystem.mount))]
    lab.wait_for_rest()
    assert lab.frozen == []
    assert "debug: pre-script of db succeeded" in log.read_text()
    assert any("post-script of db succeeded" in text for text in receiver.messages())


# --- what the plan could not know ----------------------------------------------------------------


def test_a_filesystem_that_becomes_writable_during_the_hold_was_not_frozen(lab: Lab) -> None:
    lab.filesystem("ext4")
    late = lab.filesystem("xfs")
    lab.mount("-o", "remount,ro", late.mount)
    session = lab.hold()
    lab.mount("-o", "remount,rw", late.mount)
    (late.mount / "written").write_text("during the hold")
    lab.release()
    outcome = session.finish()
    assert outcome.verdict == ("success", "crash", 0)
    assert outcome.subjects == [("NotFrozen", str(late.mount))]


@pytest.mark.parametrize(
    ("options", "errors", "level"),
    [("loop", ["NotFrozen"], "crash"), ("loop,ro", [], "filesystem")],
)
def test_a_filesystem_mounted_during_the_hold_was_not_frozen_unless_it_is_read_only(
    lab: Lab, options: str, errors: list[str], level: str
) -> None:
    lab.filesystem("ext4")
    late = lab.filesystem("xfs")
    lab.umount(late.mount)
    session = lab.hold(only=[f"{lab.directory}/*"])
    lab.mount("-o", options, late.image, late.mount)
    lab.release()
    outcome = session.finish()
    assert outcome.verdict == ("success", level, 0)
    assert outcome.subjects == [(error, str(late.mount)) for error in errors]


# --- during the hold -----------------------------------------------------------------------------


def test_a_thaw_by_others_during_the_hold_lowers_the_consistency(lab: Lab) -> None:
    lab.filesystem("ext4")
    other = lab.filesystem("xfs")
    session = lab.hold()
    assert lab.helper(f"fsfreeze -u {other.mount}").wait() == 0
    lab.release()
    outcome = session.finish()
    assert outcome.subjects == [("ThawedEarly", str(other.mount))]
    assert outcome.verdict == ("success", "crash", 0)
    assert lab.frozen == []


def test_a_frozen_filesystem_cannot_be_unmounted(lab: Lab) -> None:
    filesystem = lab.filesystem()
    session = lab.hold()
    umount = subprocess.run(
        ["umount", str(filesystem.mount)], capture_output=True, text=True, check=False
    )
    assert umount.returncode != 0
    assert "busy" in umount.stderr
    lab.release()
    assert session.finish().verdict == ("success", "filesystem", 0)
    lab.umount(filesystem.mount)
    assert str(filesystem.mount) not in kernel.mounts_below(lab.directory)


def test_a_filesystem_detached_during_the_hold_is_thawed(lab: Lab) -> None:
    filesystem = lab.filesystem()
    session = lab.hold()
    fd = os.open(filesystem.mount, os.O_RDONLY)
    lab.undo.callback(os.close, fd)
    subprocess.run(["umount", "--lazy", str(filesystem.mount)], check=True)
    assert kernel.is_frozen(Path(f"/proc/self/fd/{fd}"))
    lab.filesystems.clear()
    lab.release()
    assert session.finish().verdict == ("success", "filesystem", 0)
    assert not kernel.is_frozen(Path(f"/proc/self/fd/{fd}"))


# --- the run directory, the state directory ------------------------------------------------------


def fill(directory: Path) -> None:
    (directory / ".vmsnap").touch()  # vmsnap has made it
    with (directory / "filling").open("wb", buffering=0) as file:
        for size in (1 << 20, 1 << 12, 1):
            try:
                while True:
                    file.write(b"x" * size)
            except OSError:
                pass


def test_nothing_is_frozen_when_the_run_directory_is_full(lab: Lab) -> None:
    lab.filesystem()
    fill(lab.run_directory)
    session = lab.hold()
    assert lab.frozen == []
    lab.release()
    outcome = session.finish()
    assert outcome.subjects == [("FreezeFailed", str(lab.run_directory))]
    assert outcome.verdict == ("success", "crash", 0)
    assert sorted(os.listdir(lab.run_directory)) == [".vmsnap", "filling", "lock"]


def test_a_full_run_directory_costs_the_scripts_and_the_freeze(lab: Lab) -> None:
    lab.filesystem()
    lab.app(pre=lab.say("quiesced"), post=lab.say("resumed"))
    fill(lab.run_directory)
    outcome = lab.run("exit 0", "--require=application")
    assert outcome.verdict == ("failed", "none", 1)
    assert lab.frozen == []


def test_a_run_directory_without_inodes_is_said(lab: Lab) -> None:
    lab.filesystem()
    lab.mount("-o", "remount,nr_inodes=1", lab.run_directory)
    outcome = lab.run(lab.say("taken"))
    assert outcome.verdict == ("failed", "none", 1)
    assert str(lab.run_directory) in outcome.result["errors"][0]["message"]
    assert lab.events.heard == []


def test_a_run_directory_that_others_can_write_to_is_refused(lab: Lab) -> None:
    lab.filesystem()
    lab.run_directory.chmod(0o777)
    outcome = lab.run(lab.say("taken"))
    assert outcome.verdict == ("failed", "none", 1)
    assert lab.events.heard == []


def test_directories_of_others_are_left_alone(lab: Lab) -> None:
    """As of `--run /var` or `--state /var`."""
    lab.filesystem()
    theirs = lab.directory / "theirs"
    (theirs / "tmp").mkdir(parents=True)
    theirs.chmod(0o700)
    (theirs / "tmp/precious").write_text("data")
    for option in ("--run", "--state"):
        outcome = lab.run(lab.say("taken"), f"{option}={theirs}")
        assert outcome.verdict == ("failed", "none", 1)
        assert str(theirs) in outcome.result["errors"][0]["message"]
    forced = lab.vmsnap("thaw", f"--run={theirs}", "--force")
    assert f"{theirs}: found files and no .vmsnap" in forced.out.decode()
    assert [str(path.relative_to(theirs)) for path in theirs.rglob("*")] == ["tmp", "tmp/precious"]
    assert lab.events.heard == []


@pytest.mark.parametrize("options", ["ro,mode=0700", "size=4k,nr_inodes=1,mode=0700"])
def test_a_state_directory_that_cannot_be_written_to_costs_nothing(lab: Lab, options: str) -> None:
    lab.filesystem()
    lab.mount("-t", "tmpfs", "-o", options, "tmpfs", lab.state)
    outcome = lab.run("exit 0")
    assert outcome.verdict == ("success", "filesystem", 0)
    assert outcome.errors == []
    assert str(lab.state) in outcome.err
