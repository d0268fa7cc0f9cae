# SPDX-License-Identifier: Apache-2.0
"""The snapshot command misbehaves, and what becomes of its output."""

from __future__ import annotations

import shlex
from pathlib import Path

import pytest

from .lab import Lab
from .processes import look_at, wait_for_end

# --- its time ------------------------------------------------------------------------------------


def test_a_command_that_writes_to_a_frozen_filesystem_goes_on_when_the_hold_expires(
    lab: Lab,
) -> None:
    filesystem = lab.filesystem()
    outcome = lab.run(f"echo x >{filesystem.mount}/file; echo $?", "--hold=1")
    assert outcome.verdict == ("success", "crash", 0)
    assert outcome.errors == ["HoldExpired"]
    assert outcome.err.startswith("0\n") or "\n0\n" in outcome.err
    assert (filesystem.mount / "file").read_text() == "x\n"
    assert lab.frozen == []


def test_a_command_that_outlasts_the_hold_still_made_a_snapshot(lab: Lab) -> None:
    lab.filesystem()
    session = lab.hold("--hold=1")
    lab.wait_for_thaw()
    lab.release()
    outcome = session.finish()
    assert outcome.verdict == ("success", "crash", 0)
    assert outcome.errors == ["HoldExpired"]


def test_a_command_that_outlasts_the_hold_is_not_enough_where_more_is_required(lab: Lab) -> None:
    lab.filesystem()
    session = lab.hold("--hold=1", "--require=filesystem")
    lab.wait_for_thaw()
    lab.release()
    outcome = session.finish()
    assert outcome.verdict == ("failed", "crash", 1)


def test_the_hold_expires_also_when_the_platform_freezes(lab: Lab) -> None:
    """The applications are held all the same."""
    lab.filesystem()
    outcome = lab.run("sleep 1", "--hold=0.2", "--no-fsfreeze")
    assert outcome.verdict == ("success", "crash", 0)
    assert outcome.errors == ["HoldExpired"]


def test_a_command_that_never_ends_is_ended_with_all_that_it_started(lab: Lab) -> None:
    lab.filesystem()
    lab.conf("[scripts]\nkill_grace = 0.2\n")
    lab.app(post=lab.say("resumed $VMSNAP_OUTCOME $VMSNAP_CONSISTENCY"))
    deaf = f"trap '' TERM; {lab.say('deaf $$')}; {lab.stop_at('never')}"
    outcome = lab.run(f"setsid /bin/sh -c {shlex.quote(deaf)}", "--hold=1")
    assert outcome.verdict == ("failed", "none", 1)
    assert set(outcome.errors) == {"HoldExpired", "SnapshotFailed"}
    assert look_at(int(lab.events.wait("deaf"))) is None
    assert lab.events.wait("resumed") == "failed none"
    assert lab.frozen == []


# --- its end -------------------------------------------------------------------------------------


def test_a_command_that_fails_made_no_snapshot(lab: Lab) -> None:
    lab.filesystem()
    outcome = lab.run("exit 3")
    assert outcome.verdict == ("failed", "none", 1)
    assert outcome.errors == ["SnapshotFailed"]
    assert outcome.result["snapshot"]["exit"] == 3
    assert "3" in outcome.result["errors"][0]["message"]
    assert lab.frozen == []


def test_a_command_that_is_killed_made_no_snapshot(lab: Lab) -> None:
    lab.filesystem()
    outcome = lab.run("kill -KILL $$")
    assert outcome.verdict == ("failed", "none", 1)
    assert outcome.errors == ["SnapshotFailed"]
    assert outcome.result["snapshot"]["exit"] is None
    assert "SIGKILL" in outcome.result["errors"][0]["message"]
    assert lab.frozen == []


def test_a_missing_command_is_noticed_before_anything_is_done(lab: Lab) -> None:
    lab.filesystem()
    lab.app(pre=lab.say("quiesced"), post=lab.say("resumed"))
    outcome = lab.run(["vmsnap-no-such-command"])
    assert outcome.verdict == ("failed", "none", 1)
    assert outcome.subjects == [("SnapshotFailed", "vmsnap-no-such-command")]
    assert outcome.result["filesystems"] == []
    assert lab.events.heard == []


def test_a_command_that_the_kernel_cannot_run_is_said(lab: Lab) -> None:
    lab.filesystem()
    broken = lab.program("broken", "", shebang="#!/no/such/interpreter")
    outcome = lab.run([broken])
    assert outcome.verdict == ("failed", "none", 1)
    assert outcome.errors == ["SnapshotFailed"]
    assert "No such file" in outcome.result["errors"][0]["message"]
    assert lab.frozen == []


def test_a_command_without_an_interpreter_line_is_run_by_the_shell(lab: Lab) -> None:
    lab.filesystem()
    command = lab.program("snapshot", lab.say("$0 $1"), shebang="")
    assert lab.run([command, "argument"]).verdict == ("success", "filesystem", 0)
    assert lab.events.heard == [f"{command} argument"]


