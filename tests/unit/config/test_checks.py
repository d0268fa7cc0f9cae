# SPDX-License-Identifier: Apache-2.0
"""What a configuration on disk amounts to: apps that may run, problems with name and path."""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from vmsnap.config import checks
from vmsnap.config.app import App
from vmsnap.config.checks import Inspection
from vmsnap.errors import Kind

from ..system.test_trusted import NO_FILES
from ..worlds import AZURE_APP, NOBODY, PLUGIN_HOST, Etc, kinds, warnings

WEB = "vmsnap/apps.d/web.json"


def only_error(found: Inspection) -> tuple[Kind, str, str]:
    (problem,) = found.errors
    return problem.kind, problem.path, problem.message


def runnable(found: Inspection) -> list[str]:
    return [app.name for app in found.runnable]


# --- several apps ------------------------------------------------------------------------------


def test_an_empty_etc_has_no_apps_and_no_problems(etc: Etc) -> None:
    found = etc.inspect()
    assert (found.apps, found.problems, found.apps_meant) == ([], [], False)


def test_inspecting_changes_nothing(etc: Etc) -> None:
    etc.app()
    before = {path: path.lstat().st_mtime_ns for path in etc.root.rglob("*")}
    etc.inspect()
    assert {path: path.lstat().st_mtime_ns for path in etc.root.rglob("*")} == before


def test_apps_of_apps_d_and_of_azure_run_side_by_side(etc: Etc) -> None:
    etc.app("vmsnap/apps.d/b.json")
    etc.app("vmsnap/apps.d/a.json")
    etc.app(AZURE_APP)
    found = etc.inspect()
    assert found.problems == []
    assert runnable(found) == ["a", "b", "azure"]


def test_app_name_names_an_app_wherever_it_is(etc: Etc) -> None:
    etc.app(WEB, appName="shop")
    etc.app(AZURE_APP, appName="erp")
    assert runnable(etc.inspect()) == ["shop", "erp"]


@pytest.mark.parametrize("name", ["web.json~", ".web.json", "web.json.bak", "web", "web.JSON"])
def test_other_files_in_apps_d_are_not_apps(etc: Etc, name: str) -> None:
    etc.write(f"vmsnap/apps.d/{name}", "nonsense", 0o666)
    assert etc.inspect().problems == []


@pytest.mark.parametrize("stem", ["my app", "-x", "ü", "x" * 65, "a\nb"])
def test_a_file_name_that_makes_no_app_name_is_an_error_unless_app_name_helps(
    etc: Etc, stem: str
) -> None:
    path = etc.app(f"vmsnap/apps.d/{stem}.json")
    assert only_error(etc.inspect())[:2] == (Kind.INCORRECT_JSON_CONFIG_FILE, str(path))
    etc.app(f"vmsnap/apps.d/{stem}.json", appName="fine")
    assert runnable(etc.inspect()) == ["fine"]


def test_of_two_apps_with_one_name_the_second_is_an_error_that_names_both_files(etc: Etc) -> None:
    first = etc.app("vmsnap/apps.d/a.json", appName="shop")
    second = etc.app("vmsnap/apps.d/b.json", appName="shop")
    found = etc.inspect()
    kind, path, message = only_error(found)
    assert (kind, path) == (Kind.INCORRECT_JSON_CONFIG_FILE, str(second))
    assert str(first) in message
    assert [app.config for app in found.runnable] == [str(first)]


@pytest.mark.parametrize("link", [os.link, os.symlink])
def test_a_file_under_two_names_runs_once(etc: Etc, link: Callable[[Path, Path], None]) -> None:
    path = etc.app("vmsnap/apps.d/a.json")
    link(path, etc.root / "vmsnap/apps.d/b.json")
    found = etc.inspect()
    assert runnable(found) == ["a"]
    assert found.errors == []
    assert "b.json" in warnings(found)[0]


def test_the_azure_file_as_a_link_to_a_native_one_runs_once(etc: Etc) -> None:
    native = etc.app()
    (etc.root / "azure").mkdir()
    (etc.root / AZURE_APP).symlink_to(native)
    assert runnable(etc.inspect()) == ["web"]


def test_one_broken_app_leaves_the_others_alone(etc: Etc) -> None:
    etc.app("vmsnap/apps.d/good.json")
    broken = etc.write("vmsnap/apps.d/broken.json", "{")
    found = etc.inspect()
    assert only_error(found)[:2] == (Kind.INCORRECT_JSON_CONFIG_FILE, str(broken))
    assert runnable(found) == ["good"]
    assert found.apps_meant


