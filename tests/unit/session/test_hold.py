# SPDX-License-Identifier: Apache-2.0
"""When a hold is over, and who learns of it. Nothing is frozen here; the waiter is played."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import cast

import pytest

from vmsnap.config.settings import Settings
from vmsnap.errors import Kind
from vmsnap.freeze.failures import guard_failures
from vmsnap.freeze.freezer import Freezer
from vmsnap.journal.sender import Journal
from vmsnap.result import Phase
from vmsnap.service.main import CallerTaker
from vmsnap.service.messages import FAILED, TAKEN, confirm
from vmsnap.session.hold import Hold
from vmsnap.session.notify import Manager
from vmsnap.session.options import Options
from vmsnap.session.session import Session
from vmsnap.system.waiter import Waiter

SECONDS = 60.0


@dataclass
class Played:
    """A waiter and the clock: each wait is answered by the next step of the play."""

    steps: list[Callable[[Played], None]] = field(default_factory=list)
    now: float = 1000.0
    interrupted: str = ""
    deadlines: list[float | None] = field(default_factory=list)

    def wait(self, _fds: Iterable[int], deadline: float | None = None) -> set[int]:
        self.deadlines.append(deadline)
        assert self.steps, "it waits on, and nobody comes"
        self.steps.pop(0)(self)
        return set()


@dataclass
class Guarded:
    """A freezer whose guard keeps the time."""

    holding: bool = True
    received: int = 0

    def fds(self) -> list[int]:
        return []

    def deadline(self) -> float:
        return 1062.0

    def receive_or_replace(self) -> None:
        self.received += 1


def after(seconds: float, signalled: str = "") -> Callable[[Played], None]:
    def step(played: Played) -> None:
        played.now += seconds
        played.interrupted = signalled

    return step


@pytest.fixture
def played(monkeypatch: pytest.MonkeyPatch) -> Played:
    made = Played()
    monkeypatch.setattr("vmsnap.session.hold.time.monotonic", lambda: made.now)
    return made


def hold_of(played: Played, freezer: Guarded | None = None) -> Hold:
    return Hold(cast("Freezer | None", freezer), cast(Waiter, played), SECONDS)


# --- the hold ----------------------------------------------------------------------------------


def test_with_nothing_frozen_it_expires_at_its_own_time(played: Played) -> None:
    hold = hold_of(played)
    played.steps = [after(59.9), after(0.1)]
    hold.wait()
    hold.receive()
    assert (hold.expired, hold.problems) == (False, ())
    hold.wait()
    hold.receive()
    assert hold.expired
    assert played.deadlines == [1060.0, 1060.0]


def test_with_anything_frozen_the_guard_keeps_the_time(played: Played) -> None:
    freezer = Guarded()
    hold = hold_of(played, freezer)
    played.steps = [after(61.0), after(0.1)]
    hold.wait()
    hold.receive()
    assert not hold.expired
    freezer.holding = False
    hold.wait()
    hold.receive()
    assert hold.expired
    assert played.deadlines == [1062.0, 1060.0]
    assert freezer.received == 2


def test_an_expired_hold_is_told_in_the_same_words_whoever_kept_the_time(played: Played) -> None:
    hold = hold_of(played)
    played.now = hold.ends
    hold.receive()
    (ours,) = hold.problems
    (of_guard,) = guard_failures("expired", "", SECONDS)
    assert (ours.kind, ours.message) == (Kind.HOLD_EXPIRED, "the hold expired after 60 s")
    assert (of_guard.kind, of_guard.message) == (ours.kind, ours.message)


def test_what_the_guard_says_of_an_expired_hold_is_not_said_twice(played: Played) -> None:
    freezer = Guarded()
    hold = hold_of(played, freezer)
    freezer.holding = False
    hold.receive()
    assert (hold.expired, hold.problems) == (True, ())


def test_somebody_else_is_waited_for_as_long_as_he_says(played: Played) -> None:
    hold = hold_of(played)
    played.steps = [after(0.0)]
    hold.wait((), until=1070.0)
    assert played.deadlines == [1070.0]


# --- whether the caller has taken the snapshot ---------------------------------------------------


@pytest.fixture
def session(tmp_path: Path, played: Played) -> Session:
    taker = CallerTaker(Manager())
    made = Session(Options(run_dir=tmp_path, hold=SECONDS), -1, cast(Waiter, played), taker)
    made.journal = made.record.journal = Journal(path="/nonexistent/journal")
    made.found.settings = Settings()
    return made


def failures(session: Session) -> list[Kind]:
    return [problem.kind for problem in session.record.failures]


def test_a_signal_with_a_confirmation_means_that_the_snapshot_was_taken(
    session: Session, played: Played
) -> None:
    confirm(session.options.run_dir, session.id, TAKEN)
    played.steps = [after(10.0, "SIGTERM")]
    assert session.taker.take(session)
    assert failures(session) == []
    assert session.record.phase is Phase.SNAPSHOT


def test_a_signal_after_the_end_of_the_hold_is_too_late_also_if_nobody_had_noticed_that(
    session: Session, played: Played
) -> None:
    """As for an engine that was stopped meanwhile."""
    confirm(session.options.run_dir, session.id, TAKEN)
    played.steps = [after(100.0, "SIGTERM")]
    assert not session.taker.take(session)
    assert failures(session) == [Kind.HOLD_EXPIRED]


def test_a_signal_in_time_is_not_too_late_because_the_thaw_takes_long(
    session: Session, played: Played, monkeypatch: pytest.MonkeyPatch
) -> None:
    confirm(session.options.run_dir, session.id, TAKEN)
    played.steps = [after(59.9, "SIGTERM")]
    monkeypatch.setattr(session, "thaw", lambda: after(10.0, "SIGTERM")(played))
    assert session.taker.take(session)
    assert failures(session) == []


def test_nobody_who_comes_means_that_the_hold_expires(session: Session, played: Played) -> None:
    played.steps = [after(30.0), after(30.0)]
    assert not session.taker.take(session)
    assert failures(session) == [Kind.HOLD_EXPIRED]


def test_a_caller_who_says_that_it_failed_has_no_snapshot(session: Session, played: Played) -> None:
    confirm(session.options.run_dir, session.id, FAILED)
    played.steps = [after(10.0, "SIGTERM")]
    assert not session.taker.take(session)
    assert failures(session) == [Kind.SNAPSHOT_FAILED]


def test_who_was_stopped_before_it_held_was_never_ready(session: Session, played: Played) -> None:
    confirm(session.options.run_dir, session.id, TAKEN)
    played.interrupted = "SIGTERM"
    assert not session.taker.take(session)
    assert failures(session) == [Kind.SNAPSHOT_FAILED]
