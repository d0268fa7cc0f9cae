# SPDX-License-Identifier: Apache-2.0
"""A server that never answers holds nobody: not the check, not the session, not the thaw."""

from __future__ import annotations

import shlex
import shutil
import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from . import strange
from .fuse import serving
from .lab import VMSNAP, Lab
from .running import Outcome

LIMIT = 15.0  # seconds; what is meant is "within seconds", and not never

# --- what nobody needs to look at ----------------------------------------------------------------

# The usual layout, in which the path on the server is that of the mount point here. Whoever takes
# the source for a path of this machine asks the dead server for it.
SOURCES = [
    ("fuse.sshfs", "srv1:{}"),
    ("fuse.sshfs", "user@srv1:{}/"),
    ("fuse.glusterfs", "srv1:{}"),
    ("fuse.rclone", "remote:{}"),
    ("fuse.s3fs", "{}"),
    ("fuse", "//srv1{}"),
    ("fuse.ceph-fuse", "10.0.0.1:6789,10.0.0.2:6789:{}"),
]
COMMANDS: dict[str, Callable[[Lab], list[str | Path]]] = {
    "plan": lambda lab: ["plan"],
    "check": lambda lab: ["check", *only(lab)],
    "status": lambda lab: ["status"],
    "thaw": lambda lab: ["thaw", "--force"],
    "run": lambda lab: ["run", *only(lab), "--json", "--", "true"],
}


def only(lab: Lab) -> list[str]:
    return [f"--only={mount}" for mount in lab.mounts]


def bounded(lab: Lab, name: str, *more: str | Path) -> Outcome:
    first, *rest = COMMANDS[name](lab)
    return lab.begin(first, *more, *rest).finish(LIMIT)


@pytest.mark.parametrize(("fstype", "source"), SOURCES)
def test_the_path_on_the_server_is_not_looked_up_here(lab: Lab, fstype: str, source: str) -> None:
    lab.filesystem()
    strange.dead(lab, source=source, fstype=fstype)
    for name in COMMANDS:
        assert bounded(lab, name).code == 0, name


@pytest.mark.parametrize("source", ["systemd-1", "{}", "/etc/auto.misc"])
def test_no_automount_is_triggered(lab: Lab, source: str) -> None:
    lab.filesystem()
    automount = strange.Automount(lab, source=source)
    for name in COMMANDS:
        outcome = bounded(lab, name)
        assert not automount.triggered, name
        assert outcome.code == 0, name


def test_a_container_with_a_dead_server_holds_nobody(lab: Lab) -> None:
    """The share is mounted in the container only, and so is the disk beside it."""
    lab.filesystem()
    mount, server = strange.hanging(lab)
    inside = f"{lab.say('there')}; {lab.stop_at('leave')}"
    helper = lab.helper(f"exec unshare -m /bin/sh -c {shlex.quote(inside)}")
    lab.events.wait("there")
    server.hang()
    for name in COMMANDS:
        assert bounded(lab, name).code == 0, name
    lab.open("leave")
    assert helper.wait() == 0


# --- a disk below one ----------------------------------------------------------------------------


def disk_below(lab: Lab) -> strange.Disk:
    """A disk that is mounted on a directory of a server, which hangs afterwards."""
    mount, server = strange.hanging(lab)
    disk = strange.disk(lab, mount / "dir", strange.image(lab, "below"))
    server.hang()
    return disk


def disk_below_in_a_container(lab: Lab) -> strange.Disk:
    mount, server = strange.hanging(lab)
    image = strange.image(lab, "below")
    inside = f"mount -o loop {image} {mount}/dir && {lab.say('there $$')}; {lab.stop_at('never')}"
    lab.helper(f"exec unshare -m /bin/sh -c {shlex.quote(inside)}")
    pid = lab.events.wait("there")
    disk = strange.watch(lab, mount / "dir", image, f"/proc/{pid}/root")
    server.hang()
    return disk


DISKS = [disk_below, disk_below_in_a_container]


