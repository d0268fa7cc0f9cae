# SPDX-License-Identifier: Apache-2.0
"""`vmsnap freeze` and `vmsnap thaw`, and the same through systemctl, when nobody is killed."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Iterator

import pytest

from .apps import UNIT, Scene, scene_of, until
from .container import Container

EXIT_75 = 75
ODD = "/srv/an \"odd\" 'name' %n $HOME ${x} \\n\nand a second line"


@pytest.fixture
def scene(container: Container) -> Iterator[Scene]:
    with scene_of(container) as made:
        yield made


# --- the two halves ------------------------------------------------------------------------------


def test_freeze_returns_when_all_is_frozen_and_thaw_ends_it(scene: Scene) -> None:
    scene.database()
    held = scene.freeze()
    assert scene.container.frozen("/")
    assert scene.container.systemctl("is-active", UNIT).stdout == "active\n"
    assert held["filesystems"] == ["/"]
    assert held["apps"] == ["db"]
    assert held["consistency"] == "application"
    assert 0 < held["hold_left_seconds"] <= 60
    assert scene.events.heard == ["quiesced"]
    outcome = scene.thaw()
    assert not scene.container.frozen("/")
    assert outcome.verdict == ("success", "application", 0)
    assert outcome.errors == []
    assert outcome.result["session"] == held["session"]
    assert scene.events.heard == ["quiesced", "resumed success application"]
    assert scene.state == ("inactive", "success")


def test_both_halves_say_in_words_what_came_of_them(scene: Scene) -> None:
    scene.database()
    begun = scene.vmsnap("freeze")
    assert begun.code == 0
    assert b" holds" in begun.out
    assert b"1 filesystem frozen" in begun.out
    assert b"application-consistent so far" in begun.out
    ended = scene.vmsnap("thaw")
    assert ended.code == 0
    assert b"succeeded: application-consistent snapshot" in ended.out
    assert b"app db: pre-script ok" in ended.out
    assert begun.err == ended.err == ""


def test_status_tells_of_the_session_that_holds_and_of_the_last_one(scene: Scene) -> None:
    held = scene.freeze()
    status = scene.vmsnap("status", "--json")
    assert status.code == 0
    assert status.result["in_progress"]["session"] == held["session"]
    assert "`vmsnap thaw` ends it" in scene.vmsnap("status").out.decode()
    scene.thaw()
    status = scene.vmsnap("status", "--json")
    assert status.code == 0
    assert status.result["in_progress"] is None
    assert status.result["last"]["session"] == held["session"]
    assert scene.vmsnap("history", "--json").out.count(held["session"].encode()) == 1


def test_systemctl_start_and_stop_do_the_same_with_the_defaults(scene: Scene) -> None:
    scene.database()
    assert scene.container.systemctl("start", UNIT).returncode == 0
    assert scene.container.frozen("/")
    assert scene.container.systemctl("stop", UNIT).returncode == 0
    assert not scene.container.frozen("/")
    assert scene.events.heard == ["quiesced", "resumed success application"]
    assert scene.state == ("inactive", "success")
    last = scene.vmsnap("status", "--json").result["last"]
    assert (last["outcome"], last["consistency"]) == ("success", "application")


def test_each_half_can_be_done_by_the_one_or_the_other(scene: Scene) -> None:
    scene.freeze()
    scene.container.systemctl("stop", UNIT, check=True)
    assert not scene.container.frozen("/")
    assert scene.state == ("inactive", "success")
    scene.container.systemctl("start", UNIT, check=True)
    assert scene.container.frozen("/")
    assert scene.thaw().verdict == ("success", "filesystem", 0)


def test_sessions_follow_each_other(scene: Scene) -> None:
    scene.database()
    sessions = [scene.freeze()["session"] for _ in range(3) if scene.thaw()]
    scene.thaw()
    assert len({*sessions}) == 3
    ended = [past["session"] for past in json.loads(scene.vmsnap("history", "--json").out)]
    assert [s for s in ended if s in sessions] == sessions[::-1]


def test_the_status_line_counts_down(scene: Scene) -> None:
    scene.freeze("--hold=60")
    first = scene.status_text
    assert first.startswith("Holding 1 filesystem frozen, ")
    assert first.endswith(" s left")
    until(lambda: scene.status_text != first)
    left = [int(text.split()[-3]) for text in (first, scene.status_text)]
    assert 60 >= left[0] > left[1]


def test_the_status_line_counts_all_that_is_frozen_and_names_apps(scene: Scene) -> None:
    scene.container.add_filesystem("/srv/data", "xfs")
    scene.database(pre=scene.stop_at("pre"))
    freeze = scene.start("freeze")
    scene.events.wait("quiesced")
    until(lambda: scene.status_text == "Running pre-scripts: db")
    scene.open("pre")
    assert freeze.finish().code == 0
    assert scene.status_text.startswith("Holding 2 filesystems frozen, ")


# --- options -------------------------------------------------------------------------------------


def test_hold_reaches_the_unit(scene: Scene) -> None:
    assert 100 < scene.freeze("--hold", "123.5")["hold_left_seconds"] <= 123.5


def test_only_and_exclude_reach_the_unit(scene: Scene) -> None:
    scene.container.add_filesystem("/srv/data", "xfs")
    for option, frozen in (("--only=/srv/*", "/srv/data"), ("--exclude=/srv/*", "/")):
        assert scene.freeze(option)["filesystems"] == [frozen]
        assert [p for p in ("/", "/srv/data") if scene.container.frozen(p)] == [frozen]
        assert scene.thaw().code == 0


def test_options_can_be_repeated(scene: Scene) -> None:
    scene.container.add_filesystem("/srv/data", "xfs")
    held = scene.freeze("--only=/", "--only=/srv/data", "--exclude=/nowhere", "--exclude=/")
    assert held["filesystems"] == ["/srv/data"]


def test_a_name_of_any_characters_reaches_the_unit(scene: Scene) -> None:
    scene.container.add_filesystem(ODD, "xfs")
    assert scene.freeze("--only", ODD)["filesystems"] == [ODD]
    assert [p for p in ("/", ODD) if scene.container.frozen(p)] == [ODD]
    assert scene.thaw().code == 0
    assert scene.freeze("--exclude", ODD)["filesystems"] == ["/"]


def test_a_name_that_is_not_unicode_reaches_the_unit(scene: Scene) -> None:
    outcome = scene.vmsnap("freeze", "--json", "--exclude", os.fsdecode(b"/srv/\xff\xfe"))
    assert outcome.code == 0, outcome.err
    assert scene.container.frozen("/")


def test_more_than_a_command_line_of_globs_reaches_the_unit(scene: Scene) -> None:
    globs = [f"--exclude=/srv/{'x' * 200}/{number}" for number in range(2000)]
    assert scene.freeze(*globs, "--exclude=/")["filesystems"] == []
    assert not scene.container.frozen("/")


def test_no_fsfreeze_reaches_the_unit(scene: Scene) -> None:
    scene.database()
    held = scene.freeze("--no-fsfreeze")
    assert (held["filesystems"], held["consistency"]) == ([], "application")
    assert not scene.container.frozen("/")
    assert scene.status_text.startswith("Holding db, ")
    assert scene.thaw().verdict == ("success", "application", 0)
    assert scene.events.heard == ["quiesced", "resumed success application"]


def test_etc_and_state_reach_the_unit(scene: Scene) -> None:
    scene.container.write("/run/vmsnap-test/etc/vmsnap/vmsnap.conf", "[freeze]\nhold = 7\n")
    held = scene.freeze("--etc=/run/vmsnap-test/etc", "--state=/run/vmsnap-test/state")
    assert held["hold_left_seconds"] <= 7
    scene.thaw()
    last = json.loads(scene.container.read("/run/vmsnap-test/state/last-result.json"))
    assert last["session"] == held["session"]
    assert not scene.container.path("/var/lib/vmsnap/last-result.json").exists()


def test_relative_directories_are_those_of_the_caller(scene: Scene) -> None:
    scene.container.write("/run/vmsnap-test/etc/vmsnap/vmsnap.conf", "[freeze]\nhold = 7\n")
    words = "cd /run/vmsnap-test && vmsnap freeze --json --etc etc"
    begun = scene.container.run("sh", "-c", words, check=True)
    assert json.loads(begun.stdout)["hold_left_seconds"] <= 7


def test_options_are_for_one_session_only(scene: Scene) -> None:
    scene.freeze("--no-fsfreeze", "--hold=7")
    scene.thaw()
    scene.container.systemctl("start", UNIT, check=True)
    assert scene.container.frozen("/")
    assert scene.vmsnap("status", "--json").result["in_progress"]["hold_left_seconds"] > 10


def test_another_run_directory_is_refused(scene: Scene) -> None:
    for command in ("freeze", "thaw"):
        outcome = scene.vmsnap(command, "--run=/run/other")
        assert outcome.code == 2
        assert "/run/vmsnap" in outcome.err
    assert not scene.container.frozen("/")


# --- one at a time -------------------------------------------------------------------------------


def test_of_callers_that_come_at_once_one_wins(scene: Scene) -> None:
    scene.database()
    outcomes = [each.finish() for each in [scene.start("freeze", "--json") for _ in range(4)]]
    assert sorted(outcome.code for outcome in outcomes) == [0, EXIT_75, EXIT_75, EXIT_75]
    assert all("SessionInProgress (140)" in o.err for o in outcomes if o.code)
    (winner,) = [outcome.result["session"] for outcome in outcomes if outcome.code == 0]
    assert scene.container.frozen("/")
    ended = scene.thaw()
    assert ended.result["session"] == winner
    assert ended.verdict == ("success", "application", 0)
    assert scene.events.heard == ["quiesced", "resumed success application"]


def test_who_comes_while_another_waits_is_refused(scene: Scene) -> None:
    scene.database(pre=scene.stop_at("pre"))
    first = scene.start("freeze", "--json", "--hold=40")
    scene.events.wait("quiesced")
    second = scene.vmsnap("freeze", "--json", "--no-fsfreeze", "--hold=7")
    assert second.code == EXIT_75
    assert "SessionInProgress (140)" in second.err
    scene.open("pre")
    held = first.finish()
    assert held.code == 0
    assert 7 < held.result["hold_left_seconds"] <= 40
    assert scene.container.frozen("/")
    assert scene.thaw().verdict == ("success", "application", 0)
    assert scene.events.heard == ["quiesced", "resumed success application"]


def test_who_comes_while_a_session_holds_is_refused(scene: Scene) -> None:
    scene.database()
    held = scene.freeze()
    for command in (("freeze",), ("run", "--", "true")):
        outcome = scene.vmsnap(*command)
        assert outcome.code == EXIT_75
        assert held["session"] in outcome.err
    assert scene.container.frozen("/")
    assert scene.state == ("active", "success")
    ended = scene.thaw()
    assert ended.result["session"] == held["session"]
    assert ended.verdict == ("success", "application", 0)
    assert scene.events.heard == ["quiesced", "resumed success application"]


def test_nobody_disturbs_a_run_through_the_unit(scene: Scene) -> None:
    scene.database()
    run = scene.run("--require=application")
    freeze, thaw = scene.vmsnap("freeze"), scene.vmsnap("thaw")
    assert (freeze.code, thaw.code) == (EXIT_75, EXIT_75)
    assert "SessionInProgress (140)" in freeze.err
    assert scene.container.frozen("/")
    assert scene.container.systemctl("start", UNIT).returncode != 0
    assert scene.container.frozen("/")
    assert scene.container.show(UNIT, "ExecMainStatus")["ExecMainStatus"] == str(EXIT_75)
    assert scene.container.systemctl("stop", UNIT).returncode == 0
    assert scene.container.frozen("/")
    assert scene.vmsnap("status", "--json").result["in_progress"]["held"] is False
    scene.open("release")
    outcome = run.finish()
    assert outcome.verdict == ("success", "application", 0)
    assert outcome.errors == []
    assert not scene.container.frozen("/")
    assert scene.events.heard == ["quiesced", "held", "resumed success application"]


def test_a_start_refused_for_a_run_says_why(scene: Scene) -> None:
    run = scene.run()
    scene.container.systemctl("start", UNIT)
    scene.open("release")
    session = run.finish().result["session"]
    assert f"found session {session}" in scene.container.status(UNIT)


def test_a_freeze_begins_after_a_run_has_ended(scene: Scene) -> None:
    run = scene.run()
    assert scene.vmsnap("freeze").code == EXIT_75
    scene.open("release")
    assert run.finish().code == 0
    scene.freeze()
    assert scene.container.frozen("/")
    assert scene.thaw().verdict == ("success", "filesystem", 0)


# --- a session that does not come to hold --------------------------------------------------------


def assert_refused_for_its_pre_script(scene: Scene, code: int, err: str) -> None:
    assert code == 1
    assert "Pre-ScriptExecutionFailed 300" in err
    assert "exit code 3" in err
    assert not scene.container.frozen("/")
    assert scene.events.heard == ["quiesced", "resumed failed none"]
    assert scene.state == ("failed", "exit-code")
    shown = scene.container.status(UNIT)
    assert 'Status: "Failed: Pre-ScriptExecutionFailed (300): the pre-script of db' in shown
    assert "Pre-ScriptExecutionFailed: the pre-script of db ended with exit code 3" in shown


def test_a_pre_script_that_fails_fails_the_start_if_the_application_counts(scene: Scene) -> None:
    scene.database(pre="exit 3")
    outcome = scene.vmsnap("freeze", "--require=application")
    assert_refused_for_its_pre_script(scene, outcome.code, outcome.err)


def test_it_fails_the_start_with_an_app_that_says_no_less_too(scene: Scene) -> None:
    scene.database(pre="exit 3", continueBackupOnFailure=False)
    outcome = scene.vmsnap("freeze", "--require=application")
    assert_refused_for_its_pre_script(scene, outcome.code, outcome.err)


def test_the_json_of_a_start_that_failed_is_the_result(scene: Scene) -> None:
    scene.database(pre="exit 3")
    outcome = scene.vmsnap("freeze", "--json", "--require=application")
    assert outcome.verdict == ("failed", "none", 1)
    assert outcome.subjects == [("Pre-ScriptExecutionFailed", "db")]


def test_systemctl_start_fails_too(scene: Scene) -> None:
    scene.container.write("/etc/vmsnap/vmsnap.conf", "[snapshot]\nrequire = application\n")
    scene.database(pre="exit 3")
    assert scene.container.systemctl("start", UNIT).returncode != 0
    assert not scene.container.frozen("/")
    assert scene.events.heard == ["quiesced", "resumed failed none"]
    assert scene.state == ("failed", "exit-code")


def test_a_pre_script_that_fails_costs_only_consistency_otherwise(scene: Scene) -> None:
    scene.database(pre="exit 3")
    assert scene.freeze()["consistency"] == "filesystem"
    assert scene.container.frozen("/")
    assert scene.thaw().verdict == ("success", "filesystem", 0)


def test_a_broken_configuration_fails_the_start_if_the_application_counts(scene: Scene) -> None:
    scene.container.write("/etc/vmsnap/apps.d/db.json", "{")
    outcome = scene.vmsnap("freeze", "--json", "--require=application")
    assert outcome.verdict == ("failed", "none", 1)
    assert outcome.errors == ["IncorrectJSONConfigFile"]
    assert not scene.container.frozen("/")


def test_the_next_session_does_not_suffer_from_one_that_failed(scene: Scene) -> None:
    scene.database(pre="exit 3")
    assert scene.vmsnap("freeze", "--require=application").code == 1
    scene.database()
    scene.freeze("--require=application")
    assert scene.thaw().verdict == ("success", "application", 0)


def test_what_somebody_else_froze_is_not_said_to_be_held(scene: Scene) -> None:
    scene.container.add_filesystem("/srv/data")
    scene.container.run("fsfreeze", "--freeze", "/srv/data", check=True)
    held = scene.freeze()
    root, status = scene.container.frozen("/"), scene.status_text
    ended = scene.thaw()
    scene.container.run("fsfreeze", "--unfreeze", "/srv/data", check=True)  # still frozen
    assert ended.subjects == [("FreezeFailed", "/srv/data")]
    assert not root
    assert status.startswith("Holding nothing, ")
    assert (held["consistency"], held["filesystems"]) == ("crash", [])


# --- scripts that take their time ----------------------------------------------------------------


def test_the_unit_never_ends_a_script_that_may_go_on(scene: Scene) -> None:
    scene.settings("TimeoutStartSec=2s", "TimeoutStopSec=2s")
    scene.app(pre=f"sleep 4; {scene.say('quiesced')}", post=f"sleep 4; {scene.say('resumed')}")
    scene.freeze("--require=application")
    assert scene.container.frozen("/")
    assert scene.thaw().verdict == ("success", "application", 0)
    assert scene.events.heard == ["quiesced", "resumed"]
    assert scene.state == ("inactive", "success")


# --- cancelled -----------------------------------------------------------------------------------


@pytest.mark.parametrize("whom", ["vmsnap", "its group"])
def test_an_interrupted_caller_ends_the_session(scene: Scene, whom: str) -> None:
    """A terminal's Ctrl-C reaches all of the group, `kill -INT` only the one."""
    scene.database(pre=scene.stop_at("pre"))
    freeze = scene.start("freeze")
    scene.events.wait("quiesced")
    for pid in freeze.below if whom == "its group" else freeze.below[:1]:
        os.kill(pid, signal.SIGINT)
    assert freeze.finish().code in (-signal.SIGINT, 128 + signal.SIGINT)
    assert scene.events.heard == ["quiesced", "resumed failed none"]
    assert not scene.container.frozen("/")
    assert scene.state[0] in ("inactive", "failed")
    scene.open("pre")
    scene.freeze()
    assert scene.thaw().verdict == ("success", "application", 0)