def test_what_a_successful_command_leaves_running_delays_nobody(lab: Lab) -> None:
    lab.filesystem()
    left = f"({lab.say('background')}; {lab.stop_at('later')}; {lab.say('ended')}) & echo out"
    outcome = lab.run(left)
    assert outcome.verdict == ("success", "filesystem", 0)
    assert "out\n" in outcome.err
    lab.open("later")
    lab.events.wait("ended")
    lab.wait_for_rest()


# --- its output ----------------------------------------------------------------------------------


def binary(lab: Lab) -> list[Path | str]:
    every = bytes(range(256)) * 300
    (lab.directory / "every").write_bytes(every)
    return ["/bin/cat", lab.directory / "every"]


def test_the_output_appears_unchanged_and_only_after_the_thaw(lab: Lab) -> None:
    lab.filesystem()
    session = lab.hold(json=False, last="printf 'later\\000'")
    assert session.out.read_bytes() == b""
    lab.release()
    assert session.finish().out == b"later\0"


def test_binary_output_passes_unchanged(lab: Lab) -> None:
    lab.filesystem()
    outcome = lab.run(binary(lab), json=False)
    assert outcome.code == 0
    assert outcome.out == bytes(range(256)) * 300


def test_with_json_the_output_goes_to_stderr_and_stdout_is_one_document(lab: Lab) -> None:
    lab.filesystem()
    session = lab.start(binary(lab))
    outcome = session.finish()
    assert outcome.verdict == ("success", "filesystem", 0)
    assert bytes(range(256)) * 300 in session.err.read_bytes()


def test_a_flood_on_stderr_is_no_failure(lab: Lab) -> None:
    lab.filesystem()
    outcome = lab.run("head -c 200M /dev/zero >&2; echo end")
    assert outcome.verdict == ("success", "filesystem", 0)
    assert lab.frozen == []


def test_output_that_cannot_be_kept_whole_fails_the_snapshot(lab: Lab) -> None:
    lab.filesystem()
    outcome = lab.run("head -c 200M /dev/zero >&2 & head -c 200M /dev/zero; wait")
    assert outcome.verdict == ("failed", "none", 1)
    assert outcome.errors == ["SnapshotFailed"]
    assert "64 MiB" in outcome.result["errors"][0]["message"]
    assert lab.frozen == []


def test_output_up_to_the_limit_is_kept_whole(lab: Lab) -> None:
    lab.filesystem()
    outcome = lab.run("head -c 64M /dev/zero", json=False)
    assert outcome.code == 0
    assert len(outcome.out) == 64 << 20


# --- what it is given ----------------------------------------------------------------------------


@pytest.mark.parametrize("app", [True, False])
def test_the_command_knows_its_session_and_the_consistency_so_far(lab: Lab, app: bool) -> None:
    lab.filesystem()
    if app:
        lab.app(pre="exit 0")
    outcome = lab.run(
        lab.say("given $VMSNAP_SESSION $VMSNAP_CONSISTENCY $MINE $TMPDIR"), env={"MINE": "kept"}
    )
    level = "application" if app else "filesystem"
    session = outcome.result["session"]
    (given,) = lab.events.heard
    assert given.startswith(f"given {session} {level} kept {lab.run_directory}")


def test_the_command_runs_in_a_session_of_its_own_without_foreign_descriptors(lab: Lab) -> None:
    lab.filesystem()
    probe = lab.program(
        "probe",
        "import os",
        "fds = []",
        "for name in os.listdir('/proc/self/fd'):",
        "    try: fds.append(int(name)) if os.readlink(f'/proc/self/fd/{name}') else None",
        "    except OSError: pass",
        "print(sorted(fds), os.getsid(0) == os.getpid(), os.readlink('/proc/self/fd/0'))",
        shebang="#!/usr/bin/python3 -ISB",
    )
    outcome = lab.run([probe], json=False)
    assert outcome.out == b"[0, 1, 2] True /dev/null\n"


def test_the_end_of_the_command_does_not_wait_for_the_hold(lab: Lab) -> None:
    lab.filesystem()
    session = lab.hold("--hold=3600")
    lab.release()
    assert wait_for_end(session.pid)
    assert session.finish().code == 0


def test_what_the_command_left_mounted_in_its_temporary_directory_is_not_emptied(lab: Lab) -> None:
    lab.filesystem()
    kept = lab.directory / "kept"
    kept.mkdir()
    (kept / "file").write_text("precious")
    outcome = lab.run(f'd=$(mktemp -d) && mount --bind {kept} "$d" && mkdir "$TMPDIR/other"')
    assert outcome.verdict == ("success", "filesystem", 0)
    assert (kept / "file").read_text() == "precious"
    assert lab.run("exit 0").verdict == ("success", "filesystem", 0)
    assert (kept / "file").read_text() == "precious"
