# SPDX-License-Identifier: Apache-2.0
"""A pending post-script is run by whoever comes next, once, and never before its pre-script ended:
supervisors are killed at the worst moments, and resources run short."""

from __future__ import annotations

import contextlib
import errno
import os
import resource
import signal
import sys
from pathlib import Path

import pytest

from . import kernel
from .faults import kill_all, kill_both
from .lab import Lab, call
from .processes import children, wait_for_end, wait_until
from .running import Session
from .stuck import lock_memory

INVOCATION = {"INVOCATION_ID": "4711"}
RUN_DIRECTORY = {".vmsnap", "lock", "last-result.json"}  # when no session is in progress
POST = "resumed $VMSNAP_OUTCOME $VMSNAP_CONSISTENCY"
# The engine dies when it has forked another supervisor, before that is told anything.
KILLED_AFTER_REPLACING = """
import os, signal, sys
from vmsnap.cli import main
from vmsnap.scripts.engine import AppScripts
supervise, count = AppScripts._supervise, []
def counted(self):
    link = supervise(self)
    count.append(link)
    if len(count) > 1:
        os.kill(os.getpid(), signal.SIGKILL)
    return link
AppScripts._supervise = counted
sys.exit(main.main())
"""
# A supervisor dies when it has announced the post-script, before that is started; once.
KILLED_BEFORE_THE_START = """
import os, signal, sys
from pathlib import Path
from vmsnap.cli import main
from vmsnap.scripts import runner
launch, once = runner.launch, Path(MARK)
def dying(argv, env, *rest, **more):
    if env["VMSNAP_PHASE"] == "post" and not once.exists():
        once.touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return launch(argv, env, *rest, **more)
runner.launch = dying
sys.exit(main.main())
"""
# fork(2) fails for a while, as with pids.max.
NO_PROCESSES = """
import errno, os, sys
from vmsnap.cli import main
from vmsnap.scripts import runner
launch, failures = runner.launch, []
def failing(argv, env, *rest, **more):
    if len(failures) < 3:
        failures.append(argv)
        raise OSError(NUMBER, os.strerror(NUMBER))
    return launch(argv, env, *rest, **more)
runner.launch = failing
sys.exit(main.main())
"""
NO_PROCESS_FOR_A_REPLACEMENT = """
import errno, os, sys
from vmsnap.cli import main
from vmsnap.scripts.engine import AppScripts
supervise, calls = AppScripts._supervise, []
def failing(self):
    calls.append(self)
    if 1 < len(calls) < 4:
        raise OSError(errno.EAGAIN, os.strerror(errno.EAGAIN))
    return supervise(self)
AppScripts._supervise = failing
sys.exit(main.main())
"""
# The first thaw of a supervisor alone fails, as if no descriptor were free.
NO_DESCRIPTOR = """
import errno, os, sys
from vmsnap.cli import main
from vmsnap.freeze import frozen_list
opened, tried = frozen_list.opened, []
def failing(run_dir):
    tried.append(run_dir)
    if len(tried) == 1:
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))
    return opened(run_dir)
frozen_list.opened = failing
sys.exit(main.main())
"""
KILLED_IN_ITS_RECOVERY = """
import os, signal, sys
from vmsnap.cli import main
from vmsnap.scripts.engine import AppScripts
AppScripts.start = lambda *_: os.kill(os.getpid(), signal.SIGKILL)
sys.exit(main.main())
"""


def python(program: str, **values: object) -> tuple[str, ...]:
    for name, value in values.items():
        program = program.replace(name, repr(value))
    return (sys.executable, "-IBc", program)


def supervisor(session: Session) -> int:
    (pid,) = session.below("vmsnap-scripts")
    return pid


def database(lab: Lab, seconds: int = 30) -> None:
    lab.filesystem()
    lab.app(pre="exit 0", post=lab.say(POST), timeoutInSeconds=seconds)


def resumed(lab: Lab) -> list[str]:
    """How the post-script was run, in all."""
    lab.wait_for_rest()
    return [word for word in lab.events.heard if word.startswith("resumed")]