@pytest.mark.parametrize("by", ["vmsnap", "systemctl"])
def test_a_session_is_cancelled_during_its_pre_scripts(scene: Scene, by: str) -> None:
    scene.database(pre=scene.stop_at("pre"))
    freeze = scene.start("freeze", "--json")
    scene.events.wait("quiesced")
    if by == "vmsnap":
        assert scene.thaw().verdict == ("failed", "none", 1)
    else:
        scene.container.systemctl("stop", UNIT)
    begun = freeze.finish()
    assert begun.verdict == ("failed", "none", 1)
    assert "SnapshotFailed" in begun.errors
    assert not scene.container.frozen("/")
    assert scene.events.heard == ["quiesced", "resumed failed none"]


def test_there_is_nothing_to_thaw_without_a_session(scene: Scene) -> None:
    outcome = scene.vmsnap("thaw")
    assert outcome.code == 1
    assert "NoSession (142)" in outcome.err
    scene.freeze()
    assert scene.thaw().code == 0
    outcome = scene.vmsnap("thaw")
    assert outcome.code == 1
    assert "NoSession (142)" in outcome.err


# --- a request whose caller is gone --------------------------------------------------------------


def test_an_abandoned_request_refuses_one_start(scene: Scene) -> None:
    scene.freeze("--no-fsfreeze")
    scene.thaw()
    scene.container.write("/run/vmsnap/request", '{"session": "an old one"}')
    assert scene.container.systemctl("start", UNIT).returncode != 0
    assert not scene.container.frozen("/")
    assert "found a request whose `vmsnap freeze` is gone" in scene.container.status(UNIT)
    assert scene.container.systemctl("start", UNIT).returncode == 0
    assert scene.container.frozen("/")


