# SPDX-License-Identifier: Apache-2.0
"""Azure's plugin host file: optional; if it is there, it names the Azure apps."""

from __future__ import annotations

import os

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vmsnap.config.azure import parse_plugin_host
from vmsnap.config.formats import ConfigError
from vmsnap.errors import Kind

from ..worlds import AZURE_APP, NOBODY, PLUGIN_HOST, Etc, kinds

PATH = "/etc/azure/VMSnapshotPluginHost.conf"


def budgets(etc: Etc) -> dict[str, float]:
    found = etc.inspect()
    assert found.problems == []
    return {app.name: app.pre.budget for app in found.apps if app.pre}


def test_without_the_file_the_app_at_azures_place_is_read(etc: Etc) -> None:
    etc.app(AZURE_APP)
    assert list(budgets(etc)) == ["azure"]


def test_the_file_names_the_apps_wherever_they_are(etc: Etc) -> None:
    etc.plugin_host(etc.app(AZURE_APP), etc.app("elsewhere/db.json"))
    assert list(budgets(etc)) == ["azure", "db"]


def test_an_app_at_azures_place_that_the_file_does_not_name_does_not_run(etc: Etc) -> None:
    etc.app(AZURE_APP)
    etc.plugin_host(etc.app("elsewhere/db.json"))
    assert list(budgets(etc)) == ["db"]


def test_with_no_plugins_no_azure_app_runs_and_that_is_no_error(etc: Etc) -> None:
    etc.app(AZURE_APP)
    etc.plugin_host(numberOfPlugins=0)
    assert budgets(etc) == {}


def test_native_apps_run_beside_it(etc: Etc) -> None:
    etc.app("vmsnap/apps.d/web.json")
    etc.plugin_host(etc.app(AZURE_APP))
    assert set(budgets(etc)) == {"web", "azure"}


@pytest.mark.parametrize(
    ("cap", "wanted", "given_"),
    [(60, 20, 20.0), (60, 61, 60.0), (1, 30, 1.0), (1800, 1800, 1800.0), (3600, 7200, 1800.0)],
)
def test_its_timeout_caps_every_budget_and_never_allows_more_than_half_an_hour(
    etc: Etc, cap: int, wanted: int, given_: float
) -> None:
    etc.plugin_host(etc.app(AZURE_APP, timeoutInSeconds=wanted), timeoutInSeconds=cap)
    assert budgets(etc) == {"azure": given_}


def test_without_a_timeout_the_cap_is_half_an_hour(etc: Etc) -> None:
    app = etc.app(AZURE_APP, timeoutInSeconds=7200)
    text = f"pluginName0=ScriptRunner\npluginConfigPath0={app}\n"
    etc.write(PLUGIN_HOST, f"[pre_post]\nnumberOfPlugins=1\n{text}")
    assert budgets(etc) == {"azure": 1800.0}


def test_azures_own_spelling_with_colons_is_read() -> None:
    text = (
        "[pre_post]\ntimeoutInSeconds : 1800\nnumberOfPlugins : 1\npluginName0 : ScriptRunner\n"
        "pluginPath0 : /etc/azure/ScriptRunner\npluginConfigPath0 : /etc/azure/app.json\n"
    )
    assert parse_plugin_host(text, PATH) == (1800.0, ("/etc/azure/app.json",))


# --- what is wrong with it ---------------------------------------------------------------------

ONE = "pluginName0=ScriptRunner\npluginConfigPath0=/etc/azure/app.json\n"


