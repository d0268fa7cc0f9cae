# SPDX-License-Identifier: Apache-2.0
"""Azure's own files, as its extension ships them and as its documentation shows them: an existing
VM works unchanged, and without a warning."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from .lab import Lab
from .running import Outcome

LIMIT = 20.0  # seconds

# VMSnapshotPluginHost.conf as the extension ships it, with this test's /etc.
PLUGIN_HOST = """\
[pre_post]
timeoutInSeconds: 1800
numberOfPlugins: 1
pluginName0: ScriptRunner
pluginPath0: {etc}/azure
pluginConfigPath0: {etc}/azure/VMSnapshotScriptPluginConfig.json
"""
# VMSnapshotScriptPluginConfig.json of the newest template, with the scripts filled in.
TEMPLATE: dict[str, Any] = {
    "pluginName": "ScriptRunner",
    "preScriptLocation": "",
    "postScriptLocation": "",
    "preScriptParams": ["", ""],
    "postScriptParams": ["", ""],
    "preScriptNoOfRetries": 0,
    "postScriptNoOfRetries": 0,
    "timeoutInSeconds": 30,
    "continueBackupOnFailure": True,
    "fsFreezeEnabled": True,
    "ScriptsExecutionPollTimeSeconds": 3,
}
# vmbackup.conf as the extension ships it today.
VMBACKUP = """\
[SnapshotThread]

# Whether to freeze filesystems (fsfreeze/thaw) before taking a snapshot.
fsfreeze: True

# onlyLocalFilesystems: True

# Comma-separated mount points to exclude from filesystem freeze.
# MountsToSkip:

# seqsnapshot: 0
"""
WORKLOAD = """\
[workload]
#workload_name valid values- mysql, oracle, mariadb, postgres
workload_name = oracle
command_path = /u01/app/oracle/product/19.0.0/dbhome_1/bin
credString = /
ipc_folder =
timeout = 90
linux_user = azbackup
"""


@pytest.fixture
def azure(lab: Lab) -> Path:
    """Its directory, with the mode that `mkdir` gives it."""
    lab.filesystem()
    path = lab.etc / "azure"
    path.mkdir()
    path.chmod(0o755)
    return path


def host(lab: Lab, azure: Path, mode: int = 0o644, text: str = PLUGIN_HOST) -> Path:
    return lab.write(azure / "VMSnapshotPluginHost.conf", text.format(etc=lab.etc), mode)


def app(lab: Lab, azure: Path, pre: str = "", post: str = "", **keys: Any) -> Path:
    scripts = {
        "preScriptLocation": str(lab.program("pre.sh", pre or lab.say("quiesced $*"))),
        "postScriptLocation": str(lab.program("post.sh", post or lab.say("resumed $*"))),
    }
    document = {k: v for k, v in {**TEMPLATE, **scripts, **keys}.items() if v is not None}
    text = json.dumps(document, indent=4)
    return lab.write(azure / "VMSnapshotScriptPluginConfig.json", text, 0o600)


def check(lab: Lab) -> Outcome:
    return lab.begin("check", "--json", f"--only={lab.mounts[0]}").finish(LIMIT)


def in_order(lab: Lab) -> None:
    """Without a warning, and the app runs."""
    assert check(lab).result == {"ok": True, "problems": []}
    assert lab.start("exit 0").finish(LIMIT).verdict == ("success", "application", 0)
    assert [word.split()[0] for word in lab.events.heard] == ["quiesced", "resumed"]


# --- the plugin host file ------------------------------------------------------------------------


@pytest.mark.parametrize("mode", [0o644, 0o640, 0o604, 0o600, 0o444, 0o400])
def test_the_plugin_host_file_may_be_read_by_others(lab: Lab, azure: Path, mode: int) -> None:
    """Its digits for group and others are 0 or 4 in Azure's check; it is shipped with 0644."""
    host(lab, azure, mode)
    app(lab, azure)
    in_order(lab)


@pytest.mark.parametrize("mode", [0o664, 0o646, 0o666, 0o622])
def test_the_plugin_host_file_may_not_be_written_by_others(
    lab: Lab, azure: Path, mode: int
) -> None:
    host(lab, azure, mode)
    app(lab, azure)
    (problem,) = check(lab).result["problems"]
    assert (problem["name"], problem["code"]) == ("IncorrectPluginhostFile", 304)
    assert f"{mode:04o}" in problem["message"]
    outcome = lab.start("exit 0").finish(LIMIT)
    assert outcome.verdict == ("success", "filesystem", 0)
    assert lab.events.heard == []