@pytest.mark.parametrize("text", ["{", "[]", '{"session": 1, "hold": {}}', "\0\xff"])
def test_a_request_that_is_none_is_no_trouble_for_a_caller(scene: Scene, text: str) -> None:
    scene.container.path("/run/vmsnap").mkdir(mode=0o700)
    scene.container.write("/run/vmsnap/request", text)
    scene.freeze()
    assert scene.thaw().verdict == ("success", "filesystem", 0)


def test_a_start_whose_caller_was_killed_before_is_refused(scene: Scene) -> None:
    wait = f"{scene.say('starting')}; {scene.stop_at('start')}"
    scene.container.write("/run/vmsnap-test/wait", f"#!/bin/sh\n{wait}\n", 0o700)
    scene.settings("ExecStartPre=/run/vmsnap-test/wait")
    freeze = scene.start("freeze", "--hold=7", "--only=/srv/data")
    scene.events.wait("starting")
    os.kill(freeze.below[0], signal.SIGKILL)
    freeze.process.wait()
    scene.open("start")
    scene.wait_for_failure()
    assert not scene.container.frozen("/")
    (record,) = [r for r in scene.container.journal() if "is gone" in str(r["MESSAGE"])]
    assert "found a request whose `vmsnap freeze` is gone" in record["MESSAGE"]
    scene.open("start")
    assert scene.freeze()["filesystems"] == ["/"]


