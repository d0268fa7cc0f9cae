# SPDX-License-Identifier: Apache-2.0
"""What works while `/` itself is frozen, journal and all, and that nothing is lost by it."""

from __future__ import annotations

import json
import signal
from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest

from .apps import UNIT, Scene, scene_of, until
from .container import Container

SOON = 10.0  # seconds after which a command counts as hanging
LINES = 1500
# systemd reads nothing from the disk for these, or only what it may.
ORDINARY = (
    ("vmsnap", "status"),
    ("vmsnap", "status", "--json"),
    ("vmsnap", "history"),
    ("vmsnap", "plan"),
    ("vmsnap", "check"),
    ("systemctl", "--no-pager", "status", UNIT),
    ("systemctl", "--no-pager", "list-units", "vmsnap*"),
    ("systemctl", "show", UNIT),
    ("journalctl", "--no-pager", "-n5"),
    ("journalctl", "--no-pager", "-u", UNIT),
    ("logger", "said while frozen"),
    ("sh", "-c", "echo words; cat /etc/hostname"),
    ("bash", "-lc", "true"),
    ("python3", "-c", "import json"),
    ("ls", "-lR", "/etc/vmsnap"),
    ("systemctl", "start", "tmp.mount"),
    ("sh", "-c", "echo words >/run/vmsnap-test/words"),
)


@pytest.fixture
def scene(container: Container) -> Iterator[Scene]:
    with scene_of(container) as made:
        yield made


def test_whatever_writes_nothing_returns(scene: Scene) -> None:
    scene.database()
    assert scene.vmsnap("freeze", timeout=SOON).code == 0
    for command in ORDINARY:
        done = scene.container.run(*command, timeout=SOON)
        assert done.returncode == 0, f"{command}: {done.stdout}{done.stderr}"
        assert scene.container.frozen("/")
    assert scene.vmsnap("thaw", timeout=SOON).code == 0
    assert not scene.container.frozen("/")
    said = [record["MESSAGE"] for record in scene.container.journal("-t", "root")]
    assert said == ["said while frozen"]


def test_systemctl_stop_returns(scene: Scene) -> None:
    scene.container.systemctl("start", UNIT, timeout=SOON, check=True)
    assert scene.container.frozen("/")
    scene.container.systemctl("stop", UNIT, timeout=SOON, check=True)
    assert not scene.container.frozen("/")


@pytest.mark.parametrize("fstype", ["ext4", "xfs"])
def test_a_second_filesystem_is_frozen_with_it(scene: Scene, fstype: str) -> None:
    scene.container.add_filesystem("/srv/data", fstype)
    held = scene.freeze()
    assert sorted(held["filesystems"]) == ["/", "/srv/data"]
    assert [scene.container.frozen(path) for path in ("/", "/srv/data")] == [True, True]
    outcome = scene.vmsnap("thaw", "--json", timeout=SOON)
    assert outcome.verdict == ("success", "filesystem", 0)
    assert [scene.container.frozen(path) for path in ("/", "/srv/data")] == [False, False]
    assert {f["mount"] for f in outcome.result["filesystems"] if f["held_ms"] > 0} == {
        "/",
        "/srv/data",
    }
    for path in ("/root/file", "/srv/data/file"):
        scene.container.run("sh", "-c", f"echo words >{path} && sync {path}", check=True)
        assert scene.container.read(path) == "words\n"


def test_a_writer_waits_for_the_thaw_and_loses_nothing(scene: Scene) -> None:
    scene.freeze()
    words = f"{scene.say('writing')}; echo words >/root/file; {scene.say('written')}"
    writer = scene.start("-c", words, program="sh")
    scene.events.wait("writing")
    scene.vmsnap("status", timeout=SOON)
    assert scene.events.heard == ["writing"]
    assert scene.vmsnap("thaw", timeout=SOON).code == 0
    assert writer.finish().code == 0
    assert scene.container.read("/root/file") == "words\n"