# --- everything is killed ------------------------------------------------------------------------


NEXT = {
    "force": ("thaw", "--force"),
    "unit": ("session", "--stopped"),
    "session": ("run",),
}


def come_next(lab: Lab, who: str) -> None:
    if who == "session":
        assert lab.run("exit 0").code == 0
    else:
        assert lab.vmsnap(*NEXT[who], env=INVOCATION).code == 0


@pytest.mark.parametrize("who", NEXT)
@pytest.mark.parametrize("content", [None, "", "no JSON", '{"session": 1}'])
def test_what_is_pending_is_run_whatever_became_of_session_json(
    lab: Lab, content: str | None, who: str
) -> None:
    database(lab)
    kill_all(lab.hold(env=INVOCATION))
    lab.release()
    progress = lab.run_directory / "session.json"
    progress.unlink()
    if content is not None:
        lab.write(progress, content, 0o600)
    come_next(lab, who)
    expected = ["resumed failed none", "resumed success application"]
    assert resumed(lab) == expected[: 2 if who == "session" else 1]
    assert lab.frozen == []
    history = lab.vmsnap("status", "--json").result["last"]
    assert who == "session" or history["errors"][0]["name"] == "EngineLost"
    come_next(lab, "force")
    assert len(resumed(lab)) == (2 if who == "session" else 1)
    assert {path.name for path in lab.run_directory.iterdir()} <= RUN_DIRECTORY


def test_what_is_pending_stays_on_record_until_it_can_be_run(lab: Lab) -> None:
    database(lab)
    kill_all(lab.hold())
    lab.release()
    config = lab.etc / "vmsnap/apps.d/db.json"
    config.chmod(0o644)
    for _ in range(2):
        assert lab.run("exit 0").verdict == ("success", "filesystem", 0)
        assert resumed(lab) == []
    config.chmod(0o600)
    assert lab.run("exit 0").verdict == ("success", "application", 0)
    assert resumed(lab) == ["resumed failed none", "resumed success application"]


def test_what_is_written_into_an_emptied_run_directory_ends_no_later_session(lab: Lab) -> None:
    lab.filesystem()
    lab.app(
        pre="exit 0", post=f"{lab.say('resumed')}; [ -e {lab.shm}/go ] || {lab.stop_at('post')}"
    )
    session = lab.hold()
    call("find", lab.run_directory, "-mindepth", "1", "-delete")
    lab.release()
    lab.events.wait("resumed", session)
    kill_all(session)
    (lab.shm / "go").touch()
    lab.open("post")
    assert (lab.run_directory / "session.json").exists()
    assert lab.run("exit 0").verdict == ("success", "application", 0)


def test_force_leaves_nothing_that_is_not_pending(lab: Lab) -> None:
    """The app has no post-script, and a command's temporary directory is left."""
    lab.filesystem()
    lab.app(pre="exit 0")
    kill_all(lab.hold())
    lab.release()
    for name in (".frozen.json.new", ".session.json.0815"):
        lab.write(lab.run_directory / name, "", 0o600)
    assert (lab.run_directory / "scripts").exists()
    assert (lab.run_directory / "tmp").exists()
    assert lab.vmsnap("thaw", "--force").code == 0
    assert {path.name for path in lab.run_directory.iterdir()} <= RUN_DIRECTORY


# --- supervisors that are killed -----------------------------------------------------------------


def test_a_supervisor_that_was_told_nothing_runs_what_is_pending(lab: Lab) -> None:
    database(lab)
    session = lab.hold(program=python(KILLED_AFTER_REPLACING))
    os.kill(supervisor(session), signal.SIGKILL)
    lab.release()
    assert session.process.wait() == -signal.SIGKILL
    lab.events.wait("resumed")
    assert resumed(lab) == ["resumed failed none"]
    assert not (lab.run_directory / "scripts").exists()


