# SPDX-License-Identifier: Apache-2.0
"""The examples fit the program that they are examples for: vmsnap's own checks take them."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from vmsnap import config

from .worlds import Etc, kinds, warnings

EXAMPLES = Path(__file__).parents[2] / "examples"
README = (EXAMPLES / "README.md").read_text(encoding="utf-8")
APPS = sorted(path.parent.name for path in EXAMPLES.glob("*/*.json"))
COMMANDS = sorted(path.name for path in (EXAMPLES / "snapshot").iterdir())
SCRIPTS = [
    *(EXAMPLES / app / phase for app in APPS for phase in ("pre", "post")),
    *(EXAMPLES / "snapshot" / command for command in COMMANDS),
]


def name(path: Path) -> str:
    return str(path.relative_to(EXAMPLES))


def test_there_are_apps_and_snapshot_commands() -> None:
    assert APPS
    assert COMMANDS


@pytest.mark.parametrize("app", APPS)
def test_the_scripts_of_an_app_are_where_init_writes_its_skeletons(app: str) -> None:
    path = f"/etc/vmsnap/apps.d/{app}.json"
    text = (EXAMPLES / app / f"{app}.json").read_text(encoding="utf-8")
    parsed, complaints = config.parse_app(text, path, app)
    assert complaints == []
    assert parsed.name == app
    for phase, script in (("pre", parsed.pre), ("post", parsed.post)):
        assert script
        assert script.path == f"/etc/vmsnap/scripts/{app}/{phase}"


@pytest.mark.parametrize("app", APPS)
def test_an_app_that_was_copied_as_the_readme_says_passes_all_checks(etc: Etc, app: str) -> None:
    text = (EXAMPLES / app / f"{app}.json").read_text(encoding="utf-8")
    for phase in ("pre", "post"):
        etc.write(f"vmsnap/scripts/{app}/{phase}", (EXAMPLES / app / phase).read_bytes(), 0o700)
    etc.write(f"vmsnap/apps.d/{app}.json", text.replace("/etc", str(etc.root)), 0o600)
    found = etc.inspect()
    assert kinds(found) == []
    assert warnings(found) == []
    assert [runnable.name for runnable in found.runnable] == [app]


@pytest.mark.parametrize("script", SCRIPTS, ids=name)
def test_a_script_is_plain_sh_that_stops_at_the_first_failure(script: Path) -> None:
    lines = script.read_text(encoding="utf-8").splitlines()
    assert lines[0] == "#!/bin/sh"
    assert "set -eu" in lines


def test_an_app_directory_holds_an_app_and_nothing_else() -> None:
    for app in APPS:
        found = {path.name for path in (EXAMPLES / app).iterdir()}
        assert found == {f"{app}.json", "pre", "post"}
    assert sorted(path.name for path in EXAMPLES.iterdir()) == sorted(
        [*APPS, "README.md", "snapshot"]
    )


def test_the_readme_names_every_example_and_no_other() -> None:
    named = set(re.findall(r"\]\(([^)]*)/\)", README))
    assert named == {*APPS, "snapshot"}
    for app in APPS:
        assert f"`{app}.json`, `pre`, `post`" in README
    for command in COMMANDS:
        assert f"snapshot/{command}" in README
        assert f"command = /usr/local/sbin/{command} " in README


def test_the_command_that_the_readme_schedules_can_be_read() -> None:
    (text,) = re.findall(r"```ini\n(.*?)```", README, re.S)
    values: dict[str, object] = {}
    assert config.parse_settings(text, "snapshot.conf", values) == []
    (command,) = values.values()
    assert isinstance(command, tuple)
    assert Path(command[0]).name in COMMANDS
