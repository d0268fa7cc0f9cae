# SPDX-License-Identifier: Apache-2.0
"""The metrics: a file that Prometheus accepts, and counts that go on from the one before."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vmsnap.errors import Kind, Problem
from vmsnap.result import PHASES, Result, TimelineEvent, error_result, refused
from vmsnap.session.metrics import SUCCEEDED, exposition, samples, write_metrics
from vmsnap.system.waiter import Waiter

from ..test_result import FULL, RESULTS
from ..worlds import NOBODY

GOOD = replace(FULL, outcome="success", consistency="application", errors=())
# 2025-01-31T12:00:00+01:00, as `date +%s` says
STARTED = 1738321200.0
NAME = re.compile(r"[a-zA-Z_:][a-zA-Z0-9_:]*")
LABEL = re.compile(r'([a-zA-Z_][a-zA-Z0-9_]*)="((?:[^"\\\n]|\\[\\n"])*)"')
SAMPLE = re.compile(r"([^ {]+)(?:\{(.*)\})? ([^ ]+)")
NUMBER = re.compile(r"-?[0-9]+(\.[0-9]+)?(e[+-]?[0-9]+)?")


@dataclass
class Family:
    help: str
    type: str = ""
    values: dict[frozenset[tuple[str, str]], float] = field(default_factory=dict)


def labels_of(text: str) -> frozenset[tuple[str, str]]:
    found = []
    for word in text.split(",") if text else ():
        match = LABEL.fullmatch(word)
        assert match, word
        found.append((match[1], match[2]))
    assert len(dict(found)) == len(found), text
    return frozenset(found)


def parse(text: str) -> dict[str, Family]:
    """The text format of Prometheus, version 0.0.4, without what vmsnap does not use: each family
    in one piece, HELP and TYPE before its samples, no sample twice, a number in decimal."""
    assert text.endswith("\n")
    families: dict[str, Family] = {}
    for line in text[:-1].split("\n"):
        last = next(reversed(families), "")
        if line.startswith("# HELP "):
            _, _, name, words = line.split(" ", 3)
            assert NAME.fullmatch(name)
            assert name not in families
            assert words
            assert "\\" not in words
            families[name] = Family(words)
        elif line.startswith("# TYPE "):
            _, _, name, kind = line.split(" ")
            assert (name, kind in ("counter", "gauge")) == (last, True)
            assert (families[name].type, families[name].values) == ("", {})
            families[name].type = kind
        else:
            match = SAMPLE.fullmatch(line)
            assert match, line
            assert match[1] == last
            assert NUMBER.fullmatch(match[3]), line
            labels = labels_of(match[2] or "")
            assert labels not in families[last].values
            families[last].values[labels] = float(match[3])
    assert all(family.type for family in families.values())
    return families


def value(text: str, family_name: str, /, **labels: str) -> float | None:
    family = parse(text).get(family_name)
    return family.values.get(frozenset(labels.items())) if family else None


def after(*results: Result) -> str:
    """The file after these sessions, one after the other."""
    text = ""
    for result in results:
        text = exposition(result, samples(text))
    return text


# --- the format --------------------------------------------------------------------------------


@pytest.mark.parametrize("result", [FULL, GOOD, replace(FULL, timeline=())])
def test_the_file_is_in_the_text_format_of_prometheus(result: Result) -> None:
    families = parse(after(result))
    assert all(name.startswith("vmsnap_") for name in families)
    assert {name for name, family in families.items() if family.type == "counter"} == {
        name for name in families if name.endswith("_total")
    }


@given(RESULTS, st.floats(0, 1e9))
def test_the_file_is_valid_for_every_session(result: Result, frozen: float) -> None:
    parse(after(replace(result, started=FULL.started, frozen_seconds=frozen), FULL))


def test_a_session_that_was_refused_has_metrics_too() -> None:
    text = after(refused(Problem(Kind.SESSION_IN_PROGRESS, "found another", "check")))
    assert value(text, "vmsnap_last_session_success") == 0
    assert value(text, "vmsnap_errors_total", name="SessionInProgress", code="140") == 1


# --- the last session --------------------------------------------------------------------------


def test_the_last_session_is_told_in_full() -> None:
    text = after(GOOD)
    assert value(text, "vmsnap_last_session_start_timestamp_seconds") == STARTED
    assert value(text, "vmsnap_last_session_seconds") == 1.5
    assert value(text, "vmsnap_last_session_success") == 1
    assert value(text, "vmsnap_last_session_stall_seconds") == 0.25


@pytest.mark.parametrize(
    ("word", "level"), [("none", 0), ("crash", 1), ("filesystem", 2), ("application", 3)]
)
def test_a_better_snapshot_has_a_greater_number(word: str, level: int) -> None:
    text = after(replace(FULL, consistency=word))
    assert value(text, "vmsnap_last_session_consistency") == level


def test_the_seconds_of_every_phase_are_told() -> None:
    timeline = tuple(TimelineEvent(float(n * n), name, "") for n, name in enumerate(PHASES))
    text = after(replace(GOOD, seconds=100.0, timeline=timeline))
    told = {name: value(text, "vmsnap_last_session_phase_seconds", phase=name) for name in PHASES}
    assert told == {
        "check": 1,
        "pre": 3,
        "presync": 5,
        "freeze": 7,
        "snapshot": 9,
        "thaw": 11,
        "post": 13,
        "report": 51,
    }
    assert sum(seconds or 0 for seconds in told.values()) == 100


def test_a_phase_that_did_not_happen_has_no_seconds() -> None:
    text = after(FULL)
    assert value(text, "vmsnap_last_session_phase_seconds", phase="check") == 1.5
    assert value(text, "vmsnap_last_session_phase_seconds", phase="freeze") is None


# --- the counts --------------------------------------------------------------------------------


def sessions(text: str) -> tuple[float | None, float | None]:
    success, failed = (
        value(text, "vmsnap_sessions_total", outcome=word) for word in ("success", "failed")
    )
    return success, failed


def test_every_counter_is_there_from_the_first_session_on() -> None:
    """Else rate() and increase() miss the first one of each."""
    families = parse(after(GOOD))
    assert sessions(after(GOOD)) == (1, 0)
    assert families["vmsnap_errors_total"].values == {
        frozenset({"name": kind.label, "code": str(kind.code)}.items()): 0.0 for kind in Kind
    }


def test_counts_go_on_from_the_file_before() -> None:
    text = after(GOOD, FULL, GOOD, GOOD, FULL)
    assert sessions(text) == (3, 2)
    assert value(text, "vmsnap_errors_total", name="FreezeFailed", code="121") == 2


def test_errors_are_counted_one_by_one() -> None:
    twice = error_result(Problem(Kind.PRE_SCRIPT_TIMEOUT, "it hung", "pre", "web"))
    text = after(replace(FULL, errors=(twice, *FULL.errors, twice)))
    assert value(text, "vmsnap_errors_total", name="Pre-ScriptTimeout", code="308") == 2
    assert value(text, "vmsnap_errors_total", name="FreezeFailed", code="121") == 1


@pytest.mark.parametrize("count", [0, 1, 999_999, 10**9, 10**14])
def test_a_count_is_read_back_whatever_its_size(count: int) -> None:
    before = {'vmsnap_sessions_total{outcome="success"}': float(count)}
    assert sessions(exposition(GOOD, samples(exposition(FULL, before)))) == (count + 1, 1)


def test_counts_begin_anew_without_the_file() -> None:
    assert sessions(exposition(FULL, samples(""))) == (0, 1)


# --- the last success --------------------------------------------------------------------------


def test_a_success_is_dated_by_its_end() -> None:
    assert value(after(GOOD), SUCCEEDED) == STARTED + 1.5


def test_the_last_success_is_kept_over_failures() -> None:
    later = replace(FULL, started="2025-02-01T12:00:00.000+01:00")
    assert value(after(GOOD, later, later), SUCCEEDED) == STARTED + 1.5


def test_a_later_success_takes_its_place() -> None:
    later = replace(GOOD, started="2025-02-01T12:00:00.000+01:00")
    assert value(after(GOOD, FULL, later), SUCCEEDED) == STARTED + 86400 + 1.5


def test_without_a_success_there_is_no_date_of_one() -> None:
    assert SUCCEEDED not in parse(after(FULL, FULL))


# --- hostile files -----------------------------------------------------------------------------

ODD_NUMBER = st.text("0123456789.eE+-_", max_size=8) | st.sampled_from(
    ["NaN", "inf", "+Inf", "1.2.3", ".", "", "9" * 400, "٣"]
)
OURS = st.sampled_from(
    [
        'vmsnap_sessions_total{outcome="success"}',
        'vmsnap_errors_total{name="FreezeFailed",code="121"}',
        SUCCEEDED,
        "vmsnap_last_session_seconds",
    ]
)
ODD_FILE = st.lists(
    st.text() | st.builds(lambda name, number: f"{name} {number}", OURS, ODD_NUMBER), max_size=6
).map("\n".join)


@given(st.text())
def test_text_of_somebody_else_holds_no_samples(text: str) -> None:
    assert samples(text.replace("vmsnap_", "")) == {}


@given(ODD_FILE, st.sampled_from([FULL, GOOD]))
def test_whatever_the_former_file_holds_the_new_one_is_valid(text: str, result: Result) -> None:
    parse(exposition(result, samples(text)))


@given(ODD_FILE)
def test_the_last_session_does_not_depend_on_the_former_file(text: str) -> None:
    def last(text: str) -> dict[str, Family]:
        families = parse(exposition(GOOD, samples(text)))
        return {name: f for name, f in families.items() if not name.endswith("_total")}

    assert last(text) == last("")


# --- the file itself ---------------------------------------------------------------------------


@pytest.fixture
def in_this_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """The child that writes is not started, but plays its part here."""

    def written(write: Callable[[], None], _name: str, _waiter: Waiter, _lock: int) -> str:
        try:
            write()
        except OSError as e:
            return e.strerror or str(e)
        return ""

    monkeypatch.setattr("vmsnap.session.metrics.written_in_child", written)
    for name in ("signal", "alarm"):  # which end the child
        monkeypatch.setattr(f"signal.{name}", lambda *_: 0)


def written(result: Result, textfile: Path | str) -> str:
    return write_metrics(result, str(textfile), cast(Waiter, None))


def test_without_a_file_nothing_is_written(tmp_path: Path) -> None:
    assert written(GOOD, "") == ""


def test_the_file_is_brought_up_to_date_and_readable_by_the_exporter(
    in_this_process: None, tmp_path: Path
) -> None:
    path = tmp_path / "vmsnap.prom"
    assert [written(result, path) for result in (GOOD, FULL)] == ["", ""]
    assert path.read_text() == after(GOOD, FULL)
    assert path.stat().st_mode & 0o777 == 0o644
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(
    ("make", "found"),
    [
        (os.mkfifo, "a FIFO"),
        (Path.mkdir, "a directory"),
        (lambda path: path.symlink_to("/etc/hostname"), "a symbolic link"),
        (lambda path: path.symlink_to(path), "a symbolic link"),
    ],
)
def test_nothing_but_a_file_is_read_or_replaced(
    in_this_process: None, tmp_path: Path, make: Callable[[Path], object], found: str
) -> None:
    path = tmp_path / "vmsnap.prom"
    make(path)
    expected = f"cannot write metrics to {path}: found {found}, expected a regular file"
    assert written(GOOD, path) == expected
    assert list(tmp_path.iterdir()) == [path]
    assert not path.is_file() or path.is_symlink()


def test_a_file_without_end_is_not_read(in_this_process: None, tmp_path: Path) -> None:
    path = tmp_path / "vmsnap.prom"
    path.touch()
    os.truncate(path, 1 << 42)
    assert "1 MiB" in written(GOOD, path)


def test_a_link_of_another_user_leads_nowhere(in_this_process: None, tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    link = tmp_path / "link"
    link.symlink_to("elsewhere")
    assert written(GOOD, link / "vmsnap.prom") == ""
    os.chown(link, NOBODY, 0, follow_symlinks=False)
    (tmp_path / "elsewhere/vmsnap.prom").unlink()
    assert f"{link}: found owner uid {NOBODY}" in written(GOOD, link / "vmsnap.prom")
    assert list((tmp_path / "elsewhere").iterdir()) == []


def test_a_file_that_cannot_be_written_is_said_by_name(
    in_this_process: None, tmp_path: Path
) -> None:
    path = tmp_path / "missing/vmsnap.prom"
    assert written(GOOD, path) == f"cannot write metrics to {path}: No such file or directory"


@pytest.mark.parametrize("content", [b"\xff\xfe\0", b"\0" * 5000, b"", b"{}\r\n"])
def test_a_file_that_is_no_text_is_replaced(
    in_this_process: None, tmp_path: Path, content: bytes
) -> None:
    path = tmp_path / "vmsnap.prom"
    path.write_bytes(content)
    assert written(GOOD, path) == ""
    assert path.read_text() == after(GOOD)