def test_a_post_script_that_was_announced_but_not_started_is_run(lab: Lab) -> None:
    database(lab)
    outcome = lab.run("exit 0", program=python(KILLED_BEFORE_THE_START, MARK=str(lab.shm / "once")))
    assert outcome.verdict == ("success", "application", 0)
    assert resumed(lab) == ["resumed success application"]


def test_a_supervisor_killed_in_the_hold_is_replaced_for_the_post_script(lab: Lab) -> None:
    database(lab)
    session = lab.hold()
    os.kill(supervisor(session), signal.SIGKILL)
    lab.release()
    assert session.finish().verdict == ("success", "application", 0)
    assert resumed(lab) == ["resumed success application"]


def test_a_supervisor_is_replaced_as_soon_as_there_is_a_process_for_it(lab: Lab) -> None:
    database(lab)
    session = lab.hold(program=python(NO_PROCESS_FOR_A_REPLACEMENT))
    os.kill(supervisor(session), signal.SIGKILL)
    lab.release()
    assert session.finish().verdict == ("success", "application", 0)
    assert resumed(lab) == ["resumed success application"]


def test_a_post_script_whose_supervisor_was_killed_is_not_run_again(lab: Lab) -> None:
    lab.filesystem()
    lab.app(pre="exit 0", post=f"{lab.say('resumed')}; {lab.stop_at('post')}")
    session = lab.start("exit 0")
    lab.events.wait("resumed", session)
    os.kill(supervisor(session), signal.SIGKILL)
    wait_until(lambda: "anon_inode:[pidfd]" in open_by(session.below("vmsnap-scripts")))
    lab.open("post")
    outcome = session.finish()
    assert outcome.verdict == ("success", "application", 0)
    assert resumed(lab) == ["resumed"]


@pytest.mark.parametrize(
    ("end", "retries", "runs", "reason"),
    [
        ("exit 0", 0, 1, ""),
        ("exit 3", 0, 1, "ended with exit code 3, in attempt 1"),
        ("exit $((2 - VMSNAP_ATTEMPT))", 1, 2, ""),
        ("exit 3", 1, 2, "ended with exit code 3, in attempt 2"),
        ("[ $VMSNAP_ATTEMPT = 2 ] || kill -9 $$", 0, 2, ""),
    ],
)
def test_how_a_post_script_ended_is_known_without_its_supervisor(
    lab: Lab, end: str, retries: int, runs: int, reason: str
) -> None:
    lab.filesystem()
    lab.app(
        pre="exit 0",
        post=f"{lab.say('resumed')}; kill -9 $PPID; {end}",
        postScriptNoOfRetries=retries,
    )
    outcome = lab.run("exit 0")
    assert outcome.errors == (["Post-ScriptExecutionFailed"] if reason else [])
    assert reason in "".join(error["message"] for error in outcome.result["errors"])
    assert resumed(lab) == ["resumed"] * runs
    assert not (lab.run_directory / "scripts").exists()


def test_a_process_that_keeps_its_environment_from_being_read_keeps_no_script(lab: Lab) -> None:
    """The pre-script without a supervisor is looked for by its environment."""
    others = lab.filesystem(name="others")
    lock_memory(lab, others)
    ours = lab.filesystem()
    lab.app(pre=f"kill -9 $PPID; {lab.stop_at('never')}", post=lab.say(POST))
    outcome = lab.run("exit 0", only=[str(ours.mount)])
    kernel.thaw(others.mount)
    assert outcome.errors == ["Pre-ScriptExecutionFailed"]
    assert resumed(lab) == ["resumed success filesystem"]


def test_a_supervisor_without_descriptors_does_not_run_it_again(lab: Lab) -> None:
    lab.filesystem()
    lab.app(pre="exit 0", post=f"{lab.say(POST)}; prlimit --pid $PPID --nofile=4:4")
    assert lab.run("exit 0").verdict == ("success", "application", 0)
    assert resumed(lab) == ["resumed success application"]
    lab.vmsnap("thaw", "--force")
    assert resumed(lab) == ["resumed success application"]


