# SPDX-License-Identifier: Apache-2.0
"""The document of `vmsnap provision`: what it amounts to, and how its mistakes are told."""

from __future__ import annotations

import copy
import json
import shlex
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from vmsnap.config import app as config
from vmsnap.config.settings import SETTINGS, parse_settings
from vmsnap.provision import validation as mistakes_of_a_document
from vmsnap.provision.document import Document, load, read
from vmsnap.provision.validation import InvalidDocumentError, schema
from vmsnap.system.files import File

from ..worlds import Etc

ETC = Path("/etc")
SH = "#!/bin/sh\nexit 0\n"
SECRET = "hunter2"
WHOLE: dict[str, Any] = {
    "apps": {
        "postgresql": {
            "config": {"preScriptParams": ["a b"], "timeoutInSeconds": 60},
            "scripts": {"pre": SH, "post": SH},
        },
        "redis": {"config": {"preScriptLocation": "/opt/pre"}},
    },
    "conf": {"freeze": {"hold": 30, "exclude": ["/srv/a b", "/mnt"]}},
}


@pytest.fixture(autouse=True)
def script_of_the_image(monkeypatch: pytest.MonkeyPatch) -> None:
    real = mistakes_of_a_document.location_mistake
    monkeypatch.setattr(
        mistakes_of_a_document, "location_mistake", lambda p: "" if p == "/opt/pre" else real(p)
    )


def files(document: Document) -> dict[str, File]:
    return {str(file.path): file for file in document.files}


