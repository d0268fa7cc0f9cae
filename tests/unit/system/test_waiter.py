# SPDX-License-Identifier: Apache-2.0
"""The pulse of whoever waits: once a second, on a clock that the test moves."""

from __future__ import annotations

import contextlib
import math
import os
import select
import signal
from collections.abc import Iterator
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vmsnap.system.waiter import PULSE, Waiter

HANDLED = (signal.SIGCHLD, signal.SIGTSTP, signal.SIGUSR1, signal.SIGUSR2)


class World:
    """A clock, and descriptors of which none is ever ready: to wait is to move the clock.

    `woken` are the seconds after which something else ends a wait, one for each."""

    def __init__(self, *woken: float) -> None:
        self.now = 5000.0
        self.woken = list(woken)
        self.pulses: list[float] = []
        self.waits: list[float] = []

    def monotonic(self) -> float:
        return self.now

    def register(self, _fd: int, _events: int) -> None:
        pass

    def poll(self, milliseconds: int | None) -> list[tuple[int, int]]:
        wanted = math.inf if milliseconds is None else milliseconds / 1000
        seconds = min(wanted, self.woken.pop(0) if self.woken else math.inf)
        assert seconds < math.inf, "waits forever"
        self.now += seconds
        self.waits.append(seconds)
        return []

    def beat(self) -> None:
        self.pulses.append(self.now)


@contextlib.contextmanager
def waiter_of(*signals: signal.Signals) -> Iterator[Waiter]:
    """A waiter that gives this process its own signals back."""
    before = [(number, signal.getsignal(number)) for number in HANDLED]
    waiter = Waiter(signals)
    try:
        yield waiter
    finally:
        for number, handler in before:
            signal.signal(number, handler)
        os.close(signal.set_wakeup_fd(-1))
        os.close(waiter._woken)


@contextlib.contextmanager
def waiting(world: World) -> Iterator[Waiter]:
    """A waiter in that world, with a pulse."""
    with waiter_of() as waiter, pytest.MonkeyPatch.context() as patch:
        patch.setattr("vmsnap.system.waiter.time", world)
        poll = SimpleNamespace(poll=lambda: world, POLLIN=select.POLLIN)
        patch.setattr("vmsnap.system.waiter.select", poll)
        waiter.pulse = world.beat
        yield waiter


def wait_until(waiter: Waiter, world: World, end: float) -> None:
    """As every caller does it: a wait may return early."""
    while world.now < end:
        waiter.wait([], end)


# --- the pulse ---------------------------------------------------------------------------------


def test_the_pulse_comes_at_once_and_then_every_second() -> None:
    world = World()
    with waiting(world) as waiter:
        wait_until(waiter, world, 5003.5)
    assert world.pulses == [5000.0, 5001.0, 5002.0, 5003.0]
    assert world.now == 5003.5


def test_a_wait_without_a_deadline_is_cut_for_the_pulse() -> None:
    world = World()
    with waiting(world) as waiter:
        for _ in range(3):
            assert waiter.wait([]) == set()
    assert (world.pulses, world.now) == ([5000.0, 5001.0, 5002.0], 5003.0)


def test_many_short_waits_make_no_more_pulses() -> None:
    world = World()
    with waiting(world) as waiter:
        for step in range(1, 21):
            wait_until(waiter, world, 5000 + step / 8)
    assert world.pulses == [5000.0, 5001.0, 5002.0]


def test_waits_that_end_at_once_make_no_more_pulses() -> None:
    world = World()
    with waiting(world) as waiter:
        for _ in range(100):
            waiter.wait([], 4000.0)
    assert (world.pulses, world.now) == ([5000.0], 5000.0)


def test_the_pulse_does_not_stretch_a_wait_that_ends_before_it() -> None:
    world = World()
    with waiting(world) as waiter:
        waiter.wait([], 5000.25)
    assert world.now == 5000.25


