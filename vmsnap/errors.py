# SPDX-License-Identifier: Apache-2.0
"""The catalogue of everything that can go wrong: name, code, summary, recommended action.

Messages, results, checks, the journal's message catalogue and the manual all take these from here.
The names and codes from 300 on are those of Azure Backup's pre/post-script framework
(https://learn.microsoft.com/azure/backup/backup-azure-linux-app-consistent).
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum


class Kind(Enum):
    """One kind of error: (name, code, summary, action, MESSAGE_ID of its journal record)."""

    FREEZE_FAILED = (
        "FreezeFailed",
        121,
        "A filesystem could not be frozen: it was left out, or all were thawed again",
        "See the reason in the message. Device or resource busy means that another program has "
        "frozen the filesystem: find it and have it thaw. What is damaged, or whose disk fails, "
        "is left out: see `dmesg`. `vmsnap plan` shows what would be frozen; [freeze] exclude= "
        "leaves a filesystem out",
        "386ee7ae5aa849ca908d8f13232ecfc1",
    )
    FREEZE_TIMEOUT = (
        "FreezeTimeout",
        122,
        "A filesystem did not freeze in time; all others were thawed again",
        "Look for a device that hangs or writes slowly below the mount that the message names, and "
        "for what writes so much to it; raise [freeze] timeout= if the device is just slow",
        "fd587f0f7034489395a438034c8ced4e",
    )
    MOUNT_OPEN_FAILED = (
        "MountOpenFailed",
        123,
        "A mount point could not be opened, or something else is mounted there now",
        "Run `vmsnap plan` to see the filesystems; unmount what is mounted over the mount point, "
        "or leave it out with [freeze] exclude=",
        "8c84bd9f55a64307ad34ad389337bec4",
    )
    NOT_FROZEN = (
        "NotFrozen",
        124,
        "A filesystem was mounted, or became writable, after the plan was made; it was not frozen",
        "Find what mounted or remounted it while the snapshot was being taken (automounters, "
        "backup programs, containers that start) and make sure that it does not at that time",
        "947d4cb82bcf4a21962ffb9127105657",
    )
    THAW_FAILED = (
        "ThawFailed",
        125,
        "A filesystem could not be thawed",
        "Run `vmsnap thaw --force` now: writes to that filesystem block. If it fails "
        "again, look for the device's errors in `dmesg`",
        "d22fb92e630a4cf6bde2a752ce3ee7aa",
    )
    HOLD_EXPIRED = (
        "HoldExpired",
        126,
        "The snapshot took longer than the hold timeout; the filesystems were thawed meanwhile",
        "Make the snapshot faster, or raise --hold or [freeze] hold=; the filesystems cannot be "
        "written to for that long",
        "2912c6efb7f34ed391a7bce6ff3c52f8",
    )
    THAWED_EARLY = (
        "ThawedEarly",
        127,
        "Another program thawed a filesystem while the snapshot was being taken",
        "Find the other program that freezes and thaws (another backup agent, fsfreeze) and make "
        "sure that it does not run at the same time",
        "7da6c984dd4c4f55862a61926750cd4f",
    )
    GUARD_LOST = (
        "GuardLost",
        128,
        "The process that guards the freeze died or stopped answering; vmsnap thawed in its place",
        "Find out who stopped it (the kernel's log names victims of memory shortage) and run the "
        "snapshot again",
        "069fd9f35dca4939aedc43aa0a530704",
    )
    ENGINE_LOST = (
        "EngineLost",
        129,
        "The process that ran the session was killed; the filesystems were thawed in its place",
        "Find out who killed it (the kernel's log names victims of memory shortage, `systemctl "
        "status` a watchdog) and take the snapshot again: the one in progress cannot be relied on",
        "212ee4753fc54aac95464b84277a04fa",
    )
    BECAME_READ_ONLY = (
        "BecameReadOnly",
        133,
        "A filesystem was mounted to be written to, and has become read-only",
        "The kernel has forced it, see `dmesg`: the filesystem or its disk has failed, or a "
        "process was killed while it thawed a btrfs. What was to be written may be lost. Stop what "
        "writes to it, unmount it, check it and mount it again, or leave it out with [freeze] "
        "exclude=",
        "0eca0b2f0ee74f3fa24c5f882f45afac",
    )
    SNAPSHOT_FAILED = (
        "SnapshotFailed",
        130,
        "The snapshot was not taken: its command failed, or the session was interrupted",
        "See the reason in the message. If it was the command, read its output and run it by hand "
        "outside of vmsnap; if it was an interruption, take the snapshot again",
        "894c9b699b4e4f68b8f9ce733339237a",
    )
    SESSION_IN_PROGRESS = (
        "SessionInProgress",
        140,
        "Another session is in progress on this machine",
        "Wait until it has ended; `vmsnap status` shows it",
        "35107c9323dd466493550a79e82fc3cc",
    )
    NO_SESSION = (
        "NoSession",
        142,
        "There is no held session to thaw",
        "Begin one with `vmsnap freeze`; `vmsnap status` shows how the last one ended",
        "62acd3989a9245779dc95ab3dcc71c50",
    )
    INCORRECT_SETTINGS = (
        "IncorrectSettings",
        141,
        "vmsnap's own settings cannot be used, so no session starts",
        "Correct the file and key named; `vmsnap check` says whether it is right",
        "437947d3d6694995a27fda62bc0d08b6",
    )
    PROVISIONING_FAILED = (
        "ProvisioningFailed",
        143,
        "The document that was to configure vmsnap could not be put into effect",
        "Correct it where the message says and run `vmsnap provision --file FILE` with it. If the "
        "configuration has been mended by hand, remove /var/lib/vmsnap/provision.json",
        "4df18e0e62354cbf98f3c3206f1c6e16",
    )
    INCORRECT_INTEGRATION = (
        "IncorrectIntegration",
        144,
        "The agent of this platform does not call vmsnap as it should, so its snapshots may be "
        "less consistent than they seem",
        "Do what the message says, or run `vmsnap integrate` again; `vmsnap integrate --remove` "
        "ends the connection",
        "c9793b71f8774fdabab0a0147628e49f",
    )
    PRE_SCRIPT_EXECUTION_FAILED = (
        "Pre-ScriptExecutionFailed",
        300,
        "The pre-script failed, also when it was run again as often as configured",
        "Read the script's own output in the journal (`journalctl -t vmsnap-script`) and mend it",
        "8f0cca198baa4f68b59232deb47c0b9b",
    )
    POST_SCRIPT_EXECUTION_FAILED = (
        "Post-ScriptExecutionFailed",
        301,
        "The post-script failed, also when it was run again as often as configured",
        "Read the script's own output in the journal (`journalctl -t vmsnap-script`) and mend it; "
        "check that the application has resumed",
        "9f499a1af0ba4263a1288669441a9482",
    )
    PRE_SCRIPT_NOT_FOUND = (
        "Pre-ScriptNotFound",
        302,
        "There is no pre-script where the configuration names one",
        "Put the script at the path that the configuration names, or correct the path",
        "447b5274a5d943ce99fce5d25b15cbeb",
    )
    POST_SCRIPT_NOT_FOUND = (
        "Post-ScriptNotFound",
        303,
        "There is no post-script where the configuration names one",
        "Put the script at the path that the configuration names, or correct the path",
        "0d9fe02ebb9d4eedbf566d5f17f8062b",
    )
    INCORRECT_PLUGINHOST_FILE = (
        "IncorrectPluginhostFile",
        304,
        "The plugin host file cannot be used",
        "Restore the file, owner root, mode 0644 or stricter; or remove it, since it is optional",
        "4eda5a47e37a490aa589a0c7585bc0a3",
    )
    INCORRECT_JSON_CONFIG_FILE = (
        "IncorrectJSONConfigFile",
        305,
        "The configuration file of an app cannot be used",
        "Correct the key named, or move app and scripts away and write them anew with "
        "`vmsnap init`; owner root, mode 0600",
        "347de5ebeb5e4c619a78f27f86400a20",
    )
    INSUFFICIENT_PERMISSION_FOR_PRE_SCRIPT = (
        "InsufficientPermissionforPre-Script",
        306,
        "Others than root could have changed the pre-script, or it cannot start",
        "Do what the message says. A script belongs to root, has mode 0700, lies below directories "
        "that only root can change, and names an interpreter that is there",
        "ab02d88d1aee42aba59babc0e818f5ae",
    )
    INSUFFICIENT_PERMISSION_FOR_POST_SCRIPT = (
        "InsufficientPermissionforPost-Script",
        307,
        "Others than root could have changed the post-script, or it cannot start",
        "Do what the message says. A script belongs to root, has mode 0700, lies below directories "
        "that only root can change, and names an interpreter that is there",
        "b63e166a0384450faa296f9f9d06a69d",
    )
    PRE_SCRIPT_TIMEOUT = (
        "Pre-ScriptTimeout",
        308,
        "The pre-script did not end within its time and was stopped",
        "See what the script waits for, or raise timeoutInSeconds",
        "5043766578544731aea3af72c1eb4282",
    )
    POST_SCRIPT_TIMEOUT = (
        "Post-ScriptTimeout",
        309,
        "The post-script did not end within its time and was stopped",
        "See what the script waits for, or raise timeoutInSeconds; check that the application has "
        "resumed",
        "d01fa87e105f4fb99b5c57dcdbe2a8ec",
    )

    def __init__(self, label: str, code: int, summary: str, action: str, message_id: str) -> None:
        self.label = label
        self.code = code
        self.summary = summary
        self.action = action
        self.message_id = message_id


class VmsnapError(Exception):
    """What vmsnap raises itself. Only system/, which knows nothing of vmsnap, has others."""


class CommandError(VmsnapError):
    """A command cannot do what it was asked to. Its text is what the user reads."""


@dataclass(frozen=True)
class ScriptKinds:
    """What can go wrong with the script of one phase."""

    not_found: Kind
    untrusted: Kind
    failed: Kind
    timeout: Kind


SCRIPT = {
    "pre": ScriptKinds(
        Kind.PRE_SCRIPT_NOT_FOUND,
        Kind.INSUFFICIENT_PERMISSION_FOR_PRE_SCRIPT,
        Kind.PRE_SCRIPT_EXECUTION_FAILED,
        Kind.PRE_SCRIPT_TIMEOUT,
    ),
    "post": ScriptKinds(
        Kind.POST_SCRIPT_NOT_FOUND,
        Kind.INSUFFICIENT_PERMISSION_FOR_POST_SCRIPT,
        Kind.POST_SCRIPT_EXECUTION_FAILED,
        Kind.POST_SCRIPT_TIMEOUT,
    ),
}


# The subject of these is an app.
OF_APPS = {kind for kinds in SCRIPT.values() for kind in vars(kinds).values()}


class Severity(Enum):
    ERROR = "error"
    WARNING = "warning"


@dataclass(frozen=True)
class Problem:
    """One thing that is wrong, found by the checks or in a session.

    `phase` is that of the session (result.Phase). `subject` is what it is about: an app, which it
    then disables, or a mount point; `path` is the file in which it was found.
    """

    kind: Kind
    message: str
    phase: str = "check"
    subject: str = ""
    path: str = ""
    severity: Severity = Severity.ERROR
    tolerated: bool = False  # by continueBackupOnFailure: false, since a script has only warned

    def to_json(self) -> dict[str, object]:
        return {
            "severity": self.severity.value,
            "name": self.kind.label,
            "code": self.kind.code,
            "path": self.path or self.subject,
            "message": self.message,
            "action": self.kind.action,
        }