def app(document: Document, path: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(files(document)[path].data)
    return found


def mistakes(found: object) -> dict[str, str]:
    """What is told, by key."""
    with pytest.raises(InvalidDocumentError) as caught:
        read(found, ETC)
    return {mistake.key: mistake.message for mistake in caught.value.mistakes}


def changed(path: str, value: object) -> dict[str, Any]:
    """The whole document with another value at this path."""
    document = copy.deepcopy(WHOLE)
    *parents, last = path.split("/")
    below: Any = document
    for key in parents:
        below = below.setdefault(key, {})
    below[last] = value
    return document


# --- what it amounts to --------------------------------------------------------------------------


def test_every_app_is_a_config_of_its_own_with_its_scripts_beside_it() -> None:
    document = read(WHOLE, ETC)
    assert {path: oct(file.mode) for path, file in files(document).items()} == {
        "/etc/vmsnap/scripts/postgresql/pre": "0o700",
        "/etc/vmsnap/scripts/postgresql/post": "0o700",
        "/etc/vmsnap/apps.d/postgresql.json": "0o600",
        "/etc/vmsnap/apps.d/redis.json": "0o600",
        "/etc/vmsnap/vmsnap.conf.d/50-provision.conf": "0o600",
    }
    assert app(document, "/etc/vmsnap/apps.d/postgresql.json") == {
        "pluginName": "ScriptRunner",
        "preScriptParams": ["a b"],
        "timeoutInSeconds": 60,
        "preScriptLocation": "/etc/vmsnap/scripts/postgresql/pre",
        "postScriptLocation": "/etc/vmsnap/scripts/postgresql/post",
    }
    assert document.apps == ("postgresql", "redis")
    assert document.timer is None


def test_an_app_comes_after_its_scripts() -> None:
    """It exists from the moment its config is there."""
    order = list(files(read(WHOLE, ETC)))
    config_at = order.index("/etc/vmsnap/apps.d/postgresql.json")
    assert order.index("/etc/vmsnap/scripts/postgresql/post") < config_at


def test_the_settings_are_read_back_as_they_were_meant() -> None:
    found = changed("conf/snapshot/command", "/usr/local/sbin/snap --tag 'a b'")
    text = files(read(found, ETC))["/etc/vmsnap/vmsnap.conf.d/50-provision.conf"].data.decode()
    values: dict[str, Any] = {}
    assert parse_settings(text, "drop-in", values) == []
    assert values == {
        "hold": 30.0,
        "exclude": ("/srv/a b", "/mnt"),
        "command": ("/usr/local/sbin/snap", "--tag", "a b"),
    }


WORDS = st.text(st.characters(min_codepoint=33, max_codepoint=0x17F, exclude_characters="\x7f"))


@given(st.lists(WORDS, min_size=1, max_size=4))
def test_a_list_of_words_is_read_back_as_it_is(words: list[str]) -> None:
    found = {"conf": {"freeze": {"exclude": words}, "snapshot": {"command": words}}}
    if not shlex.join(words).isprintable():
        assert set(mistakes(found)) == {"conf.freeze.exclude", "conf.snapshot.command"}
        return
    text = files(read(found, ETC))["/etc/vmsnap/vmsnap.conf.d/50-provision.conf"].data.decode()
    values: dict[str, Any] = {}
    assert parse_settings(text, "drop-in", values) == []
    assert values == {"exclude": tuple(words), "command": tuple(words)}


@pytest.mark.parametrize(
    ("found", "path", "name"),
    [
        ({}, "/etc/vmsnap/apps.d/app.json", None),
        ({"config": {"appName": "db"}}, "/etc/vmsnap/apps.d/db.json", "db"),
        ({"azure": True}, "/etc/azure/VMSnapshotScriptPluginConfig.json", None),
        (
            {"azure": True, "config": {"appName": "db"}},
            "/etc/azure/VMSnapshotScriptPluginConfig.json",
            "db",
        ),
    ],
)
def test_the_short_form_is_one_app(found: dict[str, Any], path: str, name: str | None) -> None:
    document = read({"scripts": {"pre": SH}, **found}, ETC)
    assert app(document, path).get("appName") == name
    (script,) = (file for file in document.files if file.mode == 0o700)
    assert app(document, path)["preScriptLocation"] == str(script.path)
    assert "postScriptLocation" not in app(document, path)


def test_an_app_of_azure_keeps_its_name_in_azure_s_file() -> None:
    found = {"apps": {"db": {"azure": True, "scripts": {"post": SH}}}}
    written = app(read(found, ETC), "/etc/azure/VMSnapshotScriptPluginConfig.json")
    assert written["appName"] == "db"
    assert written["postScriptLocation"] == "/etc/vmsnap/scripts/db/post"


def test_what_is_written_is_an_app_that_can_be_read() -> None:
    for path, file in files(read(WHOLE, ETC)).items():
        if path.endswith(".json"):
            parsed, warnings = config.parse_app(file.data.decode(), path, Path(path).stem)
            assert warnings == []
            assert parsed.pre


def test_a_script_without_an_interpreter_is_for_sh() -> None:
    assert read({"scripts": {"pre": "exit 0"}}, ETC).apps == ("app",)


@pytest.mark.parametrize(
    "first", ["#!/bin/sh", "#! /bin/sh -e", "#!\t/bin/sh\t-e", "#!/usr/bin/env python3"]
)
def test_a_first_line_that_the_kernel_understands_is_good(first: str) -> None:
    assert read({"scripts": {"pre": f"{first}\nexit\n"}}, ETC).apps == ("app",)


LOCATION = "apps.redis.config.preScriptLocation"


def test_a_script_of_the_image_must_be_one_that_root_alone_can_change(etc: Etc) -> None:
    path = etc.write("scripts/pre", SH, 0o700)
    found = {"config": {"preScriptLocation": str(path)}}
    assert read(found, ETC).apps == ("app",)
    for mode in (0o600, 0o770, 0o755):
        path.chmod(mode)
        assert set(mistakes(found)) == {"config.preScriptLocation"}


# --- mistakes ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("path", "value", "key", "words"),
    [
        ("confg", {}, "confg", "did you mean 'config'?"),
        ("apps/postgresql/script", {}, "apps.postgresql.script", "did you mean 'scripts'?"),
        ("apps/postgresql/scripts/Pre", SH, "apps.postgresql.scripts.Pre", "'pre'"),
        (
            "apps/postgresql/config/timeoutInSecond",
            9,
            "apps.postgresql.config.timeoutInSecond",
            "did you mean 'timeoutInSeconds'?",
        ),
        ("conf/freeze/holt", 9, "conf.freeze.holt", "did you mean 'hold'?"),
        ("conf/zzz", {}, "conf.zzz", "expected freeze, snapshot, scripts, metrics"),
        ("conf/freeze/hold", -1, "conf.freeze.hold", "expected a number of seconds"),
        ("conf/freeze/hold", "1\n[snapshot]", "conf.freeze.hold", "one line"),
        (
            "conf/freeze/only",
            {},
            "conf.freeze.only",
            "found an object, expected a string or a list",
        ),
        ("conf/snapshot/require", "best", "conf.snapshot.require", "crash, filesystem or app"),
        ("conf/snapshot/command", "a 'b", "conf.snapshot.command", "every quote to be closed"),
        ("conf/metrics/textfile", "rel", "conf.metrics.textfile", "an absolute path"),
        ("apps/redis", None, "apps.redis", "found nothing (null), expected an object"),
        ("apps/redis", {}, "apps.redis", "found no script"),
        ("apps", {}, "apps", "nothing is in it"),
        ("apps/..", {"scripts": {"pre": SH}}, "apps...", "expected a plain word"),
        ("apps/a\n", {"scripts": {"pre": SH}}, 'apps."a\\n"', "expected a plain word"),
        ("apps/redis/config/pluginName", "x", "apps.redis.config.pluginName", '"ScriptRunner"'),
        ("apps/redis/config/appName", "x", "apps.redis.config.appName", "not 'redis'"),
        ("apps/redis/config/timeoutInSeconds", 0, "apps.redis.config.timeoutInSeconds", "least 1"),
        (
            "apps/redis/config/preScriptParams",
            ["a", 7],
            "apps.redis.config.preScriptParams[1]",
            "found a whole number, expected a string",
        ),
        ("apps/redis/config/fsFreezeEnabled", "no", "apps.redis.config.fsFreezeEnabled", "true or"),
        ("apps/redis/scripts/pre", SH, "apps.redis.config.preScriptLocation", "one of them"),
        (
            "apps/redis/config/preScriptLocation",
            "\n",
            "apps.redis.config.preScriptLocation",
            "an absolute path",
        ),
        ("apps/redis/config/preScriptLocation", "/bin/sh", LOCATION, "not root's alone"),
        ("apps/redis/config/preScriptLocation", "/bin", LOCATION, "not root's alone"),
        ("apps/redis/config/preScriptLocation", "/no/script", LOCATION, "no such file"),
        ("apps/redis/scripts/post", "#!/ bin/sh\nx\n", "apps.redis.scripts.post", "no program"),
        ("apps/redis/scripts/post", "#!/usr/bin\nx\n", "apps.redis.scripts.post", "no program"),
        ("apps/redis/scripts/post", "#!/bin/sh\xa0-e\nx", "apps.redis.scripts.post", "no program"),
        ("apps/redis/scripts/post", "#!/bin/sh\f\nx", "apps.redis.scripts.post", "no program"),
        ("apps/redis/scripts/post", "#!/usr/bin/env nope\nx", "apps.redis.scripts.post", "no prog"),
        ("apps/redis/scripts/post", "\n#!/bin/sh\nx", "apps.redis.scripts.post", "very beginning"),
        ("apps/redis/scripts/post", "\ufeff#!/bin/sh\nx", "apps.redis.scripts.post", "very begin"),
        ("apps/redis/scripts/post", " \n", "apps.redis.scripts.post", "empty"),
        ("apps/redis/scripts/post", "#!/no/sh\nx\n", "apps.redis.scripts.post", "no program"),
        ("apps/redis/scripts/post", "#! sh\nx\n", "apps.redis.scripts.post", "no program"),
        ("apps/redis/scripts/post", "#!/bin/sh\r\nx\r\n", "apps.redis.scripts.post", "Windows"),
        ("apps/redis/scripts/post", "#!/bin/sh", "apps.redis.scripts.post", "nothing after"),
        ("apps/redis/scripts/post", "#!/bin/sh x\n", "apps.redis.scripts.post", "| and not with >"),
        ("scripts", {"pre": SH}, "scripts", "stands beside apps"),
        ("timer", True, "timer", "expected a calendar expression"),
        (
            "integrate",
            True,
            "integrate",
            "expected auto, aws, azure, google, nutanix, qemu, vmware",
        ),
        ("integrate", "qemu-ga", "integrate", "expected auto, aws"),
        ("timer", "", "timer", "expected a calendar expression"),
        ("apps/redis/scripts/post", "exit 0\r\n", "apps.redis.scripts.post", "Windows"),
        ("timer", 5, "timer", "found a whole number"),
    ],
)
def test_a_mistake_is_told_with_its_key(path: str, value: object, key: str, words: str) -> None:
    told = mistakes(changed(path, value))
    assert list(told) == [key]
    assert words in told[key]


