# SPDX-License-Identifier: Apache-2.0
"""The one rule: how consistent a snapshot is, given everything that went wrong around it.

A session starts at the best level that its configuration can give; every failure lowers the level
to at most what the table says; it succeeds when there is a snapshot and the level is the required
one.
"""

from __future__ import annotations

from collections.abc import Iterable
from enum import IntEnum

from vmsnap.errors import Kind


class Level(IntEnum):
    """How consistent a snapshot is. Greater is better."""

    NONE = 0
    CRASH = 1
    FILESYSTEM = 2
    APPLICATION = 3

    @property
    def word(self) -> str:
        return self.name.lower()


AT_MOST = {
    Kind.INCORRECT_PLUGINHOST_FILE: Level.FILESYSTEM,
    Kind.INCORRECT_JSON_CONFIG_FILE: Level.FILESYSTEM,
    Kind.PRE_SCRIPT_NOT_FOUND: Level.FILESYSTEM,
    Kind.POST_SCRIPT_NOT_FOUND: Level.FILESYSTEM,
    Kind.INSUFFICIENT_PERMISSION_FOR_PRE_SCRIPT: Level.FILESYSTEM,
    Kind.INSUFFICIENT_PERMISSION_FOR_POST_SCRIPT: Level.FILESYSTEM,
    Kind.PRE_SCRIPT_EXECUTION_FAILED: Level.FILESYSTEM,
    Kind.PRE_SCRIPT_TIMEOUT: Level.FILESYSTEM,
    Kind.POST_SCRIPT_EXECUTION_FAILED: Level.FILESYSTEM,
    Kind.POST_SCRIPT_TIMEOUT: Level.FILESYSTEM,
    Kind.MOUNT_OPEN_FAILED: Level.CRASH,
    Kind.FREEZE_FAILED: Level.CRASH,
    Kind.FREEZE_TIMEOUT: Level.CRASH,
    Kind.THAW_FAILED: Level.CRASH,
    Kind.HOLD_EXPIRED: Level.CRASH,
    Kind.THAWED_EARLY: Level.CRASH,
    Kind.NOT_FROZEN: Level.CRASH,
    Kind.BECAME_READ_ONLY: Level.CRASH,
    Kind.GUARD_LOST: Level.CRASH,
    Kind.ENGINE_LOST: Level.NONE,
    Kind.SNAPSHOT_FAILED: Level.NONE,
    Kind.SESSION_IN_PROGRESS: Level.NONE,
    Kind.NO_SESSION: Level.NONE,
    Kind.INCORRECT_SETTINGS: Level.NONE,
    Kind.PROVISIONING_FAILED: Level.FILESYSTEM,  # no part of any session
    Kind.INCORRECT_INTEGRATION: Level.FILESYSTEM,  # nor is this
}


def consistency(kinds: Iterable[Kind], *, apps: bool, freezing: bool) -> Level:
    """The level of a session in which these kinds of failure happened.

    `apps`: any app is configured, or was meant to be. `freezing`: filesystems are frozen, by vmsnap
    or by the platform's agent. Without freezing there is no filesystem level to fall back to.
    """
    level = Level.APPLICATION if apps else Level.FILESYSTEM
    for kind in kinds:
        level = min(level, AT_MOST[kind])
    if not freezing and level == Level.FILESYSTEM:
        return Level.CRASH
    return level
