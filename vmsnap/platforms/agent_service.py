# SPDX-License-Identifier: Apache-2.0
"""The unit of an agent: whether it runs and has read its settings, and having it read them."""

from __future__ import annotations

import contextlib
import os
import select
import time
from pathlib import Path

from vmsnap.platforms.agent import Connection
from vmsnap.system import systemd
from vmsnap.system.proc import descendants
from vmsnap.system.process import output_of

CHECK = "vmsnap-check.service"
HOOK_PATIENCE = 60.0  # seconds


def relabel(connection: Connection) -> None:
    """As the policy has it; the check finds a label that stays wrong."""
    if connection.label and Path("/sys/fs/selinux/enforce").exists():
        with contextlib.suppress(OSError):
            output_of(["restorecon", "-F", *(str(file.path) for file in connection.files)])


def wait_for_hooks(unit: str) -> None:
    """Wait until what the agent has called has ended: it may not be ours alone, and the agent has
    yet to tell its host."""
    main = int(systemd.show(unit, "MainPID") or 0)
    for pid in descendants(main) if main else ():
        with contextlib.suppress(ProcessLookupError):
            hook = os.pidfd_open(pid)
            select.select([hook], [], [], HOOK_PATIENCE)
            os.close(hook)


def is_running(unit: str) -> bool:
    """Or about to, at boot."""
    with contextlib.suppress(OSError):
        return systemd.is_running(unit)
    return False


def outdated(connection: Connection, unit: str) -> bool:
    """Whether it has started before what it reads at its start was written."""
    if not connection.restart:
        return False
    with contextlib.suppress(OSError, ValueError):
        started = int(systemd.show(unit, "ExecMainStartTimestampMonotonic")) / 1e6
        settings = [file.path for file in connection.files if not file.mode & 0o100]
        settings += [addition.path for addition in connection.additions]
        ages = [time.time() - path.stat().st_mtime for path in settings]
        # One from the future was written before the clock was set back, at an unknown time.
        return started > 0 and any(0 <= age < time.monotonic() - started for age in ages)
    return False


def restart(connection: Connection, wait: bool, changed: bool, start: bool = False) -> str:
    """Have the agent read its configuration, if that has changed since it has started; return what
    was restarted, if anything. `start`: also one that does not run although it could, since it
    was installed after the boot (Debian's qemu-guest-agent)."""
    if not connection.restart or not systemd.booted():
        return ""
    systemd.systemctl("daemon-reload")
    start = start and connection.channel != "" and Path("/", connection.channel).exists()
    restarted = []
    for unit in connection.units:
        runs = systemd.systemctl("is-active", "--quiet", unit)[0] == 0
        if (runs and (changed or outdated(connection, unit))) or (start and not runs):
            wait_for_hooks(unit)
            options = () if wait else ("--no-block",)
            restarted += [unit] if systemd.systemctl("restart", *options, unit)[0] == 0 else []
    return ", ".join(restarted)


def recheck() -> None:
    """Run a failed vmsnap-check.service again: its status may be outdated now."""
    with contextlib.suppress(OSError):
        if systemd.systemctl("is-failed", "--quiet", CHECK)[0] == 0:
            systemd.systemctl("restart", "--no-block", CHECK)