@pytest.mark.parametrize(
    ("found", "words"),
    [
        (None, "found nothing (null)"),
        ([], "found a list"),
        ("text", "found a string"),
        ({}, "expected apps or config"),
    ],
)
def test_what_is_no_document_at_all_is_told(found: object, words: str) -> None:
    assert words in mistakes(found)[""]


def test_all_mistakes_of_a_kind_are_told_at_once() -> None:
    told = mistakes({"a": 1, "b": 2, "conf": {"freeze": {"holt": 3}}, "timer": 4})
    assert set(told) == {"a", "b", "conf.freeze.holt", "timer"}


def test_who_gives_whole_user_data_is_told() -> None:
    assert "below vmsnap:" in mistakes({"vmsnap": WHOLE, "packages": []})[""]


def test_more_mistakes_than_anybody_reads_are_counted() -> None:
    with pytest.raises(InvalidDocumentError) as caught:
        read({f"key{number}": 1 for number in range(50)}, ETC)
    assert len(caught.value.mistakes) == 21
    assert "there are 30 mistakes more" in str(caught.value)


def test_only_one_app_can_be_azure_s() -> None:
    one = {"azure": True, "scripts": {"pre": SH}}
    assert set(mistakes({"apps": {"a": one, "b": one}})) == {"apps.b.azure"}


