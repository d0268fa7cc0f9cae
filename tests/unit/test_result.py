# SPDX-License-Identifier: Apache-2.0
"""The result as JSON, version 1: other programs depend on these names."""

from __future__ import annotations

import contextlib
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vmsnap.errors import Kind, Problem
from vmsnap.result import (
    AppResult,
    ErrorResult,
    FilesystemResult,
    Result,
    ScriptResult,
    SnapshotResult,
    TimelineEvent,
    error_result,
    from_json,
    refused,
)

TEXT = st.text(max_size=10)
SECONDS = st.floats(min_value=0, max_value=1e6, allow_nan=False)
NUMBER = st.integers(-1, 300)
SCRIPTS = st.none() | st.builds(
    ScriptResult, NUMBER, st.none() | NUMBER, st.none() | NUMBER, SECONDS, st.booleans()
)
MS = st.none() | SECONDS


def tuples(strategy: st.SearchStrategy[object]) -> st.SearchStrategy[tuple[object, ...]]:
    return st.lists(strategy, max_size=3).map(tuple)


RESULTS = st.builds(
    Result,
    session=TEXT,
    outcome=st.sampled_from(["success", "failed"]),
    consistency=st.sampled_from(["none", "crash", "filesystem", "application"]),
    required=st.sampled_from(["crash", "filesystem", "application"]),
    started=TEXT,
    seconds=SECONDS,
    frozen_seconds=SECONDS,
    errors=tuples(st.builds(ErrorResult, TEXT, NUMBER, TEXT, TEXT, TEXT, TEXT)),
    apps=tuples(st.builds(AppResult, TEXT, TEXT, SCRIPTS, SCRIPTS)),
    filesystems=tuples(
        st.builds(
            FilesystemResult, TEXT, TEXT, TEXT, st.none() | NUMBER, MS, MS, MS, st.none() | TEXT
        )
    ),
    snapshot=st.none() | st.builds(SnapshotResult, tuples(TEXT), st.none() | NUMBER, SECONDS),
    timeline=tuples(st.builds(TimelineEvent, SECONDS, TEXT, TEXT)),
)
FULL = Result(
    session="0b6f5a0e-6f55-4b4b-8f2c-59e3b5b8f6a1",
    outcome="failed",
    consistency="crash",
    required="application",
    started="2025-01-31T12:00:00.000+01:00",
    seconds=1.5,
    frozen_seconds=0.25,
    errors=(error_result(Problem(Kind.FREEZE_FAILED, "it is busy", "freeze", "/srv")),),
    apps=(AppResult("web", "/etc/x.json", ScriptResult(1, 0, None, 0.1, False), None),),
    filesystems=(FilesystemResult("/srv", "xfs", "8:1", 1, 1.0, 2.0, 3.0, None),),
    snapshot=SnapshotResult(("snap", "-v"), 0, 0.5),
    timeline=(TimelineEvent(0.0, "check", ""),),
)


@given(RESULTS)
def test_what_was_written_is_read_back(result: Result) -> None:
    assert from_json(json.loads(json.dumps(result.to_json()))) == result


def test_the_document_has_exactly_the_keys_of_version_1() -> None:
    document = json.loads(json.dumps(FULL.to_json()))
    assert document["version"] == 1
    assert set(document) == {
        *("version", "session", "outcome", "consistency", "required", "started", "seconds"),
        *("frozen_seconds", "errors", "apps", "filesystems", "snapshot", "timeline"),
    }
    script = {"attempts": 1, "exit": 0, "signal": None, "seconds": 0.1, "timed_out": False}
    assert document["apps"] == [
        {"name": "web", "config": "/etc/x.json", "pre": script, "post": None}
    ]
    assert document["errors"] == [
        {
            "name": "FreezeFailed",
            "code": 121,
            "phase": "freeze",
            "subject": "/srv",
            "message": "it is busy",
            "action": Kind.FREEZE_FAILED.action,
        }
    ]
    (filesystem,) = document["filesystems"]
    assert set(filesystem) == {
        *("mount", "fstype", "device", "step", "freeze_ms", "held_ms", "thaw_ms", "error")
    }
    assert document["snapshot"] == {"command": ["snap", "-v"], "exit": 0, "seconds": 0.5}
    assert document["timeline"] == [{"at": 0.0, "event": "check", "subject": ""}]


def test_a_session_that_was_refused_is_a_failed_result_without_a_snapshot() -> None:
    result = refused(Problem(Kind.SESSION_IN_PROGRESS, "found another", "check"))
    assert (result.ok, result.snapshot_taken, result.snapshot) == (False, False, None)
    assert [(error.name, error.code) for error in result.errors] == [("SessionInProgress", 140)]


@pytest.mark.parametrize("version", [0, 2, "1", None])
def test_another_version_is_refused_by_number(version: object) -> None:
    with pytest.raises(ValueError, match=f"found version {version!r}, expected 1"):
        from_json({**FULL.to_json(), "version": version})


@pytest.mark.parametrize("key", FULL.to_json())
def test_a_missing_key_is_refused(key: str) -> None:
    document = FULL.to_json()
    del document[key]
    with pytest.raises((KeyError, TypeError, ValueError)):
        from_json(document)


@given(
    st.sampled_from(sorted(FULL.to_json())),
    st.recursive(
        st.none() | st.booleans() | st.integers() | TEXT,
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3),
    ),
)
def test_a_damaged_document_raises_nothing_but_what_is_declared(key: str, value: object) -> None:
    with contextlib.suppress(KeyError, TypeError, ValueError):
        from_json({**FULL.to_json(), key: value})