@pytest.mark.parametrize("mode", [0o644, 0o640, 0o700])
def test_the_apps_file_may_not_be_read_by_others(lab: Lab, azure: Path, mode: int) -> None:
    """As in Azure: it may hold passwords among the parameters."""
    host(lab, azure)
    app(lab, azure).chmod(mode)
    (problem,) = check(lab).result["problems"]
    assert (problem["name"], problem["code"]) == ("IncorrectJSONConfigFile", 305)


@pytest.mark.parametrize(
    "text",
    [
        PLUGIN_HOST.replace(": ", " = "),
        PLUGIN_HOST.replace("\n", "\r\n"),
        PLUGIN_HOST.replace("timeoutInSeconds: 1800\n", ""),
        PLUGIN_HOST.replace("pluginPath0: {etc}/azure\n", ""),
        PLUGIN_HOST.replace("timeoutInSeconds: 1800", "timeoutInSeconds: 3600"),
        f"# ours\n\n{PLUGIN_HOST}\n[other]\nkey: value\n",
    ],
    ids=["equals", "CRLF", "no timeout", "no path", "longer", "more"],
)
def test_the_plugin_host_file_as_people_have_it(lab: Lab, azure: Path, text: str) -> None:
    host(lab, azure, text=text)
    app(lab, azure)
    in_order(lab)


# --- the app -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "keys",
    [
        {},
        {"pluginName": None},
        {"ScriptsExecutionPollTimeSeconds": None},
        {"ScriptsExecutionPollTimeSeconds": 1},
        {"ScriptsExecutionPollTimeSeconds": 5},
        {"preScriptParams": None, "postScriptParams": None},
        {"preScriptParams": [], "postScriptParams": []},
        {"preScriptNoOfRetries": None, "postScriptNoOfRetries": None},
        {"timeoutInSeconds": None},
        {"timeoutInSeconds": 1800},
        {"continueBackupOnFailure": None, "fsFreezeEnabled": None},
    ],
    ids=lambda keys: ", ".join(f"{k}={v}" for k, v in keys.items()) or "as shipped",
)
@pytest.mark.parametrize("with_host", [True, False])
def test_the_template_filled_in_as_documented(
    lab: Lab, azure: Path, keys: dict[str, Any], with_host: bool
) -> None:
    if with_host:
        host(lab, azure)
    app(lab, azure, **keys)
    in_order(lab)


@pytest.mark.parametrize("encoding", ["utf-8-sig", "CRLF"])
def test_the_template_as_windows_writes_it(lab: Lab, azure: Path, encoding: str) -> None:
    host(lab, azure)
    path = app(lab, azure)
    text = path.read_text()
    if encoding == "CRLF":
        path.write_bytes(text.replace("\n", "\r\n").encode())
    else:
        path.write_text(text, encoding=encoding)
    in_order(lab)


@pytest.mark.parametrize("value", ["3", 0, 6, 2.5, True])
def test_a_poll_time_that_azure_would_refuse_is_told_of(
    lab: Lab, azure: Path, value: object
) -> None:
    """A whole number of 1 to 5 there. Here it is not needed, so what is wrong with it costs no
    snapshot its consistency."""
    app(lab, azure, ScriptsExecutionPollTimeSeconds=value)
    outcome = check(lab)
    assert "ScriptsExecutionPollTimeSeconds" in str(outcome.result["problems"])


def test_a_plugin_name_that_is_another_is_still_refused(lab: Lab, azure: Path) -> None:
    app(lab, azure, pluginName="OraclePlugin")
    (problem,) = check(lab).result["problems"]
    assert problem["code"] == 305
    assert "ScriptRunner" in problem["message"]


def test_the_template_that_nobody_has_edited_is_told_of(lab: Lab, azure: Path) -> None:
    host(lab, azure)
    app(lab, azure, preScriptLocation="", postScriptLocation="")
    (problem,) = check(lab).result["problems"]
    assert (problem["name"], problem["code"]) == ("Pre-ScriptNotFound", 302)


def test_an_app_of_apps_d_needs_no_plugin_name_either(lab: Lab) -> None:
    lab.filesystem()
    path = lab.app(pre=lab.say("quiesced"), post=lab.say("resumed"))
    document = json.loads(path.read_text())
    del document["pluginName"]
    path.write_text(json.dumps(document))
    in_order(lab)


# --- the other files -----------------------------------------------------------------------------


@pytest.mark.parametrize("mode", [0o644, 0o600])
@pytest.mark.parametrize(
    "text",
    [
        VMBACKUP,
        "[SnapshotThread]\nfsfreeze: True\nMountsToSkip = /nothing\nSafeFreezeWaitInSeconds=600\n",
        "[SnapshotThread]\nMountsToSkip = /nothing\ntimeout = 120\n",
    ],
    ids=["as shipped", "as documented", "with a timeout"],
)
def test_vmbackup_conf_as_shipped_is_in_order(lab: Lab, azure: Path, text: str, mode: int) -> None:
    lab.write(azure / "vmbackup.conf", text, mode)
    host(lab, azure)
    app(lab, azure)
    shown = [p["message"] for p in check(lab).result["problems"]]
    assert [m for m in shown if "/nothing" not in m] == []
    assert lab.start("exit 0").finish(LIMIT).verdict == ("success", "application", 0)