def assert_told(records: list[dict[str, Any]], session: str) -> None:
    """The session itself is told, from the beginning to the end, and nothing twice."""
    messages = Counter(r["MESSAGE"] for r in records if r["SYSLOG_IDENTIFIER"] == "vmsnap")
    for message in (
        f"Session {session} begins",
        "Running pre-scripts",
        "pre-script of db succeeded in",
        "Filesystems to freeze: 1",
        "Filesystems frozen: 1",
        "Filesystems thawed: 1",
        "Running post-scripts",
        "post-script of db succeeded in",
        f"Session {session} ended: success, ",
    ):
        assert sum(n for told, n in messages.items() if told.startswith(message)) == 1, message
    assert not [message for message in messages if "lost" in message]


def test_the_journal_has_every_record_of_the_session(scene: Scene) -> None:
    scene.app(pre="echo before", post="echo after")
    session = scene.freeze()["session"]
    assert scene.vmsnap("thaw", timeout=SOON).code == 0
    records = scene.container.journal(f"VMSNAP_SESSION={session}")
    said = [r["MESSAGE"] for r in records if r["SYSLOG_IDENTIFIER"] == "vmsnap-script"]
    assert said == ["before", "after"]
    assert_told(records, session)


def test_the_journal_has_every_line_of_scripts_that_say_a_lot(scene: Scene) -> None:
    def talk(phase: str) -> str:
        return f"i=0; while [ $i -lt {LINES} ]; do echo {phase} $i; i=$((i+1)); done"

    scene.app(pre=talk("pre"), post=talk("post"))
    session = scene.freeze()["session"]
    assert scene.vmsnap("thaw", timeout=SOON).code == 0
    records = scene.container.journal(f"VMSNAP_SESSION={session}")
    assert_told(records, session)
    said = [r["MESSAGE"] for r in records if r["SYSLOG_IDENTIFIER"] == "vmsnap-script"]
    assert said == [f"{phase} {i}" for phase in ("pre", "post") for i in range(LINES)]


def test_the_journal_has_what_systemd_and_others_said_meanwhile(scene: Scene) -> None:
    scene.freeze()
    for number in range(20):
        scene.container.run("logger", "--tag=other", f"word {number}", timeout=SOON)
    assert scene.vmsnap("thaw", timeout=SOON).code == 0
    said = [record["MESSAGE"] for record in scene.container.journal("-t", "other")]
    assert said == [f"word {number}" for number in range(20)]
    units = [record["MESSAGE"] for record in scene.container.journal(f"UNIT={UNIT}")]
    # Whether systemd also stops the unit, or finds it ended, depends on who is faster.
    assert [message.split(" ")[0] for message in units][:2] == ["Starting", "Started"]
    assert f"{UNIT}: Deactivated successfully." in units


def test_what_was_left_running_may_go_on_talking(scene: Scene) -> None:
    words = "while :; do echo words; done"
    scene.app(pre=f"setsid sh -c '{words}' & echo $! >/run/talker", post="kill $(cat /run/talker)")
    scene.freeze()
    assert scene.vmsnap("status", timeout=SOON).code == 0
    outcome = scene.vmsnap("thaw", "--json", timeout=SOON)
    assert outcome.verdict == ("success", "application", 0)


def test_a_hold_of_the_root_filesystem_expires(scene: Scene) -> None:
    scene.database()
    scene.freeze("--hold=1")
    assert scene.events.wait("resumed") == "failed none"
    scene.wait_for_failure()
    assert not scene.container.frozen("/")
    assert scene.vmsnap("thaw", "--json").errors == ["HoldExpired"]


def test_the_state_directory_has_the_result_after_the_thaw(scene: Scene) -> None:
    session = scene.freeze()["session"]
    assert not scene.container.path("/var/lib/vmsnap/last-result.json").exists()
    scene.vmsnap("thaw", timeout=SOON)
    last = json.loads(scene.container.read("/var/lib/vmsnap/last-result.json"))
    assert (last["session"], last["outcome"]) == (session, "success")


def test_processes_can_be_killed_that_wait_for_nothing(scene: Scene) -> None:
    scene.freeze()
    sleeper = scene.start("600", program="sleep")
    until(lambda: scene.container.pids("sleep"))
    (pid,) = scene.container.pids("sleep")
    scene.container.run("pkill", "-x", "sleep", timeout=SOON, check=True)
    assert sleeper.finish().code in (-signal.SIGTERM, 128 + signal.SIGTERM)
    assert pid not in scene.container.pids()
    assert scene.thaw().code == 0
