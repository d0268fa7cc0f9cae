# SPDX-License-Identifier: Apache-2.0
"""The guard as a program of its own, with the test in the place of the engine."""

from __future__ import annotations

import os
import select
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from vmsnap.freeze.states import HEAD, NOT_FROZEN

from . import kernel, stuck
from .lab import Lab
from .processes import PATIENCE, wait_for_end

GUARD = Path(__file__).parents[2] / "vmsnap/freeze/guard.py"


class Guard:
    def __init__(self, lab: Lab, actions: dict[Path, str], timeout: float, hold: float) -> None:
        self.fds = {path: os.open(path, os.O_RDONLY) for path in actions}
        for fd in self.fds.values():
            lab.undo.callback(os.close, fd)
        self.list = lab.write(
            lab.run_directory / "list", f'{HEAD}{NOT_FROZEN * (len(actions) + 1)}"', 0o600
        )
        self.list_fd = os.open(self.list, os.O_RDWR)
        lab.undo.callback(os.close, self.list_fd)
        words = [f"{self.fds[path]}:1:{action}" for path, action in actions.items()]
        self.process = subprocess.Popen(
            [
                *(sys.executable, "-ISB", GUARD),
                *(str(timeout), str(hold), self.list, str(self.list_fd)),
                *words,
            ],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            pass_fds=[self.list_fd, *self.fds.values()],
        )
        lab.helpers.append(self.process)
        for pipe in filter(None, (self.process.stdin, self.process.stdout)):
            lab.undo.callback(pipe.close)
        self.heard: list[tuple[str, int, str]] = []
        self._rest = b""

    def order(self, word: str) -> None:
        assert self.process.stdin
        self.process.stdin.write(f"{word}\n".encode())
        self.process.stdin.flush()

    def wait(self, event: str) -> str:
        """Wait for an event; return its value."""
        assert self.process.stdout
        while True:
            for heard, _, value in self.heard:
                if heard == event:
                    return value
            assert select.select([self.process.stdout], [], [], PATIENCE)[0], self.heard
            data = os.read(self.process.stdout.fileno(), 65536)
            assert data, f"the guard ended without {event!r}: {self.heard}"
            *lines, self._rest = (self._rest + data).split(b"\n")
            for line in lines:
                name, fd, _, value = line.decode().split(" ")
                self.heard.append((name, int(fd), value))

    def abandon(self) -> None:
        assert self.process.stdin
        self.process.stdin.close()

    def end(self) -> int:
        assert wait_for_end(self.process.pid)
        return self.process.wait()


def holding(lab: Lab, hold: float = 60) -> Guard:
    guard = Guard(lab, {f.mount: "freeze" for f in lab.filesystems}, 30, hold)
    guard.wait("ready")
    guard.order("presync")
    guard.wait("presynced")
    guard.order("freeze")
    guard.wait("held")
    return guard


def test_an_order_thaws(lab: Lab) -> None:
    lab.filesystem()
    guard = holding(lab)
    assert lab.frozen == ["fs0"]
    guard.order("thaw")
    assert guard.wait("thawing") == "asked"
    guard.wait("done")
    assert lab.frozen == []
    assert guard.end() == 0
    assert not guard.list.exists()


def test_the_end_of_the_engines_pipe_thaws(lab: Lab) -> None:
    lab.filesystem()
    guard = holding(lab)
    guard.abandon()
    assert guard.wait("thawing") == "abandoned"
    assert guard.end() == 0
    assert lab.frozen == []


def test_the_deadline_thaws(lab: Lab) -> None:
    lab.filesystem()
    guard = holding(lab, hold=0.3)
    assert guard.wait("thawing") == "expired"
    assert guard.end() == 0
    assert lab.frozen == []


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_signal_thaws(lab: Lab, number: signal.Signals) -> None:
    lab.filesystem()
    guard = holding(lab)
    os.kill(guard.process.pid, number)
    assert guard.wait("thawing") == "signal"
    assert guard.end() == 0
    assert lab.frozen == []


