# SPDX-License-Identifier: Apache-2.0
"""A machine that is created with nothing but user-data protects itself: cloud-init installs and
configures vmsnap, and a session freezes the real root filesystem.
"""

from __future__ import annotations

import json
import os
import tempfile
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.packages import made
from tests.system import cloud

from . import machine
from .machine import Machine

DEADLINE = 900.0  # seconds; it takes 200 on a machine that does nothing else
APPS = ("db", "web")
CONFIGURATION = {
    **{f"/etc/vmsnap/apps.d/{app}.json": "0o600" for app in APPS},
    **{f"/etc/vmsnap/scripts/{app}/{phase}": "0o700" for app in APPS for phase in ("pre", "post")},
    **{f"/etc/vmsnap/scripts/{app}": "0o700" for app in APPS},
    "/etc/vmsnap/vmsnap.conf.d/50-provision.conf": "0o600",
    "/var/lib/vmsnap/provision.json": "0o600",
}
# cloud-init starts it, and says that it is done only when it does not wait for it.
UNIT = f"""\
[Unit]
After=cloud-final.service vmsnap-provision.service
[Service]
Type=oneshot
StandardOutput=file:/dev/ttyS0
ExecStart=echo {machine.BEGIN}
ExecStart=python3 /root/report.py {" ".join(CONFIGURATION)}
ExecStart=echo {machine.END}
ExecStopPost=systemctl start --no-block poweroff.target
"""


def app() -> dict[str, Any]:
    """Scripts that leave a trace on the disk that is frozen in between."""
    trace = "#!/bin/sh\nmkdir -p /root/traces && echo {} >>/root/traces/$VMSNAP_APP\n"
    return {
        "config": {"timeoutInSeconds": 60, "continueBackupOnFailure": False},
        "scripts": {
            "pre": trace.format("quiesced"),
            "post": trace.format("resumed $VMSNAP_OUTCOME $VMSNAP_CONSISTENCY"),
        },
    }


def user_data() -> dict[str, Any]:
    """The example for apt, with apps of ours, a disk to install from, and a report at the end."""
    told: dict[str, Any] = yaml.safe_load(cloud.BASE + cloud.example("apt.yaml"))
    told["vmsnap"]["apps"] = {name: app() for name in APPS}
    repository = made.URL.removeprefix("file://")
    told["mounts"] = [["/dev/disk/by-label/repository", repository, "vfat", "ro"]]
    reporting = Path(__file__).with_name("report.py").read_text(encoding="utf-8")
    told["write_files"] += [
        {"path": "/root/report.py", "content": reporting},
        {"path": "/etc/systemd/system/report.service", "content": UNIT},
    ]
    told["runcmd"] = [["systemctl", "start", "--no-block", "report.service"]]
    return told


@pytest.fixture(scope="module")
def reported() -> dict[str, Any]:
    if os.geteuid() != 0:
        pytest.fail("tests/vm makes an image: run it as root", pytrace=False)
    if missing := machine.missing_tools():
        pytest.fail(f"not installed: {', '.join(missing)}", pytrace=False)
    with tempfile.TemporaryDirectory(prefix="vmsnap-test-", dir="/var/lib") as directory:
        made_of = Machine(Path(directory))
        made_of.add_seed(user_data())
        made_of.add_files(made.repositories(), "repository")
        return machine.report(made_of.run(DEADLINE))


def test_cloud_init_is_done_without_an_error(reported: dict[str, Any]) -> None:
    assert reported["cloud-init"]["code"] == 0, reported["cloud-init"]["out"]
    assert json.loads(reported["cloud-init"]["out"])["status"] == "done"
    assert reported["result"]["v1"]["errors"] == []


def test_both_apps_are_configured_for_root_alone(reported: dict[str, Any]) -> None:
    assert reported["access"] == {path: [mode, 0, 0] for path, mode in CONFIGURATION.items()}


def test_everything_is_in_order(reported: dict[str, Any]) -> None:
    assert reported["check-unit"]["out"] == "active\n"
    assert reported["failed"]["out"] == ""
    assert json.loads(reported["check"]["out"]) == {"ok": True, "problems": []}


def test_the_root_filesystem_is_frozen_until_the_thaw(reported: dict[str, Any]) -> None:
    assert reported["frozen"] == [False, True, False], reported["freeze"]
    held = json.loads(reported["freeze"]["out"])
    # The disk with the repository is read-only.
    assert (held["outcome"], held["filesystems"]) == ("held", ["/"])


def test_the_session_is_application_consistent(reported: dict[str, Any]) -> None:
    assert reported["thaw"]["code"] == 0, reported["thaw"]["err"]
    result = json.loads(reported["thaw"]["out"])
    assert (result["outcome"], result["consistency"]) == ("success", "application")
    assert result["errors"] == []
    exits = {app["name"]: (app["pre"]["exit"], app["post"]["exit"]) for app in result["apps"]}
    assert exits == {app: (0, 0) for app in APPS}
    ((mount, held),) = ((f["mount"], f["held_ms"]) for f in result["filesystems"])
    assert mount == "/"
    assert held > 0
    status = json.loads(reported["status"]["out"])
    assert status["last"] == result
    assert status["in_progress"] is None
    assert status["provisioning"]["ok"] is True


def test_both_scripts_of_both_apps_have_left_their_trace(reported: dict[str, Any]) -> None:
    trace = "quiesced\nresumed success application\n"
    assert reported["traces"] == {app: trace for app in APPS}
