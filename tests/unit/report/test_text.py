# SPDX-License-Identifier: Apache-2.0
"""What people read: lines that fit, tables that align, nothing that a terminal would obey."""

from __future__ import annotations

import io
import re
import unicodedata
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vmsnap.cli.terminal import colourful
from vmsnap.errors import Kind, Problem, Severity
from vmsnap.freeze.mountinfo import Mount
from vmsnap.freeze.plan import Action, Entry, Plan
from vmsnap.report.summary import summary, timeline
from vmsnap.report.tables import plan_table, problem_list
from vmsnap.report.text import Paint, table
from vmsnap.result import AppResult, ErrorResult, FilesystemResult, ScriptResult, error_result
from vmsnap.system.printable import printable

from ..test_result import FULL

PLAIN = Paint(False)
HOSTILE = st.text(max_size=20) | st.sampled_from(
    [
        "\033[2J",
        "a\nb",
        "\r",
        "\x9b31m",
        "\x07",
        "\u202e",
        "\udcff",
        "tab\t",
        "\x7f",
        "\0",
        "\u2028",
    ]
)


def entry(
    mount: str,
    action: Action = Action.FREEZE,
    step: int | None = 1,
    reason: str = "",
    fstype: str = "ext4",
    source: str = "/dev/vda1",
) -> Entry:
    made = Mount(1, "900:1", "/", mount, fstype, source, "rw")
    return Entry((made,), action, step, reason)


def obeyed(text: str) -> set[str]:
    """Characters that a terminal does not simply show."""
    return {c for c in text if c != "\n" and unicodedata.category(c) in ("Cc", "Cf", "Cs", "Zl")}


# --- the plan ----------------------------------------------------------------------------------


def test_the_plan_shows_each_filesystem_with_all_that_matters() -> None:
    plan = Plan((entry("/srv"), entry("/boot/efi", Action.SYNC, 2, "written out", "vfat")))
    header, first, second = plan_table(plan).splitlines()
    assert header.split()[:5] == ["MOUNT", "SOURCE", "TYPE", "ACTION", "STEP"]
    assert first.split() == ["/srv", "/dev/vda1", "ext4", "freeze", "1"]
    assert second.split() == ["/boot/efi", "/dev/vda1", "vfat", "sync", "2", "written", "out"]


def test_the_plan_reads_in_the_order_of_the_freeze_and_what_is_skipped_comes_last() -> None:
    plan = Plan(
        (
            entry("/skipped", Action.SKIP, None, "excluded"),
            entry("/", step=2),
            entry("/b"),
            entry("/a"),
        )
    )
    assert [line.split()[0] for line in plan_table(plan).splitlines()[1:]] == [
        *("/a", "/b", "/", "/skipped")
    ]


def test_every_line_of_the_plan_that_is_not_frozen_says_why() -> None:
    plan = Plan((entry("/mnt", Action.SKIP, None, "excluded"), entry("/srv")))
    lines = {line.split()[0]: line for line in plan_table(plan).splitlines()}
    assert lines["/mnt"].endswith("excluded")


def test_columns_begin_under_their_headings() -> None:
    plan = Plan((entry("/a/very/long/mount/point", fstype="xfs"), entry("/b", source="x" * 40)))
    header, *rows = plan_table(plan).splitlines()
    for word, value in (("TYPE", ("xfs", "ext4")), ("ACTION", ("freeze", "freeze"))):
        at = header.index(word)
        assert [row[at:].split()[0] for row in rows] == list(value)


def test_virtual_filesystems_are_summed_up_in_lines_that_fit() -> None:
    kinds = ["proc", "sysfs", "tmpfs", "cgroup2", "devpts", "debugfs", "tracefs", "securityfs"]
    virtual = tuple(
        entry(f"/v/{kind}/{n}", Action.SKIP, None, f"virtual: {kind} is not on a disk", kind)
        for kind in kinds
        for n in range(3)
    )
    text = plan_table(Plan((entry("/srv"), *virtual)))
    assert "/v/" not in text
    assert all(f"3 {kind}" in " ".join(text.split()) for kind in kinds)
    assert max(map(len, text.splitlines())) <= 80


def test_a_pattern_that_named_no_mount_point_is_said() -> None:
    assert "/no/such" in plan_table(Plan((entry("/srv"),), ("/no/such",)))


@given(HOSTILE, HOSTILE, HOSTILE)
def test_no_name_in_the_plan_reaches_the_terminal_as_a_command(
    mount: str, source: str, pattern: str
) -> None:
    text = plan_table(Plan((entry("/" + mount, source=source),), (pattern,)))
    assert obeyed(text) == set()
    assert text.count("\n") == 2  # header, filesystem, pattern


# --- tables and text ---------------------------------------------------------------------------


@given(st.lists(st.tuples(HOSTILE, HOSTILE), max_size=5))
def test_a_table_has_one_line_for_each_row_whatever_the_cells_hold(
    rows: list[tuple[str, str]],
) -> None:
    assert len(table(("A", "B"), rows)) == 1 + len(rows)
    assert obeyed("\n".join(table(("A", "B"), rows))) == set()


@given(st.text(st.characters(min_codepoint=32, max_codepoint=126)))
def test_ordinary_text_is_shown_as_it_is(text: str) -> None:
    assert printable(text) == text


