# SPDX-License-Identifier: Apache-2.0
"""open-vm-tools: vSphere and Workstation. vmtoolsd freezes after it has called its backup scripts
(services/plugins/vmbackup)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from vmsnap.errors import Problem
from vmsnap.platforms.additions import text_of
from vmsnap.platforms.agent import (
    Act,
    Agent,
    Connection,
    Detection,
    HookOutcome,
    error,
    ini,
    program,
)
from vmsnap.system.files import File


def connection(root: Path) -> Connection:
    """services/plugins/vmbackup/scriptOps.c."""
    why = "vmtoolsd calls this before it freezes, when it has thawed, and when that has failed."
    directory = root / "etc/vmware-tools/backupScripts.d"
    return Connection(
        programs=("usr/bin/vmtoolsd",),
        units=("open-vm-tools.service", "vmtoolsd.service"),
        package="open-vm-tools",
        host="govc snapshot.create -vm VM -m=false -q NAME, or a quiesced one of a backup product",
        files=(File(directory / "50-vmsnap", program("vmware", '"$1"', why), 0o755),),
    )


def checks(_: Connection, __: Sequence[str], root: Path) -> Iterator[Problem]:
    path = root / "etc/vmware-tools/tools.conf"
    scripts = ini(text_of(path)).get("vmbackup", "execscripts", fallback="true") or ""
    if scripts.lower() in ("false", "0"):
        yield error(path, f"{path}: found [vmbackup] execScripts = {scripts}, expected true")


AGENT = Agent(
    name="vmware",
    # 15 minutes for everything. It says freezeFail whatever has failed.
    events={"freeze": Act.BEGIN, "freezeFail": Act.ABANDON, "thaw": Act.END},
    freezes=True,
    patience=840,
    codes={HookOutcome.NONE: 0},
    connection=connection,
    detection=Detection(vendors=("VMware",), hypervisors=("vmware",)),
    checks=checks,
)
