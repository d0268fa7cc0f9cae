# SPDX-License-Identifier: Apache-2.0
"""vmsnap-backup.service and its timer: a session around the command of the settings."""

from __future__ import annotations

import json
import os
import shlex
import signal
from collections.abc import Iterator
from typing import Any

import pytest

from vmsnap.errors import Kind

from .apps import DIRECTORY, UNIT_FAILED, Running, Scene, scene_of, until
from .container import Container

SERVICE, TIMER = "vmsnap-backup.service", "vmsnap-backup.timer"
SETTINGS = "/etc/vmsnap/vmsnap.conf"
TAKE = DIRECTORY / "take"  # on a tmpfs, so that it can be started while everything is frozen
STAMP = "/var/lib/systemd/timers/stamp-vmsnap-backup.timer"
STARTED = "MESSAGE_ID=39f53479d3a045ac8e11786248231fbf"  # sd-messages.h
AT_ONCE = ("OnActiveSec=1ms", "AccuracySec=1us", "RandomizedDelaySec=0")
DAY = 86400  # seconds


@pytest.fixture
def scene(container: Container) -> Iterator[Scene]:
    container.path(STAMP).unlink(missing_ok=True)
    with scene_of(container) as made:
        yield made
    container.path(STAMP).unlink(missing_ok=True)


def command(scene: Scene, words: str) -> None:
    scene.container.write(SETTINGS, f"[snapshot]\ncommand = {words}\n")


def take(scene: Scene, *lines: str) -> None:
    """Let the command be a script of these lines."""
    scene.container.write(TAKE, "\n".join(["#!/bin/sh", *lines, ""]), 0o700)
    command(scene, str(TAKE))


def begin(scene: Scene) -> Running:
    """Start the unit; return when everything is frozen and the command runs."""
    take(scene, scene.say("held $VMSNAP_CONSISTENCY"), scene.stop_at("release"))
    running = scene.start("start", SERVICE, program="systemctl")
    scene.events.wait("held")
    return running


def result(scene: Scene) -> str:
    return scene.container.show(SERVICE, "Result")["Result"]


def last(scene: Scene) -> dict[str, Any]:
    """The last session, as `vmsnap status` has it; `vmsnap history` has the same."""
    document: dict[str, Any] = scene.vmsnap("status", "--json").result["last"]
    scene.container.run("journalctl", "--sync", check=True)
    assert json.loads(scene.vmsnap("history", "--json").out)[0] == document
    return document


def errors(session: dict[str, Any]) -> list[str]:
    return [error["name"] for error in session["errors"]]


def dropped_in(scene: Scene, unit: str, *lines: str) -> None:
    scene.container.write(f"/etc/systemd/system/{unit}.d/test.conf", "\n".join([*lines, ""]))
    scene.container.systemctl("daemon-reload", check=True)


# --- as shipped --------------------------------------------------------------------------------


def test_it_is_shipped_disabled(scene: Scene) -> None:
    shown = scene.container.systemctl("is-enabled", SERVICE, TIMER).stdout
    assert shown == "static\ndisabled\n"
    assert scene.container.systemctl("is-active", SERVICE, TIMER).stdout == "inactive\n" * 2
    assert TIMER not in scene.container.systemctl("list-timers", "--all").stdout


def test_without_a_command_it_fails_with_one_clear_line(scene: Scene) -> None:
    scene.database()
    assert scene.container.systemctl("start", SERVICE).returncode == 1
    assert result(scene) == "exit-code"
    (record,) = scene.container.journal("-t", "vmsnap")
    for words in ("no command= under [snapshot] in /etc/vmsnap/vmsnap.conf", "expected one"):
        assert words in record["MESSAGE"]
        assert words in scene.container.status(SERVICE)
    assert scene.events.heard == []
    assert not scene.container.frozen()


# --- sessions ----------------------------------------------------------------------------------


def test_everything_is_frozen_while_the_command_runs(scene: Scene) -> None:
    scene.container.add_filesystem("/srv/data", "xfs")
    scene.database()
    running = begin(scene)
    assert scene.container.frozen("/")
    assert scene.container.frozen("/srv/data")
    status = scene.container.systemctl("status", SERVICE).stdout
    assert "Active: activating (start)" in status
    until(lambda: "Holding 2 filesystems" in scene.container.systemctl("status", SERVICE).stdout)
    scene.open("release")
    assert running.finish().code == 0
    assert not scene.container.frozen("/")
    assert not scene.container.frozen("/srv/data")
    assert result(scene) == "success"
    assert scene.events.heard == [
        "quiesced",
        "held application",
        "resumed success application",
    ]
    assert (last(scene)["outcome"], last(scene)["consistency"]) == ("success", "application")
    assert last(scene)["snapshot"]["command"] == [str(TAKE)]


