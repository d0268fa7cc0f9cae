# SPDX-License-Identifier: Apache-2.0
"""The completions' words follow the grammar. tests/shell asks the shells themselves."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from vmsnap import platforms
from vmsnap.cli import completion
from vmsnap.cli.completion import SHELLS
from vmsnap.cli.grammar import COMMANDS, Option
from vmsnap.platforms.registry import agents

from ..platforms.test_registry import ACME

TEMPLATES = Path(__file__).parents[3] / "completions"


def filled(shell: str) -> str:
    template = (TEMPLATES / f"vmsnap.{shell}.in").read_text(encoding="utf-8")
    return completion.completion(template, shell)


@pytest.mark.parametrize("shell", SHELLS)
def test_nothing_is_left_to_be_filled_in(shell: str) -> None:
    assert "@" not in filled(shell).replace("is between @ is", "").replace('"$@"', "")


@pytest.mark.parametrize("shell", SHELLS)
def test_a_new_option_is_completed(shell: str, monkeypatch: pytest.MonkeyPatch) -> None:
    new = Option("--brand-new", "that's [new]: $x", "", False, ())
    first = replace(COMMANDS[0], options=(*COMMANDS[0].options, new))
    assert "brand-new" not in filled(shell)
    monkeypatch.setattr(completion, "COMMANDS", (first, *COMMANDS[1:]))
    assert "brand-new" in filled(shell)


@pytest.mark.parametrize("shell", SHELLS)
def test_a_new_platform_is_completed(
    shell: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "acme.py").write_text(ACME)
    monkeypatch.setattr(platforms, "__path__", [*platforms.__path__, str(tmp_path)])
    agents.cache_clear()
    try:
        text = filled(shell)
    finally:
        agents.cache_clear()
    assert "acme" in text
    assert "quiesce" in text
