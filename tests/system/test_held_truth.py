# SPDX-License-Identifier: Apache-2.0
"""What counts as the word that the snapshot of a held session has been taken, and what does not."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from collections.abc import Iterator

import pytest

from tests.fs import kernel
from tests.fs.processes import is_stuck, wait_for_end

from .apps import DIRECTORY, UNIT, Scene, until
from .container import Container
from .test_held_killed import prepare_stuck, wait_until_inside

PRIVATE = """\
[Service]
Type=oneshot
ExecStart=/bin/true
PrivateTmp=yes
"""


@pytest.fixture
def scene(container: Container) -> Iterator[Scene]:
    made = Scene(container)
    try:
        yield made
    finally:
        made.close()


def last(scene: Scene) -> tuple[str, str, list[str]]:
    """How the last session ended."""
    result = scene.vmsnap("status", "--json").result["last"]
    names = [error["name"] for error in result["errors"]]
    return result["outcome"], result["consistency"], names


@pytest.mark.parametrize("number", [signal.SIGHUP, signal.SIGINT, signal.SIGTERM])
def test_a_signal_to_the_engine_is_no_word(scene: Scene, number: signal.Signals) -> None:
    scene.database()
    scene.freeze()
    scene.container.kill(scene.engine, number)
    assert scene.events.wait("resumed") == "failed none"
    scene.wait_for_failure()
    assert last(scene) == ("failed", "none", ["SnapshotFailed"])
    assert not scene.container.frozen("/")


def test_a_restart_is_no_word(scene: Scene) -> None:
    scene.database()
    first = scene.freeze()["session"]
    scene.container.systemctl("restart", UNIT, check=True)
    history = json.loads(scene.vmsnap("history", "--json").out)
    assert [r["outcome"] for r in history if r["session"] == first] == ["failed"]
    assert scene.thaw().verdict == ("success", "application", 0)


def test_a_change_of_the_target_ends_no_session(scene: Scene) -> None:
    scene.freeze()
    scene.container.systemctl("isolate", "multi-user.target", check=True)
    assert scene.container.frozen("/")
    assert scene.thaw().verdict == ("success", "filesystem", 0)


def test_a_session_that_has_begun_since_is_not_ended_with_the_last_one(scene: Scene) -> None:
    """Whoever ends a session waits for its unit, which by then may be the next session's."""
    scene.container.write(
        "/run/slow/systemctl",
        f"#!/bin/sh\ncase $1 in stop|show) read word <{DIRECTORY}/slow ;; esac\n"
        'exec /bin/systemctl "$@"\n',
        0o700,
    )
    scene.stop_at("slow")
    scene.freeze()
    path = {"PATH": "/run/slow:/usr/sbin:/usr/bin:/sbin:/bin"}
    thaw = scene.container.popen("vmsnap", "thaw", "--failed", env=path)
    until(lambda: scene.state[0] != "active")
    until(lambda: scene.vmsnap("freeze").code == 0)
    scene.open("slow")
    scene.open("slow")
    thaw.wait()
    assert scene.container.frozen("/")
    assert scene.thaw().verdict == ("success", "filesystem", 0)


def test_a_plain_stop_is_one(scene: Scene) -> None:
    scene.freeze()
    scene.container.systemctl("stop", UNIT, check=True)
    assert last(scene) == ("success", "filesystem", [])


def test_thaw_ends_no_other_session_than_the_one_that_is_meant(scene: Scene) -> None:
    mine = scene.freeze("--hold=1")["session"]
    scene.wait_for_failure()
    theirs = scene.freeze()["session"]
    outcome = scene.vmsnap("thaw", "--json", mine)
    assert (outcome.code, outcome.errors) == (1, ["HoldExpired"])
    assert outcome.result["session"] == mine
    assert scene.container.frozen("/")
    unknown = scene.vmsnap("thaw", "--json", "0" * 8)
    assert (unknown.code, unknown.errors) == (75, ["SessionInProgress"])
    assert scene.container.frozen("/")
    assert scene.vmsnap("thaw", "--json", theirs[:8]).verdict == ("success", "filesystem", 0)
    assert scene.vmsnap("thaw", "--json", theirs).verdict == ("success", "filesystem", 0)


