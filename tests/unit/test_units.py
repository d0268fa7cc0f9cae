# SPDX-License-Identifier: Apache-2.0
"""The unit files: what must be in those that freeze and what never, and what they start."""

from __future__ import annotations

import shlex
from pathlib import Path

import pytest

from vmsnap.cli.main import parser
from vmsnap.service.client import UNIT
from vmsnap.session.notify import EXTEND

DIRECTORY = Path(__file__).parents[2] / "systemd"
UNITS = sorted(path.name for path in DIRECTORY.iterdir())
FREEZING = ("vmsnap-session.service", "vmsnap-backup.service")
TRUE, FALSE = ("yes", "true", "on", "1"), ("no", "false", "off", "0")

MOUNTS = "needs a mount namespace, in which what scripts mount is lost to everybody else"
CREATED = "systemd makes the directory before it starts a command, and hangs if the disk is frozen"
FORBIDDEN = {
    "StateDirectory": CREATED,
    "LogsDirectory": CREATED,
    "CacheDirectory": CREATED,
    "ConfigurationDirectory": CREATED,
    "PrivateDevices": "scripts and the snapshot command need the disks",
    "DeviceAllow": "scripts and the snapshot command need the disks, and all of them",
    "DevicePolicy": "scripts and the snapshot command need the disks",
    "ProtectClock": "implies DeviceAllow=char-rtc, which locks out all other devices, the disks "
    "among them, before systemd 253 (https://github.com/systemd/systemd/issues/18142)",
    "ProtectHome": "scripts do not see what is there, and what nobody else sees stays unfrozen",
    "InaccessiblePaths": "what is mounted there would silently not be frozen",
    "TemporaryFileSystem": "what is mounted there would silently not be frozen",
    "ReadOnlyPaths": "scripts write where they like",
    "ProtectSystem": "scripts write where they like, and to /boot and /etc too",
    "RootDirectory": "every filesystem of the machine must be in sight",
    "RootImage": "every filesystem of the machine must be in sight",
    "PrivateUsers": "root of a user namespace may not freeze",
    "PrivateMounts": "what scripts and the snapshot command mount must be seen by all",
    "MountFlags": "a filesystem that is mounted during the session would not be seen",
    "PrivateTmp": "scripts would not find a database's socket in /tmp",
    "PrivateNetwork": "scripts speak to databases, and snapshot commands to clouds",
    "User": "only root may freeze",
    "DynamicUser": "only root may freeze",
    "CapabilityBoundingSet": "what is not on the list, scripts may need; only ~ is allowed",
    "NoNewPrivileges": "scripts run su and sudo to become the database's user",
    "RestrictSUIDSGID": "scripts run what they like",
    "SystemCallFilter": "what is not on the list, scripts may need; only ~ is allowed",
    "RestrictAddressFamilies": "what is not on the list, scripts may need; only ~ is allowed",
    "SystemCallArchitectures": "scripts run programs of 32 bits too",
    "RestrictNamespaces": "scripts enter containers",
    "ProtectKernelLogs": MOUNTS,
    "ProtectKernelModules": MOUNTS,
    "ProtectKernelTunables": MOUNTS,
    "ProtectControlGroups": MOUNTS,
    "ProtectProc": MOUNTS,
    "BindPaths": MOUNTS,
    "BindReadOnlyPaths": MOUNTS,
    "ReadWritePaths": MOUNTS,
    "NoExecPaths": MOUNTS,
    "LogNamespace": MOUNTS,
    "RestrictRealtime": "the guard goes before all others, or the thaw waits for its turn",
    "MemoryDenyWriteExecute": "scripts run programs that compile as they go",
    "Restart": "a session must not be repeated by itself: its caller is gone",
}
NEEDED_CAPABILITIES = {
    "CAP_SYS_ADMIN": "to freeze and thaw, and in scripts to mount",
    "CAP_IPC_LOCK": "to keep the guard in memory",
    "CAP_KILL": "to end what scripts of other users left",
    "CAP_DAC_OVERRIDE": "to reach the mount points of everybody",
    "CAP_DAC_READ_SEARCH": "to reach the mount points of everybody",
    "CAP_NET_ADMIN": "for a send buffer that holds a session's records",
    "CAP_SYS_RESOURCE": "for scripts to be killed before the engine is, out of memory",
    "CAP_SYS_PTRACE": "to read the mount tables of other processes",
    "CAP_SETUID": "for su and sudo in scripts",
    "CAP_SETGID": "for su and sudo in scripts",
    "CAP_AUDIT_WRITE": "for su and sudo in scripts",
    "CAP_CHOWN": "in scripts",
    "CAP_FOWNER": "in scripts",
    "CAP_SYS_CHROOT": "to enter containers in scripts",
    "CAP_SYS_RAWIO": "to speak to disks in scripts",
    "CAP_MKNOD": "to make the devices of snapshots",
}
REQUIRED = {
    "KillMode": "process",
    "ExecStopPost": "/usr/bin/vmsnap session --stopped",
    "RuntimeDirectory": "vmsnap",
    "RuntimeDirectoryMode": "0700",
    "RuntimeDirectoryPreserve": "yes",
    "Environment": "PYTHONDONTWRITEBYTECODE=1 VMSNAP_UNIT=%n",
    "OOMScoreAdjust": "-900",
    "LogRateLimitIntervalSec": "0",
}
# Names that systemd learned after 247 (its NEWS); what an older one does not know it ignores.
TOO_NEW = (
    *("ExitType", "LoadCredential", "SetCredential", "ImportCredential", "RestartMode"),
    *("RestartSteps", "RestartMaxDelaySec", "MemoryZSwap", "MemoryPressure", "OpenFile"),
    *("SocketBind", "RestrictFileSystems", "RestrictNetworkInterfaces", "TriggerLimit"),
    *("PollLimit", "PrivatePIDs", "PrivateIPC", "ExtensionDirectories", "ExtensionImages"),
    *("ConditionCPUFeature", "ConditionFirmware", "ConditionOSRelease", "ConditionMemoryPressure"),
    *("OnSuccess", "Upholds", "PropagatesStopTo", "StopPropagatedFrom", "FixedRandomDelay"),
    *("ManagedOOMPreference", "NFTSet", "MemoryKSM", "CoredumpReceive", "RootEphemeral"),
    *("SurviveFinalKillSignal", "StartupAllowedCPUs", "LogFilterPatterns", "DelegateSubgroup"),
)
SYSTEM_TOOLS = ("systemctl",)
HOOK = "/usr/libexec/vmsnap/cloud-init-hook"

