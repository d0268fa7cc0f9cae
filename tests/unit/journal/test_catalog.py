# SPDX-License-Identifier: Apache-2.0
"""The journal's message catalogue: complete in both languages, and true of what is recorded.

What is printed is read back here independently; the records are those that the code sends.
"""

from __future__ import annotations

import io
import re
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import pytest

from vmsnap.config.app import App, Script
from vmsnap.consistency import Level
from vmsnap.errors import SCRIPT, Kind, Problem
from vmsnap.journal import catalog, catalog_es
from vmsnap.journal.problems import send_problem
from vmsnap.journal.sender import Event, Journal, Priority
from vmsnap.result import PHASES, Phase, refused
from vmsnap.scripts.output import Output
from vmsnap.scripts.runner import Runner, ScriptRun
from vmsnap.session.finish import send_end
from vmsnap.session.log import Record
from vmsnap.session.options import Options
from vmsnap.session.recovery import NoTaker
from vmsnap.session.session import Session
from vmsnap.system.waiter import Waiter

IDS = [*(kind.message_id for kind in Kind), *(event.value for event in Event)]
FIELD = re.compile("@([A-Z_]+)@")
# What is typed or looked up, and so is the same in every language.
NAMES = re.compile(
    r"`[^`]*`|--[a-z]+|\[[a-z]+\]|\b[a-z]+=|\b[a-z]+[A-Z]\w+|\b[A-Z][a-z]+[A-Z]\w+|@[A-Z_]+@"
    r"|VMSNAP_[A-Z]+|\b0[0-7]{3}\b|\w+\(\d\)|\broot\b|\bvmsnap\b|\bfsfreeze\b|\b(?:pre|post)-script"
)


@dataclass(frozen=True)
class Entry:
    headers: dict[str, str]
    body: str

    @property
    def words(self) -> str:
        """The body without its line breaks."""
        return " ".join(self.body.split())


def read(language: str) -> list[tuple[str, Entry]]:
    """https://systemd.io/CATALOG/: after an empty line `-- ID`, headers, an empty line, prose."""
    text = catalog.catalog(catalog.LANGUAGES[language])
    head, *entries = re.split(r"\n\n-- (.*)\n", "\n" + text)
    assert all(line.startswith("#") for line in head.split("\n") if line)
    found = []
    for message_id, entry in zip(entries[::2], entries[1::2]):
        headers, _, body = entry.partition("\n\n")
        pairs = [line.split(": ", 1) for line in headers.split("\n")]
        assert len(dict(pairs)) == len(pairs)
        found.append((message_id, Entry(dict(pairs), body)))
    return found


ENGLISH, SPANISH = dict(read("en")), dict(read("es"))
BOTH = pytest.mark.parametrize("language", ["en", "es"])
EVERY_ID = pytest.mark.parametrize(
    "message_id", IDS, ids=[*(kind.label for kind in Kind), *(event.name for event in Event)]
)


# --- completeness ------------------------------------------------------------------------------


@BOTH
def test_every_record_has_one_entry_and_every_entry_a_record(language: str) -> None:
    found = [message_id for message_id, _ in read(language)]
    assert sorted(found) == sorted(IDS)
    assert len(set(found)) == len(found)
    assert all(re.fullmatch("[0-9a-f]{32}", message_id) for message_id in found)


def test_the_tables_hold_nothing_that_is_not_printed() -> None:
    assert set(catalog_es.KINDS) == set(Kind)
    assert set(catalog_es.EVENTS) == set(catalog.EVENTS) == set(Event)


@BOTH
@EVERY_ID
def test_an_entry_has_a_subject_and_says_where_more_is_to_be_read(
    language: str, message_id: str
) -> None:
    headers = dict(read(language))[message_id].headers
    assert set(headers) == {"Subject", "Defined-By", "Documentation"}
    assert headers["Subject"].strip()
    assert headers["Defined-By"] == "vmsnap"
    assert headers["Documentation"] == "man:vmsnap(1)"


@pytest.mark.parametrize("kind", Kind)
def test_the_english_entry_of_an_error_is_what_the_catalogue_of_errors_says(kind: Kind) -> None:
    entry = ENGLISH[kind.message_id]
    assert entry.headers["Subject"] == kind.summary
    assert kind.summary in entry.words
    assert kind.action in entry.words


@pytest.mark.parametrize("kind", Kind)
def test_the_entry_of_an_error_has_its_name_and_code_in_both_languages(kind: Kind) -> None:
    assert f"(error {kind.label}, code {kind.code})" in ENGLISH[kind.message_id].words
    assert f"(error {kind.label}, código {kind.code})" in SPANISH[kind.message_id].words


# --- Spanish -----------------------------------------------------------------------------------


@EVERY_ID
def test_spanish_is_not_english(message_id: str) -> None:
    english, translated = ENGLISH[message_id], SPANISH[message_id]
    assert translated.headers["Subject"] != english.headers["Subject"]
    assert not set(translated.words.split(". ")) & set(english.words.split(". "))


@EVERY_ID
def test_both_languages_use_the_same_names(message_id: str) -> None:
    assert names(SPANISH[message_id]) == names(ENGLISH[message_id])


def names(entry: Entry) -> set[str]:
    return set(NAMES.findall(f"{entry.headers['Subject']} {entry.words}"))


# --- the form ----------------------------------------------------------------------------------


@BOTH
def test_no_line_is_too_long_or_would_be_read_as_something_else(language: str) -> None:
    for _, entry in read(language):
        for line in entry.body.split("\n"):
            assert len(line) <= 78
            assert not line.startswith(("#", ";", "-- "))