@pytest.mark.parametrize("make", DISKS)
def test_a_disk_below_it_is_frozen_or_named_and_all_others_are_frozen(
    lab: Lab, make: Callable[[Lab], strange.Disk]
) -> None:
    other = lab.filesystem()
    disk = make(lab)
    session = lab.hold(only=[*lab.mounts, str(disk.mount)], seconds=LIMIT)
    frozen = disk.is_frozen
    assert other.is_frozen
    lab.release()
    outcome = session.finish(LIMIT)
    if frozen:
        assert outcome.verdict == ("success", "filesystem", 0)
    else:
        assert outcome.verdict == ("success", "crash", 0)
        (error,) = outcome.result["errors"]
        assert str(disk.mount) in error["subject"]
        assert str(disk.mount.parent) in error["message"], "the mount that does not answer"


@pytest.mark.parametrize("make", DISKS)
def test_check_tells_of_a_disk_below_it(lab: Lab, make: Callable[[Lab], strange.Disk]) -> None:
    lab.filesystem()
    disk = make(lab)
    outcome = bounded(lab, "check", f"--only={disk.mount}", "--json")
    if outcome.code:
        assert str(disk.mount) in outcome.out.decode()


@pytest.mark.parametrize("make", DISKS)
def test_nothing_is_quiesced_for_a_freeze_that_is_known_to_fail(
    lab: Lab, make: Callable[[Lab], strange.Disk]
) -> None:
    lab.filesystem()
    disk = make(lab)
    lab.app(pre=lab.say("quiesced"), post=lab.say("resumed"))
    only = [*lab.mounts, str(disk.mount)]
    session = lab.start("exit 0", "--require=application", only=only)
    outcome = session.finish(LIMIT)
    if outcome.code:
        assert "quiesced" not in lab.events.heard


# --- what the administrator has put there --------------------------------------------------------


def named(lab: Lab, what: str, path: Path) -> list[str | Path]:
    """Name a path as `what`; return the options for it."""
    if what in ("etc", "run", "state"):
        return [f"--{what}={path}"]
    if what == "textfile":
        lab.conf(f"[metrics]\ntextfile = {path}/vmsnap.prom\n")
    elif what == "apps.d":
        (lab.etc / "vmsnap/apps.d").rmdir()
        (lab.etc / "vmsnap/apps.d").symlink_to(path)
    elif what == "app file":
        (lab.etc / "vmsnap/apps.d/db.json").symlink_to(path / "db.json")
    elif what == "vmsnap.conf":
        (lab.etc / "vmsnap/vmsnap.conf").symlink_to(path / "vmsnap.conf")
    elif what == "vmsnap.conf.d":
        (lab.etc / "vmsnap/vmsnap.conf.d").symlink_to(path)
    elif what == "script":
        lab.app(preScriptLocation=str(path / "pre"))
    elif what == "script behind a link":
        (lab.programs / "pre").symlink_to(path / "pre")
        lab.app(preScriptLocation=str(lab.programs / "pre"))
    elif what == "interpreter":
        script = lab.program("pre", "exit 0", shebang=f"#!{path}/python")
        lab.conf("[scripts]\nkill_grace = 1\n")
        lab.app(preScriptLocation=str(script), timeoutInSeconds=2)
    elif what == "interpreter behind a link":
        (lab.programs / "python").symlink_to(path / "python")
        script = lab.program("pre", "exit 0", shebang=f"#!{lab.programs}/python")
        lab.conf("[scripts]\nkill_grace = 1\n")
        lab.app(preScriptLocation=str(script), timeoutInSeconds=2)
    elif what == "azure":
        (lab.etc / "azure").symlink_to(path)
    else:
        raise AssertionError(what)
    return []


PLACES = [
    *("etc", "run", "state", "textfile", "apps.d", "app file", "vmsnap.conf", "vmsnap.conf.d"),
    *("script", "script behind a link", "interpreter", "interpreter behind a link", "azure"),
]
HARMLESS = ("state", "textfile")  # the snapshot is what it is all the same
NOT_CHECKED = ("state",)


