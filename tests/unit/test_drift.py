# SPDX-License-Identifier: Apache-2.0
"""What the documents say of options, keys and modules is what there is."""

from __future__ import annotations

from pathlib import Path

import pytest

from vmsnap.arguments import parser
from vmsnap.config import SETTINGS, schema
from vmsnap.consistency import AT_MOST
from vmsnap.errors import Kind

ROOT = Path(__file__).parents[2]
CONFIGURATION = (ROOT / "docs/configuration.md").read_text(encoding="utf-8")
ARCHITECTURE = (ROOT / "docs/architecture.md").read_text(encoding="utf-8")
README = (ROOT / "README.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("key", sorted(schema()["properties"]))
def test_every_key_of_an_app_is_documented(key: str) -> None:
    assert f"`{key}`" in CONFIGURATION


@pytest.mark.parametrize(("section", "key"), sorted(SETTINGS))
def test_every_setting_is_documented(section: str, key: str) -> None:
    assert f"`[{section}]`" in CONFIGURATION
    assert f"`{key}`" in CONFIGURATION


@pytest.mark.parametrize(
    "module", sorted((ROOT / "vmsnap").glob("[a-z]*.py")), ids=lambda p: p.name
)
def test_every_module_is_in_the_house(module: Path) -> None:
    assert f"  {module.name} " in ARCHITECTURE


@pytest.mark.parametrize("command", ["run", "check", "plan", "init", "status", "thaw --force"])
def test_every_command_is_in_the_help_and_in_the_readme(command: str) -> None:
    assert f"vmsnap {command}" in parser().format_help()
    assert command in README


@pytest.mark.parametrize("kind", Kind)
def test_the_rule_knows_every_kind_of_error(kind: Kind) -> None:
    assert kind in AT_MOST
