# SPDX-License-Identifier: Apache-2.0
"""Exit codes and documents of the commands, on real filesystems."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from .lab import VMSNAP, Lab
from .processes import wait_until

# When signals have their default action again, before the interpreter has ended.
SIGNAL_AT_THE_VERY_END = """
import os, sys
class Last:
    def __del__(self, kill=os.kill, pid=os.getpid(), number=int(sys.argv.pop(1))):
        kill(pid, number)
last = Last()
from vmsnap.cli import main
sys.exit(main.main())
"""


def test_a_session_of_another_user_is_refused(lab: Lab) -> None:
    lab.filesystem()
    done = subprocess.run(
        [VMSNAP, "run", *lab.places(), f"--only={lab.mounts[0]}", "--", "true"],
        user=65534,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 77
    assert "root" in done.stderr


def test_a_session_without_a_command_is_a_usage_error(lab: Lab) -> None:
    outcome = lab.vmsnap("run", f"--only={lab.directory}")
    assert outcome.code == 2
    assert "COMMAND" in outcome.err


def test_check_finds_a_sound_laboratory_in_order_and_changes_nothing(lab: Lab) -> None:
    lab.filesystem()
    lab.app(pre=lab.say("pre"), post=lab.say("post"))
    before = sorted(lab.directory.rglob("*"))
    outcome = lab.vmsnap("check", "--json", f"--only={lab.mounts[0]}")
    assert (outcome.code, outcome.result) == (0, {"ok": True, "problems": []})
    created = {path.name for path in set(lab.directory.rglob("*")) - set(before)}
    assert created <= {"out.0", "err.0"}
    assert lab.events.heard == []
    assert lab.frozen == []


def test_check_fails_where_a_session_would(lab: Lab) -> None:
    lab.filesystem()
    lab.app(pre="exit 0")
    (lab.programs / "db-pre").chmod(0o755)
    outcome = lab.vmsnap("check", "--json", f"--only={lab.mounts[0]}")
    assert outcome.code == 1
    assert [p["name"] for p in outcome.result["problems"]] == [
        "InsufficientPermissionforPre-Script"
    ]


def test_status_without_any_session_says_so(lab: Lab) -> None:
    outcome = lab.vmsnap("status", "--json")
    assert (outcome.code, outcome.result) == (
        0,
        {
            **dict.fromkeys(("provisioning", "in_progress", "lost", "last")),
            "writers_wait": {},
        },
    )


def test_status_fails_after_a_failed_session(lab: Lab) -> None:
    lab.filesystem()
    assert lab.run("exit 1").code == 1
    assert lab.vmsnap("status").code == 1


def test_force_refuses_a_list_that_it_cannot_read(lab: Lab) -> None:
    (lab.run_directory / "frozen.json").write_text("{")
    outcome = lab.vmsnap("thaw", "--force")
    assert outcome.code == 1
    assert (lab.run_directory / "frozen.json").exists()


def test_force_does_not_disturb_a_session_that_has_ended_well(lab: Lab) -> None:
    lab.filesystem()
    assert lab.run("exit 0").code == 0
    assert not (lab.run_directory / "frozen.json").exists()
    assert lab.vmsnap("thaw", "--force").code == 0


def test_what_init_writes_is_refused_until_somebody_edits_it(lab: Lab) -> None:
    lab.filesystem()
    assert lab.vmsnap("init", "postgresql").code == 0
    checked = lab.vmsnap("check", f"--only={lab.mounts[0]}")
    assert checked.code == 1
    assert b"found the script as `vmsnap init` has written it" in checked.out
    outcome = lab.run("exit 0")
    assert outcome.verdict == ("success", "filesystem", 0)
    assert outcome.subjects == [
        ("InsufficientPermissionforPre-Script", "postgresql"),
        ("InsufficientPermissionforPost-Script", "postgresql"),
    ]


def test_output_that_cannot_be_written_is_said(lab: Lab) -> None:
    words = " ".join([str(VMSNAP), "plan", *lab.places()])
    assert lab.helper(f"{words} >/dev/full 2>/dev/null").wait() == 1


def test_the_exit_code_of_a_session_does_not_depend_on_who_reads(lab: Lab) -> None:
    mount = lab.filesystem().mount
    words = " ".join([str(VMSNAP), "run", *lab.places(), f"--only={mount}", "--json"])
    assert lab.helper(f"{words} -- true >/dev/full 2>/dev/null").wait() == 0
    assert lab.helper(f"{words} -- false >/dev/full 2>/dev/null").wait() == 1
    assert lab.helper(f"{words} -- true >/dev/null 2>/dev/full").wait() == 0
    assert lab.helper(f"{words} -- true 2>/dev/full | head -c1 >/dev/null").wait() == 0


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_signal_while_python_ends_changes_no_exit_code(lab: Lab, number: int) -> None:
    lab.filesystem()
    late = (sys.executable, "-IBc", SIGNAL_AT_THE_VERY_END, str(int(number)))
    assert lab.run("exit 0", program=late).code == 0


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_reader_that_does_not_read_keeps_nobody(lab: Lab, number: signal.Signals) -> None:
    lab.filesystem()
    read, write = os.pipe()
    try:
        stuck = lab.start("head -c 1000000 /dev/zero", stdout=write, json=False)
        wait_until(lambda: "pipe_write" in Path(f"/proc/{stuck.pid}/wchan").read_text())
        assert lab.run("exit 0").verdict == ("success", "filesystem", 0)
        stuck.kill(number)
        assert stuck.finish().code == 0
    finally:
        os.close(read)
        os.close(write)


def test_output_of_the_command_that_is_lost_is_said(lab: Lab) -> None:
    mount = lab.filesystem().mount
    words = " ".join([str(VMSNAP), "run", *lab.places(), f"--only={mount}"])
    err = lab.shm / "err"
    assert lab.helper(f"{words} -- echo precious >/dev/full 2>{err}").wait() == 0
    assert "vmsnap run: the output of the command could not be written: No space" in err.read_text()
    assert lab.helper(f"{words} --json -- true >/dev/full 2>{err}").wait() == 0
    assert "vmsnap: the output could not be written: No space left" in err.read_text()


def test_debug_shows_the_decisions_of_a_session(lab: Lab) -> None:
    """On a stderr that lies on a frozen filesystem, where a line too early would wait for good."""
    filesystem = lab.filesystem()
    lab.app(pre="exit 0", post="exit 0")
    log = filesystem.mount / "log"
    with log.open("wb") as file:
        session = lab.start("exit 0", "--debug", stderr=file)
        outcome = session.finish()
    assert outcome.verdict == ("success", "application", 0)
    told = [line for line in log.read_text().splitlines() if line.startswith("debug: ")]
    assert f"debug: {filesystem.mount}: freeze in step 1" in [line.rstrip() for line in told]
    assert any(" freeze_timeout=30.0" in line for line in told if "Settings(" in line)
    assert any("app db of" in line and line.endswith(" runs") for line in told)