def test_a_timer_belongs_to_the_systemd_of_this_machine() -> None:
    with pytest.raises(InvalidDocumentError, match="timer"):
        read({"timer": False}, Path("/srv/image/etc"))


JUNK = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(allow_nan=False),
    st.just(SECRET),
    st.just([SECRET]),
    st.just({SECRET[:3]: SECRET}),
)
PLACES = (
    *("apps", "apps/postgresql", "apps/postgresql/config", "apps/postgresql/scripts"),
    *("apps/postgresql/scripts/pre", "apps/postgresql/config/preScriptParams", "conf", "timer"),
    *("apps/postgresql/config/timeoutInSeconds", "apps/postgresql/config/pluginName", "azure"),
    *("apps/postgresql/config/preScriptLocation", "conf/freeze", "conf/freeze/hold", "scripts"),
    *("conf/freeze/exclude", "conf/snapshot/require", "conf/snapshot/command", "config", "x"),
    *("apps/postgresql/config/appName", "apps/postgresql/azure", "conf/metrics/textfile"),
)


@given(st.dictionaries(st.sampled_from(PLACES), JUNK, min_size=1, max_size=3))
def test_whatever_is_wrong_no_value_is_shown(places: dict[str, object]) -> None:
    """cloud-init passes the message on to files that everybody can read."""
    found: Any = copy.deepcopy(WHOLE)
    found["apps"]["postgresql"]["scripts"]["pre"] = f"#!/bin/sh\n{SECRET}\n"
    for path, value in places.items():
        *parents, last = path.split("/")
        below = found
        for key in parents:
            below = below[key] if isinstance(below, dict) and key in below else {}
        if isinstance(below, dict):
            below[last] = value
    if isinstance(found.get("timer"), str):
        del found["timer"]  # which systemd would be asked about
    try:
        read(found, ETC)
    except InvalidDocumentError as e:
        assert e.mistakes
        assert SECRET not in str(e)


# --- text ----------------------------------------------------------------------------------------