def test_a_command_that_fails_is_a_failed_unit(scene: Scene) -> None:
    scene.database()
    take(scene, "echo no space left for it >&2", "exit 3")
    assert scene.container.systemctl("start", SERVICE).returncode == 1
    assert result(scene) == "exit-code"
    assert scene.events.heard == ["quiesced", "resumed failed none"]
    (record,) = scene.container.journal(f"MESSAGE_ID={Kind.SNAPSHOT_FAILED.message_id}")
    assert (record["PRIORITY"], record["VMSNAP_PHASE"]) == ("3", "snapshot")
    status = scene.container.status(SERVICE, "--lines=30")
    assert f'Status: "Failed: SnapshotFailed (130): {TAKE}' in status
    for words in (f"{TAKE} ended with exit code 3", "no space left for it"):
        assert words in status
    assert errors(last(scene)) == ["SnapshotFailed"]
    assert not scene.container.frozen()


def test_it_can_be_started_again_after_it_failed(scene: Scene) -> None:
    command(scene, "false")
    for _ in range(7):  # more than systemd's StartLimitBurst=
        scene.container.systemctl("start", SERVICE)
    command(scene, "true")
    assert scene.container.systemctl("start", SERVICE).returncode == 0
    assert last(scene)["outcome"] == "success"


WORDS = " ".join(
    [
        *("$HOME", "${HOME}", '"a b"', "'c \"d\"'", r"e\ f", ";", "|", "&&", ">", "/dev/null"),
        *("`id`", "$(id)", "*", "~", "%", "%n", "%%n", "%(x)s", r"\$", '""', "#", "g"),
    ]
)


def test_the_words_of_the_command_are_split_and_nothing_else(scene: Scene) -> None:
    take(scene, f'for word; do echo "<$word>"; done >{DIRECTORY}/words')
    command(scene, f"{TAKE} {WORDS}")
    assert scene.container.systemctl("start", SERVICE).returncode == 0
    found = scene.container.read(DIRECTORY / "words").splitlines()
    assert found == [f"<{word}>" for word in shlex.split(WORDS)]
    assert found[:3] == ["<$HOME>", "<${HOME}>", "<a b>"]
    assert last(scene)["snapshot"]["command"][1:] == shlex.split(WORDS)


def test_a_quotation_mark_too_few_is_said_and_nothing_is_run(scene: Scene) -> None:
    scene.database()
    command(scene, f"{TAKE} 'a")
    assert scene.container.systemctl("start", SERVICE).returncode == 1
    assert result(scene) == "exit-code"
    status = scene.container.status(SERVICE)
    assert f"IncorrectSettings (141): {SETTINGS}: key 'command' in [snapshot]" in status
    assert scene.events.heard == []


@pytest.mark.parametrize("name", ["/usr/local/sbin/absent", "absent-program", "/etc/passwd"])
def test_a_program_that_is_missing_is_said_before_anything_is_quiesced(
    scene: Scene, name: str
) -> None:
    scene.database()
    command(scene, f"{name} --now")
    assert scene.container.systemctl("start", SERVICE).returncode == 1
    assert result(scene) == "exit-code"
    status = scene.container.status(SERVICE)
    assert f"SnapshotFailed (130): found no program '{name}', expected one" in status
    assert scene.events.heard == []
    assert last(scene)["filesystems"] == []


def test_a_second_session_is_refused_while_one_is_held(scene: Scene) -> None:
    command(scene, "true")
    scene.freeze()
    assert scene.container.systemctl("start", SERVICE).returncode == 1
    assert scene.container.show(SERVICE, "ExecMainStatus") == {"ExecMainStatus": "75"}
    assert scene.container.frozen("/")
    assert scene.thaw().verdict == ("success", "filesystem", 0)
    assert "SessionInProgress (140)" in scene.container.status(SERVICE)


# --- accidents ---------------------------------------------------------------------------------


def test_when_its_main_process_is_killed_everything_is_thawed(scene: Scene) -> None:
    scene.database()
    running = begin(scene)
    scene.container.systemctl("kill", "--signal=KILL", "--kill-who=main", SERVICE, check=True)
    assert running.finish().code == 1
    assert not scene.container.frozen("/")
    assert result(scene) == "signal"
    scene.events.wait("resumed")
    assert scene.events.heard == ["quiesced", "held application", "resumed failed none"]
    session = last(scene)
    assert errors(session) == ["EngineLost"]
    assert (session["outcome"], session["consistency"]) == ("failed", "none")
    assert scene.container.journal(f"MESSAGE_ID={Kind.ENGINE_LOST.message_id}")
    words = scene.vmsnap("status")
    assert words.code == 1
    assert b"EngineLost 129" in words.out
    assert b"EngineLost" in scene.vmsnap("history").out