def test_how_a_post_script_ended_is_known_without_two_supervisors(lab: Lab) -> None:
    lab.filesystem()
    lab.app(pre="exit 0", post=f"{lab.say('resumed')}; {lab.stop_at('post')}")
    session = lab.start("exit 0")
    lab.events.wait("resumed", session)
    first = supervisor(session)
    os.kill(first, signal.SIGKILL)
    wait_until(lambda: set(session.below("vmsnap-scripts")) - {first})
    (second,) = set(session.below("vmsnap-scripts")) - {first}
    wait_until(lambda: "anon_inode:[pidfd]" in open_by([second]))
    os.kill(second, signal.SIGKILL)
    lab.open("post")
    assert session.finish().verdict == ("success", "application", 0)
    assert resumed(lab) == ["resumed"]


def test_how_a_pre_script_ended_is_not_taken_for_the_post_script(lab: Lab) -> None:
    lab.filesystem()
    lab.app(pre="kill -9 $PPID; exit 0", post=lab.say(POST))
    outcome = lab.run("exit 0")
    assert outcome.errors == ["Pre-ScriptExecutionFailed"]
    assert resumed(lab) == ["resumed success filesystem"]


def test_a_post_script_without_its_supervisor_is_ended_at_its_timeout(lab: Lab) -> None:
    lab.filesystem()
    hang = f"{lab.say('resumed')}; kill -9 $PPID; {lab.stop_at('post')}"
    lab.app(pre="exit 0", post=hang, timeoutInSeconds=1)
    outcome = lab.run("exit 0")
    assert outcome.errors == ["Post-ScriptTimeout"]
    assert resumed(lab) == ["resumed"]


def test_a_replaced_supervisor_gives_a_post_script_no_more_time(lab: Lab) -> None:
    lab.filesystem()
    slow = f"{lab.say('resumed')}; sleep 2; kill -9 $PPID; exit 1"
    lab.app(pre="exit 0", post=slow, timeoutInSeconds=3, postScriptNoOfRetries=9)
    outcome = lab.run("exit 0")
    assert outcome.errors == ["Post-ScriptTimeout"]


def open_by(pids: list[int]) -> set[str]:
    """What the descriptors of these processes are."""
    found = set()
    for pid in pids:
        with contextlib.suppress(OSError):  # it has ended
            found |= {os.readlink(fd) for fd in Path(f"/proc/{pid}/fd").iterdir()}
    return found


def test_force_that_is_killed_in_its_recovery_leaves_nothing_pending(lab: Lab) -> None:
    database(lab)
    kill_all(lab.hold())
    lab.release()
    killed = lab.vmsnap("thaw", "--force", program=python(KILLED_IN_ITS_RECOVERY))
    assert killed.code == -signal.SIGKILL
    lab.events.wait("resumed")
    assert resumed(lab) == ["resumed failed none"]
    assert lab.vmsnap("thaw", "--force").code == 0
    assert lab.vmsnap("status", "--json").result["last"]["errors"][0]["name"] == "EngineLost"
    assert resumed(lab) == ["resumed failed none"]


# --- a pre-script that outlives its supervisor ---------------------------------------------------


def lingering(lab: Lab) -> Path:
    """An app whose post-script says whether its pre-script still runs."""
    lab.filesystem()
    pid = lab.shm / "pid"
    lab.app(
        pre=f"echo $$ >{pid}; {lab.say('quiesced')}; {lab.stop_at('pre')}",
        post=f"grep -q '^State:.[^ZX]' /proc/$(cat {pid})/status"
        f" && {lab.say('resumed early')} || {lab.say('resumed')}",
    )
    return pid


def test_a_pre_script_whose_supervisor_was_killed_is_ended_before_the_post_script(lab: Lab) -> None:
    pid = lingering(lab)
    session = lab.start("exit 0")
    lab.events.wait("quiesced", session)
    os.kill(supervisor(session), signal.SIGKILL)
    outcome = session.finish()
    assert "Pre-ScriptExecutionFailed" in outcome.errors
    assert wait_for_end(int(pid.read_text()))
    assert resumed(lab) == ["resumed"]