def test_yaml_and_json_say_the_same() -> None:
    assert load(yaml.safe_dump(WHOLE), yaml=True) == WHOLE
    assert load(json.dumps(WHOLE), yaml=False) == WHOLE


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("a: [1", "line 1, column 4: found a bracket that is not closed"),
        ("a: 1\na: 2\n", "line 2, column 1: found the key a twice"),
        ("? [hunter2]\n: 1\n? [hunter2]\n: 2\n", "cannot be read"),
        ("a: !hunter2 x", "line 1, column 4: found a tag"),
        ("a: !hunter2!x y", "cannot be read as YAML"),
        ("%TAG ! hunter2\n", "cannot be read as YAML"),
        ("a: !!bool hunter2", "found a tag"),
        ("a: !!int ''", "found a tag"),
        ("a: !!map [x]", "found a tag"),
        ('a: "\\q"', "cannot be read as YAML"),
        ("a: 18:30", "found a number that YAML takes for another; put it in quotes"),
        ("a: 030", "takes for another"),
        ("a: 1:1.5", "takes for another"),
        ("a: 0x" + "f" * 5000, "takes for another"),
        ("a: 99999999999999999999", "takes for another"),
        ("a: *-*-* 03:00", "found a * that is no alias; put the value in quotes"),
        ("a: */scratch", "found a * that is no alias"),
        ("a: echo: hi", "line 1, column 8: found a colon within a value; put the value in quotes"),
        ("a:\n\tb: 1", "line 2, column 1: found a tab"),
        ("a: 'x\nb: 1\n", "line 1, column 4: found a quote that is not closed"),
        ("a: {b: 1\nc: 2\n", "line 1, column 4: found a bracket that is not closed"),
        ("? [a]\n: b", "cannot be read as YAML"),
        ("a: &x [1]\nb: *x\n", "line 2, column 4: found an alias"),
        ("a: &x [*x]\n", "found an alias"),
        ("a: 2026-11-23\n", "a: found a date"),
        ("a: 2026-99-99\n", "a date that cannot be"),
        ("a: !!python/name:os.system x\n", "found a tag"),
        ("1: x\n", "found a key that is no string"),
        ("a: .inf\n", "takes for another"),
        ("a: !!binary aGk=\n", "found a tag"),
        ("a: x\n---\nb: x\n", "cannot be read as YAML"),
        ("\ta: x", "found a tab"),
        ("a: \x01", "a character or a date"),
        ("[" * 3000, "nested too deep"),
        ("a: " + "[" * 2000 + "]" * 2000, "nested too deep"),
    ],
)
def test_yaml_that_no_configuration_can_hold_is_one_clear_error(text: str, words: str) -> None:
    with pytest.raises(InvalidDocumentError) as caught:
        load(text, yaml=True)
    assert words in str(caught.value)
    assert SECRET not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('{"a": 1', "malformed JSON"),
        ('{"a": 1, "a": 2}', "'a' twice"),
        ('{"a": NaN}', "not JSON"),
        ('{"a": "\\ud800"}', "a: found half a character"),
        ('{"a": "\\u0000"}', "a: found half a character or a NUL"),
        ("[" * 100_000, "nested too deep"),
        ("", "malformed JSON"),
    ],
)
def test_json_that_no_configuration_can_hold_is_one_clear_error(text: str, words: str) -> None:
    with pytest.raises(InvalidDocumentError) as caught:
        load(text, yaml=False)
    assert words in str(caught.value)


@given(st.text())
def test_any_text_is_read_or_refused(text: str) -> None:
    for as_yaml in (True, False):
        try:
            read(load(text, yaml=as_yaml), ETC)
        except InvalidDocumentError as e:
            assert e.mistakes


def test_without_pyyaml_it_is_told_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "yaml", None)
    with pytest.raises(InvalidDocumentError, match="python3-yaml"):
        load("a: 1", yaml=True)
    assert load("{}", yaml=False) == {}


# --- the schema ----------------------------------------------------------------------------------


def test_the_schema_is_one_that_stands_alone() -> None:
    whole = schema()
    jsonschema.Draft7Validator.check_schema(whole)
    jsonschema.validate(WHOLE, whole)
    assert whole["definitions"]["config"]["properties"] == config.schema()["properties"]


def test_the_schema_has_every_setting_and_no_other() -> None:
    conf = schema()["properties"]["conf"]["properties"]
    listed = {(section, key) for section in conf for key in conf[section]["properties"]}
    assert listed == set(SETTINGS)
