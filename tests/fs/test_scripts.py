# SPDX-License-Identifier: Apache-2.0
"""What a script is given and how it is run: arguments, environment, attempts, output."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from .lab import Lab
from .processes import look_at

PROBE = r"""
import json, os, sys
fds = {}
for name in os.listdir("/proc/self/fd"):
    try:
        fds[name] = os.readlink(f"/proc/self/fd/{name}")
    except OSError:
        pass
environ = open("/proc/self/environ", "rb").read().decode().split("\0")[:-1]
json.dump({
    "argv": sys.argv,
    "cwd": os.getcwd(),
    "environ": dict(word.split("=", 1) for word in environ),
    "fds": sorted(map(int, fds)),
    "stdin": fds["0"],
    "leader": os.getpgrp() == os.getpid(),
    "session": os.getsid(0),
    "oom": open("/proc/self/oom_score_adj").read().strip(),
    "directory": os.path.isdir(os.environ["VMSNAP_SCRIPT_DIR"]),
    "listing": os.listdir(os.environ["VMSNAP_SCRIPT_DIR"]),
    "mode": os.stat(os.environ["VMSNAP_SCRIPT_DIR"]).st_mode & 0o7777,
}, open(f"REPORTS/{os.environ['VMSNAP_PHASE']}.json", "w"))
open(os.path.join(os.environ["VMSNAP_SCRIPT_DIR"], os.environ["VMSNAP_PHASE"]), "w").close()
"""


def probed(lab: Lab, **keys: Any) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
    """Run a session with probes as scripts; return the two reports and the session's result."""
    lab.filesystem()
    text = PROBE.replace("REPORTS", str(lab.shm))
    probe = lab.program("probe", text, shebang="#!/usr/bin/python3 -ISB")
    lab.app("my-db", preScriptLocation=str(probe), postScriptLocation=str(probe), **keys)
    outcome = lab.run("exit 0", env={"LANG": "C.UTF-8", "SECRET": "x", "PYTHONPATH": "/tmp"})
    assert outcome.verdict == ("success", "application", 0), outcome.result["errors"]
    pre, post = (json.loads((lab.shm / f"{phase}.json").read_text()) for phase in ("pre", "post"))
    return pre, post, outcome.result


def test_arguments_are_passed_as_they_are(lab: Lab) -> None:
    words = ["two words", "$HOME", "*", "", "'\"\\", "ünïcode"]
    pre, post, _ = probed(lab, preScriptParams=words, postScriptParams=["resume"])
    assert pre["argv"] == [str(lab.programs / "probe"), *words]
    assert post["argv"] == [str(lab.programs / "probe"), "resume"]


def test_the_environment_is_exactly_the_documented_one(lab: Lab) -> None:
    pre, post, result = probed(lab, timeoutInSeconds=45)
    directory = pre["environ"]["VMSNAP_SCRIPT_DIR"]
    assert pre["environ"] == {
        "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
        "LANG": "C.UTF-8",
        "HOME": "/root",
        "VMSNAP_SESSION": result["session"],
        "VMSNAP_APP": "my-db",
        "VMSNAP_PHASE": "pre",
        "VMSNAP_ATTEMPT": "1",
        "VMSNAP_TIMEOUT": "45",
        "VMSNAP_SCRIPT_DIR": directory,
    }
    assert post["environ"] == {
        **pre["environ"],
        "VMSNAP_PHASE": "post",
        "VMSNAP_OUTCOME": "success",
        "VMSNAP_CONSISTENCY": "application",
    }


def test_scripts_start_in_the_root_directory_with_clean_descriptors(lab: Lab) -> None:
    for report in probed(lab)[:2]:
        assert report["cwd"] == "/"
        assert report["fds"] == [0, 1, 2]
        assert report["stdin"] == "/dev/null"
        assert report["leader"]
        assert report["session"] != os.getsid(0)
        assert report["oom"] == "0"


def test_scripts_start_with_no_signal_ignored_or_blocked(lab: Lab) -> None:
    lab.filesystem()
    said = lab.say("signals $(grep -E '^Sig(Ign|Blk)' /proc/self/status | tr -cs '0-9a-f' ' ')")
    lab.app(pre=said)
    assert lab.run("exit 0").code == 0
    for mask in lab.events.wait("signals").split():
        assert int(mask, 16) & 0x7FFFFFFF == 0  # 32 and 33 are glibc's; nobody can set them


def test_pre_and_post_share_a_private_directory_that_goes_with_the_session(lab: Lab) -> None:
    pre, post, _ = probed(lab)
    directory = Path(pre["environ"]["VMSNAP_SCRIPT_DIR"])
    assert pre["directory"]
    assert pre["listing"] == []
    assert post["listing"] == ["pre"]
    assert pre["mode"] == 0o700
    assert directory.is_relative_to(lab.run_directory)
    assert not directory.exists()


def test_a_script_without_an_interpreter_line_is_run_by_the_shell_under_its_own_name(
    lab: Lab,
) -> None:
    lab.filesystem()
    script = lab.program("plain", lab.say("$0 $1"), shebang="")
    lab.app(preScriptLocation=str(script), preScriptParams=["argument"])
    assert lab.run("exit 0").verdict == ("success", "application", 0)
    assert lab.events.heard == [f"{script} argument"]


# --- attempts ------------------------------------------------------------------------------------


