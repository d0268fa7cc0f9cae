# SPDX-License-Identifier: Apache-2.0
"""Whether what `vmsnap integrate` has connected is still so: the agent is installed and runs, what
was written for it is in place, and nothing else keeps it from calling us."""

from __future__ import annotations

import configparser
import contextlib
import os
import re
import stat
from collections.abc import Callable, Collection, Iterator, Mapping
from pathlib import Path

from vmsnap.config.azure import parse_plugin_host
from vmsnap.config.checks import Inspection
from vmsnap.config.formats import Incorrect
from vmsnap.errors import Kind, Problem, Severity
from vmsnap.platforms.agent import (
    CONNECTIONS,
    IN_CONF,
    VMSNAP,
    Connection,
    has_addition,
    inside,
    ours,
    text_of,
)
from vmsnap.platforms.agent_service import is_running, outdated
from vmsnap.platforms.hook import AGENTS, unfrozen
from vmsnap.platforms.integrate import RECORD, ROOT, readable, unfinished
from vmsnap.system.files import File, is_there
from vmsnap.system.process import output_of
from vmsnap.system.trusted import Unreadable, Untrusted, open_trusted

AZURE_EXTENSION = "Microsoft.Azure.RecoveryServices.VMSnapshotLinux*"
BLOCKED = re.compile(r"^[ \t]*(block-rpcs|blacklist)[ \t]*=.*guest-fsfreeze", re.M)
TRUE = ("true", "1", "t", "yes", "y", "on")  # go-ini
GOOGLE_SECONDS = 60  # what the hook is told to expect, less some: hook.py

Finding = tuple[Severity, Path, str]


def inspect(
    found: Inspection,
    state: Path,
    root: Path = ROOT,
    running: bool = True,
    only: Collection[str] = tuple(CONNECTIONS),
) -> None:
    """Note what is wrong, with `only` these agents. `running`: they should be."""
    connections = readable(state)
    findings: list[Finding] = []
    if connections is None:
        connections = {}
        words = "found a record that nobody can read; run `vmsnap integrate`"
        findings.append(error(state / RECORD, f"{state / RECORD}: {words}"))
    findings += [
        (severity, path, f"{agent}: {words}")
        for agent in connections
        if agent in only
        for severity, path, words in findings_of(agent, CONNECTIONS[agent](root), root, running)
    ]
    if "azure" in only:
        findings += double_runs(found, "azure" in connections, root)
    for severity, path, words in findings:
        found.problems.append(Problem(severity, Kind.INCORRECT_INTEGRATION, str(path), words))


def findings_of(
    agent: str, connection: Connection, root: Path, should_run: bool
) -> Iterator[Finding]:
    for file in connection.files:
        yield from of_file(file)
    for path in (*(f.path for f in connection.files), *(a.path for a in connection.additions)):
        with contextlib.suppress(OSError, Unreadable):
            try:
                os.close(open_trusted(path, 0o022))
            except Untrusted as e:
                yield error(path, str(e))
    for path in unfinished(connection):
        yield error(path, f"{path}: found what was left half-written; run `vmsnap integrate`")
    for addition in connection.additions:
        if not has_addition(addition.path):
            yield error(addition.path, f"{addition.path}: found nothing of vmsnap's in it")
    if connection.label and text_of(root / "sys/fs/selinux/enforce").strip() == "1":
        yield from of_selinux(connection, root)
    if not any((root / program).exists() for program in connection.programs):
        program = root / connection.programs[0]
        yield error(program, f"the agent is not installed; install {connection.package}")
        return
    if connection.channel and not (root / connection.channel).exists():
        words = f"/{connection.channel} is missing: the host gives this machine no channel to it"
        yield Severity.WARNING, root / connection.channel, words
        return
    running = [unit for unit in connection.units if should_run and is_running(unit)]
    for unit in running:
        if outdated(connection, unit):
            yield error(root, f"{unit} has not read its settings; run `systemctl restart {unit}`")
    if agent in SPECIAL:
        yield from SPECIAL[agent](connection, running, root)
    if should_run and not running:
        yield error(
            root,
            f"{connection.units[0]} is not running, so nobody calls vmsnap; see "
            f"`systemctl status {connection.units[0]}`",
        )


def error(path: Path, words: str) -> Finding:
    return Severity.ERROR, path, words


def of_file(file: File) -> Iterator[Finding]:
    path = file.path
    try:
        status = path.lstat()
    except OSError as e:
        yield error(path, f"{path}: {e.strerror}; run `vmsnap integrate`")
        return
    mode = stat.S_IMODE(status.st_mode)
    lines = text_of(path).splitlines()
    calls = any(f"{VMSNAP} hook" in line and not line.startswith("#") for line in lines)
    if not stat.S_ISREG(status.st_mode) or not ours(path) or (file.mode & 0o100 and not calls):
        yield error(path, f"{path}: found what vmsnap has not written")
    elif status.st_uid != 0 or mode & ~file.mode or file.mode & ~mode & 0o100:
        yield error(
            path,
            f"{path}: found owner uid {status.st_uid} and mode {mode:04o}, "
            f"expected root and {file.mode:04o}",
        )
    elif not is_there(file):
        words = "it is not what vmsnap would write now; run `vmsnap integrate`"
        yield Severity.WARNING, path, f"{path}: {words}"


