# SPDX-License-Identifier: Apache-2.0
"""Machines that cloud-init sets up at their first boot, as a NoCloud seed says."""

from __future__ import annotations

import json
import re
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from release import repository
from tests.packages import made

from .container import Container
from .debian import APT
from .distribution import DNF
from .image import CLOUD_DNF, Recipe

SEED = "var/lib/cloud/seed/nocloud"
LINK = "/var/lib/cloud/scripts/per-instance/50-vmsnap"
PROVISION, YAML = "vmsnap-provision.service", "/etc/vmsnap/provision.yaml"
RECORD = "/var/lib/vmsnap/provision.json"
EXAMPLES = made.ROOT / "cloud-init/examples"
NOBODY = ("setpriv", "--reuid=65534", "--regid=65534", "--clear-groups")

# What a container has no use for, each of which cloud-init would warn of. datasource_list stands
# in a line of its own for ds-identify, which reads no YAML.
BASE = """\
datasource_list: [ NoCloud ]
network: {config: disabled}
locale: false
preserve_hostname: true
users: []
ssh_deletekeys: false
ssh_genkeytypes: []
"""
# As in the cloud.cfg of such a distribution, where it differs from Debian's.
RPM_BASE = """\
system_info: {distro: rhel}
cloud_config_modules: [yum_add_repo, runcmd]
"""

SECRET = "correct-horse-battery-staple"  # wherever a user may put one
APP: dict[str, Any] = {
    "config": {"preScriptParams": [SECRET], "timeoutInSeconds": 20},
    "scripts": {"pre": f"#!/bin/sh\n: {SECRET}\n", "post": f"#!/bin/sh\n: {SECRET}\n"},
}
GOOD: dict[str, Any] = {
    "apps": {"db": APP, "web": APP},
    "conf": {"freeze": {"hold": 20}, "snapshot": {"command": f"true {SECRET}"}},
    "timer": "daily",
}
BAD_SCRIPT: dict[str, Any] = {
    **GOOD,
    "apps": {"db": APP, "web": {"scripts": {"pre": f"#!/opt/{SECRET}\nexit\n"}}},
}
BAD_KEY: dict[str, Any] = {
    **GOOD,
    "apps": {"db": {**APP, "config": {**APP["config"], "timeoutInSecond": SECRET}}, "web": APP},
}

# --- user-data -----------------------------------------------------------------------------------


def key(document: object) -> dict[str, Any]:
    """A document for vmsnap in user-data, in a key of its own."""
    return {"vmsnap": document}


def file(document: object) -> dict[str, Any]:
    """The same in a file, which cloud-init's own schema knows."""
    written = {"path": YAML, "permissions": "0600", "content": json.dumps(document)}
    return {"write_files": [written]}


def installing(told: dict[str, Any]) -> dict[str, Any]:
    """The same on a Debian without vmsnap."""
    return {**with_repository(told), "package_update": True, "packages": ["vmsnap"]}


def with_repository(told: dict[str, Any]) -> dict[str, Any]:
    path = "/etc/apt/keyrings/vmsnap.asc"
    source = f"deb [signed-by={path}] {made.URL}/apt/ ./"
    return {
        **told,
        "write_files": [*told.get("write_files", []), {"path": path, "content": public_key()}],
        "apt": {"sources": {"vmsnap.list": {"source": source}}},
    }


def public_key() -> str:
    return (made.repositories() / "vmsnap.asc").read_text()


def text(told: dict[str, Any]) -> str:
    """User-data: JSON is YAML."""
    return "#cloud-config\n" + json.dumps(told)