# --- the hold ends otherwise ---------------------------------------------------------------------


def assert_expired(scene: Scene, session: str) -> None:
    scene.wait_for_failure()
    assert not scene.container.frozen("/")
    assert scene.events.heard[-1] == "resumed failed none"
    assert scene.state == ("failed", "exit-code")
    assert "HoldExpired (126)" in scene.container.status(UNIT)
    assert scene.container.journal("VMSNAP_ERROR=HoldExpired", f"VMSNAP_SESSION={session}")
    status = scene.vmsnap("status")
    assert (status.code, b"HoldExpired 126" in status.out) == (1, True)
    outcome = scene.vmsnap("thaw")
    assert outcome.code == 1
    assert "HoldExpired 126" in outcome.err
    assert session in outcome.err
    assert scene.thaw().errors == ["HoldExpired"]


def test_a_session_that_nobody_ends_expires(scene: Scene) -> None:
    scene.database()
    held = scene.freeze("--hold=1")
    assert_expired(scene, held["session"])


@pytest.mark.parametrize("how", ["--no-fsfreeze", "fsFreezeEnabled"])
def test_a_session_with_nothing_frozen_expires(scene: Scene, how: str) -> None:
    scene.database(fsFreezeEnabled=how != "fsFreezeEnabled")
    options = ["--no-fsfreeze"] if how == "--no-fsfreeze" else []
    held = scene.freeze("--hold=1", *options)
    assert held["filesystems"] == []
    assert_expired(scene, held["session"])


