# SPDX-License-Identifier: Apache-2.0
"""The command line: usage, exit codes and JSON, on which other programs depend."""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from vmsnap.cli import main as cli
from vmsnap.consistency import Level
from vmsnap.freeze.frozen_list import FROZEN_LIST
from vmsnap.freeze.plan import Plan
from vmsnap.provision import quiescers
from vmsnap.result import LAST
from vmsnap.session.lock import acquire, prepare

from ..test_result import FULL
from ..worlds import Etc, Machine

OK, FAILED, USAGE, IN_PROGRESS, NOT_ROOT = 0, 1, 2, 75, 77
COMMANDS = ["run", "freeze", "thaw", "check", "plan", "init", "status", "history", "plot"]
NEEDED = {"run": ["--", "true"], "init": ["web"], "plot": ["3f2a"]}
Capture = pytest.CaptureFixture[str]


@pytest.fixture
def directories(trusted_dir: Path) -> list[str]:
    """Options that keep a command away from this machine's own configuration."""
    return [f"--{name}={trusted_dir / name}" for name in ("etc", "run", "state")]


@pytest.fixture
def planned(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> Machine:
    """`make_plan` looks at this machine instead of the one the test runs on."""

    def plan(only: Sequence[str] = (), exclude: Sequence[str] = ()) -> Plan:
        return machine.plan(tuple(only), tuple(exclude))

    monkeypatch.setattr("vmsnap.freeze.plan.make_plan", plan)
    return machine


@pytest.fixture
def parsed(monkeypatch: pytest.MonkeyPatch) -> list[argparse.Namespace]:
    """Collects what `vmsnap run` would have done."""
    calls: list[argparse.Namespace] = []

    def record(arguments: argparse.Namespace) -> int:
        calls.append(arguments)
        return OK

    monkeypatch.setattr("vmsnap.cli.take.run_command", record)
    return calls


def test_debug_shows_what_was_given_and_the_traceback_of_an_error(
    monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    def fail(_: argparse.Namespace) -> int:
        raise FileNotFoundError(2, "No such file or directory", "/nowhere")

    monkeypatch.setattr("vmsnap.cli.take.run_command", fail)
    monkeypatch.setattr("vmsnap.journal.sender.Journal.debug", None)
    assert cli.main(["run"]) == FAILED
    assert "Traceback" not in capsys.readouterr().err
    for words in (["--debug", "run", "--hold", "7"], ["run", "--hold", "7", "--debug"]):
        assert cli.main(words) == FAILED
        told = capsys.readouterr().err
        assert told.startswith("debug: vmsnap ")
        assert "'hold': 7.0" in told
        assert "Traceback (most recent call last)" in told
        assert told.endswith("vmsnap run: /nowhere: No such file or directory\n")


def usage_error(capsys: Capture, *words: str) -> str:
    with pytest.raises(SystemExit) as caught:
        cli.main(words)
    assert caught.value.code == USAGE
    captured = capsys.readouterr()
    assert captured.out == ""
    return captured.err


def document(capsys: Capture) -> Any:
    return json.loads(capsys.readouterr().out)


# --- help and usage ----------------------------------------------------------------------------


@pytest.mark.parametrize("words", [["--help"], ["run", "--help"], ["init", "--help"]])
def test_help_shows_examples_and_succeeds(capsys: Capture, words: list[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        cli.main(words)
    assert caught.value.code == OK
    assert "examples:\n  vmsnap " in capsys.readouterr().out


def test_help_names_every_command_and_every_exit_code(capsys: Capture) -> None:
    with pytest.raises(SystemExit):
        cli.main(["--help"])
    text = capsys.readouterr().out
    assert all(f"\n    {command} " in text for command in COMMANDS)
    codes = text[text.index("exit codes:") :]
    assert all(f"{code} " in codes for code in (OK, FAILED, USAGE, IN_PROGRESS, NOT_ROOT))


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_takes_the_common_options(capsys: Capture, command: str) -> None:
    with pytest.raises(SystemExit):
        cli.main([command, "--help"])
    text = capsys.readouterr().out
    assert all(option in text for option in ("--etc", "--run", "--state", "--json"))


@pytest.mark.parametrize(
    "words",
    [
        [],
        ["frobnicate"],
        ["run", "--"],
        ["run", "true"],
        ["run", "--only", "--", "true"],
        ["run", "--hol", "3", "--", "true"],
        ["check", "--", "true"],
        ["check", "--hold", "3"],
        ["plan", "extra"],
        ["init"],
        ["freeze", "--", "true"],
        ["freeze", "--run=/tmp"],
        ["thaw", "--run=/tmp"],
        ["thaw", ""],
        ["thaw", "--force", "3f2a"],
        ["thaw", "--force", "--failed"],
        ["plot"],
        ["session"],
        ["--json"],
    ],
)
def test_a_command_that_cannot_be_understood_exits_with_2(
    capsys: Capture, words: list[str]
) -> None:
    assert "usage: vmsnap" in usage_error(capsys, *words)


@pytest.mark.parametrize("value", ["0", "-1", "nan", "inf", "1e400", "soon", "", "86401", "5s"])
def test_a_wrong_hold_says_what_was_found_and_what_is_expected(capsys: Capture, value: str) -> None:
    message = usage_error(capsys, "run", f"--hold={value}", "--", "true")
    assert "--hold" in message
    assert f"found {value!r}" in message
    assert "expected a number of seconds" in message


@pytest.mark.parametrize("value", ["none", "best", "", "Crash", "3"])
def test_a_wrong_level_says_what_was_found_and_what_is_expected(
    capsys: Capture, value: str
) -> None:
    message = usage_error(capsys, "run", f"--require={value}", "--", "true")
    assert f"found {value!r}" in message
    assert "crash, filesystem, application" in message


@pytest.mark.parametrize("name", ["", "my app", "a/b", "..", "-x", "ü", "x" * 65])
def test_a_wrong_app_name_says_what_is_expected_and_writes_nothing(
    capsys: Capture, directories: list[str], trusted_dir: Path, name: str
) -> None:
    message = usage_error(capsys, "init", *directories, f" {name}" if name == "-x" else name)
    assert "expected a plain word" in message
    assert list(trusted_dir.iterdir()) == []


# --- what the options mean ---------------------------------------------------------------------


def test_everything_after_the_first_two_dashes_is_the_command(
    parsed: list[argparse.Namespace],
) -> None:
    words = ["snap", "--json", "--", "--hold", "x"]
    assert cli.main(["run", "--hold", "5", "--", *words]) == OK
    assert parsed[0].words == words
    assert parsed[0].json is False
    assert parsed[0].hold == 5.0


def test_the_options_of_run_are_read(parsed: list[argparse.Namespace]) -> None:
    options = ["--require=application", "--only=/a", "--only=/b", "--exclude=/c", "--no-fsfreeze"]
    cli.main(["run", "--json", *options, "--", "true"])
    (run,) = parsed
    assert (run.json, run.no_fsfreeze, run.require) == (True, True, Level.APPLICATION)
    assert (run.only, run.exclude) == (["/a", "/b"], ["/c"])


def test_the_directories_default_to_those_of_the_system_and_may_be_relative(
    parsed: list[argparse.Namespace],
) -> None:
    cli.main(["run", "--etc", "some/../etc", "--", "true"])
    (run,) = parsed
    assert (run.run, run.state) == (Path("/run/vmsnap"), Path("/var/lib/vmsnap"))
    assert run.etc == Path.cwd() / "etc"


# --- root --------------------------------------------------------------------------------------


@pytest.mark.parametrize("command", [command for command in COMMANDS if command != "plan"])
def test_whoever_is_not_root_is_told_so_with_77(
    capsys: Capture,
    monkeypatch: pytest.MonkeyPatch,
    directories: list[str],
    trusted_dir: Path,
    command: str,
) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    assert cli.main([command, *directories, *NEEDED.get(command, [])]) == NOT_ROOT
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "uid 1000" in captured.err
    assert "root" in captured.err
    assert list(trusted_dir.iterdir()) == []


def test_a_plan_is_for_everybody_and_stays_one_document(
    capsys: Capture, monkeypatch: pytest.MonkeyPatch, planned: Machine
) -> None:
    planned.mount("/srv", "900:1")
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    assert cli.main(["plan", "--json"]) == OK
    captured = capsys.readouterr()
    assert len(json.loads(captured.out)) == 1
    assert "not root" in captured.err


# --- plan --------------------------------------------------------------------------------------


def test_plan_json_is_a_list_with_exactly_the_keys_of_the_manual(
    capsys: Capture, planned: Machine, directories: list[str]
) -> None:
    planned.mount("/srv", "900:1", "xfs", "/dev/vdb1")
    planned.mount("/proc", "0:5", "proc", "proc")
    assert cli.main(["plan", "--json", *directories]) == OK
    frozen, skipped = document(capsys)
    assert frozen == {
        "mount": "/srv",
        "source": "/dev/vdb1",
        "fstype": "xfs",
        "device": "900:1",
        "action": "freeze",
        "step": 1,
        "reason": "",
    }
    assert set(skipped) == set(frozen)
    assert (skipped["action"], skipped["step"]) == ("skip", None)


def test_a_name_that_cannot_be_shown_does_not_break_the_document(
    capsys: Capture, planned: Machine, directories: list[str]
) -> None:
    planned.mount("/srv/\udcff\n", "900:1")
    assert cli.main(["plan", "--json", *directories]) == OK
    assert document(capsys)[0]["mount"] == "/srv/\udcff\n"
    assert cli.main(["plan", *directories]) == OK
    assert "\\n" in capsys.readouterr().out


def test_the_settings_and_the_options_both_exclude_and_only_of_the_options_wins(
    capsys: Capture, planned: Machine, etc: Etc, directories: list[str]
) -> None:
    for number, point in enumerate(["/a", "/b", "/c"]):
        planned.mount(point, f"900:{number}")
    etc.write("vmsnap/vmsnap.conf", "[freeze]\nexclude = /a\n")

    def frozen(*options: str) -> list[str]:
        cli.main(["plan", "--json", *directories, *options])
        return [e["mount"] for e in document(capsys) if e["action"] == "freeze"]

    assert frozen() == ["/b", "/c"]
    assert frozen("--exclude=/b") == ["/c"]
    etc.write("vmsnap/vmsnap.conf", "[freeze]\nonly = /a\n")
    assert frozen() == ["/a"]
    assert frozen("--only=/c") == ["/c"]


def test_a_plan_with_a_name_that_is_no_mount_point_fails_and_says_so(
    capsys: Capture, planned: Machine, directories: list[str]
) -> None:
    planned.mount("/srv", "900:1")
    assert cli.main(["plan", *directories, "--only=/srw"]) == FAILED
    assert "/srw" in capsys.readouterr().out


# --- check -------------------------------------------------------------------------------------


def test_check_json_says_ok_when_everything_is(
    capsys: Capture, planned: Machine, etc: Etc, directories: list[str], trusted_dir: Path
) -> None:
    etc.app(fsFreezeEnabled=False)
    assert cli.main(["check", "--json", *directories]) == OK
    assert document(capsys) == {"ok": True, "problems": []}
    assert [path.name for path in trusted_dir.iterdir()] == ["etc"]  # and changed nothing


def test_check_json_lists_problems_with_exactly_the_keys_of_the_manual(
    capsys: Capture, planned: Machine, etc: Etc, directories: list[str]
) -> None:
    etc.app(fsFreezeEnabled=False, comment=1, preScriptLocation="/no/such/script")
    assert cli.main(["check", "--json", *directories]) == FAILED
    answer = document(capsys)
    assert set(answer) == {"ok", "problems"}
    assert answer["ok"] is False
    warning, error = answer["problems"]
    assert set(error) == {"severity", "name", "code", "path", "message", "action"}
    assert (warning["severity"], error["severity"]) == ("warning", "error")
    assert (error["name"], error["code"]) == ("Pre-ScriptNotFound", 302)
    assert error["path"] == "/no/such/script"


def test_a_warning_alone_is_in_order(
    capsys: Capture, planned: Machine, etc: Etc, directories: list[str]
) -> None:
    etc.app(fsFreezeEnabled=False, comment=1)
    assert cli.main(["check", "--json", *directories]) == OK
    answer = document(capsys)
    assert (answer["ok"], len(answer["problems"])) == (True, 1)


def test_a_machine_on_which_nothing_could_be_frozen_is_not_in_order(
    capsys: Capture, planned: Machine, directories: list[str]
) -> None:
    assert cli.main(["check", "--json", *directories]) == FAILED
    assert [p["name"] for p in document(capsys)["problems"]] == ["FreezeFailed"]


@pytest.mark.parametrize("digits", [400, 5000])
def test_a_configuration_with_an_endless_number_is_answered_and_not_a_traceback(
    capsys: Capture, planned: Machine, etc: Etc, directories: list[str], digits: int
) -> None:
    etc.app(fsFreezeEnabled=False)
    text = '{"pluginName": "ScriptRunner", "preScriptLocation": "/x", "timeoutInSeconds": '
    etc.write("vmsnap/apps.d/web.json", f"{text}{'9' * digits}}}")
    assert cli.main(["check", "--json", *directories]) == FAILED
    assert document(capsys)["problems"]


# --- init --------------------------------------------------------------------------------------


def test_init_writes_an_app_whose_scripts_are_to_be_written_and_says_what_it_wrote(
    capsys: Capture, planned: Machine, directories: list[str], trusted_dir: Path
) -> None:
    assert cli.main(["init", *directories, "web"]) == OK
    text = capsys.readouterr().out
    for name in ("apps.d/web.json", "scripts/web/pre", "scripts/web/post"):
        assert str(trusted_dir / "etc/vmsnap" / name) in text
    cli.main(["check", "--json", *directories])
    assert [p["code"] for p in document(capsys)["problems"]] == [306, 307, 121]


def test_init_json_names_what_was_written(
    capsys: Capture, directories: list[str], trusted_dir: Path
) -> None:
    assert cli.main(["init", "--json", *directories, "web"]) == OK
    answer = document(capsys)
    assert answer["config"] == str(trusted_dir / "etc/vmsnap/apps.d/web.json")
    assert all(Path(path).exists() for path in answer.values())


def test_init_leaves_an_existing_app_alone_and_fails(
    capsys: Capture, directories: list[str], etc: Etc
) -> None:
    path = etc.app()
    before = path.read_bytes()
    assert cli.main(["init", *directories, "web"]) == FAILED
    assert path.read_bytes() == before
    assert str(path) in capsys.readouterr().err


@pytest.fixture
def quiescer(monkeypatch: pytest.MonkeyPatch, trusted_dir: Path) -> Path:
    """The only one that is installed."""
    monkeypatch.setattr(quiescers, "DIRECTORY", trusted_dir)
    program = trusted_dir / "mariadb"
    program.touch(0o700)
    return program


@pytest.mark.parametrize(("words", "name"), [([], "mysql"), (["shop-db"], "shop-db")])
def test_init_with_a_quiescer_says_what_it_wrote_and_how_the_quiescer_logs_in(
    capsys: Capture, directories: list[str], etc: Etc, quiescer: Path, words: list[str], name: str
) -> None:
    assert cli.main(["init", *directories, "--quiesce", "mysql", *words]) == OK
    said = capsys.readouterr().out
    assert str(etc.root / f"vmsnap/apps.d/{name}.json") in said
    assert "/root/.my.cnf" in said
    assert "vmsnap check" in said
    assert [app.name for app in etc.inspect().apps] == [name]


def test_init_with_a_quiescer_says_the_same_as_json(
    capsys: Capture, directories: list[str], etc: Etc, quiescer: Path
) -> None:
    assert cli.main(["init", "--json", *directories, "--quiesce", "mariadb"]) == OK
    answer = document(capsys)
    assert answer.pop("config") == str(etc.root / "vmsnap/apps.d/mariadb.json")
    assert "/root/.my.cnf" in answer.pop("next")
    assert answer == {"pre": str(quiescer), "post": str(quiescer)}


@pytest.mark.usefixtures("quiescer")
def test_init_with_a_quiescer_leaves_an_existing_app_alone_and_fails(
    capsys: Capture, directories: list[str], etc: Etc
) -> None:
    path = etc.write("vmsnap/apps.d/mariadb.json", "mine")
    assert cli.main(["init", *directories, "--quiesce", "mariadb"]) == FAILED
    assert path.read_text() == "mine"
    assert str(path) in capsys.readouterr().err


@pytest.mark.parametrize("word", ["oracle", "", "MariaDB", "../mariadb"])
def test_an_unknown_quiescer_is_told_with_all_that_there_are(
    capsys: Capture, directories: list[str], trusted_dir: Path, word: str
) -> None:
    message = usage_error(capsys, "init", *directories, f"--quiesce={word}")
    assert f"found {word!r}, expected postgresql, mariadb, mysql, redis, valkey" in message
    assert list(trusted_dir.iterdir()) == []


# --- status ------------------------------------------------------------------------------------


def test_status_before_the_first_session_is_no_failure(
    capsys: Capture, directories: list[str]
) -> None:
    assert cli.main(["status", *directories]) == OK
    assert "No session yet" in capsys.readouterr().out


def test_status_shows_the_last_result_and_its_failure(
    capsys: Capture, directories: list[str], trusted_dir: Path
) -> None:
    (trusted_dir / "state").mkdir()
    (trusted_dir / "state" / LAST).write_text(json.dumps(FULL.to_json()))
    assert cli.main(["status", *directories]) == FAILED
    assert FULL.session in capsys.readouterr().out
    assert cli.main(["status", "--json", *directories]) == FAILED
    assert document(capsys)["last"] == json.loads(json.dumps(FULL.to_json()))


DAMAGED = {
    "empty": b"",
    "cut": b"{",
    "list": b"[]",
    "null": b"null",
    "latin": b"\xff",
    "version 2": b'{"version": 2}',
    "deep": b"[" * 100_000,
    **{
        f"{key} is a word": json.dumps({**FULL.to_json(), key: "x"}).encode()
        for key in ("seconds", "apps", "errors", "snapshot")
    },
}


@pytest.mark.parametrize("damaged", DAMAGED.values(), ids=DAMAGED)
def test_a_damaged_result_is_said_and_not_a_traceback(
    capsys: Capture, directories: list[str], trusted_dir: Path, damaged: bytes
) -> None:
    (trusted_dir / "state").mkdir()
    (trusted_dir / "state" / LAST).write_bytes(damaged)
    assert cli.main(["status", *directories]) == FAILED
    assert LAST in capsys.readouterr().err


def test_status_names_the_session_in_progress(
    capsys: Capture, directories: list[str], trusted_dir: Path
) -> None:
    prepare(trusted_dir / "run")
    descriptor = acquire(trusted_dir / "run", "s-1")
    try:
        assert cli.main(["status", *directories]) == OK
        assert "s-1" in capsys.readouterr().out
    finally:
        os.close(descriptor)


# --- run, refused ------------------------------------------------------------------------------


def test_a_second_session_fails_at_once_with_75_and_a_document(
    capsys: Capture, directories: list[str], trusted_dir: Path
) -> None:
    prepare(trusted_dir / "run")
    descriptor = acquire(trusted_dir / "run", "s-1")
    try:
        assert cli.main(["run", "--json", *directories, "--", "true"]) == IN_PROGRESS
    finally:
        os.close(descriptor)
    captured = capsys.readouterr()
    answer = json.loads(captured.out)
    assert (answer["outcome"], answer["consistency"]) == ("failed", "none")
    assert [(e["name"], e["code"]) for e in answer["errors"]] == [("SessionInProgress", 140)]
    assert "SessionInProgress" in captured.err
    assert "s-1" in captured.err


def test_a_run_directory_that_others_can_write_to_is_refused(
    capsys: Capture, directories: list[str], trusted_dir: Path
) -> None:
    (trusted_dir / "run").mkdir()
    (trusted_dir / "run").chmod(0o777)
    assert cli.main(["run", *directories, "--", "true"]) == FAILED
    assert "0777" in capsys.readouterr().err


# --- thaw --------------------------------------------------------------------------------------


def test_thaw_with_nothing_to_thaw_succeeds_and_says_so(
    capsys: Capture, directories: list[str]
) -> None:
    assert cli.main(["thaw", "--force", *directories]) == OK
    assert "nothing to thaw" in capsys.readouterr().out


@pytest.mark.parametrize(
    "text", ["", "{", '{"filesystems": [{"mount": "/no/such", "device": "9:1", "step": 1}]}']
)
def test_a_thaw_that_may_leave_something_frozen_fails_and_keeps_the_list(
    capsys: Capture, directories: list[str], trusted_dir: Path, text: str
) -> None:
    path = trusted_dir / "run" / FROZEN_LIST
    path.parent.mkdir()
    path.write_text(text)
    assert cli.main(["thaw", "--force", "--json", *directories]) == FAILED
    answer = document(capsys)
    assert answer["ok"] is False
    assert answer["messages"]
    assert path.exists()


# --- started without a standard stream -----------------------------------------------------------


@pytest.mark.parametrize("stream", ["stdout", "stderr"])
def test_a_command_works_without_a_standard_stream(
    monkeypatch: pytest.MonkeyPatch, directories: list[str], stream: str
) -> None:
    """Python sets sys.stdout and sys.stderr to None if they are closed (`>&-`)."""
    monkeypatch.setattr(f"sys.{stream}", None)
    assert cli.main(["thaw", "--force", *directories]) == OK


def test_without_a_stderr_complaints_do_not_end_up_in_the_document(
    capsys: Capture, monkeypatch: pytest.MonkeyPatch, planned: Machine
) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    monkeypatch.setattr("sys.stderr", None)
    assert cli.main(["plan", "--json"]) == OK
    assert document(capsys) == []


@pytest.mark.parametrize("option", ["--run", "--state"])
def test_a_session_leaves_a_directory_alone_that_is_not_vmsnaps(
    capsys: Capture, trusted_dir: Path, option: str
) -> None:
    """As `--run /var` would be, whose tmp is not one of vmsnap's to empty."""
    theirs = trusted_dir / "theirs"
    (theirs / "tmp").mkdir(parents=True, mode=0o700)
    (theirs / "tmp/precious").write_text("data")
    theirs.chmod(0o700)
    places = [f"--{name}={trusted_dir / name}" for name in ("etc", "run", "state")]
    assert cli.main(["run", *places, f"{option}={theirs}", "--", "true"]) == 1
    assert f"{theirs}: found files and no .vmsnap" in capsys.readouterr().err
    assert [path.name for path in theirs.iterdir()] == ["tmp"]
    assert (theirs / "tmp/precious").read_text() == "data"
