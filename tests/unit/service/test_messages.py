# SPDX-License-Identifier: Apache-2.0
"""How options reach the unit: through a file that counts only while its caller holds the lock."""

from __future__ import annotations

import contextlib
import json
import os
import tempfile
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vmsnap.consistency import Level
from vmsnap.service.messages import (
    REQUEST,
    Request,
    RequestError,
    open_locked,
    place,
    request_of,
    take,
    withdraw,
)
from vmsnap.session.lock import SessionInProgressError
from vmsnap.session.options import Options

SESSION = "0b6f5a0e-6f55-4b4b-8f2c-59e3b5b8f6a1"
# What argv and paths may hold: anything but NUL, and bytes that are no UTF-8 as surrogates.
WORD = st.binary(max_size=12).map(lambda word: os.fsdecode(word.replace(b"\0", b"")))
ABSOLUTE = WORD.map(lambda word: Path("/" + word))
OPTIONS = st.builds(
    Options,
    etc=ABSOLUTE,
    run_dir=st.just(Path("/run/vmsnap")),
    state=ABSOLUTE,
    hold=st.none() | st.floats(0, 86400, exclude_min=True),
    require=st.none() | st.sampled_from([Level.CRASH, Level.FILESYSTEM, Level.APPLICATION]),
    only=st.lists(WORD, max_size=3).map(tuple),
    exclude=st.lists(WORD, max_size=3).map(tuple),
    fsfreeze=st.booleans(),
)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner),
)


@contextlib.contextmanager
def run_directory() -> Iterator[Path]:
    """For tests that need many, one after the other."""
    with tempfile.TemporaryDirectory() as path:
        yield Path(path)


def request(session: str = SESSION) -> Request:
    return request_of(Options(hold=12.5, only=("/srv",), fsfreeze=False), session)


def left_behind(run: Path, content: bytes) -> None:
    (run / REQUEST).write_bytes(content)


def taken(run: Path, content: bytes) -> Request | None:
    """What the unit gets of a caller that waits and has written this."""
    fd = open_locked(run)
    assert fd is not None
    os.pwrite(fd, content, 0)
    try:
        return take(run)
    finally:
        os.close(fd)


# --- the trip ----------------------------------------------------------------------------------


@given(OPTIONS)
def test_every_option_survives_the_trip(options: Options) -> None:
    with run_directory() as run:
        fd = place(run, request_of(options, SESSION))
        answer = take(run)
        withdraw(fd)
    assert answer is not None
    assert (answer.session, answer.options(options.run_dir)) == (SESSION, options)


def test_only_the_command_does_not_travel_since_whoever_calls_takes_the_snapshot() -> None:
    fields = set(asdict(Options())) - {"command", "run_dir"}
    assert set(asdict(request())) == {*fields, "session"}


def test_the_run_directory_is_that_of_the_unit_and_not_the_callers(tmp_path: Path) -> None:
    fd = place(tmp_path, request())
    answer = take(tmp_path)
    withdraw(fd)
    assert answer is not None
    assert answer.options(Path("/run/of/the/unit")).run_dir == Path("/run/of/the/unit")


def test_a_shorter_request_leaves_nothing_of_a_longer_one(tmp_path: Path) -> None:
    for options in (Options(only=("/srv",) * 500), Options()):
        fd = place(tmp_path, request_of(options, SESSION))
        answer = take(tmp_path)
        os.close(fd)
        assert answer is not None
        assert answer.options(options.run_dir) == options


# --- who counts --------------------------------------------------------------------------------


def test_without_a_file_nobody_asked_for_anything(tmp_path: Path) -> None:
    assert take(tmp_path) is None


def test_an_empty_file_asks_for_nothing_be_it_locked_or_not(tmp_path: Path) -> None:
    left_behind(tmp_path, b"")
    assert take(tmp_path) is None
    assert taken(tmp_path, b"") is None


def test_a_request_is_taken_once(tmp_path: Path) -> None:
    fd = place(tmp_path, request())
    assert take(tmp_path) is not None
    assert take(tmp_path) is None
    withdraw(fd)


def test_a_request_that_was_withdrawn_is_none(tmp_path: Path) -> None:
    withdraw(place(tmp_path, request()))
    assert (tmp_path / REQUEST).read_bytes() == b""
    assert take(tmp_path) is None