Setting = tuple[str, str, str]  # section, name, value


def settings(text: str) -> list[Setting]:
    """As systemd.syntax(7) has it: comments between lines, lines that go on, names repeated."""
    found = []
    section = ""
    pending = ""
    for line in text.splitlines():
        if line.startswith(("#", ";")):
            continue
        pending += line.strip()
        if pending.endswith("\\"):
            pending = pending[:-1] + " "
            continue
        whole, pending = pending, ""
        if whole.startswith("["):
            section = whole.strip("[]")
        elif whole:
            name, equals, value = whole.partition("=")
            assert (bool(section), equals) == (True, "="), whole
            found.append((section, name.strip(), value.strip()))
    assert pending == ""
    return found


def unit(name: str) -> list[Setting]:
    return settings((DIRECTORY / name).read_text(encoding="utf-8"))


def values(name: str, setting: str) -> list[str]:
    return [value for _, key, value in unit(name) if key == setting]


def sections(name: str) -> set[str]:
    return {section for section, _, _ in unit(name)}


def seconds(word: str) -> int:
    return int(word[:-1] if word.endswith("s") else word)


def commands(name: str) -> list[str]:
    return [value for _, key, value in unit(name) if key.startswith("Exec")]


COMMANDS = [
    pytest.param(command, id=f"{name}: {command}") for name in UNITS for command in commands(name)
]
OURS = [p for p in COMMANDS if str(p.values[0]).startswith("/usr/bin/vmsnap")]


