# SPDX-License-Identifier: Apache-2.0
"""`vmsnap integrate azure`: a test does what the extension of Azure Backup does with its files."""

from __future__ import annotations

import json
import stat
import subprocess

import pytest

from .agents import Platform

CONFIG, HOST = "VMSnapshotScriptPluginConfig.json", "VMSnapshotPluginHost.conf"
DIRECTORY = "/etc/azure"
EXTENSION = "/var/lib/waagent/Microsoft.Azure.RecoveryServices.VMSnapshotLinux-1.0.9220.0"


@pytest.fixture
def azure(platform: Platform) -> Platform:
    platform.idle("walinuxagent.service")
    platform.container.path(EXTENSION).mkdir(parents=True)
    return platform


class Backup:
    """The extension's ScriptRunner.py: what it demands of the files, and how it calls them."""

    def __init__(self, platform: Platform) -> None:
        self.platform = platform
        path = platform.container.path(f"{DIRECTORY}/{CONFIG}")
        self.assert_roots_alone(path.stat().st_mode, path.stat().st_uid)
        assert not path.stat().st_mode & 0o100
        self.config = json.loads(path.read_text())
        assert self.config["pluginName"] == "ScriptRunner"
        for key in ("preScriptNoOfRetries", "postScriptNoOfRetries", "timeoutInSeconds"):
            assert type(self.config[key]) is int
        assert self.config["timeoutInSeconds"] <= 1800
        for key in ("continueBackupOnFailure", "fsFreezeEnabled"):
            assert type(self.config[key]) is bool

    def assert_roots_alone(self, mode: int, owner: int) -> None:
        assert (stat.S_IMODE(mode) & 0o077, owner) == (0, 0)

    def call(self, phase: str) -> bool:
        """Whether the backup would go on. Its output goes to a pipe that nobody reads."""
        script = self.config[f"{phase}ScriptLocation"]
        status = self.platform.container.path(script).stat()
        self.assert_roots_alone(status.st_mode, status.st_uid)
        argv = ("sh", script, *self.config[f"{phase}ScriptParams"])
        process = self.platform.container.popen(
            *argv, stdout=subprocess.PIPE, stderr=subprocess.PIPE
        )
        code = process.wait(20)
        process.communicate()
        return code == 0 or bool(self.config["continueBackupOnFailure"])


def test_the_extension_has_the_apps_of_vmsnap_quiesced(azure: Platform) -> None:
    azure.database()
    azure.connect("azure")
    assert azure.complaints == []
    backup = Backup(azure)
    assert backup.config["fsFreezeEnabled"] is True
    assert backup.call("pre")
    assert azure.events.heard == ["quiesced"]
    assert not azure.container.frozen("/")  # the extension does that
    assert backup.call("post")
    assert azure.events.wait("resumed") == "success application"
    assert azure.last == ("success", "application", [])
    assert [app["name"] for app in azure.vmsnap("status", "--json").result["last"]["apps"]] == [
        "db"
    ]


@pytest.mark.parametrize("required", [True, False])
def test_a_failure_ends_the_backup_only_if_the_level_is_required(
    azure: Platform, required: bool
) -> None:
    if required:
        azure.strict()
    azure.database(pre="exit 1")
    azure.connect("azure")
    assert Backup(azure).call("pre") == (not required)
    assert Backup(azure).call("post") == (not required)


def test_what_azure_finds_is_removed_again(azure: Platform) -> None:
    before = azure.etc
    azure.connect("azure")
    assert azure.etc != before
    assert azure.integrate("--remove").code == 0
    assert azure.etc == before


# --- two that would run the same scripts ---------------------------------------------------------


def azures_app(platform: Platform, name: str) -> None:
    """An app that the extension runs by itself."""
    for phase in ("pre", "post"):
        platform.container.write(f"/etc/azure-scripts/{phase}", "#!/bin/sh\n", 0o700)
    platform.container.added.callback(
        platform.container.run, "rm", "-r", "/etc/azure-scripts", check=True
    )
    document = {"pluginName": "ScriptRunner"}
    document.update({f"{x}ScriptLocation": f"/etc/azure-scripts/{x}" for x in ("pre", "post")})
    platform.container.write(f"{DIRECTORY}/{name}", json.dumps(document))


def plugin_host(platform: Platform, *names: str) -> None:
    lines = ["[pre_post]", "timeoutInSeconds = 1800", f"numberOfPlugins = {len(names)}"]
    for number, name in enumerate(names):
        lines += [f"pluginName{number} = ScriptRunner", f"pluginPath{number} = {DIRECTORY}"]
        lines.append(f"pluginConfigPath{number} = {DIRECTORY}/{name}")
    platform.container.write(f"{DIRECTORY}/{HOST}", "\n".join([*lines, ""]))


def test_an_app_that_the_extension_runs_besides_is_told(azure: Platform) -> None:
    azure.connect("azure")
    azures_app(azure, "Other.json")
    plugin_host(azure, CONFIG, "Other.json")
    (told,) = azure.complaints
    assert f"{DIRECTORY}/Other.json: Azure's extension runs the scripts of app 'Other'" in told


def test_an_extension_that_is_told_to_run_nothing_is_told(azure: Platform) -> None:
    azure.connect("azure")
    plugin_host(azure)
    assert f"{DIRECTORY}/{HOST}" in "\n".join(azure.complaints)


def test_an_app_of_azures_is_a_warning_while_vmsnap_is_not_called(azure: Platform) -> None:
    azures_app(azure, CONFIG)
    (told,) = azure.complaints
    assert told.startswith(f"warning: {DIRECTORY}/{CONFIG}: Azure's extension runs the scripts of")
    azure.container.path(EXTENSION).rmdir()
    assert azure.complaints == []


def test_a_configuration_for_the_extension_is_never_overwritten(azure: Platform) -> None:
    azures_app(azure, CONFIG)
    before = azure.etc
    done = azure.integrate("azure")
    assert done.code == 1
    assert f"{DIRECTORY}/{CONFIG}: found an app's file, expected none" in done.err
    assert azure.etc == before
    assert not azure.container.path("/var/lib/vmsnap/integration.json").exists()
    (told,) = azure.complaints
    assert told.startswith("warning: ")