def test_vmbackup_conf_can_switch_the_freeze_off(lab: Lab, azure: Path) -> None:
    """`fsfreeze: False` is what Azure's users set where a freeze does harm."""
    text = VMBACKUP.replace("fsfreeze: True", "fsfreeze: False")
    lab.write(azure / "vmbackup.conf", text, 0o644)
    app(lab, azure)
    session = lab.hold(seconds=LIMIT)
    frozen = lab.frozen
    lab.release()
    session.finish(LIMIT)
    told = "fsfreeze" in check(lab).out.decode()
    assert frozen == [] or told


@pytest.mark.parametrize("mode", [0o644, 0o600, 0o400])
def test_an_app_of_azures_framework_for_databases_is_not_passed_over(
    lab: Lab, azure: Path, mode: int
) -> None:
    """Its workload.conf names a database whose scripts are in the extension, and not here."""
    path = lab.write(azure / "workload.conf", WORKLOAD, mode)
    outcome = check(lab)
    assert outcome.code == 0
    (problem,) = outcome.result["problems"]
    assert problem["severity"] == "warning"
    assert problem["path"] == str(path)
    assert "oracle" in problem["message"]
    assert "vmsnap" in problem["message"] + (problem["action"] or ""), "what to do instead"


@pytest.mark.parametrize(
    "text",
    [WORKLOAD.replace("oracle\ncomm", "\ncomm"), "[workload]\n", "", "#[workload]\n"],
    ids=["as shipped", "no keys", "empty", "commented out"],
)
def test_a_workload_conf_that_names_no_database_is_no_trouble(
    lab: Lab, azure: Path, text: str
) -> None:
    lab.write(azure / "workload.conf", text, 0o644)
    assert check(lab).result == {"ok": True, "problems": []}


def test_a_workload_conf_beside_an_app_of_ours_for_the_same_is_told_of_as_well(
    lab: Lab, azure: Path
) -> None:
    """Nothing tells whether they are the same database."""
    lab.write(azure / "workload.conf", WORKLOAD, 0o644)
    lab.app(pre=lab.say("quiesced"), post=lab.say("resumed"))
    outcome = check(lab)
    assert outcome.code == 0
    assert [p["severity"] for p in outcome.result["problems"]] == ["warning"]


# --- exit 2 --------------------------------------------------------------------------------------

WARNS = "echo 'archive logs are off' >&2; exit 2"


def test_a_pre_script_that_exits_2_has_warned_and_the_backup_goes_on(lab: Lab, azure: Path) -> None:
    """In Azure's framework 0 is success, 1 an error, and 2 a warning, which never ends a backup."""
    host(lab, azure)
    app(lab, azure, pre=f"{lab.say('quiesced')}; {WARNS}", preScriptNoOfRetries=2)
    outcome = lab.start(lab.say("taken $VMSNAP_CONSISTENCY")).finish(LIMIT)
    assert outcome.verdict == ("success", "filesystem", 0)
    (error,) = outcome.result["errors"]
    assert "warning" in error["message"]
    assert "archive logs are off" in error["message"]
    heard = [word.strip() for word in lab.events.heard]
    assert heard == ["quiesced"] * 3 + ["taken filesystem", "resumed"]


def test_an_exit_2_does_not_satisfy_who_requires_the_application(lab: Lab, azure: Path) -> None:
    app(lab, azure, pre=WARNS)
    outcome = lab.start(lab.say("taken"), "--require=application").finish(LIMIT)
    assert outcome.verdict == ("failed", "none", 1)
    assert "taken" not in lab.events.heard


def test_an_exit_2_is_no_failure_for_continue_backup_on_failure(lab: Lab, azure: Path) -> None:
    """Which counts on machines with more than one disk; so this one is shown a second."""
    disks = lab.directory / "block"
    for name in ("vda", "vdb"):
        (disks / name).mkdir(parents=True)
        (disks / name / "size").write_text("20971520\n")
    lab.mount("--bind", disks, "/sys/block")
    lab.undo.callback(lab.umount, Path("/sys/block"))
    app(lab, azure, pre=WARNS, continueBackupOnFailure=False)
    outcome = lab.start("exit 0").finish(LIMIT)
    assert outcome.result["required"] == "application"
    assert outcome.verdict == ("success", "filesystem", 0)
    app(lab, azure, pre="exit 1", continueBackupOnFailure=False)
    assert lab.start("exit 0").finish(LIMIT).verdict == ("failed", "none", 1)
