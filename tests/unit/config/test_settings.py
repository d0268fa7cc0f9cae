# SPDX-License-Identifier: Apache-2.0
"""The INI files: vmsnap.conf with its drop-ins, and Azure's vmbackup.conf."""

from __future__ import annotations

import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vmsnap.config.azure import parse_vmbackup
from vmsnap.config.formats import ConfigError
from vmsnap.config.settings import Settings, parse_settings
from vmsnap.consistency import Level
from vmsnap.errors import Kind

from ..worlds import Etc, kinds, warnings

PATH = "/etc/vmsnap/vmsnap.conf"


def parse(*texts: str) -> Settings:
    values: dict[str, Any] = {}
    for text in texts:
        assert parse_settings(text, PATH, values) == []
    return Settings(**values)


def refusal(text: str) -> str:
    with pytest.raises(ConfigError) as caught:
        parse_settings(text, PATH, {})
    assert PATH in str(caught.value)
    return str(caught.value)


def vmbackup(text: str) -> Settings:
    values: dict[str, Any] = {}
    parse_vmbackup(text, "/etc/azure/vmbackup.conf", values)
    return Settings(**values)


# --- values ------------------------------------------------------------------------------------


def test_without_a_file_the_defaults_are_those_of_the_manual() -> None:
    defaults = Settings()
    assert (defaults.freeze_timeout, defaults.hold, defaults.kill_grace) == (30.0, 60.0, 5.0)
    assert (defaults.only, defaults.exclude, defaults.require) == ((), (), None)


def test_every_setting_is_taken_over() -> None:
    text = """
        [freeze]
        timeout = 5
        hold = 12.5
        only = /srv /home
        exclude = /mnt/*
        [snapshot]
        require = application
        command = /usr/local/sbin/snap --now
        [scripts]
        kill_grace = 0
        [metrics]
        textfile = /var/lib/node_exporter/vmsnap.prom
    """
    unindented = "\n".join(line.strip() for line in text.splitlines())
    assert parse(unindented) == Settings(
        freeze_timeout=5.0,
        hold=12.5,
        only=("/srv", "/home"),
        exclude=("/mnt/*",),
        require=Level.APPLICATION,
        command=("/usr/local/sbin/snap", "--now"),
        kill_grace=0.0,
        textfile="/var/lib/node_exporter/vmsnap.prom",
    )


@pytest.mark.parametrize(
    ("section", "key", "value", "expected"),
    [
        ("freeze", "timeout", "soon", "a number of seconds"),
        ("freeze", "timeout", "0", "at least"),
        ("freeze", "timeout", "-1", "at least"),
        ("freeze", "timeout", "3601", "at most 3600"),
        ("freeze", "hold", "nan", "a number of seconds"),
        ("freeze", "hold", "inf", "a number of seconds"),
        ("freeze", "hold", "1e400", "a number of seconds"),
        ("freeze", "hold", "9" * 5000, "a number of seconds"),
        ("freeze", "hold", "60 s", "a number of seconds"),
        ("freeze", "hold", "true", "a number of seconds"),
        ("snapshot", "require", "best", "crash, filesystem or application"),
        ("snapshot", "require", "none", "crash, filesystem or application"),
        ("snapshot", "require", "3", "crash, filesystem or application"),
        ("scripts", "kill_grace", "-0.1", "at least 0"),
        ("metrics", "textfile", "vmsnap.prom", "an absolute path"),
    ],
)
def test_a_wrong_value_is_refused_with_section_key_found_and_expected(
    section: str, key: str, value: str, expected: str
) -> None:
    message = refusal(f"[{section}]\n{key} = {value}\n")
    assert f"'{key}' in [{section}]" in message
    assert f"found '{value}'"[:40] in message
    assert expected in message.partition(", expected ")[2]


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("hold = 60\n", 1),
        ("[freeze]\nhold\n", 2),
        ("[freeze]\n\n= 60\n", 3),
        ("[freeze]\nhold = 1\nhold = 2\n", 3),
        ("[freeze]\nhold = 1\nHold = 2\n", 3),
        ('{"freeze": 60}\n', 1),
    ],
)
def test_a_malformed_file_is_refused_with_its_line(text: str, line: int) -> None:
    message = " ".join(refusal(text).split())
    assert f"line {line}" in message.replace("[line", "line").replace("line:", "line")


