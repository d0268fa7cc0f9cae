# SPDX-License-Identifier: Apache-2.0
"""The examples fit the program that they are examples for: vmsnap's own checks take them."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from vmsnap.config import app as config
from vmsnap.config.settings import parse_settings
from vmsnap.provision.init import init
from vmsnap.provision.quiescers import QUIESCERS

from .worlds import Etc, installed_quiescers

EXAMPLES = Path(__file__).parents[2] / "examples"
README = (EXAMPLES / "README.md").read_text(encoding="utf-8")
APPS = sorted(path.name for path in (EXAMPLES / "apps").iterdir())
COMMANDS = sorted(path.name for path in (EXAMPLES / "snapshot").iterdir())


def test_there_is_an_app_for_every_quiescer_and_a_snapshot_command() -> None:
    assert sorted({f"{quiescer.name}.json" for quiescer in QUIESCERS.values()}) == APPS
    assert COMMANDS


@pytest.mark.parametrize("app", APPS)
def test_an_app_is_what_init_writes(
    etc: Etc, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, app: str
) -> None:
    path = f"/etc/vmsnap/apps.d/{app}"
    text = (EXAMPLES / "apps" / app).read_text(encoding="utf-8")
    assert config.parse_app(text, path, "app")[1] == []
    before = QUIESCERS[Path(app).stem].path
    directory = installed_quiescers(tmp_path, monkeypatch)
    written = init(etc.root, "app", QUIESCERS[Path(app).stem])
    assert text == written.config.read_text().replace(str(directory), str(before.parent))


@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_is_plain_sh_that_stops_at_the_first_failure(command: str) -> None:
    lines = (EXAMPLES / "snapshot" / command).read_text(encoding="utf-8").splitlines()
    assert lines[0] == "#!/bin/sh"
    assert "set -eu" in lines


def test_the_readme_names_every_example_and_no_other() -> None:
    directories = {path.name for path in EXAMPLES.iterdir()} - {"README.md"}
    assert directories == {"apps", "snapshot"}
    assert set(re.findall(r"\]\(([^)]*)/\)", README)) == directories
    for app in APPS:
        assert f"`{app}`" in README
    for command in COMMANDS:
        assert f"snapshot/{command}" in README
        assert f"command = /usr/local/sbin/{command} " in README


def test_the_command_that_the_readme_schedules_can_be_read() -> None:
    (text,) = re.findall(r"```ini\n(.*?)```", README, re.S)
    values: dict[str, object] = {}
    assert parse_settings(text, "snapshot.conf", values) == []
    (command,) = values.values()
    assert isinstance(command, tuple)
    assert Path(command[0]).name in COMMANDS