def test_unit_files_are_read_as_systemd_reads_them() -> None:
    text = "# c\n[Unit]\nA=1\n; c\nA = 2\\\n# between\n  3\n\n[Service]\nB=x=y\n"
    assert settings(text) == [
        ("Unit", "A", "1"),
        ("Unit", "A", "2 3"),
        ("Service", "B", "x=y"),
    ]


def test_every_unit_that_takes_a_session_is_held_to_the_rules_of_those_that_freeze() -> None:
    takes = {
        name
        for name in UNITS
        for command in values(name, "ExecStart")
        if shlex.split(command)[1:2] in (["run"], ["freeze"], ["session"])
    }
    assert takes == set(FREEZING)


# --- units that freeze -------------------------------------------------------------------------


@pytest.mark.parametrize("name", FREEZING)
@pytest.mark.parametrize("setting", FORBIDDEN)
def test_a_unit_that_freezes_never_has(setting: str, name: str) -> None:
    harmless = [v for v in values(name, setting) if v.lower() in FALSE or v.startswith("~")]
    assert values(name, setting) == harmless, f"{setting}= in {name}: {FORBIDDEN[setting]}"


@pytest.mark.parametrize("name", FREEZING)
@pytest.mark.parametrize("capability", NEEDED_CAPABILITIES)
def test_a_unit_that_freezes_keeps(capability: str, name: str) -> None:
    dropped = " ".join(values(name, "CapabilityBoundingSet")).replace("~", "").split()
    assert capability not in dropped, f"{name} needs it {NEEDED_CAPABILITIES[capability]}"


@pytest.mark.parametrize("name", FREEZING)
def test_a_unit_that_freezes_keeps_the_calls_that_it_makes(name: str) -> None:
    """Of the sets in systemd.exec(5), those that hold none of open, ioctl, fork, mlock, mount."""
    spared = {"@clock", "@cpu-emulation", "@obsolete", "@raw-io", "@reboot", "@swap", "@debug"}
    assert set(" ".join(values(name, "SystemCallFilter")).replace("~", "").split()) <= spared


@pytest.mark.parametrize("name", FREEZING)
def test_a_program_that_makes_a_forbidden_call_is_told_and_not_killed(name: str) -> None:
    assert values(name, "SystemCallErrorNumber") == ["EPERM"]


@pytest.mark.parametrize("name", FREEZING)
@pytest.mark.parametrize("setting", REQUIRED)
def test_a_unit_that_freezes_always_has(setting: str, name: str) -> None:
    assert values(name, setting) == [REQUIRED[setting]]


@pytest.mark.parametrize("name", FREEZING)
def test_a_unit_that_freezes_cannot_be_enabled_by_mistake(name: str) -> None:
    assert "Install" not in sections(name)


@pytest.mark.parametrize("name", FREEZING)
def test_a_unit_that_freezes_is_given_the_time_that_one_word_of_it_is_good_for(name: str) -> None:
    for setting in ("TimeoutStartSec", "TimeoutStopSec"):
        assert [seconds(word) for word in values(name, setting)] == [EXTEND]


@pytest.mark.parametrize("name", FREEZING)
def test_the_words_of_a_unit_that_freezes_are_heard(name: str) -> None:
    """Those of ExecStopPost= too, which runs the post-scripts if nobody else could."""
    assert values(name, "NotifyAccess") == ["exec"]


def test_a_held_session_has_started_when_it_says_so() -> None:
    assert values("vmsnap-session.service", "Type") == ["notify"]
    assert values("vmsnap-session.service", "ExecStart") == ["/usr/bin/vmsnap session"]


