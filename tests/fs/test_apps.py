# SPDX-License-Identifier: Apache-2.0
"""Several apps in one session, broken ones among them, and the consistency that results."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from .lab import Lab


def test_scripts_of_all_apps_run_at_the_same_time(lab: Lab) -> None:
    """Each waits for a word of the other, so one after the other they would never end."""
    lab.filesystem()
    for phase in ("pre", "post"):
        lab.gate(f"{phase}-a")
        lab.gate(f"{phase}-b")
    for mine, other in (("a", "b"), ("b", "a")):
        meet = {
            phase: f"echo x >{lab.gate(f'{phase}-{other}').path}; {lab.stop_at(f'{phase}-{mine}')}"
            for phase in ("pre", "post")
        }
        lab.app(mine, **meet, timeoutInSeconds=20)
    outcome = lab.run("exit 0")
    assert outcome.verdict == ("success", "application", 0)
    assert [app["name"] for app in outcome.result["apps"]] == ["a", "b"]


def test_the_failure_of_one_app_stops_nobody_elses_scripts(lab: Lab) -> None:
    lab.filesystem()
    lab.app("bad", pre="exit 1", post=lab.say("bad-post"))
    lab.app("good", pre=lab.say("good-pre"), post=lab.say("good-post"))
    outcome = lab.run(lab.say("taken"))
    assert outcome.verdict == ("success", "filesystem", 0)
    assert outcome.subjects == [("Pre-ScriptExecutionFailed", "bad")]
    heard = lab.events.heard
    assert heard[:2] == ["good-pre", "taken"]
    assert sorted(heard[2:]) == ["bad-post", "good-post"]


def test_the_post_script_runs_after_a_failed_pre_script_and_knows_the_outcome(lab: Lab) -> None:
    lab.filesystem()
    post = lab.say("post $VMSNAP_OUTCOME $VMSNAP_CONSISTENCY")
    lab.app(pre="exit 1", post=post)
    outcome = lab.run(lab.say("taken"), "--require=application")
    assert outcome.verdict == ("failed", "none", 1)
    assert outcome.result["snapshot"] is None
    assert lab.events.heard == ["post failed none"]
    assert lab.run("exit 0").verdict == ("success", "filesystem", 0)
    assert lab.events.heard[1:] == ["post success filesystem"]


def test_an_app_may_have_only_a_post_script(lab: Lab) -> None:
    lab.filesystem()
    lab.app(post=lab.say("post"))
    outcome = lab.run(lab.say("taken"))
    assert outcome.verdict == ("success", "application", 0)
    assert lab.events.heard == ["taken", "post"]
    assert outcome.result["apps"][0]["pre"] is None


def test_an_app_that_forbids_the_freeze_forbids_it_for_the_session(lab: Lab) -> None:
    lab.filesystem()
    lab.app("plain", pre=lab.say("plain"))
    lab.app("own", pre=lab.say("own"), fsFreezeEnabled=False)
    session = lab.hold()
    assert lab.frozen == []
    lab.release()
    outcome = session.finish()
    assert outcome.verdict == ("success", "application", 0)
    assert outcome.result["filesystems"] == []


def test_without_a_freeze_a_failed_script_leaves_crash_consistency(lab: Lab) -> None:
    lab.filesystem()
    lab.app(pre="exit 1", fsFreezeEnabled=False)
    assert lab.run("exit 0").verdict == ("success", "crash", 0)


def test_when_the_platform_freezes_nothing_is_frozen_and_the_rule_is_the_same(lab: Lab) -> None:
    lab.filesystem()
    session = lab.hold("--no-fsfreeze")
    assert lab.frozen == []
    lab.release()
    assert session.finish().verdict == ("success", "filesystem", 0)
    lab.app(pre="exit 1")
    assert lab.run("exit 0", "--no-fsfreeze").verdict == ("success", "filesystem", 0)


# --- what must not be run ------------------------------------------------------------------------


def harm(lab: Lab, how: str) -> str:
    """Break the configuration of the app `db` in one way; return the error it leads to."""
    script, config = lab.programs / "db-pre", lab.etc / "vmsnap/apps.d/db.json"
    if how == "script missing":
        script.unlink()
        return "Pre-ScriptNotFound"
    if how == "script writable by others":
        script.chmod(0o722)
        return "InsufficientPermissionforPre-Script"
    if how == "script readable by others":
        script.chmod(0o755)
        return "InsufficientPermissionforPre-Script"
    if how == "script not executable":
        script.chmod(0o600)
        return "InsufficientPermissionforPre-Script"
    if how == "script of another user":
        os.chown(script, 65534, 65534)
        return "InsufficientPermissionforPre-Script"
    if how == "directory writable by others":
        lab.programs.chmod(0o1777)
        return "InsufficientPermissionforPre-Script"
    if how == "config readable by others":
        config.chmod(0o644)
        return "IncorrectJSONConfigFile"
    assert how == "config malformed"
    config.write_text('{"pluginName": "ScriptRunner",')
    return "IncorrectJSONConfigFile"


HARMS = (
    *("script missing", "script writable by others", "script readable by others"),
    *("script not executable", "script of another user", "directory writable by others"),
    *("config readable by others", "config malformed"),
)


@pytest.mark.parametrize("how", HARMS)
def test_an_app_that_others_could_have_changed_is_not_run(lab: Lab, how: str) -> None:
    lab.filesystem()
    lab.app(pre=lab.say("pre"), post=lab.say("post"))
    error = harm(lab, how)
    outcome = lab.run(lab.say("taken"))
    assert outcome.verdict == ("success", "filesystem", 0)
    assert error in outcome.errors
    assert "pre" not in lab.events.heard
    assert lab.events.heard == ["taken"]


def test_an_app_is_not_run_through_a_link_that_others_could_change(lab: Lab) -> None:
    lab.filesystem()
    lab.app(pre=lab.say("pre"))
    script, link = lab.programs / "db-pre", Path("/tmp") / f"{lab.directory.name}-link"
    moved = script.rename(lab.programs / "moved")
    link.symlink_to(moved)
    try:
        script.symlink_to(link)
        outcome = lab.run(lab.say("taken"))
    finally:
        link.unlink()
    assert outcome.errors == ["InsufficientPermissionforPre-Script"]
    assert lab.events.heard == ["taken"]


def test_a_script_that_was_replaced_after_the_check_is_not_run(lab: Lab) -> None:
    lab.filesystem()
    lab.app(post=lab.say("checked"))
    session = lab.hold()
    lab.program("new", lab.say("replaced")).rename(lab.programs / "db-post")
    lab.release()
    outcome = session.finish()
    assert outcome.verdict == ("success", "filesystem", 0)
    assert outcome.errors == ["Post-ScriptExecutionFailed"]
    assert "replaced" not in lab.events.heard


def test_settings_that_cannot_be_meant_stop_the_session(lab: Lab) -> None:
    lab.filesystem()
    lab.conf("[freeze]\nhold = forever\n")
    outcome = lab.run(lab.say("taken"))
    assert outcome.verdict == ("failed", "none", 1)
    assert outcome.errors == ["IncorrectSettings"]
    assert "forever" in outcome.result["errors"][0]["message"]
    assert lab.events.heard == []


# --- what is required ----------------------------------------------------------------------------


def real_disks() -> int:
    names = [path.name for path in Path("/sys/block").iterdir()]
    virtual = ("loop", "ram", "zram", "sr", "fd", "dm-", "md", "nbd")
    return sum(1 for name in names if not name.startswith(virtual))


def test_an_app_that_insists_counts_only_with_more_than_one_disk(lab: Lab) -> None:
    lab.filesystem()
    lab.app(pre="exit 1", continueBackupOnFailure=False)
    outcome = lab.run("exit 0")
    if real_disks() > 1:
        assert outcome.result["required"] == "application"
        assert outcome.verdict == ("failed", "none", 1)
    else:
        assert outcome.result["required"] == "crash"
        assert outcome.verdict == ("success", "filesystem", 0)


def test_settings_can_require_more_than_the_apps(lab: Lab) -> None:
    lab.filesystem()
    lab.conf("[snapshot]\nrequire = application\n")
    lab.app(pre="exit 1")
    outcome = lab.run(lab.say("taken"))
    assert outcome.verdict == ("failed", "none", 1)
    assert outcome.result["required"] == "application"
    assert lab.events.heard == []


def test_application_consistency_cannot_be_required_without_an_app(lab: Lab) -> None:
    lab.filesystem()
    outcome = lab.run(lab.say("taken"), "--require=application")
    assert outcome.verdict == ("failed", "none", 1)
    assert outcome.errors == ["SnapshotFailed"]
    assert "found no app, expected one" in outcome.result["errors"][0]["message"]
    assert lab.events.heard == []


def test_a_failed_post_script_fails_a_session_that_requires_the_application(lab: Lab) -> None:
    lab.filesystem()
    lab.app(pre="exit 0", post="exit 1")
    outcome = lab.run("exit 0", "--require=application")
    assert outcome.verdict == ("failed", "filesystem", 1)
    assert outcome.errors == ["Post-ScriptExecutionFailed"]
