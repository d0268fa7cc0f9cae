# SPDX-License-Identifier: Apache-2.0
"""The manual follows the grammar, the agents and the errors. tests/shell asks man(1) itself."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from vmsnap import platforms
from vmsnap.cli import grammar, manual, show
from vmsnap.cli.arguments import Commands
from vmsnap.platforms.registry import agents

from ..platforms.test_registry import ACME

SOURCES = sorted((Path(__file__).parents[3] / "man").iterdir())
COMMANDS_PAGE = next(source for source in SOURCES if source.name == "vmsnap.1.rst")


def filled() -> str:
    return manual.filled(COMMANDS_PAGE.read_text(encoding="utf-8"))


@pytest.mark.parametrize("source", SOURCES, ids=lambda source: source.name)
def test_nothing_is_left_to_be_filled_in(source: Path) -> None:
    assert not re.search("@[A-Z]", manual.filled(source.read_text(encoding="utf-8")))


def test_a_new_option_is_in_the_manual(monkeypatch: pytest.MonkeyPatch) -> None:
    register = show.register_sessions

    def with_another(commands: Commands) -> None:
        register(commands)
        for name in ("status", "plot"):
            command = commands._added.choices[name]
            command.add_argument("--brand-new", metavar="NAME", help="100%% *.new, see `that`")

    assert "brand-new" not in filled()
    monkeypatch.setattr(show, "register_sessions", with_another)
    monkeypatch.setattr(manual, "COMMANDS", grammar.commands())
    heading = "Of status and plot\n------------------\n\n"
    assert f"{heading}--brand-new NAME\n    100% \\*.new, see **that**.\n\n" in filled()


def test_what_the_manual_says_of_an_option_follows_its_help() -> None:
    text = manual.filled("@OPTIONS@\n\n--json\n    See\n    JSON.\n\n    More.\n\nEnd.\n")
    help_text = "Print one JSON document on stdout."
    assert f"\n--json\n    {help_text}\n    See\n    JSON.\n\n    More.\n\nOf " in text
    assert text.endswith("\n\nEnd.\n")


def test_text_about_an_option_that_there_is_not_is_refused() -> None:
    with pytest.raises(ValueError, match="found text about --gone, expected known options"):
        manual.filled("@OPTIONS@\n\n--gone\n    Text.\n\n")


def test_a_new_platform_is_in_the_manual(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "acme.py").write_text(ACME)
    monkeypatch.setattr(platforms, "__path__", [*platforms.__path__, str(tmp_path)])
    agents.cache_clear()
    try:
        text = filled()
    finally:
        agents.cache_clear()
    assert "\nacme\n    **quiesce**" in text
    assert "**acme**, " in text