def test_a_broken_app_alone_still_counts_as_meant(etc: Etc) -> None:
    etc.write(WEB, "{")
    found = etc.inspect()
    assert found.apps == []
    assert found.apps_meant


def test_an_unknown_key_is_a_warning_and_the_app_runs(etc: Etc) -> None:
    etc.app(WEB, comment="hello")
    found = etc.inspect()
    assert runnable(found) == ["web"]
    assert "'comment'" in warnings(found)[0]


# --- the files themselves ----------------------------------------------------------------------


@pytest.mark.usefixtures("never_hangs")
@pytest.mark.parametrize(("word", "make"), NO_FILES)
@pytest.mark.parametrize(
    ("relative", "kind"),
    [
        (WEB, Kind.INCORRECT_JSON_CONFIG_FILE),
        (AZURE_APP, Kind.INCORRECT_JSON_CONFIG_FILE),
        (PLUGIN_HOST, Kind.INCORRECT_PLUGINHOST_FILE),
        ("azure/vmbackup.conf", Kind.INCORRECT_SETTINGS),
        ("vmsnap/vmsnap.conf", Kind.INCORRECT_SETTINGS),
        ("vmsnap/vmsnap.conf.d/a.conf", Kind.INCORRECT_SETTINGS),
    ],
)
def test_each_kind_of_file_must_be_a_regular_file(
    etc: Etc, relative: str, kind: Kind, word: str, make: Callable[[Path], None]
) -> None:
    path = etc.write(relative, "")
    path.unlink()
    make(path)
    found_kind, found_path, message = only_error(etc.inspect())
    assert (found_kind, found_path) == (kind, str(path))
    assert word in message


@pytest.mark.parametrize("mode", [0o644, 0o640, 0o660, 0o606, 0o700])
def test_an_app_file_with_a_wider_mode_is_an_error_and_does_not_run(etc: Etc, mode: int) -> None:
    path = etc.app()
    path.chmod(mode)
    found = etc.inspect()
    kind, where, message = only_error(found)
    assert (kind, where) == (Kind.INCORRECT_JSON_CONFIG_FILE, str(path))
    assert f"found mode {mode:04o}" in message
    assert found.runnable == []


def test_an_app_file_of_somebody_else_is_an_error(etc: Etc) -> None:
    os.chown(etc.app(), NOBODY, 0)
    assert kinds(etc.inspect()) == [Kind.INCORRECT_JSON_CONFIG_FILE]


def test_an_apps_d_that_others_can_write_to_disables_its_apps(etc: Etc) -> None:
    path = etc.app()
    path.parent.chmod(0o1777)
    found = etc.inspect()
    kind, where, message = only_error(found)
    assert (kind, where) == (Kind.INCORRECT_JSON_CONFIG_FILE, str(path))
    assert str(path.parent) in message


def test_a_link_loop_as_an_app_file_is_an_error(etc: Etc) -> None:
    path = etc.app()
    path.unlink()
    path.symlink_to("web.json")
    assert only_error(etc.inspect())[:2] == (Kind.INCORRECT_JSON_CONFIG_FILE, str(path))


def test_a_file_where_apps_d_should_be_is_an_error(etc: Etc) -> None:
    etc.write("vmsnap/apps.d", "")
    assert kinds(etc.inspect()) == [Kind.INCORRECT_JSON_CONFIG_FILE]


def test_a_file_name_that_is_no_utf_8_is_an_error_that_can_be_printed(etc: Etc) -> None:
    etc.app("vmsnap/apps.d/\udcff.json")
    json.dumps([problem.to_json() for problem in etc.inspect().problems]).encode("ascii")
    assert kinds(etc.inspect()) == [Kind.INCORRECT_JSON_CONFIG_FILE]


# --- scripts -----------------------------------------------------------------------------------

PHASES = [
    ("pre", Kind.PRE_SCRIPT_NOT_FOUND, Kind.INSUFFICIENT_PERMISSION_FOR_PRE_SCRIPT),
    ("post", Kind.POST_SCRIPT_NOT_FOUND, Kind.INSUFFICIENT_PERMISSION_FOR_POST_SCRIPT),
]
each_phase = pytest.mark.parametrize(("phase", "missing", "untrusted"), PHASES)


def app_with(etc: Etc, phase: str, location: str | Path) -> Inspection:
    locations = {"preScriptLocation": "", "postScriptLocation": ""}
    etc.app(WEB, **{**locations, f"{phase}ScriptLocation": str(location)})
    return etc.inspect()


