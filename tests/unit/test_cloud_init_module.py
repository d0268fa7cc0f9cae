# SPDX-License-Identifier: Apache-2.0
"""cc_vmsnap.py, as every version of cloud-init since 18.5 finds and calls it."""

from __future__ import annotations

import ast
import datetime
import importlib.util
import inspect
import json
import logging
import subprocess
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

SOURCE = Path(__file__).parents[2] / "cloud-init/cc_vmsnap.py"


@pytest.fixture
def module() -> ModuleType:
    spec = importlib.util.spec_from_file_location("cc_vmsnap", SOURCE)
    assert spec
    assert spec.loader
    made = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(made)
    return made


class Vmsnap:
    """Stands for `vmsnap provision -`: takes the document and ends as it is told."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.documents: list[Any] = []
        self.code, self.says = 0, b""
        monkeypatch.setattr(subprocess, "run", self.run)

    def run(self, argv: list[str], **options: Any) -> subprocess.CompletedProcess[bytes]:
        assert argv == ["/usr/bin/vmsnap", "provision", "-"]
        self.documents.append(json.loads(options["input"]))
        return subprocess.CompletedProcess(argv, self.code, stderr=self.says)


@pytest.fixture
def vmsnap(monkeypatch: pytest.MonkeyPatch) -> Vmsnap:
    return Vmsnap(monkeypatch)


def before_23_2(handle: Callable[..., None], cfg: object) -> None:
    handle("vmsnap", cfg, object(), logging.getLogger(), [])


def since_23_2(handle: Callable[..., None], cfg: object) -> None:
    handle(name="vmsnap", cfg=cfg, cloud=object(), args=[])


both_ways = pytest.mark.parametrize("call", [before_23_2, since_23_2])
Call = Callable[[Callable[..., None], object], None]


@both_ways
def test_the_key_is_handed_on(module: ModuleType, vmsnap: Vmsnap, call: Call) -> None:
    call(module.handle, {"vmsnap": {"conf": {}}, "runcmd": []})
    assert vmsnap.documents == [{"conf": {}}]


@both_ways
def test_without_the_key_there_is_nothing_to_do(
    module: ModuleType, vmsnap: Vmsnap, call: Call
) -> None:
    call(module.handle, {"runcmd": []})
    assert vmsnap.documents == []


@both_ways
def test_a_key_with_nothing_below_it_is_not_taken_for_none(
    module: ModuleType, vmsnap: Vmsnap, call: Call
) -> None:
    """What should have stood below it was not indented."""
    call(module.handle, {"vmsnap": None})
    assert vmsnap.documents == [None]


@both_ways
def test_a_failure_is_an_exception_with_what_vmsnap_said(
    module: ModuleType, vmsnap: Vmsnap, call: Call
) -> None:
    vmsnap.code, vmsnap.says = 1, b"vmsnap provision: confi: unknown key\n\xff" + b"x" * 100_000
    with pytest.raises(RuntimeError, match="^vmsnap provision: confi: unknown key\n") as caught:
        call(module.handle, {"vmsnap": {}})
    assert len(str(caught.value)) < 10_000


def test_a_date_without_quotes_is_no_string(module: ModuleType, vmsnap: Vmsnap) -> None:
    module.handle("vmsnap", {"vmsnap": {"timer": datetime.date(2026, 11, 23)}}, None)
    assert vmsnap.documents == [{"timer": None}]


def test_what_cannot_be_told_at_all_still_reaches_vmsnap_which_keeps_the_failure(
    module: ModuleType, vmsnap: Vmsnap
) -> None:
    itself: dict[str, object] = {}
    itself["conf"] = itself
    for document in ({datetime.date(2026, 11, 23): 1}, itself, {"apps": [{True: 1}]}):
        module.handle("vmsnap", {"vmsnap": document}, None)
    assert vmsnap.documents == [None, None, None]


def test_what_cloud_init_asks_of_a_module_is_there(module: ModuleType) -> None:
    """config/modules.py, validate_module; up to 22.1 stages.py reads two plain attributes."""
    assert module.meta["frequency"] == module.frequency == "once-per-instance"
    assert module.meta["distros"] == module.distros == ["all"]
    assert {"id", "name", "title", "description", "examples"} <= set(module.meta)
    assert module.meta["activate_by_schema_keys"] == ["vmsnap"]
    assert not hasattr(module, "schema")


def test_a_fifth_parameter_would_be_deprecated(module: ModuleType) -> None:
    assert len(inspect.signature(module.handle).parameters) == 4


def test_it_is_python_3_6_and_imports_the_standard_library_only() -> None:
    """An exception at the import would take all modules of the stage with it."""
    tree = ast.parse(SOURCE.read_text(encoding="utf-8"), feature_version=(3, 6))
    imported = {
        name.name for node in ast.walk(tree) if isinstance(node, ast.Import) for name in node.names
    }
    assert imported == {"json", "subprocess", "sys"}
    assert not [node for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)]
