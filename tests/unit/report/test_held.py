# SPDX-License-Identifier: Apache-2.0
"""What people read of a session that holds, of one in progress, a lost one and many past ones."""

from __future__ import annotations

import datetime
import re
import time
from collections.abc import Iterator
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vmsnap.errors import Kind
from vmsnap.progress import Progress
from vmsnap.report.summary import held, in_progress, lost
from vmsnap.report.tables import history_table
from vmsnap.report.text import Paint
from vmsnap.result import PHASES, Result

from ..test_progress import HELD
from ..test_result import FULL

PLAIN, COLOURED = Paint(False), Paint(True)
ESCAPES = re.compile(r"\033\[[0-9;]*m")
APP = st.from_regex(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}", fullmatch=True)
LEVELS = ["none", "crash", "filesystem", "application"]
MOMENT = st.datetimes(
    datetime.datetime(2020, 1, 1), datetime.datetime(2099, 1, 1), timezones=st.timezones()
).map(lambda moment: moment.isoformat(timespec="milliseconds"))
SESSION = st.uuids().map(str)
PROGRESSES = st.builds(
    Progress,
    session=SESSION,
    phase=st.sampled_from(PHASES),
    engine=st.integers(1, 1 << 22),
    invocation=st.just(""),
    held=st.booleans(),
    consistency=st.sampled_from(LEVELS),
    required=st.sampled_from(LEVELS[1:]),
    started=MOMENT,
    apps=st.lists(APP, max_size=20, unique=True).map(tuple),
    filesystems=st.lists(st.text(min_size=1), max_size=20).map(tuple),
    hold_ends=st.none() | st.floats(990, 990 + 86400),
)
SECONDS = st.floats(0, 86400)
PAST = st.builds(
    replace,
    st.just(FULL),
    session=SESSION,
    outcome=st.sampled_from(["success", "failed"]),
    consistency=st.sampled_from(LEVELS),
    started=MOMENT,
    seconds=SECONDS,
    frozen_seconds=SECONDS,
    errors=st.lists(
        st.sampled_from(Kind).map(lambda kind: replace(FULL.errors[0], name=kind.label)),
        max_size=2,
    ).map(tuple),
)


@pytest.fixture(autouse=True)
def noon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vmsnap.progress.time.monotonic", lambda: 990.0)


def widest(text: str) -> int:
    return max(map(len, text.splitlines()))


# --- a session that holds ----------------------------------------------------------------------


def test_the_caller_hears_that_it_holds_what_it_is_worth_and_what_to_do() -> None:
    assert held(HELD, PLAIN).splitlines() == [
        f"Session {HELD.session} holds",
        "  2 filesystems frozen, application-consistent so far",
        "  take the snapshot and run `vmsnap thaw`, within 10.00 s",
    ]


@pytest.mark.parametrize(
    ("apps", "filesystems", "words"),
    [
        (("web",), ("/",), "1 filesystem frozen"),
        ((), ("/", "/srv"), "2 filesystems frozen"),
        (("web",), (), "1 app quiesced, nothing frozen"),
        (("web", "db"), (), "2 apps quiesced, nothing frozen"),
        ((), (), "0 apps quiesced, nothing frozen"),
    ],
)
def test_what_is_held_is_counted(
    apps: tuple[str, ...], filesystems: tuple[str, ...], words: str
) -> None:
    progress = replace(HELD, apps=apps, filesystems=filesystems)
    assert f"\n  {words}, application-consistent so far\n" in held(progress, PLAIN)
    assert f"holding {words}, 10 s left" in in_progress(progress)


@given(PROGRESSES)
def test_what_the_caller_hears_fits_on_a_terminal_of_80_columns(progress: Progress) -> None:
    assert widest(held(progress, PLAIN)) <= 80


# --- a session in progress ---------------------------------------------------------------------


def test_a_session_in_progress_is_told_with_its_process_phase_and_hold() -> None:
    assert in_progress(HELD).splitlines() == [
        f"Session {HELD.session} in progress, of process 4711",
        "  started 2025-01-31T12:00:00.000+01:00",
        "  phase snapshot, application-consistent so far",
        "  holding 2 filesystems frozen, 10 s left; `vmsnap thaw` ends it",
    ]


