# SPDX-License-Identifier: Apache-2.0
"""What vmsnap shows and leaves alone: terminals, output without one, bytecode, open files."""

from __future__ import annotations

import ctypes
import os
import pty
import select
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from . import kernel
from .lab import VMSNAP, Lab
from .processes import PATIENCE

IN_OPEN = 0x20  # linux/inotify.h
PACKAGE = Path(__file__).parents[2] / "vmsnap"


class Terminal:
    """Our side of a pseudo-terminal: everything that was shown on it."""

    def __init__(self) -> None:
        self.master, self.slave = pty.openpty()
        os.set_blocking(self.master, False)
        self.shown = b""

    def wait(self, words: bytes) -> None:
        while words not in self.look():
            assert select.select([self.master], [], [], PATIENCE)[0], self.shown

    def look(self) -> bytes:
        try:
            while data := os.read(self.master, 65536):
                self.shown += data
        except OSError:  # nothing more, or nobody on the other side
            pass
        return self.shown

    def close(self) -> None:
        os.close(self.master)
        os.close(self.slave)


@pytest.fixture
def terminal() -> Iterator[Terminal]:
    made = Terminal()
    try:
        yield made
    finally:
        made.close()


def test_a_terminal_shows_the_phases(lab: Lab, terminal: Terminal) -> None:
    lab.filesystem()
    lab.app(pre=f"{lab.say('quiescing')}; {lab.stop_at('pre')}", post="exit 0")
    session = lab.start(
        f"{lab.say('held')}; {lab.stop_at('release')}; echo output",
        json=False,
        stderr=terminal.slave,
    )
    lab.events.wait("quiescing", session)
    terminal.wait(b"running pre-scripts")
    assert b"frozen" not in terminal.shown
    lab.open("pre")
    lab.events.wait("held", session)
    terminal.wait(b"frozen")
    before = len(terminal.shown)
    lab.release()
    outcome = session.finish()
    assert (outcome.code, outcome.out) == (0, b"output\n")
    terminal.wait(b"running post-scripts")
    assert b"hawed" in terminal.shown[before:]
    assert b"\033[K" in terminal.shown


def test_nothing_is_shown_between_freeze_and_thaw(lab: Lab, terminal: Terminal) -> None:
    lab.filesystem()
    noise = f"echo noise; echo noise >&2; {lab.say('noisy')}; {lab.stop_at('release')}"
    session = lab.start(
        f"{lab.say('held')}; {lab.stop_at('go')}; {noise}",
        json=False,
        stdout=terminal.slave,
        stderr=terminal.slave,
    )
    lab.events.wait("held", session)
    terminal.wait(b"frozen")
    before = terminal.look()
    lab.open("go")
    lab.events.wait("noisy", session)
    assert terminal.look() == before
    lab.release()
    assert session.finish().code == 0
    terminal.wait(b"noise\r\nnoise\r\n")


def test_without_a_terminal_there_are_no_control_characters(lab: Lab) -> None:
    lab.filesystem()
    lab.app(pre="exit 0", post="exit 0")
    outcome = lab.run("exit 0", json=False)
    assert outcome.code == 0
    assert "\033" not in outcome.err
    assert "\r" not in outcome.err
    assert "application-consistent snapshot" in outcome.err


def test_a_reader_of_the_output_that_has_gone_changes_nothing(lab: Lab) -> None:
    lab.filesystem()
    read, write = os.pipe()
    os.close(read)
    session = lab.start("head -c 1M /dev/zero", json=False, stdout=write)
    os.close(write)
    assert session.finish().code == 0
    assert lab.vmsnap("status", "--json").result["last"]["outcome"] == "success"


def copied(lab: Lab, directory: Path) -> list[str]:
    """A copy of the program and its package, run as any other program: without -I, without -B."""
    ignored = shutil.ignore_patterns("__pycache__")
    shutil.copytree(PACKAGE, directory / "vmsnap", ignore=ignored)
    lines = VMSNAP.read_text().splitlines()
    launcher = directory / "launcher"
    launcher.write_text("\n".join(lines[1:]))
    return [sys.executable, str(launcher)]


def test_no_bytecode_is_written(lab: Lab) -> None:
    lab.filesystem()
    lab.app(pre="exit 0", post="exit 0")
    program = copied(lab, lab.programs)
    assert lab.run("exit 0", program=program).verdict == ("success", "application", 0)
    assert [*lab.programs.rglob("*.pyc"), *lab.programs.rglob("__pycache__")] == []


@pytest.mark.parametrize("ending", ["released", "interrupted"])
def test_nothing_of_the_program_is_opened_while_frozen(lab: Lab, ending: str) -> None:
    """Neither while it holds nor on the way to the thaw: the program itself may be frozen."""
    filesystem = lab.filesystem(mib=64)
    program = copied(lab, filesystem.mount)
    session = lab.hold(program=program)
    watch = kernel.libc.inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC)
    assert watch >= 0
    try:
        path = ctypes.c_char_p(os.fsencode(filesystem.mount / "vmsnap"))
        assert kernel.libc.inotify_add_watch(watch, path, IN_OPEN) >= 0
        if ending == "released":
            lab.release()
        else:
            os.kill(session.pid, 15)
        lab.wait_for_thaw()
        opened = os.read(watch, 65536) if select.select([watch], [], [], 0)[0] else b""
    finally:
        os.close(watch)
    outcome = session.finish()
    assert outcome.code == (0 if ending == "released" else 1)
    assert opened == b""
