# SPDX-License-Identifier: Apache-2.0
"""Past sessions: what is asked of journalctl, and what its answer is taken for."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vmsnap.journal.sender import Event
from vmsnap.report.history import JournalReadError, find, history, result_in
from vmsnap.report.tables import history_table
from vmsnap.report.text import Paint
from vmsnap.result import Result

from ..test_result import FULL, RESULTS

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner),
)


def record(result: object) -> str:
    """As `journalctl --output=json` writes one."""
    fields = {"VMSNAP_RESULT": json.dumps(result), "__CURSOR": "s=1;i=2", "_BOOT_ID": "3"}
    return json.dumps(fields)


@dataclass
class Journalctl:
    """A journal with these records. Remembers what it was asked for."""

    lines: list[str] = field(default_factory=list)
    code: int = 0
    error: str = ""
    asked: list[str] = field(default_factory=list)

    def __call__(self, argv: Sequence[str]) -> tuple[int, str, str]:
        self.asked = list(argv)
        return self.code, "".join(f"{line}\n" for line in self.lines), self.error


@pytest.fixture
def journalctl(monkeypatch: pytest.MonkeyPatch) -> Journalctl:
    fake = Journalctl()
    monkeypatch.setattr("vmsnap.report.history.output_of", fake)
    return fake


def session(name: str) -> Result:
    return replace(FULL, session=name)


# --- the question ------------------------------------------------------------------------------


def test_the_ends_of_sessions_are_asked_for_newest_first_and_of_root_alone(
    journalctl: Journalctl,
) -> None:
    list(history())
    assert journalctl.asked[0] == "journalctl"
    assert {*("--quiet", "--reverse", "--output=json"), "_UID=0"} < set(journalctl.asked)
    assert f"MESSAGE_ID={Event.ENDED.value}" in journalctl.asked
    assert not [word for word in journalctl.asked if word.startswith("--since")]


def test_long_results_are_asked_for_in_full(journalctl: Journalctl) -> None:
    """Without --all journalctl writes null for a field of more than 4096 bytes."""
    list(history())
    assert {"--all", "--output-fields=VMSNAP_RESULT"} < set(journalctl.asked)


@pytest.mark.parametrize("since", ["yesterday", "2026-11-01 00:00", "-1h", "--help", "ä; rm"])
def test_a_time_is_handed_to_journalctl_as_one_word(journalctl: Journalctl, since: str) -> None:
    list(history(since))
    assert f"--since={since}" in journalctl.asked


# --- the answer --------------------------------------------------------------------------------


def test_the_sessions_come_in_the_order_of_the_journal(journalctl: Journalctl) -> None:
    sessions = [session(name) for name in ("c", "a", "b")]
    journalctl.lines = [record(result.to_json()) for result in sessions]
    assert list(history()) == sessions


def test_a_journal_without_sessions_is_an_empty_history(journalctl: Journalctl) -> None:
    assert list(history()) == []


@given(RESULTS)
def test_what_the_journal_was_told_is_read_back(result: Result) -> None:
    assert result_in(record(result.to_json())) == result


UNREADABLE = {
    "half a line": '{"VMSNAP_RESULT": "{',
    "no JSON": "-- No entries --",
    "an empty line": "",
    "no object": "[]",
    "no result": "{}",
    "a result that was too long": '{"VMSNAP_RESULT": null}',
    "a result in bytes": '{"VMSNAP_RESULT": [123, 125]}',
    "two results": '{"VMSNAP_RESULT": ["{}", "{}"]}',
    "a result that is no JSON": '{"VMSNAP_RESULT": "{"}',
    "a result that is a list": record([]),
    "a newer version": record({**FULL.to_json(), "version": 2}),
    "an unknown key": record({**FULL.to_json(), "colour": "red"}),
    "a key less": record({k: v for k, v in FULL.to_json().items() if k != "apps"}),
    "a nested record": "[" * 100_000,
    "a nested result": json.dumps({"VMSNAP_RESULT": "[" * 100_000}),
}


@pytest.mark.parametrize("line", UNREADABLE.values(), ids=UNREADABLE)
def test_a_record_that_cannot_be_read_is_skipped(journalctl: Journalctl, line: str) -> None:
    good = [record(session(name).to_json()) for name in ("a", "b")]
    journalctl.lines = [good[0], line, good[1]]
    assert [result.session for result in history()] == ["a", "b"]


@given(
    st.text()
    | JSON.map(json.dumps)
    | JSON.map(lambda value: json.dumps({"VMSNAP_RESULT": value}))
    | JSON.map(record)
)
def test_nothing_else_than_a_result_is_taken_for_one(line: str) -> None:
    assert result_in(line) is None


@given(st.sampled_from(sorted(FULL.to_json())), JSON)
def test_a_damaged_result_is_read_or_skipped(key: str, value: object) -> None:
    found = result_in(record({**FULL.to_json(), key: value}))
    assert found is None or isinstance(found, Result)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("session", 7),
        ("started", None),
        ("seconds", float("nan")),
        ("frozen_seconds", float("inf")),
        ("errors", [{**FULL.to_json()["errors"][0], "name": 5}]),
    ],
)
def test_a_result_that_could_not_be_shown_is_skipped(
    journalctl: Journalctl, key: str, value: object
) -> None:
    good = record(FULL.to_json())
    journalctl.lines = [good, record({**FULL.to_json(), key: value}), good]
    sessions = list(history())
    assert len(history_table(sessions, Paint(False)).splitlines()) == 3
    assert len(find(FULL.session, iter(sessions))) == 2


# --- without a journal -------------------------------------------------------------------------


def test_what_journalctl_complains_of_is_said(journalctl: Journalctl) -> None:
    journalctl.code, journalctl.error = 1, "Failed to parse timestamp:\n  soon\n"
    with pytest.raises(JournalReadError) as caught:
        history("soon")
    assert str(caught.value) == "Failed to parse timestamp: soon"


def test_a_journalctl_that_fails_in_silence_is_said_by_its_exit_code(
    journalctl: Journalctl,
) -> None:
    journalctl.code = 3
    with pytest.raises(JournalReadError) as caught:
        history()
    assert str(caught.value) == "journalctl ended with 3"


def test_without_a_journalctl_that_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(_argv: Sequence[str]) -> tuple[int, str, str]:
        raise FileNotFoundError(2, "No such file or directory", "journalctl")

    monkeypatch.setattr("vmsnap.report.history.output_of", missing)
    with pytest.raises(JournalReadError) as caught:
        history()
    assert str(caught.value) == "journalctl: No such file or directory"


# --- one of them -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("prefix", "names"),
    [("3f2a", ["3f2a1", "3f2a2"]), ("3f2a1", ["3f2a1"]), ("2a", []), ("", ["3f2a1", "3f2a2", "4"])],
)
def test_a_session_is_found_by_how_its_uuid_begins(prefix: str, names: list[str]) -> None:
    sessions = [session(name) for name in ("3f2a1", "3f2a2", "4")]
    assert [result.session for result in find(prefix, iter(sessions))] == names