def test_after_a_time_without_waiting_there_is_one_pulse_and_not_one_for_each_second() -> None:
    world = World()
    with waiting(world) as waiter:
        waiter.wait([], 5000.0)
        world.now = 5060.5
        wait_until(waiter, world, 5062.0)
    assert world.pulses == [5000.0, 5060.5, 5061.5]


def test_the_time_that_a_pulse_takes_is_no_reason_for_another() -> None:
    world = World()
    with waiting(world) as waiter:

        def slow() -> None:
            world.beat()
            world.now += 2.5

        waiter.pulse = slow
        wait_until(waiter, world, 5006.0)
    assert world.pulses == [5000.0, 5003.5]


@given(
    st.lists(st.floats(0, 3), max_size=30),
    st.lists(st.none() | st.floats(-1, 5), min_size=1, max_size=30),
)
def test_pulses_are_a_second_apart_however_the_waits_end(
    woken: list[float], deadlines: list[float | None]
) -> None:
    world = World(*woken)
    with waiting(world) as waiter:
        for deadline in deadlines:
            waiter.wait([], None if deadline is None else world.now + deadline)
    gaps = [after - before for before, after in zip(world.pulses, world.pulses[1:])]
    rounding = 0.002  # poll(2) takes milliseconds
    assert world.pulses[0] == 5000.0
    assert all(PULSE - 1e-9 <= gap <= PULSE + rounding for gap in gaps)
    assert world.now - world.pulses[-1] <= PULSE + rounding


def test_without_a_pulse_a_wait_lasts_until_its_deadline() -> None:
    world = World()
    with waiting(world) as waiter:
        waiter.pulse = None
        waiter.wait([], 5100.0)
    assert (world.waits, world.pulses) == ([100.0], [])


def test_a_deadline_is_not_waited_for_in_many_small_steps() -> None:
    """poll(2) takes whole milliseconds: rounded down, the last of them would be spun through."""
    world = World()
    with waiting(world) as waiter:
        wait_until(waiter, world, 5000.0004)
    assert len(world.waits) == 1


# --- descriptors and signals -------------------------------------------------------------------


def test_descriptors_that_are_ready_are_returned_also_when_a_pulse_is_due() -> None:
    beats: list[str] = []
    ready, idle = os.pipe(), os.pipe()
    os.write(ready[1], b"x")
    with waiter_of() as waiter:
        waiter.pulse = lambda: beats.append("beat")
        assert waiter.wait([ready[0], idle[0]], 0.0) == {ready[0]}
        assert waiter.wait([idle[0]], 0.0) == set()
    for fd in (*ready, *idle):
        os.close(fd)
    assert beats == ["beat"]


def test_a_pipe_that_hung_up_is_ready() -> None:
    read, write = os.pipe()
    os.close(write)
    with waiter_of() as waiter:
        assert waiter.wait([read]) == {read}
    os.close(read)


def test_a_signal_wakes_the_wait_and_the_first_one_is_named(never_hangs: None) -> None:
    with waiter_of(signal.SIGUSR1, signal.SIGUSR2) as waiter:
        assert waiter.interrupted == ""
        signal.raise_signal(signal.SIGUSR2)
        signal.raise_signal(signal.SIGUSR1)
        assert waiter.wait([]) == set()
        assert waiter.interrupted == "SIGUSR2"


def test_a_signal_wakes_one_wait_and_not_the_next(never_hangs: None) -> None:
    with waiter_of(signal.SIGUSR1) as waiter:
        signal.raise_signal(signal.SIGUSR1)
        waiter.wait([])
        assert select.select([waiter._woken], [], [], 0)[0] == []


def test_the_end_of_a_child_wakes_the_wait_and_is_no_interruption(never_hangs: None) -> None:
    with waiter_of(signal.SIGUSR1) as waiter:
        signal.raise_signal(signal.SIGCHLD)
        assert waiter.wait([]) == set()
        assert waiter.interrupted == ""


def test_a_stop_from_the_terminal_is_ignored() -> None:
    with waiter_of():
        assert signal.getsignal(signal.SIGTSTP) is signal.SIG_IGN
