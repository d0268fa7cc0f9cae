# SPDX-License-Identifier: Apache-2.0
"""The session in progress, as others see it: written, read, forgotten."""

from __future__ import annotations

import contextlib
import datetime
import json
import tempfile
import time
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vmsnap.progress import PROGRESS, Progress, read, remove, write

TEXT = st.text(max_size=10)
NAMES = st.lists(TEXT, max_size=3).map(tuple)
PROGRESSES = st.builds(
    Progress,
    session=TEXT,
    phase=TEXT,
    engine=st.integers(1, 1 << 22),
    invocation=TEXT,
    held=st.booleans(),
    etc=TEXT,
    consistency=st.sampled_from(["crash", "filesystem", "application"]),
    required=st.sampled_from(["crash", "filesystem", "application"]),
    started=st.datetimes().map(datetime.datetime.isoformat),
    apps=NAMES,
    filesystems=NAMES,
    hold_ends=st.none() | st.floats(-1e9, 1e9),
    since=st.floats(0, 1e9),
)
HELD = Progress(
    session="0b6f5a0e-6f55-4b4b-8f2c-59e3b5b8f6a1",
    phase="snapshot",
    engine=4711,
    invocation="58b9ad66d0a945a9b2a8f9b4b5b6c7d8",
    held=True,
    etc="/etc",
    consistency="application",
    required="crash",
    started="2025-01-31T12:00:00.000+01:00",
    apps=("web", "db"),
    filesystems=("/", "/srv"),
    hold_ends=1000.0,
    since=990.0,
)


@pytest.fixture
def noon(monkeypatch: pytest.MonkeyPatch) -> None:
    """CLOCK_MONOTONIC stands still."""
    monkeypatch.setattr("vmsnap.progress.time.monotonic", lambda: 990.0)


@contextlib.contextmanager
def run_directory() -> Iterator[Path]:
    with tempfile.TemporaryDirectory() as path:
        yield Path(path)


@given(PROGRESSES)
def test_what_was_written_is_read_back(progress: Progress) -> None:
    with run_directory() as run:
        write(run, progress)
        assert read(run) == progress


def test_names_that_are_no_utf8_are_read_back(tmp_path: Path) -> None:
    odd = replace(HELD, filesystems=("/mnt/\udcff",))
    write(tmp_path, odd)
    assert read(tmp_path) == odd


def test_the_file_is_readable_by_root_alone(tmp_path: Path) -> None:
    write(tmp_path, HELD)
    assert [path.name for path in tmp_path.iterdir()] == [PROGRESS]
    assert (tmp_path / PROGRESS).stat().st_mode & 0o777 == 0o600


def test_a_directory_that_takes_no_file_stops_nothing(tmp_path: Path) -> None:
    write(tmp_path / "gone", HELD)
    assert read(tmp_path / "gone") is None


# --- the end of the hold -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("hold_ends", "left"),
    [(1000.0, 10.0), (990.0, 0.0), (989.999, 0.0), (0.0, 0.0), (-1e9, 0.0), (None, None)],
)
def test_what_is_left_of_the_hold_is_counted_from_now_and_never_negative(
    noon: None, hold_ends: float | None, left: float | None
) -> None:
    assert replace(HELD, hold_ends=hold_ends).hold_left == left


@given(st.none() | st.floats(allow_nan=False, allow_infinity=False))
def test_the_time_left_is_never_negative_whenever_the_hold_ends(hold_ends: float | None) -> None:
    left = replace(HELD, hold_ends=hold_ends).hold_left
    assert (left is None) == (hold_ends is None)
    assert left is None or left >= 0


def test_the_document_says_what_is_left_and_not_when_on_a_clock_of_ours(noon: None) -> None:
    assert json.loads(json.dumps(HELD.to_json())) == {
        "version": 1,
        "session": HELD.session,
        "phase": "snapshot",
        "engine": 4711,
        "held": True,
        "consistency": "application",
        "required": "crash",
        "started": "2025-01-31T12:00:00.000+01:00",
        "apps": ["web", "db"],
        "filesystems": ["/", "/srv"],
        "hold_left_seconds": 10.0,
    }


def test_while_nothing_is_held_the_document_says_so() -> None:
    assert replace(HELD, hold_ends=None).to_json()["hold_left_seconds"] is None


# --- forgetting --------------------------------------------------------------------------------


def test_a_session_forgets_its_own_progress(tmp_path: Path) -> None:
    write(tmp_path, HELD)
    remove(tmp_path, HELD.session)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("session", ["", "0b6f5a0e", HELD.session.upper()])
def test_a_session_does_not_forget_that_of_another(tmp_path: Path, session: str) -> None:
    write(tmp_path, HELD)
    remove(tmp_path, session)
    assert read(tmp_path) == HELD


def test_forgetting_twice_is_fine(tmp_path: Path) -> None:
    write(tmp_path, HELD)
    remove(tmp_path, HELD.session)
    remove(tmp_path, HELD.session)
    assert read(tmp_path) is None


# --- what cannot be read -----------------------------------------------------------------------


@pytest.mark.parametrize(
    "content",
    [
        pytest.param(b"", id="empty"),
        pytest.param(b"{", id="half"),
        pytest.param(b"null", id="null"),
        pytest.param(b"[]", id="list"),
        pytest.param(b'"apps"', id="word"),
        pytest.param(b"{}", id="no-keys"),
        pytest.param(b'{"apps": null, "filesystems": []}', id="no-list"),
        pytest.param(b'{"apps": [], "filesystems": []}', id="incomplete"),
        *(
            pytest.param(json.dumps({**asdict(HELD), key: 5}).encode(), id=f"odd-{key}")
            for key in ("session", "required", "started", "apps", "consistency", "phase", "etc")
        ),
        pytest.param(b"\xff", id="no-utf8"),
        pytest.param(b"[" * 100_000, id="deep"),
    ],
)
def test_a_file_that_cannot_be_read_is_no_progress(tmp_path: Path, content: bytes) -> None:
    (tmp_path / PROGRESS).write_bytes(content)
    assert read(tmp_path) is None


@given(
    st.binary()
    | st.sampled_from(sorted(asdict(HELD).keys() - {"since"})).map(
        lambda key: json.dumps({k: v for k, v in asdict(HELD).items() if k != key}).encode()
    )
)
def test_a_damaged_file_is_no_progress(content: bytes) -> None:
    with run_directory() as run:
        (run / PROGRESS).write_bytes(content)
        assert read(run) is None


def test_what_another_version_knows_more_or_less_is_left_out(tmp_path: Path) -> None:
    """A package can be upgraded while a session holds."""
    document = {**asdict(HELD), "new": 1}
    del document["since"]
    (tmp_path / PROGRESS).write_text(json.dumps(document))
    assert read(tmp_path) == replace(HELD, since=0.0)


def test_a_directory_in_the_place_of_the_file_is_no_progress(tmp_path: Path) -> None:
    (tmp_path / PROGRESS).mkdir()
    assert read(tmp_path) is None
    remove(tmp_path, HELD.session)


def test_the_clock_is_the_one_that_the_engine_holds_by() -> None:
    """hold_ends is compared across processes: CLOCK_MONOTONIC is the same in all of them."""
    left = replace(HELD, hold_ends=time.monotonic() + 1e6).hold_left
    assert left is not None
    assert round(left, -3) == 1e6