@pytest.mark.parametrize(
    ("text", "key", "expected"),
    [
        ("", "[pre_post]", "expected one"),
        ("[other]\nnumberOfPlugins=0\n", "[pre_post]", "expected one"),
        ("[pre_post]\n", "numberOfPlugins", "a whole number"),
        ("[pre_post]\nnumberOfPlugins=one\n", "numberOfPlugins", "a whole number"),
        ("[pre_post]\nnumberOfPlugins=-1\n", "numberOfPlugins", "a whole number"),
        ("[pre_post]\nnumberOfPlugins=1.0\n", "numberOfPlugins", "a whole number"),
        ("[pre_post]\nnumberOfPlugins=²\n", "numberOfPlugins", "a whole number"),
        ("[pre_post]\nnumberOfPlugins=101\n", "numberOfPlugins", "at most 100"),
        (f"[pre_post]\nnumberOfPlugins={'9' * 5000}\n", "numberOfPlugins", "a whole number"),
        ("[pre_post]\nnumberOfPlugins=0\ntimeoutInSeconds=0\n", "timeoutInSeconds", "at least 1"),
        ("[pre_post]\nnumberOfPlugins=0\ntimeoutInSeconds=x\n", "timeoutInSeconds", "a whole"),
        ("[pre_post]\nnumberOfPlugins=0\ntimeoutInSeconds=\n", "timeoutInSeconds", "a whole"),
        ("[pre_post]\nnumberOfPlugins=1\n", "pluginName0", "ScriptRunner"),
        (f"[pre_post]\nnumberOfPlugins=2\n{ONE}", "pluginName1", "ScriptRunner"),
        ("[pre_post]\nnumberOfPlugins=1\npluginName0=Other\n", "pluginName0", "ScriptRunner"),
        (
            "[pre_post]\nnumberOfPlugins=1\npluginName0=ScriptRunner\n",
            "pluginConfigPath0",
            "an absolute path",
        ),
        (
            "[pre_post]\nnumberOfPlugins=1\npluginName0=ScriptRunner\npluginConfigPath0=app.json\n",
            "pluginConfigPath0",
            "an absolute path",
        ),
    ],
)
def test_a_wrong_file_is_refused_with_key_and_expectation(
    text: str, key: str, expected: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_plugin_host(text, PATH)
    assert PATH in str(caught.value)
    assert key in str(caught.value)
    assert expected in str(caught.value)


@pytest.mark.parametrize(
    "text", ["[pre_post\n", "numberOfPlugins=0\n", "{}\n", "[pre_post]\nnumberOfPlugins\n"]
)
def test_a_malformed_file_disables_the_azure_apps_and_no_others(etc: Etc, text: str) -> None:
    etc.app(AZURE_APP)
    etc.app("vmsnap/apps.d/web.json")
    etc.write(PLUGIN_HOST, text)
    found = etc.inspect()
    assert kinds(found) == [Kind.INCORRECT_PLUGINHOST_FILE]
    assert [app.name for app in found.runnable] == ["web"]


@pytest.mark.parametrize("mode", [0o664, 0o620, 0o602, 0o700, 0o645])
def test_a_file_with_a_wider_mode_is_an_error(etc: Etc, mode: int) -> None:
    etc.plugin_host(etc.app(AZURE_APP)).chmod(mode)
    found = etc.inspect()
    assert kinds(found) == [Kind.INCORRECT_PLUGINHOST_FILE]
    assert f"{mode:04o}" in found.errors[0].message
    assert found.runnable == []


def test_a_file_of_somebody_else_is_an_error(etc: Etc) -> None:
    os.chown(etc.plugin_host(etc.app(AZURE_APP)), NOBODY, NOBODY)
    assert kinds(etc.inspect()) == [Kind.INCORRECT_PLUGINHOST_FILE]


def test_a_path_to_no_file_is_an_error_that_names_it_and_the_others_still_run(etc: Etc) -> None:
    missing = etc.root / "missing.json"
    host = etc.plugin_host(missing, etc.app(AZURE_APP))
    found = etc.inspect()
    assert kinds(found) == [Kind.INCORRECT_PLUGINHOST_FILE]
    assert found.errors[0].path == str(host)
    assert str(missing) in found.errors[0].message
    assert [app.name for app in found.runnable] == ["azure"]


@given(
    st.text(max_size=80)
    | st.lists(
        st.sampled_from(
            ["[pre_post]\n", "numberOfPlugins=", "1", "0", "\n", ONE, "timeoutInSeconds=", "x"]
        ),
        max_size=12,
    ).map("".join)
)
def test_any_text_gives_a_cap_and_paths_or_is_incorrect(text: str) -> None:
    try:
        cap, paths = parse_plugin_host(text, PATH)
    except ConfigError as e:
        assert PATH in str(e)
    else:
        assert 1 <= cap <= 1800
        assert all(path.startswith("/") for path in paths)