@pytest.mark.parametrize("what", PLACES)
def test_check_names_what_lies_on_a_dead_server(lab: Lab, what: str) -> None:
    lab.filesystem()
    path = strange.dead(lab)
    outcome = bounded(lab, "check", *named(lab, what, path / "x"))
    if what not in NOT_CHECKED:
        assert str(path) in outcome.out.decode() + outcome.err
    if what not in HARMLESS:
        assert outcome.code != 0


@pytest.mark.parametrize("what", PLACES)
def test_a_session_goes_on_or_refuses_at_once(lab: Lab, what: str) -> None:
    lab.filesystem()
    path = strange.dead(lab)
    outcome = bounded(lab, "run", *named(lab, what, path / "x"))
    assert str(path) in outcome.out.decode() + outcome.err
    if outcome.code == 0 and what not in HARMLESS:
        assert outcome.result["consistency"] == "filesystem"
    assert lab.frozen == []


@pytest.mark.parametrize("what", ["script", "interpreter", "etc", "textfile"])
def test_a_path_below_an_automount_is_bounded(lab: Lab, what: str) -> None:
    lab.filesystem()
    automount = strange.Automount(lab)
    options = named(lab, what, automount.mount / "x")
    for name in ("check", "run"):
        outcome = bounded(lab, name, *options)
        if what in HARMLESS:
            continue
        assert str(automount.mount) in outcome.out.decode() + outcome.err, name


@pytest.mark.parametrize("name", COMMANDS)
def test_the_working_directory_does_not_matter(lab: Lab, name: str) -> None:
    lab.filesystem()
    mount, server = strange.hanging(lab)
    enter = f'cd "$0" && {lab.say("entered")}; {lab.stop_at("go")}; exec "$@"'
    first, *rest = COMMANDS[name](lab)
    program = ("sh", "-c", enter, str(mount / "dir"), str(VMSNAP))
    session = lab.begin(first, *rest, program=program)
    lab.events.wait("entered")
    server.hang()
    lab.open("go")
    assert session.finish(LIMIT).code == 0


# --- programs that wait for one ------------------------------------------------------------------


def waiting(lab: Lab, name: str = "hanging") -> Path:
    """A directory at which whoever looks waits, and is not even ended by SIGKILL: the server has
    read the question."""
    mount = strange.point(lab, name)
    lab.undo.enter_context(serving(mount, silent=True))
    return mount


@pytest.mark.parametrize("phase", ["pre", "post"])
def test_a_script_that_cannot_be_killed_has_its_time_and_no_more(lab: Lab, phase: str) -> None:
    lab.filesystem()
    lab.conf("[scripts]\nkill_grace = 1\n")
    mount = waiting(lab)
    scripts = {"pre": lab.say("pre"), "post": lab.say("post")}
    scripts[phase] += f"; exec stat {mount}/x"
    lab.app(**scripts, timeoutInSeconds=1)
    session = lab.start("exit 0")
    outcome = session.finish(LIMIT)
    assert outcome.errors == [f"{phase.title()}-ScriptTimeout"]
    assert outcome.verdict == ("success", "filesystem", 0)
    assert [word for word in lab.events.heard if word in ("pre", "post")] == ["pre", "post"]


def test_a_snapshot_command_that_cannot_be_killed_holds_nothing(lab: Lab) -> None:
    lab.filesystem()
    lab.conf("[scripts]\nkill_grace = 1\n")
    mount = waiting(lab)
    session = lab.start(["stat", mount / "x"], "--hold=1")
    outcome = session.finish(25.0)  # the command has 10 s after the hold
    assert outcome.verdict[0] == "failed"
    assert "HoldExpired" in outcome.errors
    assert lab.frozen == []