@BOTH
def test_a_command_can_be_copied_from_one_line(language: str) -> None:
    for _, entry in read(language):
        for line in entry.body.split("\n"):
            assert line.count("`") % 2 == 0


def test_what_is_too_long_for_a_line_is_left_whole() -> None:
    word = "x" * 100
    assert catalog.wrapped(f"see {word} and `{word} y`") == f"see\n{word}\nand\n`{word} y`"


# --- the fields --------------------------------------------------------------------------------


class Heard(Journal):
    """A journal that remembers which fields came with which record."""

    def __init__(self, fields: dict[str, str] | None = None) -> None:
        super().__init__(fields, "/nonexistent/journal")
        self.heard: dict[str, list[set[str]]] = {}

    def send(
        self,
        message: str,
        message_id: str,
        priority: Priority = Priority.INFO,
        identifier: str = "vmsnap",
        **fields: str,
    ) -> None:
        self.heard.setdefault(message_id, []).append({*self.fields, *fields})

    def always(self, message_id: str) -> set[str]:
        """The fields that all of these records had."""
        return set.intersection(*self.heard[message_id])


def missing(journal: Heard, message_id: str) -> set[str]:
    used = {name for e in (ENGLISH, SPANISH) for name in FIELD.findall(e[message_id].body)}
    return used - journal.always(message_id)


@pytest.fixture
def journal() -> Heard:
    return Heard({"VMSNAP_SESSION": "s-1"})


@pytest.mark.parametrize("kind", [k for k in Kind if k not in (*catalog.OUTSIDE, *catalog.RUNNING)])
def test_an_error_of_any_phase_has_the_fields_of_its_entry(journal: Heard, kind: Kind) -> None:
    for phase in PHASES:
        send_problem(journal, Problem(kind, "it is wrong", phase, "what"), Level.CRASH)
    assert "VMSNAP_SESSION" in FIELD.findall(ENGLISH[kind.message_id].body)
    assert not missing(journal, kind.message_id)


@pytest.mark.parametrize("kind", catalog.OUTSIDE)
def test_what_is_also_said_outside_of_sessions_names_none(kind: Kind) -> None:
    assert "@" not in ENGLISH[kind.message_id].body + SPANISH[kind.message_id].body


@pytest.mark.parametrize("event", [Event.NOTE, Event.DROPPED])
def test_a_record_that_need_not_belong_to_a_session_names_none(event: Event) -> None:
    assert "@" not in ENGLISH[event.value].body + SPANISH[event.value].body


@pytest.mark.parametrize("phase", SCRIPT)
@pytest.mark.parametrize("timed_out", [False, True])
def test_the_end_of_a_script_and_its_error_have_the_fields_of_their_entries(
    journal: Heard, phase: str, timed_out: bool
) -> None:
    run = ScriptRun(1, 1, None, 0.1, timed_out, "failed")
    session = Session(Options(("true",)), -1, cast(Waiter, None), NoTaker(held=False))
    session.journal = session.record.journal = journal
    session.script_ended("web", phase, run)
    kind = SCRIPT[phase].timeout if timed_out else SCRIPT[phase].failed
    assert set(journal.heard) == {Event.SCRIPT_ENDED.value, kind.message_id}
    for message_id in journal.heard:
        assert "VMSNAP_APP" in FIELD.findall(ENGLISH[message_id].body)
        assert not missing(journal, message_id)


def test_a_line_of_output_has_the_fields_of_its_entry(journal: Heard, tmp_path: Path) -> None:
    app = App(
        "web", "/etc/vmsnap/apps.d/web.json", Script("/opt/pre", (), 0, 30.0), None, False, True
    )
    runner = Runner(app, "s-1", tmp_path, 5.0, journal, 10)
    heard = Heard(runner.journal.fields)
    Output(heard, "pre").take(b"<4>almost full\n")
    assert not missing(heard, Event.SCRIPT_OUTPUT.value)


def test_what_a_session_tells_has_the_fields_of_its_entries(journal: Heard) -> None:
    record = Record(journal, lambda _: None, lambda: pytest.fail("no failure"))
    record.enter(Phase.CHECK, "begins", Event.STARTED)
    record.enter(Phase.PRE)
    record.send("froze", Event.FROZEN)
    record.send("thawed", Event.THAWED)
    send_end(journal, refused(Problem(Kind.SNAPSHOT_FAILED, "it failed", "snapshot")))
    told = (Event.STARTED, Event.PHASE, Event.FROZEN, Event.THAWED, Event.ENDED)
    assert set(journal.heard) == {event.value for event in told}
    assert {message_id for message_id in journal.heard if missing(journal, message_id)} == set()


@EVERY_ID
def test_every_at_sign_belongs_to_a_field(message_id: str) -> None:
    for entry in (ENGLISH[message_id], SPANISH[message_id]):
        assert "@" not in entry.headers["Subject"]
        assert "@" not in FIELD.sub("", entry.body)


# --- printing ----------------------------------------------------------------------------------


@BOTH
def test_it_is_printed_in_utf_8_whatever_the_locale(
    monkeypatch: pytest.MonkeyPatch, language: str
) -> None:
    printed = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(printed, encoding="ascii"))
    assert catalog.main([language]) == 0
    assert printed.getvalue().decode("utf-8") == catalog.catalog(catalog.LANGUAGES[language])


@pytest.mark.parametrize("argv", [[], ["fr"], ["en", "es"]])
def test_a_language_that_there_is_not_is_refused(
    capsys: pytest.CaptureFixture[str], argv: list[str]
) -> None:
    assert catalog.main(argv) == 2
    said = capsys.readouterr()
    assert not said.out
    assert "en|es" in said.err