def test_a_failed_script_is_started_again_as_often_as_configured(lab: Lab) -> None:
    lab.filesystem()
    lab.app(
        pre=f"{lab.say('attempt $VMSNAP_ATTEMPT $$')}; [ $VMSNAP_ATTEMPT = 3 ]",
        preScriptNoOfRetries=5,
    )
    outcome = lab.run("exit 0")
    assert outcome.verdict == ("success", "application", 0)
    attempts = [line.split() for line in lab.events.heard]
    assert [number for _, number, _ in attempts] == ["1", "2", "3"]
    assert len({pid for _, _, pid in attempts}) == 3
    assert outcome.result["apps"][0]["pre"]["attempts"] == 3
    assert outcome.result["apps"][0]["pre"]["exit"] == 0


@pytest.mark.parametrize("phase", ["pre", "post"])
@pytest.mark.parametrize("retries", [0, 2])
def test_a_script_that_always_fails_lowers_the_consistency(
    lab: Lab, phase: str, retries: int
) -> None:
    lab.filesystem()
    script = f"{lab.say('tried')}; exit 7"
    retry = {f"{phase}ScriptNoOfRetries": retries}
    lab.app("db", script if phase == "pre" else "", script if phase == "post" else "", **retry)
    outcome = lab.run("exit 0")
    assert outcome.verdict == ("success", "filesystem", 0)
    assert outcome.subjects == [(f"{phase.title()}-ScriptExecutionFailed", "db")]
    assert lab.events.heard == ["tried"] * (retries + 1)
    script_result = outcome.result["apps"][0][phase]
    assert script_result["attempts"] == retries + 1
    assert script_result["exit"] == 7
    assert not script_result["timed_out"]


def test_a_script_killed_by_a_signal_has_failed(lab: Lab) -> None:
    lab.filesystem()
    lab.app(pre="kill -SEGV $$")
    outcome = lab.run("exit 0")
    assert outcome.errors == ["Pre-ScriptExecutionFailed"]
    assert outcome.result["apps"][0]["pre"]["signal"] == 11
    assert outcome.result["apps"][0]["pre"]["exit"] is None


# --- output --------------------------------------------------------------------------------------


def test_the_last_4_kib_of_output_travel_in_the_error(lab: Lab) -> None:
    lab.filesystem()
    lab.app(pre="printf %05000d 0 | tr 0 a; printf %04096d 0 | tr 0 b >&2; exit 1")
    message = lab.run("exit 0").result["errors"][0]["message"]
    assert message.endswith(" " + "b" * 4096)


def test_every_line_of_output_is_logged(lab: Lab) -> None:
    lab.filesystem()
    lab.app(pre="echo one; echo two >&2; echo '<4>three'; printf four")
    lines = lab.run("exit 0").err.splitlines()
    for line in ("<6>one", "<6>two", "<4>three", "<6>four"):
        assert line in lines


def test_output_that_is_no_text_does_no_harm(lab: Lab) -> None:
    lab.filesystem()
    lab.app(pre="head -c 100000 /dev/urandom; exit 1")
    outcome = lab.run("exit 0")
    assert outcome.errors == ["Pre-ScriptExecutionFailed"]


def test_a_flood_of_output_is_drained(lab: Lab) -> None:
    lab.filesystem()
    lab.app(pre="head -c 200M /dev/zero | tr '\\0' x; echo; echo end")
    outcome = lab.run("exit 0")
    assert outcome.verdict == ("success", "application", 0)
    assert "more lines of output are left out" in outcome.err
    assert outcome.err.count("x") < 200 << 20


# --- what stays behind ---------------------------------------------------------------------------


def test_what_a_successful_pre_script_leaves_running_delays_nothing_and_lives_on(lab: Lab) -> None:
    """It keeps the script's stdout, writes to it in the hold, and must not be killed by that."""
    lab.filesystem()
    loop = f"{lab.stop_at('go')}; echo busy; {lab.say('alive')}; {lab.stop_at('later')}"
    lab.app(pre=f"({loop}) & {lab.say('left $!')}", post=lab.say("resumed"))
    session = lab.hold()
    left = int(lab.events.wait("left"))
    lab.open("go")
    lab.events.wait("alive", session)
    assert look_at(left)
    lab.release()
    assert session.finish().verdict == ("success", "application", 0)
    assert look_at(left)
    lab.open("later")
    lab.wait_for_rest()


def test_what_a_failed_pre_script_leaves_running_is_ended(lab: Lab) -> None:
    lab.filesystem()
    lab.app(pre=f"({lab.stop_at('never')}) & {lab.say('left $!')}; exit 1")
    session = lab.hold()
    assert look_at(int(lab.events.wait("left"))) is None
    lab.release()
    assert session.finish().errors == ["Pre-ScriptExecutionFailed"]


def test_the_scripts_directory_outlives_the_death_of_the_engine_until_post_has_run(
    lab: Lab,
) -> None:
    lab.filesystem()
    lab.app(
        pre="echo kept >$VMSNAP_SCRIPT_DIR/state",
        post=lab.say("resumed $(cat $VMSNAP_SCRIPT_DIR/state)"),
    )
    session = lab.hold()
    session.process.kill()
    assert lab.events.wait("resumed") == "kept"
    lab.wait_for_rest()
    scripts = lab.run_directory / "scripts"
    assert not scripts.exists() or os.listdir(scripts) == []
