# SPDX-License-Identifier: Apache-2.0
"""Azure Backup's extension, below the Azure Linux agent. It freezes between the scripts that its
own configuration file names: vmsnap's hooks, once it is connected
(https://learn.microsoft.com/azure/backup/backup-azure-linux-app-consistent)."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator, Sequence
from pathlib import Path

from vmsnap.config.app import App
from vmsnap.config.azure import AZURE_HOOKS, parse_plugin_host
from vmsnap.config.formats import ConfigError
from vmsnap.errors import Problem
from vmsnap.platforms.additions import text_of
from vmsnap.platforms.agent import (
    Act,
    Agent,
    Connection,
    Detection,
    error,
    inside,
    program,
    warning,
)
from vmsnap.system.files import File

SECONDS = 1800  # the longest that Azure allows a script
EXTENSION = "Microsoft.Azure.RecoveryServices.VMSnapshotLinux*"
# The chassis of Azure's machines; others of Hyper-V have the same vendor (cloud-init, ds-identify).
TAG = "7783-7084-3265-9085-8269-3286-77"


def connection(root: Path) -> Connection:
    """The extension starts the scripts with `sh`, and whether a failure ends the backup is vmsnap's
    to say, by the required level."""
    why = "Azure Backup's extension calls this {} it freezes."
    app = {
        "pluginName": "ScriptRunner",
        "preScriptLocation": AZURE_HOOKS["pre"],
        "postScriptLocation": AZURE_HOOKS["post"],
        "preScriptParams": [],
        "postScriptParams": [],
        "preScriptNoOfRetries": 0,
        "postScriptNoOfRetries": 0,
        "timeoutInSeconds": SECONDS,
        "continueBackupOnFailure": False,
        "fsFreezeEnabled": True,
    }
    return Connection(
        programs=("usr/sbin/waagent", "usr/bin/waagent"),
        units=("walinuxagent.service", "waagent.service"),
        package="walinuxagent (WALinuxAgent)",
        host="az backup protection backup-now, or a backup policy of the vault",
        files=(
            *(
                File(root / path.lstrip("/"), program("azure", event, why.format(when)), 0o700)
                for (event, path), when in zip(AZURE_HOOKS.items(), ("before", "after"))
            ),
            File(
                root / "etc/azure/VMSnapshotScriptPluginConfig.json",
                (json.dumps(app, indent=4) + "\n").encode(),
                0o600,
            ),
        ),
    )


def checks(connected: Connection, _: Sequence[str], root: Path) -> Iterator[Problem]:
    """Without a plugin host file the extension has one that names ours."""
    app, host = connected.files[-1].path, root / "etc/azure/VMSnapshotPluginHost.conf"
    named: tuple[str, ...] = ()
    with contextlib.suppress(ConfigError):  # `vmsnap check` says so anyway
        named = parse_plugin_host(text_of(host), str(host))[1]
    if host.exists() and inside(root, app) not in named:
        message = f"found no pluginConfigPath {inside(root, app)}, expected one, or no such file"
        yield error(host, f"{host}: {message}")


def overlap(apps: Sequence[App], connected: bool, root: Path) -> Iterator[Problem]:
    """The extension runs the scripts of its own files by itself. When it calls us besides, they
    would run twice in one backup."""
    directory = root / "var/lib/waagent"
    installed = directory.is_dir() and any(directory.glob(EXTENSION))
    severity = error if connected else warning
    for app in apps:
        path = Path(app.config)
        if path.parent != root / "etc/vmsnap/apps.d" and (connected or installed):
            yield severity(
                path,
                f"{path}: Azure's extension runs the scripts of app {app.name!r} by itself, and "
                "vmsnap does; move the file to /etc/vmsnap/apps.d and run `vmsnap integrate azure`",
            )


def is_azure(root: Path) -> bool:
    return text_of(root / "sys/class/dmi/id/chassis_asset_tag").strip("\0\n ") == TAG


AGENT = Agent(
    name="azure",
    events={"pre": Act.BEGIN, "post": Act.END},
    freezes=True,
    patience=SECONDS - 30,  # at the end of them the extension goes on, without killing us
    connection=connection,
    detection=Detection(clouds=("azure",), sign=is_azure),
    checks=checks,
    overlap=overlap,
)
