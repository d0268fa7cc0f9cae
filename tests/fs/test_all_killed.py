# SPDX-License-Identifier: Apache-2.0
"""Engine and guard are both out of action: survivors, the list, `vmsnap thaw --force`."""

from __future__ import annotations

import os
import signal

from .faults import kill_all, kill_both, stop
from .lab import Lab

POST = "resumed $VMSNAP_OUTCOME $VMSNAP_CONSISTENCY"


def test_both_stopped_leaves_the_emergency_exit(lab: Lab) -> None:
    lab.filesystem("ext4")
    lab.filesystem("xfs")
    session = lab.hold()
    both = stop(session.pid, session.guard)
    forced = lab.vmsnap("thaw", "--force")
    assert forced.code == 0, forced
    lab.wait_for_thaw()
    for pid in both:
        os.kill(pid, signal.SIGCONT)
    lab.release()
    outcome = session.finish()
    assert outcome.verdict == ("success", "crash", 0)
    assert set(outcome.errors) == {"ThawedEarly"}


def test_both_killed_thaws_all_the_same_and_resumes_the_application(lab: Lab) -> None:
    """What supervises scripts and command has survived."""
    lab.filesystem("ext4")
    lab.filesystem("xfs")
    lab.app(pre=lab.say("quiesced"), post=lab.say(POST))
    kill_both(lab.hold())
    lab.wait_for_thaw()
    assert lab.events.wait("resumed") == "failed none"
    lab.wait_for_rest()
    assert lab.frozen == []


def test_everything_killed_leaves_a_list_from_which_force_thaws(lab: Lab) -> None:
    parent = lab.filesystem(name="parent", mib=96)
    lab.filesystem(name="child", on=parent)
    lab.filesystem("xfs", name="other")
    kill_all(lab.hold())
    lab.release()
    lab.wait_for_rest()
    assert lab.frozen == ["parent", "child", "other"]
    forced = lab.vmsnap("thaw", "--force")
    assert forced.code == 0
    for mount in lab.mounts:
        assert f"{mount}: thawed" in forced.out.decode()
    assert lab.frozen == []
    again = lab.vmsnap("thaw", "--force")
    assert (again.code, b"nothing to thaw" in again.out) == (0, True)


def test_everything_killed_is_mended_by_the_next_session(lab: Lab) -> None:
    lab.filesystem("ext4")
    lab.filesystem("xfs")
    kill_all(lab.hold())
    lab.release()
    lab.wait_for_rest()
    assert lab.frozen == ["fs0", "fs1"]
    outcome = lab.run("exit 0")
    assert outcome.verdict == ("success", "filesystem", 0)
    assert lab.frozen == []


def test_everything_killed_leaves_the_post_scripts_to_the_next_session(lab: Lab) -> None:
    lab.filesystem()
    lab.app(pre=lab.say("quiesced"), post=lab.say(POST))
    kill_all(lab.hold())
    lab.release()
    lab.wait_for_rest()
    assert lab.run("exit 0").code == 0
    assert [word for word in lab.events.heard if not word.startswith("held")] == [
        *("quiesced", "resumed failed none"),  # of the one that was killed
        *("quiesced", "resumed success application"),
    ]


def test_everything_killed_leaves_the_post_scripts_to_force(lab: Lab) -> None:
    lab.filesystem()
    lab.app(pre=lab.say("quiesced"), post=lab.say(POST))
    kill_all(lab.hold())
    lab.release()
    lab.wait_for_rest()
    assert lab.vmsnap("thaw", "--force").code == 0
    assert lab.events.wait("resumed") == "failed none"
    status = lab.vmsnap("status", "--json").result
    assert (status["lost"], status["last"]["errors"][0]["name"]) == (None, "EngineLost")


def test_force_leaves_alone_what_is_mounted_there_now(lab: Lab) -> None:
    first = lab.filesystem()
    kill_all(lab.hold())
    lab.release()
    lab.wait_for_rest()
    second = lab.filesystem()
    lab.helper(f"fsfreeze -f {second.mount}").wait()
    lab.mount("--bind", second.mount, first.mount)
    assert lab.vmsnap("thaw", "--force").code == 0
    assert second.is_frozen
    lab.umount(first.mount)
    assert not first.is_frozen
    lab.helper(f"fsfreeze -u {second.mount}").wait()