def test_a_session_whose_caller_was_killed_meanwhile_expires(scene: Scene) -> None:
    scene.database(pre=scene.stop_at("pre"))
    freeze = scene.start("freeze", "--hold=1")
    scene.events.wait("quiesced")
    os.kill(freeze.below[0], signal.SIGKILL)
    freeze.process.wait()
    session = scene.vmsnap("status", "--json").result["in_progress"]["session"]
    scene.open("pre")
    assert_expired(scene, session)


def test_an_app_that_wants_no_freeze_is_held_all_the_same(scene: Scene) -> None:
    scene.database(fsFreezeEnabled=False)
    assert scene.freeze()["filesystems"] == []
    assert not scene.container.frozen("/")
    assert scene.events.heard == ["quiesced"]
    assert scene.thaw().verdict == ("success", "application", 0)


@pytest.mark.parametrize(
    ("options", "verdict"),
    [((), ("success", "crash", 0)), (("--require=filesystem",), ("failed", "crash", 1))],
)
def test_a_thaw_by_somebody_else_is_told(
    scene: Scene, options: tuple[str, ...], verdict: tuple[str, str, int]
) -> None:
    scene.freeze(*options)
    scene.container.run("fsfreeze", "--unfreeze", "/", check=True)
    outcome = scene.thaw()
    assert outcome.subjects == [("ThawedEarly", "/")]
    assert outcome.verdict == verdict