def test_stopping_it_while_it_holds_thaws_and_is_no_success(scene: Scene) -> None:
    scene.database()
    running = begin(scene)
    scene.container.systemctl("stop", SERVICE, check=True)
    assert running.finish().code == 1
    assert not scene.container.frozen("/")
    assert scene.events.heard == ["quiesced", "held application", "resumed failed none"]
    session = last(scene)
    assert (session["outcome"], session["consistency"]) == ("failed", "none")
    assert "SIGTERM" in json.dumps(session["errors"])
    assert scene.container.show(SERVICE, "ActiveState") != {"ActiveState": "activating"}


def test_after_an_accident_the_next_session_is_as_good_as_any(scene: Scene) -> None:
    scene.database()
    running = begin(scene)
    scene.container.systemctl("kill", "--signal=KILL", "--kill-who=main", SERVICE, check=True)
    running.finish()
    scene.events.wait("resumed")
    command(scene, "true")
    assert scene.container.systemctl("start", SERVICE).returncode == 0
    assert last(scene)["consistency"] == "application"


# --- the timer ---------------------------------------------------------------------------------


def test_the_timer_is_listed_once_it_is_enabled(scene: Scene) -> None:
    scene.container.systemctl("enable", "--now", TIMER, check=True)
    assert scene.container.systemctl("is-enabled", TIMER).stdout == "enabled\n"
    listed = scene.container.systemctl("list-timers").stdout
    (line,) = [line for line in listed.splitlines() if TIMER in line]
    assert line.endswith(SERVICE)
    assert not line.startswith("-")  # it will elapse
    shown = scene.container.show(TIMER, "RandomizedDelayUSec", "Persistent", "TimersCalendar")
    assert (shown["RandomizedDelayUSec"], shown["Persistent"]) == ("1h", "yes")
    assert "OnCalendar=*-*-* 00:00:00" in shown["TimersCalendar"]
    assert scene.container.systemctl("is-active", SERVICE).stdout == "inactive\n"


def test_the_timer_starts_the_session(scene: Scene) -> None:
    take(scene, scene.say("held"))
    dropped_in(scene, TIMER, "[Timer]", *AT_ONCE)
    scene.container.systemctl("enable", "--now", TIMER, check=True)
    scene.events.wait("held")
    scene.wait_for_record(f"UNIT={SERVICE}", STARTED, "JOB_RESULT=done")
    assert last(scene)["outcome"] == "success"
    (line,) = [
        line
        for line in scene.container.systemctl("list-timers").stdout.splitlines()
        if TIMER in line
    ]
    assert "ago" in line


def test_a_failure_of_a_scheduled_session_is_seen(scene: Scene) -> None:
    command(scene, "false")
    dropped_in(scene, TIMER, "[Timer]", *AT_ONCE)
    scene.container.systemctl("start", TIMER, check=True)
    scene.wait_for_record(f"UNIT={SERVICE}", UNIT_FAILED)
    assert SERVICE in scene.container.systemctl("--failed").stdout
    assert scene.container.systemctl("is-system-running").stdout == "degraded\n"


def test_a_session_that_was_missed_is_made_up_for(scene: Scene) -> None:
    take(scene, scene.say("held"))
    dropped_in(scene, TIMER, "[Timer]", "RandomizedDelaySec=0")
    stamp = scene.container.write(STAMP, "", 0o644)
    long_ago = stamp.stat().st_mtime - 2 * DAY
    os.utime(stamp, (long_ago, long_ago))
    scene.container.systemctl("start", TIMER, check=True)
    scene.events.wait("held")
    scene.wait_for_record(f"UNIT={SERVICE}", STARTED, "JOB_RESULT=done")
    assert last(scene)["outcome"] == "success"


# --- a hung engine -----------------------------------------------------------------------------


def test_a_hung_engine_is_ended_by_systemd(machine: Container) -> None:
    """With `container` there would be too little time: the engine's last word is good for 30 s."""
    machine.reset()
    with machine.guarded(90.0), scene_of(machine) as scene:
        scene.database()
        machine.write(SETTINGS, f"[freeze]\nhold = 2\n[snapshot]\ncommand = {TAKE}\n")
        machine.write(TAKE, f"#!/bin/sh\n{scene.say('held')}\n{scene.stop_at('release')}\n", 0o700)
        dropped_in(scene, SERVICE, "[Service]", "TimeoutStartSec=3s", "TimeoutStopSec=1s")
        running = scene.start("start", SERVICE, program="systemctl")
        scene.events.wait("held")
        engine = int(machine.show(SERVICE, "MainPID")["MainPID"])
        machine.kill(engine, signal.SIGSTOP)
        running.process.wait(60.0)
        assert not machine.frozen("/")
        assert result(scene) == "timeout"
        scene.events.wait("resumed")
        # systemd sends SIGCONT after SIGTERM, so this one could even tell how it ended.
        assert errors(last(scene))[0] == "HoldExpired"
        assert scene.events.heard == ["quiesced", "held", "resumed failed none"]