def script_of(app: App, phase: str) -> object:
    script = app.pre if phase == "pre" else app.post
    assert script
    return script.identity


@each_phase
@pytest.mark.parametrize("mode", [0o700, 0o500, 0o100])
def test_a_script_in_order_is_pinned_to_the_file_that_was_checked(
    etc: Etc, phase: str, missing: Kind, untrusted: Kind, mode: int
) -> None:
    script = etc.script(mode=mode)
    found = app_with(etc, phase, script)
    assert found.problems == []
    status = script.stat()
    assert script_of(found.runnable[0], phase) == (status.st_dev, status.st_ino)


@each_phase
def test_a_script_that_is_not_there_is_not_found(
    etc: Etc, phase: str, missing: Kind, untrusted: Kind
) -> None:
    path = etc.root / "nothing"
    found = app_with(etc, phase, path)
    kind, where, message = only_error(found)
    assert (kind, where) == (missing, str(path))
    assert "'web'" in message
    assert found.runnable == []


@each_phase
@pytest.mark.parametrize(
    "path",
    ["/\ud800", "/" + "x" * 300, "/" + "x/" * 3000, "/proc/self/mem/x"],
    ids=["half a surrogate pair", "long name", "long path", "below a file"],
)
def test_a_path_that_can_name_no_script_is_not_found(
    etc: Etc, phase: str, missing: Kind, untrusted: Kind, path: str
) -> None:
    assert kinds(app_with(etc, phase, path)) == [missing]


@each_phase
@pytest.mark.parametrize("mode", [0o755, 0o710, 0o701, 0o720, 0o777])
def test_a_script_that_others_may_touch_is_refused(
    etc: Etc, phase: str, missing: Kind, untrusted: Kind, mode: int
) -> None:
    script = etc.script(mode=mode)
    found = app_with(etc, phase, script)
    kind, where, message = only_error(found)
    assert (kind, where) == (untrusted, str(script))
    assert f"{mode:04o}" in message
    assert "0700" in message
    assert found.runnable == []


@each_phase
@pytest.mark.parametrize("mode", [0o600, 0o400, 0o000])
def test_a_script_that_its_owner_cannot_execute_is_refused(
    etc: Etc, phase: str, missing: Kind, untrusted: Kind, mode: int
) -> None:
    found = app_with(etc, phase, etc.script(mode=mode))
    assert kinds(found) == [untrusted]
    assert "executable" in found.errors[0].message


@each_phase
def test_a_script_of_somebody_else_is_refused(
    etc: Etc, phase: str, missing: Kind, untrusted: Kind
) -> None:
    script = etc.script()
    os.chown(script, NOBODY, 0)
    assert kinds(app_with(etc, phase, script)) == [untrusted]


@each_phase
@pytest.mark.parametrize("mode", [0o775, 0o1777])
def test_a_script_in_a_directory_that_others_can_write_to_is_refused(
    etc: Etc, phase: str, missing: Kind, untrusted: Kind, mode: int
) -> None:
    script = etc.script()
    script.parent.chmod(mode)
    found = app_with(etc, phase, script)
    assert kinds(found) == [untrusted]
    assert str(script.parent) in found.errors[0].message


@each_phase
def test_a_script_behind_a_link_of_somebody_else_is_refused(
    etc: Etc, phase: str, missing: Kind, untrusted: Kind
) -> None:
    link = etc.script().with_name("link")
    link.symlink_to("script")
    assert app_with(etc, phase, link).problems == []
    os.chown(link, NOBODY, 0, follow_symlinks=False)
    assert kinds(app_with(etc, phase, link)) == [untrusted]


@pytest.mark.usefixtures("never_hangs")
@each_phase
@pytest.mark.parametrize(("word", "make"), NO_FILES)
def test_what_is_no_file_is_no_script(
    etc: Etc,
    phase: str,
    missing: Kind,
    untrusted: Kind,
    word: str,
    make: Callable[[Path], None],
) -> None:
    path = etc.script()
    path.unlink()
    make(path)
    found = app_with(etc, phase, path)
    assert kinds(found)[0] in (missing, untrusted)
    assert word in found.errors[0].message
    assert found.runnable == []


def test_an_app_without_any_script_is_azures_unedited_template(etc: Etc) -> None:
    etc.app(WEB, preScriptLocation="", postScriptLocation="")
    found = etc.inspect()
    assert kinds(found) == [Kind.PRE_SCRIPT_NOT_FOUND]
    assert found.runnable == []
    assert found.apps_meant


