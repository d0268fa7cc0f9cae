# SPDX-License-Identifier: Apache-2.0
"""The fast way to see that an app's file is valid never says so of one that is not."""

from __future__ import annotations

from typing import Any

import jsonschema
from hypothesis import given
from hypothesis import strategies as st

from vmsnap.config.app import certainly_valid, schema

KEYS = [*schema()["properties"], "unknown"]
SCALARS = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-2, 3),
    st.floats(allow_nan=False),
    st.sampled_from(["", "ScriptRunner", "/bin/true", "true", "a b", "x", "\0", "/a\0"]),
    st.text(max_size=3),
)
VALUES = st.one_of(SCALARS, st.lists(SCALARS, max_size=3), st.dictionaries(st.text(), SCALARS))
# Mostly right, or hardly any example would be valid.
DOCUMENTS = st.builds(
    lambda base, changes: {**base, **changes},
    st.fixed_dictionaries({"pluginName": st.just("ScriptRunner")}),
    st.dictionaries(st.sampled_from(KEYS), VALUES, max_size=2),
)


@given(st.one_of(DOCUMENTS, VALUES))
def test_what_is_certainly_valid_is_valid_for_the_library(document: Any) -> None:
    if certainly_valid(document, schema()):
        assert jsonschema.Draft7Validator(schema()).is_valid(document)


def test_an_ordinary_app_needs_no_library() -> None:
    app = {
        "pluginName": "ScriptRunner",
        "preScriptLocation": "/etc/vmsnap/scripts/db/pre",
        "preScriptParams": ["a", ""],
        "preScriptNoOfRetries": 0,
        "timeoutInSeconds": 30,
        "continueBackupOnFailure": True,
    }
    assert certainly_valid(app, schema())
    assert not certainly_valid({**app, "timeoutInSeconds": True}, schema())
    assert not certainly_valid({**app, "timeoutInSeconds": 0}, schema())
    assert not certainly_valid({**app, "preScriptParams": ["a", 1]}, schema())
    assert certainly_valid({"preScriptLocation": "/bin/true"}, schema())
    assert certainly_valid({**app, "ScriptsExecutionPollTimeSeconds": 3}, schema())