def example(name: str) -> str:
    """One of those that people copy, with our repository and its key put in."""
    found = (EXAMPLES / name).read_text(encoding="utf-8")
    found = found.replace(f"{repository.URL}/rpm/el9/", f"{made.URL}/rpm/debian/")
    found = found.replace(f"{repository.URL}/apt/", f"{made.URL}/apt/")
    block = r"^( *)-----BEGIN PGP[^-]*-----\n.*?^ *-----END PGP[^-]*-----$"

    def ours(match: re.Match[str]) -> str:
        return "\n".join(match[1] + line for line in public_key().splitlines())

    found, count = re.subn(block, ours, found, flags=re.S | re.M)
    assert count == 1
    return found


# --- machines ------------------------------------------------------------------------------------


def seed(root: Path, user_data: str, instance: str = "one") -> None:
    """What the machine is told at its next boot, and which one it is."""
    (root / SEED).mkdir(parents=True, exist_ok=True, mode=0o700)
    (root / SEED / "user-data").write_text(user_data, encoding="utf-8")
    (root / SEED / "meta-data").write_text(f"instance-id: {instance}\n", encoding="utf-8")


@contextmanager
def first_boot(recipe: Recipe, user_data: str, preinstalled: bool = False) -> Iterator[Container]:
    def prepare(root: Path) -> None:
        base = BASE
        if recipe is CLOUD_DNF:
            base += RPM_BASE
            DNF.prepare(root)  # user-data is to bring our repository and its key
            # Where Debian's rpm has its database; services have no home.
            manager = root / "etc/systemd/system.conf.d/rpm.conf"
            manager.parent.mkdir()
            manager.write_text("[Manager]\nDefaultEnvironment=HOME=/root\n", encoding="utf-8")
        elif preinstalled:
            APT.prepare_with(root, ("install", made.NEW))
        else:
            APT.prepare(root)
        (root / "etc/cloud/cloud.cfg.d/99-test.cfg").write_text(base, encoding="utf-8")
        seed(root, user_data)

    container = Container(recipe, prepare)
    try:
        yield container
    finally:
        container.close()


def reboot_as(container: Container, instance: str, told: dict[str, Any]) -> None:
    seed(container.path("/"), text(told), instance)
    container.reboot()


# --- what came of it -----------------------------------------------------------------------------


@dataclass(frozen=True)
class Status:
    """What `cloud-init status` says, in its ways."""

    code: int
    text: str
    document: dict[str, Any]


def status(container: Container) -> Status:
    told = container.run("cloud-init", "status", "--long")
    form = container.run("cloud-init", "status", "--format", "json")
    assert form.returncode == told.returncode
    return Status(told.returncode, told.stdout, json.loads(form.stdout))


def record(container: Container) -> dict[str, Any]:
    """What vmsnap has written down of it; raises FileNotFoundError."""
    found: dict[str, Any] = json.loads(container.read(RECORD))
    return found


def mode_and_owner(container: Container, inside: str) -> tuple[int, int, int]:
    found = container.path(inside).lstat()
    return stat.S_IMODE(found.st_mode), found.st_uid, found.st_gid


def said(container: Container) -> str:
    """All that vmsnap has told the journal since the machine was made."""
    container.run("journalctl", "--sync", check=True)
    return container.run("journalctl", "-q", "-t", "vmsnap", "-o", "cat", check=True).stdout


def assert_secret(container: Container) -> None:
    """What stands in a document is told neither to the journal nor to anybody but root."""
    result = container.read("/run/cloud-init/result.json")
    assert SECRET not in result
    assert SECRET not in container.run("journalctl", "-q", "-o", "json", "-a", check=True).stdout
    everywhere = ("/etc", "/run", "/tmp", "/var")
    grep = (*NOBODY, "grep", "-rlsF", "--devices=skip")
    assert "/etc/hostname\n" in container.run(*grep, "vmsnap-test", *everywhere).stdout
    assert container.run(*grep, SECRET, *everywhere).stdout == ""


def assert_nothing_written(container: Container) -> None:
    found = [str(path.name) for path in container.path("/etc/vmsnap").glob("*/*")]
    assert found == []
    assert not container.path("/etc/systemd/system/vmsnap-backup.timer.d").exists()