def test_an_app_with_only_a_post_script_is_in_order(etc: Etc) -> None:
    found = app_with(etc, "post", etc.script())
    assert found.problems == []
    assert runnable(found) == ["web"]


def test_one_bad_script_disables_the_app_and_both_its_scripts_are_reported(etc: Etc) -> None:
    etc.app("vmsnap/apps.d/good.json")
    etc.app(WEB, preScriptLocation="/no/pre", postScriptLocation="/no/post")
    found = etc.inspect()
    assert kinds(found) == [Kind.PRE_SCRIPT_NOT_FOUND, Kind.POST_SCRIPT_NOT_FOUND]
    assert runnable(found) == ["good"]


def test_checking_a_script_does_not_read_what_only_a_device_would_answer(etc: Etc) -> None:
    """/dev/null is root's and of a wider mode; it is refused for what it is, before its mode."""
    found = app_with(etc, "pre", "/dev/null")
    assert stat.S_ISCHR(Path("/dev/null").stat().st_mode)
    assert "character device" in found.errors[0].message


# --- whatever lies there -------------------------------------------------------------------------

FILES = [WEB, AZURE_APP, PLUGIN_HOST, "azure/vmbackup.conf", "vmsnap/vmsnap.conf"]
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=10),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=5,
)
LOCATIONS = JSON | st.text(max_size=10).map("/{}".format)
APPS = st.fixed_dictionaries(
    {"pluginName": st.just("ScriptRunner"), "preScriptLocation": LOCATIONS},
    optional={"timeoutInSeconds": JSON, "appName": JSON},
).map(lambda document: json.dumps(document).encode())


@given(st.fixed_dictionaries({}, optional={name: st.binary(max_size=60) | APPS for name in FILES}))
@example({WEB: b'{"pluginName": "ScriptRunner", "preScriptLocation": "/\\ud800"}'})
@example({WEB: b'{"pluginName": "ScriptRunner", "timeoutInSeconds": 1' + b"0" * 400 + b"}"})
@example({WEB: b"[" * 100_000})
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_no_content_of_any_file_stops_the_inspection(etc: Etc, contents: dict[str, bytes]) -> None:
    for name in FILES:
        (etc.root / name).unlink(missing_ok=True)
    for name, content in contents.items():
        etc.write(name, content)
    found = etc.inspect()
    assert all(problem.message and problem.path for problem in found.problems)
    assert set(runnable(found)) <= {app.name for app in found.apps}


# --- the metrics' directory ----------------------------------------------------------------------


def metrics_warnings(etc: Etc, directory: Path) -> list[str]:
    etc.write("vmsnap/vmsnap.conf", f"[metrics]\ntextfile = {directory}/vmsnap.prom\n")
    found = etc.inspect()
    assert warnings(found) == []  # which a session would repeat each time
    checks.inspect_metrics(found)
    return warnings(found)


def test_the_owner_of_the_metrics_directory_is_named(etc: Etc) -> None:
    directory = etc.root / "metrics"
    directory.mkdir()
    assert metrics_warnings(etc, directory) == []
    os.chown(directory, NOBODY, 0)
    (warning,) = metrics_warnings(etc, directory)
    assert f"{directory}: found owner uid {NOBODY}, expected owner root" in warning
    assert metrics_warnings(etc, etc.root / "missing") == []


# --- interpreters --------------------------------------------------------------------------------


def interpreted(etc: Etc, line: str) -> list[str]:
    script = etc.write("scripts/interpreted", f"{line}\n", 0o700)
    etc.app(preScriptLocation=str(script))
    found = etc.inspect()
    assert found.errors == []
    assert [app.name for app in found.runnable] == ["web"]
    return warnings(found)


def test_an_interpreter_that_others_can_exchange_is_a_warning(etc: Etc) -> None:
    program = etc.script("interpreter", 0o755)
    for line in (f"#!{program}", f"#! {program} -x", "#!/bin/sh", "#!", "no #!"):
        assert interpreted(etc, line) == []
    program.parent.chmod(0o777)
    # The script's own directory is in order again, the interpreter's is not.
    elsewhere = etc.root / "elsewhere"
    program.parent.rename(elsewhere)
    (warning,) = interpreted(etc, f"#! {elsewhere}/interpreter -x")
    assert f"{elsewhere}: found mode 0777" in warning
    assert "others can change its interpreter" in warning
    elsewhere.chmod(0o755)
    os.chown(elsewhere / "interpreter", NOBODY, 0)
    (warning,) = interpreted(etc, f"#!{elsewhere}/interpreter")
    assert f"found owner uid {NOBODY}" in warning