def test_a_held_session_that_hangs_is_killed_without_a_core_dump() -> None:
    assert values("vmsnap-session.service", "WatchdogSignal") == ["SIGKILL"]
    (watchdog,) = values("vmsnap-session.service", "WatchdogSec")
    assert 5 <= seconds(watchdog) <= EXTEND  # the engine speaks every second


def test_the_unit_that_the_command_line_starts_is_shipped() -> None:
    assert UNIT in UNITS


# --- the others --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "enabled"),
    [
        ("vmsnap-session.service", False),
        ("vmsnap-backup.service", False),
        ("vmsnap-recheck.service", False),
        ("vmsnap-check@.path", False),
        ("vmsnap-backup.timer", True),
        ("vmsnap-check.service", True),
        ("vmsnap-check.path", True),
    ],
)
def test_only_what_begins_by_itself_can_be_enabled(name: str, enabled: bool) -> None:
    assert ("Install" in sections(name)) == enabled


def test_machines_of_one_host_are_not_frozen_in_the_same_second() -> None:
    (delay,) = values("vmsnap-backup.timer", "RandomizedDelaySec")
    assert delay not in ("0", "0s", "")


def test_a_snapshot_that_was_missed_is_made_up_for() -> None:
    (persistent,) = values("vmsnap-backup.timer", "Persistent")
    assert persistent.lower() in TRUE


@pytest.mark.parametrize("name", UNITS)
def test_every_unit_that_another_one_names_is_there(name: str) -> None:
    named = [
        word
        for _, _, value in unit(name)
        for word in value.split()
        if word.startswith("vmsnap-") and word.endswith((".service", ".path", ".timer"))
    ]
    assert set(named) <= set(UNITS)


@pytest.mark.parametrize("name", [name for name in UNITS if name.endswith(".timer")])
def test_a_timer_starts_the_service_of_its_name(name: str) -> None:
    other = name.replace(".timer", ".service")
    assert values(name, "Unit") in ([], [other])
    assert other in UNITS


# --- all of them -------------------------------------------------------------------------------


@pytest.mark.parametrize("name", UNITS)
def test_no_unit_uses_what_systemd_247_does_not_know(name: str) -> None:
    assert [key for _, key, _ in unit(name) if key.startswith(TOO_NEW)] == []


@pytest.mark.parametrize("name", UNITS)
def test_every_unit_says_what_it_is_and_under_which_licence(name: str) -> None:
    (description,) = values(name, "Description")
    assert description
    text = (DIRECTORY / name).read_text(encoding="utf-8")
    assert text.startswith("# SPDX-License-Identifier: Apache-2.0\n")
    assert text.endswith("\n")


@pytest.mark.parametrize("name", UNITS)
def test_a_setting_that_takes_one_value_is_set_once(name: str) -> None:
    keys = [(section, key) for section, key, _ in unit(name)]
    repeatable = {
        ("Path", "PathChanged"),
        ("Service", "CapabilityBoundingSet"),
        ("Unit", "ConditionPathExists"),
    }
    assert [key for key in keys if keys.count(key) > 1 and key not in repeatable] == []


@pytest.mark.parametrize("command", COMMANDS)
def test_a_unit_starts_vmsnap_or_a_tool_of_the_system(command: str) -> None:
    program = shlex.split(command)[0]
    assert program in ("/usr/bin/vmsnap", HOOK, *SYSTEM_TOOLS)


@pytest.mark.parametrize("command", OURS)
def test_the_command_line_of_a_unit_is_understood(command: str) -> None:
    words = shlex.split(command)[1:]
    assert parser().parse_args(words).command_name == words[0]


@pytest.mark.parametrize(
    "name", [name for name in UNITS if any("bin/vmsnap" in word for word in commands(name))]
)
def test_no_unit_leaves_bytecode_behind(name: str) -> None:
    assert values(name, "Environment")[0].split()[0] == "PYTHONDONTWRITEBYTECODE=1"