@pytest.mark.parametrize("text", ["[freeze]\nholds = 3\n", "[Freeze]\nhold = 3\n", "[x]\ny=1\n"])
def test_an_unknown_key_or_section_is_a_warning_and_changes_nothing(text: str) -> None:
    values: dict[str, Any] = {}
    (warning,) = parse_settings(text, PATH, values)
    assert PATH in warning
    assert "unknown" in warning
    assert values == {}


def test_percent_signs_and_dollars_mean_nothing() -> None:
    command = "/bin/snap %(hold)s %h ${HOME}"
    assert parse(f"[snapshot]\ncommand = {command}\n").command == tuple(command.split())


def test_a_section_named_default_does_not_leak_into_others() -> None:
    values: dict[str, Any] = {}
    parse_settings("[DEFAULT]\nhold = 1\n[freeze]\ntimeout = 5\n", PATH, values)
    assert Settings(**values).hold == Settings().hold


# --- drop-ins ----------------------------------------------------------------------------------


def test_a_later_file_wins() -> None:
    settings = parse("[freeze]\nhold = 1\ntimeout = 2\n", "[freeze]\nhold = 3\n")
    assert (settings.hold, settings.freeze_timeout) == (3.0, 2.0)


def test_lists_grow_from_file_to_file_and_an_empty_value_starts_anew() -> None:
    first, second = "[freeze]\nexclude = /a /b\n", "[freeze]\nexclude = /c\n"
    empty = "[freeze]\nexclude =\n"
    assert parse(first, second).exclude == ("/a", "/b", "/c")
    assert parse(first, empty).exclude == ()
    assert parse(first, empty, second).exclude == ("/c",)


@pytest.mark.parametrize(
    ("section", "key", "value"),
    [("freeze", "hold", "5"), ("freeze", "timeout", "5"), ("snapshot", "require", "crash")],
)
def test_an_empty_value_goes_back_to_the_default(section: str, key: str, value: str) -> None:
    assert parse(f"[{section}]\n{key} = {value}\n", f"[{section}]\n{key} =\n") == Settings()


def test_drop_ins_are_read_after_the_main_file_in_the_order_of_their_names(etc: Etc) -> None:
    etc.write("vmsnap/vmsnap.conf.d/20-b.conf", "[freeze]\nhold = 20\nexclude = /b\n")
    etc.write("vmsnap/vmsnap.conf.d/10-a.conf", "[freeze]\nhold = 10\nexclude = /a\n")
    etc.write("vmsnap/vmsnap.conf", "[freeze]\nhold = 1\ntimeout = 7\nexclude = /main\n")
    found = etc.inspect()
    assert found.problems == []
    assert found.settings.exclude == ("/main", "/a", "/b")
    assert (found.settings.hold, found.settings.freeze_timeout) == (20.0, 7.0)


@pytest.mark.parametrize("name", ["a.conf~", "a.conf.bak", ".a.conf", "README", "a.CONF"])
def test_files_that_are_no_drop_ins_are_not_read(etc: Etc, name: str) -> None:
    etc.write(f"vmsnap/vmsnap.conf.d/{name}", "nonsense", 0o666)
    assert etc.inspect().problems == []


def test_an_unknown_key_in_a_drop_in_is_a_warning_with_its_file(etc: Etc) -> None:
    path = etc.write("vmsnap/vmsnap.conf.d/10.conf", "[freeze]\nhodl = 3\n")
    found = etc.inspect()
    assert found.errors == []
    (warning,) = warnings(found)
    assert str(path) in warning
    assert "'hodl'" in warning


@pytest.mark.parametrize("relative", ["vmsnap/vmsnap.conf", "vmsnap/vmsnap.conf.d/x.conf"])
@pytest.mark.parametrize(
    ("content", "mode"),
    [("[freeze]\nhold = x\n", 0o600), ("[freeze]\nhold = 3\n", 0o666), (b"\xff", 0o600)],
)
def test_settings_that_cannot_be_used_or_trusted_stop_every_session(
    etc: Etc, relative: str, content: str | bytes, mode: int
) -> None:
    path = etc.write(relative, content, mode)
    found = etc.inspect()
    assert kinds(found) == [Kind.INCORRECT_SETTINGS]
    assert found.errors[0].path == str(path)
    assert found.level is Level.NONE


