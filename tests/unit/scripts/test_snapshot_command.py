# SPDX-License-Identifier: Apache-2.0
"""The snapshot command before it is started: where it is."""

from __future__ import annotations

from pathlib import Path

import pytest

from vmsnap.scripts.snapshot_command import find


@pytest.fixture
def tool(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    path = tmp_path / "bin/take-snapshot"
    path.parent.mkdir()
    path.write_text("#!/bin/sh\n")
    path.chmod(0o755)
    monkeypatch.setenv("PATH", str(path.parent))
    monkeypatch.chdir(tmp_path)
    return path


@pytest.mark.parametrize("word", ["take-snapshot", "bin/take-snapshot", "./bin/take-snapshot"])
def test_a_command_is_found_as_a_shell_finds_it(tool: Path, word: str) -> None:
    found = find(word)
    assert found
    assert Path(found).is_absolute()
    assert Path(found).samefile(tool)


@pytest.mark.parametrize("word", ["", "take", "bin", "./take-snapshot", "/no/such/file", "bin/x"])
def test_what_cannot_be_run_is_not_found(tool: Path, word: str) -> None:
    (tool.parent / "x").write_text("not executable")
    assert find(word) is None