@pytest.mark.parametrize("text", ["größe", "名前", "naïve café"])
def test_letters_of_any_language_are_shown_as_they_are(text: str) -> None:
    assert printable(text) == text


# --- problems ----------------------------------------------------------------------------------


def test_a_problem_shows_its_message_its_name_its_code_and_what_to_do() -> None:
    problem = Problem(Kind.PRE_SCRIPT_NOT_FOUND, "/opt/pre: missing", path="/opt/pre")
    text = problem_list([problem], PLAIN)
    for part in ("/opt/pre: missing", "Pre-ScriptNotFound", "302", problem.kind.action):
        assert part in text


def test_a_warning_does_not_ask_for_action() -> None:
    kind = Kind.INCORRECT_JSON_CONFIG_FILE
    text = problem_list([Problem(kind, "unknown key", path="/x", severity=Severity.WARNING)], PLAIN)
    assert text == "warning: unknown key"


@given(HOSTILE)
def test_no_message_of_a_problem_reaches_the_terminal_as_a_command(message: str) -> None:
    problem = Problem(Kind.PRE_SCRIPT_NOT_FOUND, message, path="/x")
    assert obeyed(problem_list([problem], PLAIN)) == set()


# --- a session ---------------------------------------------------------------------------------


def test_the_summary_says_verdict_consistency_requirement_and_stall() -> None:
    text = summary(FULL, PLAIN)
    first = text.splitlines()[0]
    assert FULL.session in first
    assert "failed" in first
    assert "crash-consistent" in first
    assert "required consistency: application" in text
    assert "stalled for 250.0 ms" in text
    assert "FreezeFailed 121" in text
    assert "it is busy" in text


def test_the_summary_of_a_session_without_a_snapshot_says_so() -> None:
    assert "no snapshot" in summary(replace(FULL, consistency="none"), PLAIN).splitlines()[0]


@pytest.mark.parametrize(
    ("script", "words"),
    [
        (ScriptResult(1, 0, None, 0.0123, False), "ok (12.3 ms)"),
        (ScriptResult(3, 7, None, 1.0, False), "failed with exit code 7 (1.00 s, 3 attempts)"),
        (ScriptResult(1, None, 9, 1.0, False), "killed by signal 9 (1.00 s)"),
        (ScriptResult(1, None, 15, 130.0, True), "timed out (2 min 10 s)"),
        (None, "not run"),
    ],
)
def test_the_summary_says_how_each_script_ended(script: ScriptResult | None, words: str) -> None:
    result = replace(FULL, apps=(AppResult("web", "/x", script, None),))
    assert f"app web: pre-script {words}, post-script not run" in summary(result, PLAIN)


def test_long_messages_are_broken_into_lines_that_fit() -> None:
    failure = Problem(Kind.FREEZE_FAILED, "word " * 100 + "x" * 300, "freeze", "/srv")
    result = replace(FULL, errors=(error_result(failure),))
    indented = [line for line in summary(result, PLAIN).splitlines() if line.startswith("    ")]
    assert "x" * 300 in "".join(line.strip() for line in indented)
    assert max(map(len, indented)) <= 80


def test_a_summary_fits_on_a_terminal_of_80_columns() -> None:
    assert max(map(len, summary(FULL, PLAIN).splitlines())) <= 80


def test_the_timeline_shows_each_phase_to_scale_and_each_filesystem() -> None:
    text = timeline(FULL)
    assert re.search(r"check +0\.0 ms +▒{40} +1\.50 s", text)
    (row,) = [line for line in text.splitlines() if "/srv" in line]
    assert row.split() == ["/srv", "xfs", "1", "1.0", "ms", "2.0", "ms", "3.0", "ms"]


@given(HOSTILE, HOSTILE, HOSTILE, HOSTILE)
def test_nothing_in_a_result_reaches_the_terminal_as_a_command(
    mount: str, message: str, subject: str, word: str
) -> None:
    assert FULL.snapshot
    filesystem = FilesystemResult(mount, "ext4", "8:1", 1, None, None, None, message)
    result = replace(
        FULL,
        errors=(ErrorResult("FreezeFailed", 121, "freeze", subject, message, "do this"),),
        filesystems=(filesystem,),
        snapshot=replace(FULL.snapshot, command=("snap", word)),
    )
    assert obeyed(summary(result, PLAIN) + timeline(result)) == set()


# --- colours -----------------------------------------------------------------------------------


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize(
    ("environment", "stream", "colours"),
    [
        ({"TERM": "xterm"}, Terminal(), True),
        ({"TERM": "xterm", "NO_COLOR": ""}, Terminal(), True),
        ({"TERM": "xterm", "NO_COLOR": "1"}, Terminal(), False),
        ({"TERM": "dumb"}, Terminal(), False),
        ({"TERM": "xterm"}, io.StringIO(), False),
        ({"TERM": "xterm"}, None, False),
    ],
)
def test_colours_are_for_terminals_and_for_those_who_did_not_say_no_color(
    monkeypatch: pytest.MonkeyPatch, environment: dict[str, str], stream: object, colours: bool
) -> None:
    monkeypatch.delenv("NO_COLOR", raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert colourful(stream) is colours


def test_without_colours_there_is_no_escape_and_with_them_the_same_words() -> None:
    painted = summary(FULL, Paint(True))
    assert "\033" in painted
    assert re.sub(r"\033\[[0-9;]*m", "", painted) == summary(FULL, PLAIN)
