# SPDX-License-Identifier: Apache-2.0
"""App files: Azure's JSON, strictly by type, with messages that say what to change."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vmsnap.config.app import App, Script, parse_app
from vmsnap.config.formats import ConfigError, load_json

PATH = "/etc/vmsnap/apps.d/web.json"
LONGEST = 1800.0  # seconds


def parse(**keys: object) -> App:
    app, warnings = parse_app(json.dumps({"pluginName": "ScriptRunner", **keys}), PATH, "web")
    assert warnings == []
    return app


def refusal(text: str) -> str:
    with pytest.raises(ConfigError) as caught:
        parse_app(text, PATH, "web")
    assert PATH in str(caught.value)
    return str(caught.value)


# --- what the keys mean ------------------------------------------------------------------------


def test_every_key_is_taken_over() -> None:
    app = parse(
        preScriptLocation="/opt/pre",
        postScriptLocation="/opt/post",
        preScriptParams=["a", "b c"],
        postScriptParams=["", "ü"],
        preScriptNoOfRetries=2,
        postScriptNoOfRetries=3,
        timeoutInSeconds=90,
        continueBackupOnFailure=False,
        fsFreezeEnabled=False,
    )
    assert app == App(
        name="web",
        config=PATH,
        pre=Script("/opt/pre", ("a", "b c"), 2, 90.0),
        post=Script("/opt/post", ("", "ü"), 3, 90.0),
        required=True,
        freeze=False,
    )


def test_defaults_are_thirty_seconds_one_attempt_no_arguments_go_on_and_freeze() -> None:
    app = parse(preScriptLocation="/opt/pre", postScriptLocation="/opt/post")
    assert app.pre == Script("/opt/pre", (), 0, 30.0)
    assert app.post == Script("/opt/post", (), 0, 30.0)
    assert (app.required, app.freeze) == (False, True)


@pytest.mark.parametrize("phase", ["pre", "post"])
@pytest.mark.parametrize("keys", [{}, {"empty": ""}])
def test_an_app_may_lack_one_of_its_scripts(phase: str, keys: dict[str, str]) -> None:
    other = "post" if phase == "pre" else "pre"
    locations: dict[str, object] = {f"{other}ScriptLocation": "/opt/script"}
    if keys:
        locations[f"{phase}ScriptLocation"] = ""
    app = parse(**locations)
    assert (app.pre is None, app.post is None) == (phase == "pre", phase == "post")


def test_app_name_wins_over_the_file_name() -> None:
    assert parse(appName="shop-1.db_A").name == "shop-1.db_A"
    assert parse().name == "web"


@pytest.mark.parametrize("seconds", [1800, 1801, 86400, 10**9, 10**18])
def test_no_script_gets_more_than_half_an_hour(seconds: int) -> None:
    app = parse(preScriptLocation="/opt/pre", timeoutInSeconds=seconds)
    assert app.pre
    assert app.pre.budget == LONGEST


def test_an_unknown_key_is_a_warning_that_names_it() -> None:
    text = json.dumps({"pluginName": "ScriptRunner", "preScript": "/x", "timeoutInSecond": 3})
    _, warnings = parse_app(text, PATH, "web")
    assert len(warnings) == len(["preScript", "timeoutInSecond"])
    assert "'preScript'" in warnings[0]
    assert "'timeoutInSecond'" in warnings[1]
    assert all(PATH in warning for warning in warnings)


# --- strict types ------------------------------------------------------------------------------

TEXTS = ["preScriptLocation", "postScriptLocation"]
LISTS = ["preScriptParams", "postScriptParams"]
NUMBERS = ["preScriptNoOfRetries", "postScriptNoOfRetries", "timeoutInSeconds"]
SWITCHES = ["continueBackupOnFailure", "fsFreezeEnabled"]
WRONG: list[tuple[list[str], list[object], str]] = [
    (["pluginName"], ["scriptrunner", "", None, 1, ["ScriptRunner"]], '"ScriptRunner"'),
    (["appName"], [1, None, True, ["web"]], "a string"),
    (["appName"], ["", "a b", "a/b", "..", ".a", "-a", "ü", "x" * 65, "a\0"], "a plain word"),
    (TEXTS, [1, None, True, ["/opt/pre"], {}], "a string"),
    (TEXTS, ["opt/pre", "./pre", " /opt/pre", "\n", "pre", "/opt\0/pre"], "an absolute path"),
    (LISTS, ["", "a b", None, 0, {}], "a list"),
    (NUMBERS, ["3", "", None, True, False, [], {}, 0.5, 1e-9], "a whole number"),
    (NUMBERS, [-1, -(10**30)], "at least"),
    (["timeoutInSeconds"], [0], "at least 1"),
    (SWITCHES, [1, 0, "true", "false", "", None, [], {}], "true or false"),
]


@pytest.mark.parametrize(
    ("key", "value", "expected"),
    [(key, value, words) for keys, values, words in WRONG for key in keys for value in values],
)
def test_a_value_of_the_wrong_kind_is_refused_with_key_found_and_expected(
    key: str, value: object, expected: str
) -> None:
    message = refusal(json.dumps({"pluginName": "ScriptRunner", key: value}))
    assert f"key '{key}'" in message
    assert f"found {json.dumps(value)}"[:40] in message
    assert f"expected {expected}" in message


@pytest.mark.parametrize("key", LISTS)
@pytest.mark.parametrize("value", [1, None, True, ["nested"], {}])
def test_a_parameter_that_is_no_string_is_named_by_its_place(key: str, value: object) -> None:
    message = refusal(json.dumps({"pluginName": "ScriptRunner", key: ["fine", value]}))
    assert f"'{key}[1]'" in message
    assert f"found {json.dumps(value)}" in message
    assert "expected a string" in message


@pytest.mark.parametrize("key", LISTS)
def test_a_parameter_with_a_nul_character_is_refused(key: str) -> None:
    """No program can be given one: arguments end at NUL."""
    assert "NUL" in refusal(json.dumps({"pluginName": "ScriptRunner", key: ["a\0b"]}))


def test_the_plugin_name_may_be_missing_as_azure_allows() -> None:
    app, warnings = parse_app('{"preScriptLocation": "/opt/pre"}', PATH, "web")
    assert app.pre
    assert warnings == []


def test_a_long_value_does_not_flood_the_message() -> None:
    message = refusal(json.dumps({"pluginName": "x" * 100_000}))
    assert len(message) < len(PATH) + 250


# --- what is no JSON ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("", 1),
        ("{", 1),
        ('{"pluginName": "ScriptRunner",}', 1),
        ('{\n  "pluginName": "ScriptRunner"\n  "appName": "web"\n}', 3),
        ("{\n\n\n  'pluginName': 1}", 4),
        ('{"pluginName": "ScriptRunner"}\n// comment', 2),
        ('{"pluginName": "Script\nRunner"}', 1),
        ('{"pluginName": "\\x"}', 1),
        ('{"timeoutInSeconds": 08}', 1),
        ("pluginName=ScriptRunner", 1),
    ],
)
def test_malformed_json_is_refused_with_file_and_line(text: str, line: int) -> None:
    assert refusal(text).startswith(f"{PATH}:{line}:")


@pytest.mark.parametrize("text", ["null", "3", "true", '"ScriptRunner"', "[]", "[{}]"])
def test_json_that_is_no_object_is_refused(text: str) -> None:
    message = refusal(text)
    assert f"found {text}" in message
    assert "expected a JSON object" in message


@pytest.mark.parametrize("word", ["NaN", "Infinity", "-Infinity"])
@pytest.mark.parametrize("key", ["timeoutInSeconds", "unknown"])
def test_a_number_that_json_does_not_have_is_refused_by_name(word: str, key: str) -> None:
    assert word in refusal(f'{{"pluginName": "ScriptRunner", "{key}": {word}}}')


@pytest.mark.parametrize(
    "text",
    [
        '{"pluginName": "ScriptRunner", "appName": "a", "appName": "b"}',
        '{"pluginName": "ScriptRunner", "appName": "a", "appName": "a"}',
        '{"pluginName": "ScriptRunner", "unknown": [{"appName": 1, "appName": 2}]}',
        '{"pluginName": "ScriptRunner", "appName": "a", "app\\u004eame": "b"}',
    ],
)
def test_a_key_that_appears_twice_is_an_error_naming_the_key(text: str) -> None:
    assert "'appName' twice" in refusal(text)


@pytest.mark.parametrize("opening", ["[", '{"a":'])
@pytest.mark.parametrize("prefix", ["", '{"pluginName": ', '{"pluginName":"ScriptRunner","x":'])
def test_nesting_of_any_depth_is_refused_and_not_a_crash(opening: str, prefix: str) -> None:
    assert refusal(prefix + opening * 100_000)


@pytest.mark.parametrize("key", ["pluginName", "timeoutInSeconds", "preScriptParams", "unknown"])
def test_nesting_just_below_the_depth_that_can_be_read_is_no_crash(key: str) -> None:
    """What can still be parsed must also still be shown in a message."""
    for depth in (*range(1, 800, 97), *range(800, 1010)):
        nested = "[" * depth + "]" * depth
        text = f'{{"pluginName": "ScriptRunner", "{key}": {nested}}}'
        if key == "pluginName":
            text = f'{{"{key}": {nested}}}'
        try:
            parse_app(text, PATH, "web")
        except ConfigError as e:
            assert PATH in str(e)


# --- numbers beyond all measure ------------------------------------------------------------------


@pytest.mark.parametrize("digits", [309, 400, 4000, 5000, 100_000])
@pytest.mark.parametrize("key", ["timeoutInSeconds", "preScriptNoOfRetries", "unknown"])
def test_a_number_of_any_length_is_taken_at_its_limit_or_refused(key: str, digits: int) -> None:
    text = f'{{"pluginName": "ScriptRunner", "preScriptLocation": "/p", "{key}": {"9" * digits}}}'
    try:
        app, _ = parse_app(text, PATH, "web")
    except ConfigError as e:
        assert PATH in str(e)
        assert len(str(e)) < len(PATH) + 250
    else:
        assert app.pre
        assert app.pre.budget <= LONGEST


@pytest.mark.parametrize("number", ["1e400", "-1e400", "1.5", "1e-5"])
@pytest.mark.parametrize("key", NUMBERS)
def test_a_number_that_is_not_whole_is_refused(key: str, number: str) -> None:
    assert f"key '{key}'" in refusal(f'{{"pluginName": "ScriptRunner", "{key}": {number}}}')


# --- whatever it is, the outcome is an App or Incorrect -------------------------------------------

SCALARS = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.integers(min_value=10**308, max_value=10**400)
    | st.floats()
    | st.text(max_size=20)
    | st.sampled_from(["ScriptRunner", "/opt/pre", "", "web", "\ud800", "/\0"])
)
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=5,
)
KEYS = st.sampled_from(["appName", *TEXTS, *LISTS, *NUMBERS, *SWITCHES]) | st.text(max_size=5)
GOOD: dict[str, st.SearchStrategy[object]] = {
    **{key: st.sampled_from(["", "/opt/script"]) for key in TEXTS},
    **{key: st.lists(st.text(max_size=5)) for key in LISTS},
    **{key: st.integers(1) for key in NUMBERS},
    **{key: st.booleans() for key in SWITCHES},
}
PLUGIN = st.just({"pluginName": "ScriptRunner"})


def well_typed(app: App) -> bool:
    scripts = [script for script in (app.pre, app.post) if script is not None]
    return (
        type(app.name) is str
        and type(app.required) is bool
        and type(app.freeze) is bool
        and all(
            type(script.path) is str
            and script.path.startswith("/")
            and type(script.params) is tuple
            and all(type(param) is str and "\0" not in param for param in script.params)
            and type(script.retries) is int
            and script.retries >= 0
            and type(script.budget) is float
            and 0 < script.budget <= LONGEST
            for script in scripts
        )
    )


@given(PLUGIN, st.dictionaries(KEYS, VALUES, max_size=6))
def test_any_object_gives_a_well_typed_app_or_is_incorrect(
    plugin: dict[str, object], keys: dict[str, object]
) -> None:
    try:
        app, _ = parse_app(json.dumps({**keys, **plugin}), PATH, "web")
    except ConfigError as e:
        assert PATH in str(e)
    else:
        assert well_typed(app)


@given(st.fixed_dictionaries({}, optional=GOOD))
def test_any_object_of_the_right_types_gives_the_app_it_describes(keys: dict[str, object]) -> None:
    try:
        app, warnings = parse_app(json.dumps({"pluginName": "ScriptRunner", **keys}), PATH, "web")
    except ConfigError as e:
        assert "NUL" in str(e)  # the only thing wrong with them
        return
    assert warnings == []
    assert well_typed(app)
    assert (app.pre.path if app.pre else "") == keys.get("preScriptLocation", "")
    assert app.required is not keys.get("continueBackupOnFailure", True)


@given(st.text())
def test_any_text_is_incorrect_or_a_json_object(text: str) -> None:
    try:
        document = load_json(text, PATH)
    except ConfigError as e:
        assert PATH in str(e)
    else:
        assert isinstance(document, dict)
