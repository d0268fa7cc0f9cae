# SPDX-License-Identifier: Apache-2.0
"""A server that dies between the check of a script and its start: the script has its time and no
more, and who supervises it goes on."""

from __future__ import annotations

import os
import signal
import struct
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from . import strange
from .fuse import Server
from .lab import Lab
from .running import Outcome, Session

LIMIT = 30.0  # seconds
TRUE = Path("/bin/true")
# What is on FUSE is refused, but NFS is not, which cannot be had here. So FUSE passes for the
# kernel's own, and the server dies when everything has been checked.
TRUSTING = """
import os, signal, sys
from vmsnap.cli import main
from vmsnap.scripts.engine import AppScripts
from vmsnap.scripts.snapshot_command import Command
from vmsnap.system import trusted
trusted.checked = lambda step: step
order, start = AppScripts._order, Command.start
def dying(self):
    if self._phase == PHASE:
        os.kill(SERVER, signal.SIGSTOP)
    order(self)
def dying_in_the_hold(self, env):
    if PHASE == "hold":
        os.kill(SERVER, signal.SIGSTOP)
    start(self, env)
    if PHASE == "hold":
        print("starting", file=open(EVENTS, "w"))
AppScripts._order, Command.start = dying, dying_in_the_hold
sys.exit(main.main())
"""


def script_itself(lab: Lab, file: Path) -> Path:
    return file


def interpreter(lab: Lab, file: Path) -> Path:
    return lab.program("script", "exit 0", shebang=f"#!{file}")


def interpreter_behind_a_link(lab: Lab, file: Path) -> Path:
    (lab.programs / "sh").symlink_to(file)
    return lab.program("script", "exit 0", shebang=f"#!{lab.programs}/sh")


def loader(lab: Lab, file: Path) -> Path:
    """An ELF program of this machine, whose loader is there."""
    data = bytearray(TRUE.read_bytes())
    table, entry, count = *struct.unpack_from("<Q", data, 32), *struct.unpack_from("<HH", data, 54)
    for start in range(table, table + entry * count, entry):
        if struct.unpack_from("<I", data, start)[0] == 3:  # PT_INTERP
            name = os.fsencode(file) + b"\0"
            struct.pack_into("<Q", data, start + 8, len(data))
            struct.pack_into("<QQ", data, start + 32, len(name), len(name))
            data += name
    path = lab.programs / "program"
    path.write_bytes(data)
    path.chmod(0o700)
    return path


PLACES = [script_itself, interpreter, interpreter_behind_a_link, loader]
Place = Callable[[Lab, Path], Path]


def trusting(lab: Lab, phase: str, server: Server) -> tuple[str, ...]:
    program = TRUSTING.replace("PHASE", repr(phase)).replace("SERVER", str(server.process.pid))
    return (sys.executable, "-IBc", program.replace("EVENTS", repr(str(lab.events.path))))


def session(lab: Lab, place: Place, phase: str) -> tuple[Session, Server]:
    """The server dies right before this phase."""
    lab.filesystem()
    lab.conf("[scripts]\nkill_grace = 0.2\n")
    backing = lab.program("backing", lab.say("started"))
    if place is not script_itself:
        backing.write_bytes(TRUE.read_bytes())
    mount, server = strange.hanging(lab, backing=backing)
    path = str(place(lab, mount / "file"))
    other = "post" if phase == "pre" else "pre"
    lab.app(timeoutInSeconds=1, **{f"{phase}ScriptLocation": path, other: lab.say(other)})
    return lab.start("exit 0", program=trusting(lab, phase, server)), server


def assert_timed_out(lab: Lab, outcome: Outcome, phase: str) -> None:
    assert outcome.verdict == ("success", "filesystem", 0)
    assert outcome.subjects == [(f"{phase.title()}-ScriptTimeout", "db")]
    assert "answer" in outcome.result["errors"][0]["message"]
    assert lab.events.heard == ["post" if phase == "pre" else "pre"], "the other one has run"


@pytest.mark.parametrize("phase", ["pre", "post"])
@pytest.mark.parametrize("place", PLACES)
def test_its_time_ends_all_the_same_and_the_application_is_resumed(
    lab: Lab, place: Place, phase: str
) -> None:
    running, server = session(lab, place, phase)
    assert_timed_out(lab, running.finish(LIMIT), phase)
    server.go_on()
    lab.wait_for_rest()
    assert "started" not in lab.events.heard, "a script that was given up is not started later"


@pytest.mark.parametrize("place", PLACES)
def test_sigterm_ends_a_session_that_waits_for_its_start(lab: Lab, place: Place) -> None:
    running, _ = session(lab, place, "pre")
    running.kill(signal.SIGTERM)
    outcome = running.finish(LIMIT)
    assert outcome.code != 0
    assert lab.frozen == []


def test_nothing_of_the_session_is_kept_by_what_is_left_behind(lab: Lab) -> None:
    running, _ = session(lab, interpreter, "pre")
    running.finish(LIMIT)
    lab.app(pre="exit 0", post="exit 0")
    assert lab.run("exit 0").verdict == ("success", "application", 0)


# --- the snapshot command ------------------------------------------------------------------------


def hold(lab: Lab, place: Place) -> Session:
    """The server dies right before the snapshot command is started."""
    lab.filesystem()
    lab.conf("[scripts]\nkill_grace = 0.2\n")
    backing = lab.program("backing", "exit 0")
    if place is not script_itself:
        backing.write_bytes(TRUE.read_bytes())
    mount, server = strange.hanging(lab, backing=backing)
    command = [place(lab, mount / "file")]
    running = lab.start(command, "--hold=2", program=trusting(lab, "hold", server))
    lab.events.wait("starting", running)
    return running


@pytest.mark.parametrize("place", PLACES)
def test_a_snapshot_command_that_cannot_start_holds_nothing(lab: Lab, place: Place) -> None:
    outcome = hold(lab, place).finish(LIMIT)
    assert outcome.verdict == ("failed", "none", 1)
    assert "HoldExpired" in outcome.errors


@pytest.mark.parametrize("place", PLACES)
def test_its_supervisor_thaws_should_all_others_be_killed(lab: Lab, place: Place) -> None:
    running = hold(lab, place)
    for pid in (running.guard, running.pid):
        os.kill(pid, signal.SIGKILL)
    lab.wait_for_thaw()