def test_an_engine_that_hears_nothing_any_more_is_thawed_for_all_the_same(lab: Lab) -> None:
    lab.filesystem()
    guard = holding(lab)
    assert guard.process.stdout
    guard.process.stdout.close()
    guard.abandon()
    assert guard.end() == 0
    assert lab.frozen == []


def test_an_engine_that_says_nonsense_is_thawed_for(lab: Lab) -> None:
    lab.filesystem()
    guard = holding(lab)
    guard.order("\N{SNOWMAN} presync freeze")
    guard.order("thaw")
    guard.wait("done")
    guard.end()
    assert lab.frozen == []


def test_nothing_is_frozen_before_the_order(lab: Lab) -> None:
    lab.filesystem()
    guard = Guard(lab, {f.mount: "freeze" for f in lab.filesystems}, 30, 60)
    guard.wait("ready")
    guard.order("presync")
    guard.wait("presynced")
    assert lab.frozen == []
    guard.abandon()
    assert guard.end() == 0
    assert "frozen" not in [event for event, *_ in guard.heard]


def test_what_cannot_be_frozen_is_written_out(lab: Lab) -> None:
    """As planned for vfat, or because the kernel says so: tmpfs knows no freeze."""
    filesystem = lab.filesystem()
    guard = Guard(lab, {filesystem.mount: "sync", lab.shm: "freeze"}, 30, 60)
    guard.wait("ready")
    guard.order("freeze")
    guard.wait("held")
    synced = {(fd, value) for event, fd, value in guard.heard if event == "synced"}
    assert synced == {(fd, "0") for fd in guard.fds.values()}
    assert lab.frozen == []
    (filesystem.mount / "file").write_text("not frozen")
    guard.abandon()
    assert guard.end() == 0


def test_what_others_froze_is_not_thawed(lab: Lab) -> None:
    lab.filesystem()
    other = lab.filesystem()
    kernel.freeze(other.mount)
    guard = Guard(lab, {f.mount: "freeze" for f in lab.filesystems}, 30, 60)
    guard.wait("ready")
    guard.order("freeze")
    assert guard.wait("thawing") == "failed"
    assert guard.end() == 0
    assert lab.frozen == ["fs1"]
    kernel.thaw(other.mount)


@pytest.mark.parametrize("cause", ["asked", "abandoned", "signal", "timeout"])
def test_it_is_not_done_before_a_freeze_on_its_way_was_undone(lab: Lab, cause: str) -> None:
    """Whoever hears "done" counts on it that nothing becomes frozen any more."""
    late = stuck.HeldBack(lab, lab.filesystem())
    other = lab.filesystem()
    timeout = 0.5 if cause == "timeout" else 30
    guard = Guard(lab, {f.mount: "freeze" for f in lab.filesystems}, timeout, 60)
    guard.wait("ready")
    guard.order("freeze")
    late.wait_until_inside(guard.process.pid)
    if cause == "asked":
        guard.order("thaw")
    elif cause == "abandoned":
        guard.abandon()
    elif cause == "signal":
        os.kill(guard.process.pid, signal.SIGTERM)
    assert guard.wait("thawing") == cause
    lab.wait_for_thaw(other)
    late.let_go()
    guard.wait("done")
    ours = {guard.fds[late.filesystem.mount], -1}
    told = [(event, value) for event, fd, value in guard.heard if fd in ours]
    assert told[-4:] == [("thawing", cause), ("frozen", "0"), ("thawed", "0"), ("done", "0")]
    assert guard.end() == 0
    assert lab.frozen == []


def test_the_guard_is_locked_in_memory_and_spared_when_memory_is_short(lab: Lab) -> None:
    lab.filesystem()
    guard = holding(lab)
    process = Path("/proc", str(guard.process.pid))
    status = dict(
        line.split(":\t", 1)
        for line in (process / "status").read_text().splitlines()
        if ":\t" in line
    )
    may = int(Path("/proc/self/status").read_text().split("CapEff:\t")[1][:16], 16) & 1 << 24
    assert int((process / "oom_score_adj").read_text()) == (-1000 if may else 0)
    assert int(status["VmLck"].split()[0]) > 0
    assert guard.wait("ready") == "0"
    guard.order("thaw")
    assert guard.end() == 0