def test_the_request_of_a_caller_that_was_killed_is_refused_once_and_cleared(
    tmp_path: Path,
) -> None:
    os.close(place(tmp_path, request()))  # all that the kernel does for it
    with pytest.raises(RequestError, match="is gone"):
        take(tmp_path)
    assert (tmp_path / REQUEST).read_bytes() == b""
    assert take(tmp_path) is None


def test_what_a_killed_caller_left_does_not_reach_the_next_one(tmp_path: Path) -> None:
    os.close(place(tmp_path, request("of the killed one")))
    fd = place(tmp_path, request())
    answer = take(tmp_path)
    withdraw(fd)
    assert answer is not None
    assert answer.session == SESSION


def test_what_a_killed_caller_left_is_refused_also_if_it_cannot_be_read(tmp_path: Path) -> None:
    left_behind(tmp_path, b'{"session": "half a')
    with pytest.raises(RequestError, match="is gone"):
        take(tmp_path)
    assert take(tmp_path) is None


def test_a_second_caller_is_refused_and_leaves_the_request_of_the_first(tmp_path: Path) -> None:
    fd = place(tmp_path, request())
    with pytest.raises(SessionInProgressError, match="another `vmsnap freeze`"):
        place(tmp_path, request("of the second"))
    answer = take(tmp_path)
    withdraw(fd)
    assert answer is not None
    assert answer.session == SESSION


def test_a_caller_waits_for_its_answer_alone_also_after_its_request_was_taken(
    tmp_path: Path,
) -> None:
    fd = place(tmp_path, request())
    take(tmp_path)
    with pytest.raises(SessionInProgressError):
        place(tmp_path, request())
    withdraw(fd)
    withdraw(place(tmp_path, request()))


@pytest.mark.parametrize("content", [b"", b"left behind"])
def test_the_unit_keeps_no_lock_that_the_next_caller_would_find(
    tmp_path: Path, content: bytes
) -> None:
    left_behind(tmp_path, content)
    with contextlib.suppress(RequestError):
        take(tmp_path)
    withdraw(place(tmp_path, request()))


def test_the_request_is_readable_by_root_alone(tmp_path: Path) -> None:
    withdraw(place(tmp_path, request()))
    assert (tmp_path / REQUEST).stat().st_mode & 0o777 == 0o600


def test_a_link_in_the_place_of_the_file_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / REQUEST).symlink_to(tmp_path / "elsewhere")
    for attempt in (lambda: place(tmp_path, request()), lambda: take(tmp_path)):
        with pytest.raises(OSError, match="symbolic links"):
            attempt()
    assert not (tmp_path / "elsewhere").exists()


# --- odd content -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "content",
    [
        pytest.param(b"{", id="half"),
        pytest.param(b"null", id="null"),
        pytest.param(b"[]", id="list"),
        pytest.param(b'"word"', id="word"),
        pytest.param(b"{}", id="empty"),
        pytest.param(b'{"session": "x"}', id="incomplete"),
        pytest.param(json.dumps({**asdict(request()), "new": 1}).encode(), id="unknown-key"),
        pytest.param(b"\xff\xfe", id="no-utf8"),
        pytest.param(b"\0", id="nul"),
        pytest.param(b"[" * 100_000, id="deep"),
    ],
)
def test_a_request_that_cannot_be_read_is_refused_and_cleared(
    tmp_path: Path, content: bytes
) -> None:
    with pytest.raises(RequestError, match="cannot be read"):
        taken(tmp_path, content)
    assert (tmp_path / REQUEST).read_bytes() == b""


@given(st.binary() | st.text().map(str.encode) | JSON.map(lambda v: json.dumps(v).encode()))
def test_whatever_the_file_holds_it_is_a_request_or_refused(content: bytes) -> None:
    with run_directory() as run:
        with contextlib.suppress(RequestError):
            taken(run, content)
        assert (run / REQUEST).read_bytes() == b""


@given(st.sampled_from(sorted(asdict(request()))), JSON)
def test_what_is_taken_can_be_carried_out(key: str, value: object) -> None:
    content = json.dumps({**asdict(request()), key: value}).encode()
    with run_directory() as run, contextlib.suppress(RequestError):
        answer = taken(run, content)
        assert answer is not None
        answer.options(run)