@pytest.mark.parametrize("where", ["pre", "hold", "post"])
def test_sigterm_ends_a_session_whose_program_cannot_be_killed(lab: Lab, where: str) -> None:
    lab.filesystem()
    lab.conf("[scripts]\nkill_grace = 0.1\n")
    mount = waiting(lab)
    hang = f"{lab.say('hanging')}; exec stat {mount}/x"
    lab.app(
        pre=hang if where == "pre" else "exit 0",
        post=hang if where == "post" else lab.say("resumed"),
        timeoutInSeconds=1 if where == "post" else 600,
    )
    session = lab.start(hang if where == "hold" else "exit 0")
    lab.events.wait("hanging", session, LIMIT)
    session.kill(signal.SIGTERM)
    session.finish(LIMIT)
    assert lab.frozen == []
    assert ("resumed" in lab.events.heard) == (where != "post")


def test_an_app_that_hangs_keeps_no_other_from_being_resumed(lab: Lab) -> None:
    lab.filesystem()
    lab.conf("[scripts]\nkill_grace = 0.1\n")
    mount = waiting(lab)
    lab.app("bad", pre=f"exec stat {mount}/x", post=lab.say("bad-resumed"), timeoutInSeconds=1)
    lab.app("good", pre=lab.say("good-quiesced"), post=lab.say("good-resumed"))
    outcome = lab.start("exit 0").finish(LIMIT)
    assert outcome.subjects == [("Pre-ScriptTimeout", "bad")]
    assert {"good-resumed", "bad-resumed"} <= set(lab.events.heard)


# --- what dies after it was checked --------------------------------------------------------------


def dying(lab: Lab, phase: str, what: str) -> None:
    """An app with a script of which something lies where a server will be dead."""
    bin = strange.point(lab, "bin")
    shutil.copy("/bin/sh", bin / "sh")
    shebang = {"interpreter": f"#!{bin}/sh", "env": f"#!/usr/bin/env -S PATH={bin} sh"}
    program = {
        "pre": f"{lab.say('quiesced')}; {lab.stop_at('dead')}; exit 1",
        "post": lab.say("resumed"),
    }
    paths = {name: lab.program(name, program[name]) for name in program}
    if what == "script":
        paths[phase] = lab.write(bin / phase, f"#!/bin/sh\n{program[phase]}\n", 0o700)
    else:
        paths[phase] = lab.program(phase, program[phase], shebang=shebang[what])
    locations = {f"{name}ScriptLocation": str(path) for name, path in paths.items()}
    retries = int(phase == "pre")
    lab.conf("[scripts]\nkill_grace = 0.1\n")
    lab.app(**locations, timeoutInSeconds=3, preScriptNoOfRetries=retries)


@pytest.mark.parametrize("what", ["interpreter", "env", "script"])
@pytest.mark.parametrize("phase", ["pre", "post"])
def test_what_dies_between_check_and_start_costs_the_budget_of_its_script(
    lab: Lab, phase: str, what: str
) -> None:
    """The kernel waits for the server inside execve(2), and nobody waits for that."""
    lab.filesystem()
    dying(lab, phase, what)
    session = lab.start("exit 0")
    lab.events.wait("quiesced", session)
    strange.dead(lab, "bin")
    lab.open("dead")
    outcome = session.finish(LIMIT)
    expected = {"pre": ["Pre-ScriptTimeout"], "post": ["Pre-ScriptExecutionFailed"]}[phase]
    expected += ["Post-ScriptTimeout"] if phase == "post" else []
    assert outcome.errors == expected
    assert outcome.verdict == ("success", "filesystem", 0)
    assert ("resumed" in lab.events.heard) == (phase == "pre")
    assert "seconds" in outcome.result["apps"][0][phase]


def test_sigterm_ends_a_session_whose_script_waits_inside_its_start(lab: Lab) -> None:
    lab.filesystem()
    dying(lab, "pre", "interpreter")
    session = lab.start("exit 0")
    lab.events.wait("quiesced", session)
    strange.dead(lab, "bin")
    lab.open("dead")
    session.kill(signal.SIGTERM)
    session.finish(LIMIT)
    assert "resumed" in lab.events.heard
    assert lab.frozen == []
