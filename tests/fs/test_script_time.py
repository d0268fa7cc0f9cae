# SPDX-License-Identifier: Apache-2.0
"""A script that takes too long: one budget for all attempts, and an end for all it started."""

from __future__ import annotations

import shlex
from typing import Any

import pytest

from .lab import Lab
from .processes import look_at
from .running import Outcome


def run(lab: Lab, pre: str, **keys: Any) -> Outcome:
    lab.filesystem()
    lab.conf("[scripts]\nkill_grace = 0.2\n")
    lab.app(pre=pre, post=lab.say("resumed"), **{"timeoutInSeconds": 1, **keys})
    return lab.run("exit 0")


def assert_timed_out(outcome: Outcome, attempts: int = 1) -> None:
    assert outcome.verdict == ("success", "filesystem", 0)
    assert outcome.subjects == [("Pre-ScriptTimeout", "db")]
    assert outcome.result["apps"][0]["pre"]["timed_out"]
    assert outcome.result["apps"][0]["pre"]["attempts"] == attempts


def test_a_script_that_does_not_end_is_ended_and_the_application_resumed(lab: Lab) -> None:
    outcome = run(lab, f"trap '{lab.say('asked-to-end')}; exit 0' TERM; {lab.stop_at('never')}")
    assert_timed_out(outcome)
    assert lab.events.heard == ["asked-to-end", "resumed"]


def test_no_snapshot_is_taken_after_a_timeout_if_application_consistency_is_required(
    lab: Lab,
) -> None:
    lab.filesystem()
    lab.conf("[scripts]\nkill_grace = 0.2\n")
    lab.app(pre=lab.stop_at("never"), timeoutInSeconds=1)
    outcome = lab.run(lab.say("taken"), "--require=application")
    assert outcome.verdict == ("failed", "none", 1)
    assert outcome.errors == ["Pre-ScriptTimeout"]
    assert lab.events.heard == []


def test_a_post_script_that_does_not_end_is_ended(lab: Lab) -> None:
    lab.filesystem()
    lab.conf("[scripts]\nkill_grace = 0.2\n")
    lab.app(post=f"trap '' TERM; {lab.stop_at('never')}", timeoutInSeconds=1)
    outcome = lab.run("exit 0")
    assert outcome.verdict == ("success", "filesystem", 0)
    assert outcome.errors == ["Post-ScriptTimeout"]


def test_all_attempts_share_one_budget(lab: Lab) -> None:
    """Each attempt alone would fit into it."""
    outcome = run(
        lab,
        f"{lab.say('attempt')}; sleep 1.2; [ $VMSNAP_ATTEMPT = 2 ]",
        timeoutInSeconds=2,
        preScriptNoOfRetries=3,
    )
    assert_timed_out(outcome, attempts=2)
    assert lab.events.heard.count("attempt") == 2


DEAF = "trap '' TERM; {say}; {wait}"


@pytest.mark.parametrize(
    "start",
    [
        "/bin/sh -c {} & wait",
        "setsid /bin/sh -c {} & wait",
        "(setsid /bin/sh -c {} &) ; {wait}",
        "setsid setsid nohup /bin/sh -c {} >/dev/null 2>&1 & {wait}",
        "exec /bin/sh -c {}",
    ],
    ids=["child", "own session", "double fork", "daemon", "the script itself"],
)
def test_everything_a_timed_out_script_started_is_killed(lab: Lab, start: str) -> None:
    deaf = f"trap '' TERM; {lab.say('deaf $$')}; {lab.stop_at('never')}"
    outcome = run(lab, start.replace("{wait}", lab.stop_at("never")).format(shlex.quote(deaf)))
    assert_timed_out(outcome)
    assert look_at(int(lab.events.wait("deaf"))) is None


def test_a_stopped_script_is_ended(lab: Lab) -> None:
    outcome = run(lab, f"{lab.say('script $$')}; kill -STOP $$")
    assert_timed_out(outcome)
    assert look_at(int(lab.events.wait("script"))) is None


def test_a_script_that_starts_processes_all_the_time_is_ended(lab: Lab) -> None:
    outcome = run(lab, "trap '' TERM; while :; do (setsid sh -c 'trap \"\" TERM; :') & done")
    assert_timed_out(outcome)


def test_a_script_that_floods_is_ended_in_time(lab: Lab) -> None:
    lab.filesystem()
    lab.conf("[scripts]\nkill_grace = 0.2\n")
    lab.app(pre="trap '' TERM; tr '\\0' x </dev/zero", timeoutInSeconds=1)
    outcome = lab.run("exit 0")
    assert_timed_out(outcome)


def test_the_plugin_hosts_timeout_caps_every_budget(lab: Lab) -> None:
    lab.filesystem()
    lab.conf("[scripts]\nkill_grace = 0.2\n")
    config = lab.app("azure-app", pre=lab.stop_at("never"), timeoutInSeconds=1800)
    moved = config.rename(lab.programs / "app.json")
    (lab.etc / "azure").mkdir(mode=0o700)
    lab.write(
        lab.etc / "azure/VMSnapshotPluginHost.conf",
        "[pre_post]\ntimeoutInSeconds: 1\nnumberOfPlugins: 1\npluginName0: ScriptRunner\n"
        f"pluginPath0: /unused\npluginConfigPath0: {moved}\n",
        0o600,
    )
    outcome = lab.run("exit 0")
    assert outcome.verdict == ("success", "filesystem", 0)
    assert outcome.errors == ["Pre-ScriptTimeout"]