def of_selinux(connection: Connection, root: Path) -> Iterator[Finding]:
    for path in (file.path for file in connection.files if file.mode & 0o100):
        with contextlib.suppress(OSError):
            label = os.getxattr(path, "security.selinux").decode(errors="replace").strip("\0")
            if connection.label not in label.split(":"):
                words = f"found the SELinux label {label}, expected the type {connection.label}"
                yield error(path, f"{path}: {words}; run restorecon {path}")
    boolean = root / "sys/fs/selinux/booleans" / connection.boolean
    if text_of(boolean).startswith("0"):  # "0 0": what is, and what is pending
        yield error(
            boolean,
            f"SELinux does not let the agent's hooks do anything; run "
            f"`setsebool -P {connection.boolean} on`",
        )


# --- what only one of them has -------------------------------------------------------------------


def of_qemu(connection: Connection, running: list[str], root: Path) -> Iterator[Finding]:
    expected = inside(root, connection.files[0].path)
    for addition in connection.additions:
        if BLOCKED.search(text_of(addition.path)):
            words = "found that guest-fsfreeze-freeze is among the blocked commands"
            yield error(addition.path, f"{addition.path}: {words}")
        if IN_CONF.findall(text_of(addition.path))[-1:] != [expected]:
            words = f"found that fsfreeze-hook= is not {expected}; run `vmsnap integrate`"
            yield error(addition.path, f"{addition.path}: {words}")
    for unit in running:
        pid = output_of(["systemctl", "show", "--property=MainPID", "--value", unit])[1].strip()
        argv = text_of(Path("/proc") / pid / "cmdline").split("\0")
        hooks = [word for word in argv if (word + "=").startswith(("-F", "--fsfreeze-hook="))]
        wanted = (f"-F{expected}", f"--fsfreeze-hook={expected}")
        # Of the command line and the file, the former wins.
        if any(word not in wanted for word in hooks) or not (hooks or connection.additions):
            found = " ".join(hooks) or "no -F"
            words = f"{unit} runs with {found}, expected -F{expected}; see `systemctl cat {unit}`"
            yield error(root, words)


def of_google(connection: Connection, _: list[str], root: Path) -> Iterator[Finding]:
    """Which of the three files wins depends on the agent's version."""
    for suffix in ("", ".distro", ".template"):
        path = Path(f"{connection.additions[0].path}{suffix}")
        settings = ini(text_of(path))
        enabled = settings.get("snapshots", "enabled", fallback="true") or ""
        seconds = settings.get("snapshots", "timeout_in_seconds", fallback="60") or ""
        if enabled.lower() not in TRUE:
            yield error(path, f"{path}: found [Snapshots] enabled = {enabled}, expected true")
        if not seconds.isdecimal() or int(seconds) < GOOGLE_SECONDS:
            yield error(
                path,
                f"{path}: found [Snapshots] timeout_in_seconds = {seconds}, expected at least "
                f"{GOOGLE_SECONDS}: vmsnap would take too long",
            )


def of_vmware(_: Connection, __: list[str], root: Path) -> Iterator[Finding]:
    path = root / "etc/vmware-tools/tools.conf"
    scripts = ini(text_of(path)).get("vmbackup", "execscripts", fallback="true") or ""
    if scripts.lower() in ("false", "0"):
        yield error(path, f"{path}: found [vmbackup] execScripts = {scripts}, expected true")


def of_azure(connection: Connection, _: list[str], root: Path) -> Iterator[Finding]:
    """Without a plugin host file the extension has one that names ours."""
    ours, host = connection.files[-1].path, root / "etc/azure/VMSnapshotPluginHost.conf"
    named: tuple[str, ...] = ()
    with contextlib.suppress(Incorrect):  # `vmsnap check` says so anyway
        named = parse_plugin_host(text_of(host), str(host))[1]
    if host.exists() and inside(root, ours) not in named:
        words = f"found no pluginConfigPath {inside(root, ours)}, expected one, or no such file"
        yield error(host, f"{host}: {words}")


def of_aws(_: Connection, __: list[str], root: Path) -> Iterator[Finding]:
    for path in unfrozen(AGENTS["aws"]):
        words = f"{path} is not frozen in its sessions, since the agent has to write there; "
        words += "data that must be consistent belongs on another filesystem"
        yield Severity.WARNING, Path(path), words


def ini(text: str) -> configparser.ConfigParser:
    """Keys in small letters, and section names too. What can't be read is left out."""
    parser = configparser.ConfigParser(strict=False, interpolation=None, allow_no_value=True)
    with contextlib.suppress(configparser.Error):
        lines = (line.lower() if line.startswith("[") else line for line in text.splitlines())
        parser.read_string("\n".join(("[ ]", *lines)))  # keys may come before any section
    return parser


SPECIAL: Mapping[str, Callable[[Connection, list[str], Path], Iterator[Finding]]] = {
    "qemu": of_qemu,
    "google": of_google,
    "vmware": of_vmware,
    "azure": of_azure,
    "aws": of_aws,
}


# --- Azure ---------------------------------------------------------------------------------------


def double_runs(found: Inspection, connected: bool, root: Path) -> Iterator[Finding]:
    """Azure's extension runs the scripts of its own files by itself. When it calls us besides, they
    would run twice in one backup."""
    directory = root / "var/lib/waagent"
    installed = directory.is_dir() and any(directory.glob(AZURE_EXTENSION))
    for app in found.apps:
        path = Path(app.config)
        if path.parent != root / "etc/vmsnap/apps.d" and (connected or installed):
            yield (
                Severity.ERROR if connected else Severity.WARNING,
                path,
                f"{path}: Azure's extension runs the scripts of app {app.name!r} by itself, and "
                "vmsnap does; move the file to /etc/vmsnap/apps.d and run `vmsnap integrate azure`",
            )