def test_thaw_needs_no_systemd_that_answers(scene: Scene) -> None:
    """The manager makes the directories of a PrivateTmp= itself, and waits for the frozen disk."""
    scene.container.write("/run/systemd/system/private.service", PRIVATE, 0o644)
    scene.container.systemctl("daemon-reload", check=True)
    scene.freeze("--hold=25")
    scene.start("start", "--no-block", "private.service", program="systemctl")
    until(lambda: is_stuck(scene.container.leader))
    assert scene.thaw().verdict == ("success", "filesystem", 0)
    assert not scene.container.frozen("/")
    assert scene.container.systemctl("is-system-running").stdout.strip() in {"running", "degraded"}


def test_without_room_for_its_progress_a_session_does_not_hold(scene: Scene) -> None:
    """`vmsnap thaw` would not find it."""
    scene.vmsnap("thaw")  # makes nothing but the run directory
    scene.container.systemctl("start", UNIT, check=True)
    scene.container.systemctl("stop", UNIT, check=True)
    run = scene.container.path("/run/vmsnap")
    scene.container.run("mount", "-t", "tmpfs", "-o", "size=12k,mode=0700", "full", "/run/vmsnap")
    scene.container.added.callback(scene.container.run, "umount", "--lazy", "/run/vmsnap")
    (run / "filler").write_bytes(b"x" * 4096)
    outcome = scene.vmsnap("freeze", "--json")
    assert outcome.code != 0
    assert not scene.container.frozen("/")
    assert scene.state[0] != "active"


def test_the_exit_code_does_not_depend_on_who_reads(scene: Scene) -> None:
    scene.freeze("--hold=1")
    scene.wait_for_failure()
    read, write = os.pipe()
    os.close(read)
    thaw = scene.container.popen("vmsnap", "thaw", stdout=subprocess.DEVNULL, stderr=write)
    code = thaw.wait()
    os.close(write)
    assert code == 1


def test_a_post_script_that_has_run_is_not_run_again(scene: Scene) -> None:
    """Though everything is killed while another app's still runs."""
    scene.app("fast", pre=":", post=scene.say("fast"))
    scene.app("slow", pre=":", post=f"{scene.say('slow')}; {scene.stop_at('slow')}")
    scene.freeze()
    thawing = scene.start("thaw")
    scene.events.wait("slow")
    scene.events.wait("fast")
    until(lambda: not list(scene.container.path("/run/vmsnap/scripts").glob("*/fast")))
    scene.container.systemctl("kill", "--signal=KILL", UNIT, check=True)
    until(lambda: scene.events.heard.count("slow") == 2)
    scene.open("slow")
    scene.open("slow")
    assert thawing.finish().code == 1
    assert scene.events.heard.count("fast") == 1


def test_what_a_killed_session_owes_is_not_forgotten_over_a_stuck_guard(scene: Scene) -> None:
    """The guard, inside a FIFREEZE, outlives everybody and holds the lock."""
    scene.database()
    only = prepare_stuck(scene)
    freezing = scene.start("freeze", *only)
    wait_until_inside(scene)
    guard = scene.guard
    scene.container.systemctl("kill", "--signal=KILL", UNIT, check=True)
    assert scene.events.wait("resumed") == "failed none"
    assert freezing.finish().code == 1
    kernel.thaw(scene.container.path("/srv/parent"))
    assert wait_for_end(guard)
    mounts = ("/srv/child", "/srv/other", "/srv/parent")
    until(lambda: not any(map(scene.container.frozen, mounts)))
    assert scene.events.heard.count("resumed failed none") == 1