def test_thaw_force_ends_the_freeze_but_not_the_session(scene: Scene) -> None:
    scene.database()
    scene.freeze()
    assert scene.vmsnap("thaw", "--force").code == 0
    assert not scene.container.frozen("/")
    assert scene.state == ("active", "success")
    outcome = scene.thaw()
    assert outcome.subjects == [("ThawedEarly", "/")]
    assert scene.events.heard == ["quiesced", "resumed success crash"]


def test_who_got_no_snapshot_can_say_so(scene: Scene) -> None:
    scene.database()
    scene.freeze()
    outcome = scene.vmsnap("thaw", "--failed", "--json")
    assert (outcome.code, outcome.errors) == (1, ["SnapshotFailed"])
    assert outcome.result["consistency"] == "none"
    assert scene.events.heard == ["quiesced", "resumed failed none"]
    assert not scene.container.frozen("/")
    assert scene.state == ("failed", "exit-code")
    scene.freeze()  # and the next session knows nothing of it
    assert scene.thaw().code == 0


def test_no_file_of_a_session_is_left_in_the_run_directory(scene: Scene) -> None:
    scene.database()
    scene.freeze()
    scene.thaw()
    left = scene.container.path("/run/vmsnap").rglob("*")
    files = sorted(path.name for path in left if not path.is_dir())
    assert files == ["last-result.json", "lock", "request"]