@pytest.mark.parametrize("engine_too", [True, False])
def test_the_recovery_ends_such_a_pre_script_before_the_post_script(
    lab: Lab, engine_too: bool
) -> None:
    lingering(lab)
    session = lab.start("exit 0")
    lab.events.wait("quiesced", session)
    if engine_too:
        kill_all(session)
        assert lab.vmsnap("thaw", "--force").code == 0
    else:
        os.kill(supervisor(session), signal.SIGKILL)
        session.finish()
    assert resumed(lab) == ["resumed"]


# --- shortages -----------------------------------------------------------------------------------


@pytest.mark.parametrize("number", ["EAGAIN", "ENOMEM", "EMFILE", "ENFILE"])
def test_a_shortage_is_waited_for_within_the_budget(lab: Lab, number: str) -> None:
    database(lab)
    program = python(NO_PROCESSES, NUMBER=getattr(errno, number))
    outcome = lab.run("exit 0", program=program)
    assert outcome.verdict == ("success", "application", 0)
    assert resumed(lab) == ["resumed success application"]


def test_a_thaw_for_which_there_is_no_descriptor_is_tried_again(lab: Lab) -> None:
    database(lab)
    session = lab.hold(program=python(NO_DESCRIPTOR))
    kill_both(session)
    lab.wait_for_thaw(*lab.filesystems)
    lab.release()
    assert resumed(lab) == ["resumed failed none"]


def test_a_script_that_runs_is_not_started_again_for_a_shortage(lab: Lab) -> None:
    lab.filesystem()
    lab.app(pre="exit 0", post=f"{lab.say('resumed')}; {lab.stop_at('post')}")
    session = lab.start("exit 0", program=python(NO_DESCRIPTOR))
    lab.events.wait("resumed", session)
    os.kill(session.pid, signal.SIGKILL)
    session.process.wait()
    lab.open("post")
    assert resumed(lab) == ["resumed"]


def test_the_end_of_a_pre_script_costs_the_post_script_no_time(lab: Lab) -> None:
    """Its supervisor was killed, and it takes longer than the post-script may take."""
    lab.filesystem()
    lab.conf("[scripts]\nkill_grace = 3\n")
    stubborn = f"trap '' TERM; kill -9 $PPID; {lab.stop_at('never')}"
    lab.app(pre=stubborn, post=lab.say("resumed"), timeoutInSeconds=2)
    outcome = lab.run("exit 0")
    assert outcome.errors == ["Pre-ScriptExecutionFailed"]
    assert resumed(lab) == ["resumed"]


def test_a_shortage_that_lasts_for_the_budget_is_the_error(lab: Lab) -> None:
    database(lab, seconds=1)
    program = python(NO_PROCESSES.replace("< 3", "< 3000"), NUMBER=errno.EAGAIN)
    outcome = lab.run("exit 0", program=program)
    assert outcome.subjects[0] == ("Pre-ScriptExecutionFailed", "db")
    assert "Resource temporarily unavailable" in outcome.result["errors"][0]["message"]


def test_a_supervisor_without_descriptors_runs_the_post_script_when_it_has_some(lab: Lab) -> None:
    database(lab)
    session = lab.hold()
    pid = supervisor(session)
    before = resource.prlimit(pid, resource.RLIMIT_NOFILE)
    resource.prlimit(pid, resource.RLIMIT_NOFILE, (3, before[1]))
    lab.release()
    wait_until(lambda: '"phase": "post"' in (lab.run_directory / "session.json").read_text())
    wait_until(lambda: [p.state for p in children(session.pid) if p.pid == pid] == ["S"])
    resource.prlimit(pid, resource.RLIMIT_NOFILE, before)
    assert session.finish().verdict == ("success", "application", 0)
    assert resumed(lab) == ["resumed success application"]
