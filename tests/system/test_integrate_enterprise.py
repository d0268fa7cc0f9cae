# SPDX-License-Identifier: Apache-2.0
"""`vmsnap integrate qemu` with Debian's agent in the layout that Enterprise Linux gives it: the
unit names a hook, from /etc/sysconfig, and that runs all that is in a directory."""

from __future__ import annotations

from pathlib import Path

import pytest

from .agents import QEMU_GA, QEMU_UNIT, Host, Platform, path_of

HOOK, DISPATCHER = "/etc/qemu-ga/fsfreeze-hook.d/50-vmsnap", "/etc/qemu-ga/fsfreeze-hook"
SYSCONFIG = "/etc/sysconfig/qemu-ga"


@pytest.fixture
def enterprise(platform: Platform) -> Platform:
    container = platform.container
    container.path("/run/qga.state").unlink(missing_ok=True)
    container.write(DISPATCHER, container.read("/etc/qemu/fsfreeze-hook"), 0o755)
    site = f"#!/bin/sh\n{platform.say('site $1')}\nexit 1\n"  # which the dispatcher forgets
    container.write(f"{DISPATCHER}.d/10-site", site, 0o755)
    container.write(SYSCONFIG, f"FSFREEZE_HOOK_PATHNAME={DISPATCHER}\n", 0o644)
    platform.unit(
        QEMU_UNIT,
        f"EnvironmentFile={SYSCONFIG}",
        f"ExecStart={QEMU_GA} -F${{FSFREEZE_HOOK_PATHNAME}}",
        "Restart=always",
        "RestartSec=0",
    )
    return platform


def hook_of(platform: Platform) -> str:
    """What the running agent was told to call."""
    pid = platform.container.outside(int(platform.main_pid(QEMU_UNIT)))
    words = Path(f"/proc/{pid}/cmdline").read_text().split("\0")
    return next(word[2:] for word in words if word.startswith("-F"))


def test_our_hook_is_called_once_and_so_are_the_others(
    enterprise: Platform,
) -> None:
    enterprise.database()
    enterprise.connect("qemu")
    assert enterprise.complaints == []
    host = Host(enterprise.container)
    assert host.ask("guest-fsfreeze-freeze") == 1
    assert host.ask("guest-fsfreeze-thaw") == 1
    said = ["site freeze", "quiesced", "resumed success application", "site thaw"]
    assert enterprise.events.heard == said
    enterprise.strict()
    enterprise.database(pre="exit 1")
    assert "hook" in str(host.ask("guest-fsfreeze-freeze"))
    assert not enterprise.container.frozen("/")
    host.close()


def test_a_removal_gives_back_the_very_tree_and_the_hook(enterprise: Platform) -> None:
    before = enterprise.etc
    enterprise.connect("qemu")
    assert hook_of(enterprise) == HOOK
    assert enterprise.integrate("--remove").code == 0
    assert enterprise.etc == before
    assert hook_of(enterprise) == DISPATCHER


@pytest.mark.parametrize("name", ["qemu-guest-agent.service.d/50-vmsnap.conf", "vmsnap.conf"])
def test_what_is_missing_is_told(enterprise: Platform, name: str) -> None:
    enterprise.connect("qemu")
    path = path_of(name) if name.endswith("50-vmsnap.conf") else f"/etc/qemu-ga/{name}"
    enterprise.container.path(path).unlink()
    (told,) = enterprise.complaints
    assert f"{path}: No such file or directory" in told
    enterprise.connect("qemu")
    assert enterprise.complaints == []