def test_a_file_where_the_drop_in_directory_should_be_is_an_error(etc: Etc) -> None:
    etc.write("vmsnap/vmsnap.conf.d", "")
    assert kinds(etc.inspect()) == [Kind.INCORRECT_SETTINGS]


# --- vmbackup.conf -----------------------------------------------------------------------------


def test_mounts_to_skip_and_timeout_of_vmbackup_conf_are_taken_over() -> None:
    settings = vmbackup("[SnapshotThread]\nMountsToSkip = /mnt/resource, /data ,\ntimeout = 20\n")
    assert settings.exclude == ("/mnt/resource", "/data")
    assert settings.hold == 20.0


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[SnapshotThread]\n",
        "[SnapshotThread]\nfsfreeze: True\nMountsToSkip:\ntimeout:\n",
        "[Other]\ntimeout = 3\n",
    ],
)
def test_a_vmbackup_conf_that_says_nothing_of_ours_changes_nothing(text: str) -> None:
    assert vmbackup(text) == Settings()


@pytest.mark.parametrize("value", ["soon", "0", "-3", "nan", "1e400"])
def test_a_wrong_timeout_in_vmbackup_conf_is_refused_by_name(value: str) -> None:
    with pytest.raises(ConfigError) as caught:
        vmbackup(f"[SnapshotThread]\ntimeout = {value}\n")
    assert "'timeout'" in str(caught.value)
    assert f"'{value}'" in str(caught.value)


def test_vmsnap_conf_wins_over_vmbackup_conf_and_excludes_add_up(etc: Etc) -> None:
    etc.write(
        "azure/vmbackup.conf", "[SnapshotThread]\nMountsToSkip=/mnt\ntimeout=20\n", mode=0o644
    )
    etc.write("vmsnap/vmsnap.conf", "[freeze]\nhold = 30\nexclude = /srv\n")
    found = etc.inspect()
    assert found.problems == []
    assert found.settings.exclude == ("/mnt", "/srv")
    assert found.settings.hold == 30.0


def test_a_vmbackup_conf_that_others_can_write_to_is_an_error(etc: Etc) -> None:
    etc.write("azure/vmbackup.conf", "[SnapshotThread]\ntimeout=20\n", mode=0o664)
    assert kinds(etc.inspect()) == [Kind.INCORRECT_SETTINGS]


# --- whatever it is ----------------------------------------------------------------------------

WORDS = st.sampled_from(
    ["[freeze]", "[snapshot]", "[", "]", "hold", "only", "timeout", "require", "=", ":", "crash"]
    + ["5", "nan", "1e400", "\n", "\n ", "\n\t", " ", "#", ";", "%", "[SnapshotThread]", "\x0c"]
)
INI = st.text(max_size=60) | st.lists(WORDS, max_size=15).map("".join)


@given(INI)
def test_any_text_gives_settings_of_the_right_types_or_is_incorrect(text: str) -> None:
    values: dict[str, Any] = {}
    try:
        parse_settings(text, PATH, values)
    except ConfigError as e:
        assert PATH in str(e)
    settings = Settings(**values)
    for seconds in (settings.freeze_timeout, settings.hold, settings.kill_grace):
        assert type(seconds) is float
        assert 0 <= seconds < math.inf
    for globs in (settings.only, settings.exclude):
        assert type(globs) is tuple
        assert all(type(glob) is str and glob for glob in globs)
    assert settings.require is None or isinstance(settings.require, Level)


@given(INI)
def test_any_text_as_vmbackup_conf_gives_settings_or_is_incorrect(text: str) -> None:
    try:
        settings = vmbackup(text)
    except ConfigError as e:
        assert "vmbackup.conf" in str(e)
    else:
        assert 0 < settings.hold < math.inf
        assert all(mount == mount.strip() != "" for mount in settings.exclude)