def test_what_a_command_holds_ends_with_the_command() -> None:
    assert in_progress(replace(HELD, held=False)).endswith("10 s left; until its command ends")


def test_a_session_that_holds_nothing_yet_says_nothing_of_a_hold() -> None:
    assert "hold" not in in_progress(replace(HELD, phase="pre", hold_ends=None))


@given(PROGRESSES)
def test_a_session_in_progress_fits_on_a_terminal_of_80_columns(progress: Progress) -> None:
    assert widest(in_progress(progress)) <= 80


# --- a session that was killed -----------------------------------------------------------------


def test_a_lost_session_is_told_with_its_phase_and_the_way_out() -> None:
    words = " ".join(lost(replace(HELD, phase="post"), False, PLAIN).split())
    assert words.startswith(f"Session {HELD.session} was killed in phase post")
    assert "`vmsnap thaw --force`" in words
    assert "frozen" not in words
    assert "2 filesystems may still be frozen" in lost(HELD, True, PLAIN)


@given(PROGRESSES)
def test_a_lost_session_fits_on_a_terminal_of_80_columns(progress: Progress) -> None:
    assert widest(lost(progress, True, PLAIN)) <= 80


@pytest.mark.parametrize("tell", [held, lambda *words: lost(words[0], True, words[1])])
@given(progress=PROGRESSES.map(lambda progress: replace(progress, hold_ends=None)))
def test_colours_change_no_word(tell: object, progress: Progress) -> None:
    assert callable(tell)
    coloured = tell(progress, COLOURED)
    assert coloured != tell(progress, PLAIN)
    assert ESCAPES.sub("", coloured) == tell(progress, PLAIN)


# --- past sessions -----------------------------------------------------------------------------


@pytest.fixture
def one_hour_east(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The time zone of those who read."""
    monkeypatch.setenv("TZ", "XXX-1")
    time.tzset()
    yield
    monkeypatch.undo()
    time.tzset()


def test_the_history_has_one_line_for_each_session_under_its_headings(
    one_hour_east: None,
) -> None:
    good = replace(FULL, session="3f2a" * 9, outcome="success", errors=())
    header, first, second = history_table([FULL, good], PLAIN).splitlines()
    assert header.split() == [*("STARTED", "SESSION", "OUTCOME", "LEVEL", "TOOK", "STALL"), *ERROR]
    assert first.split() == [
        *("2025-01-31", "12:00", "0b6f5a0e", "failed", "crash"),
        *("1.5", "s", "250", "ms", "FreezeFailed"),
    ]
    assert second.split()[2:4] == ["3f2a3f2a", "success"]
    for word, value in (("SESSION", "0b6f5a0e"), ("LEVEL", "crash"), ("FIRST", "FreezeFailed")):
        assert header.index(word) == first.index(value)


ERROR = ("FIRST", "ERROR")


def test_the_sessions_stay_in_the_order_given() -> None:
    names = ["cccccccc", "aaaaaaaa", "bbbbbbbb"]
    _, *lines = history_table([replace(FULL, session=n) for n in names], PLAIN).splitlines()
    assert [name for line in lines for name in names if name in line] == names


def test_without_sessions_the_history_says_so() -> None:
    assert history_table([], PLAIN) == "The journal knows no session."


@given(st.lists(PAST, min_size=1, max_size=4))
def test_the_history_fits_on_a_terminal_of_80_columns(sessions: list[Result]) -> None:
    text = history_table(sessions, PLAIN)
    assert len(text.splitlines()) == 1 + len(sessions)
    assert widest(text) <= 80


@given(st.lists(PAST, min_size=1, max_size=4))
def test_colours_mark_the_outcomes_and_change_no_word(sessions: list[Result]) -> None:
    text = history_table(sessions, COLOURED)
    assert ESCAPES.sub("", text) == history_table(sessions, PLAIN)
    assert len(ESCAPES.findall(text)) == 2 * len(sessions)


@given(st.text(), st.text(), st.text())
def test_no_word_of_the_journal_reaches_the_terminal_as_a_command(
    started: str, session: str, name: str
) -> None:
    error = replace(FULL.errors[0], name=name)
    past = replace(FULL, started=started, session=session, errors=(error,))
    text = history_table([past], PLAIN)
    assert text.count("\n") == 1
    assert text.replace("\n", "").isprintable()
