# SPDX-License-Identifier: Apache-2.0
"""What connects vmsnap to the agent of each platform: the files that the agent looks for, and the
settings that it needs. Nothing is written here (integrate.py), and what `vmsnap hook` does when an
agent calls it is in hook.py.
"""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from vmsnap.config.azure import AZURE_HOOKS
from vmsnap.system.files import File

VMSNAP = "/usr/bin/vmsnap"
OURS = "`vmsnap integrate`"  # is in every file of ours that can have a comment
WRITTEN = f"# Written by {OURS}, which replaces it; with --remove it removes it."
AZURE_SECONDS = 1800  # the longest that Azure allows a script


@dataclass(frozen=True)
class Addition:
    """Lines to be added to a configuration file that is somebody else's."""

    path: Path
    text: str


@dataclass(frozen=True)
class Connection:
    """To one agent. `programs` and `units`: names that distributions give it, of which one is
    enough; `package`: what brings it. `restart`: it reads its configuration only when it starts.
    `label`: the SELinux type that programs among `files` need, and `boolean` what lets it count.
    `channel`: without this the agent does not start.
    `host`: how a snapshot is taken from outside."""

    programs: tuple[str, ...]
    units: tuple[str, ...]
    package: str
    host: str
    files: tuple[File, ...] = ()
    additions: tuple[Addition, ...] = ()
    restart: bool = False
    label: str = ""
    boolean: str = ""
    channel: str = ""


# --- lines in files of others --------------------------------------------------------------------

BEGIN, END = f"# {OURS}: from here", f"# {OURS}: to here"
UNENDED = ", with the end of the line before"
ADDED = re.compile(f"(?:(\n){BEGIN}{UNENDED}|^(){BEGIN})\n.*?^{END}\n", re.M | re.S)


def with_addition(text: str, lines: str) -> str:
    """The file with these lines at its end. `without` gives the very file again."""
    rest = without(text)
    unended = rest != "" and not rest.endswith("\n")
    return rest + ("\n" + BEGIN + UNENDED if unended else BEGIN) + f"\n{lines}{END}\n"


def without(text: str) -> str:
    """What somebody has written after our lines began a line, and still does."""
    return ADDED.sub(lambda found: found.group(1) if found.end() < len(text) else "", text)


def has_addition(path: Path) -> bool:
    return BEGIN in text_of(path)


def ours(path: Path) -> bool:
    """Whether a file is one that we have written."""
    text = text_of(path)
    return WRITTEN in text or AZURE_HOOKS["pre"] in text  # there are no comments in JSON


def text_of(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""


# --- programs ------------------------------------------------------------------------------------


def call(agent: str, words: str, why: str) -> bytes:
    """A program that does nothing but call vmsnap."""
    return f"#!/bin/sh\n{WRITTEN}\n# {why}\nexec {VMSNAP} hook {agent} {words}\n".encode()


# --- QEMU ----------------------------------------------------------------------------------------

QEMU_HOOK = "fsfreeze-hook.d/50-vmsnap"
# The agent's own dispatcher, fsfreeze-hook, forgets how the hooks in fsfreeze-hook.d have ended, so
# none of them can keep it from freezing. That is why the agent is told to call ours; which is among
# them all the same, since that is where SELinux lets a hook do something.
QEMU_CHAIN = f"""\
#!/bin/sh
{WRITTEN}
# qemu-ga calls this before it freezes, which a failure keeps it from, and when it has thawed. What
# it called until now is called from here.
[ -z "$FROM_VMSNAP" ] || exit 0 # by just that
export FROM_VMSNAP=1
other={{other}}
if [ "$1" = freeze ]; then
    "$other" freeze || exit
    {VMSNAP} hook qemu freeze && exit
    code=$?
    "$other" thaw
else
    {VMSNAP} hook qemu "$@"
    code=$?
    "$other" "$@" || exit
fi
exit $code
"""
IN_CONF = re.compile(r"^[ \t]*fsfreeze-hook[ \t]*=[ \t]*(.*?)[ \t]*$", re.M)
IN_SYSCONFIG = re.compile(r"^[ \t]*FSFREEZE_HOOK_PATHNAME=[\"']?([^\"'\n]*?)[\"']?[ \t]*$", re.M)


def qemu(root: Path) -> Connection:
    """qga/main.c: -F on the command line wins over fsfreeze-hook= in qemu-ga.conf. The units of
    Debian and openSUSE have no -F (none reads /etc/default/qemu-guest-agent); those of Enterprise
    Linux and Fedora have one, from /etc/sysconfig/qemu-ga."""
    unit = "qemu-guest-agent.service"
    sysconfig = root / "etc/sysconfig/qemu-ga"
    files: tuple[File, ...] = ()
    additions: tuple[Addition, ...] = ()
    other = last(IN_SYSCONFIG, sysconfig)
    if other is not None:
        directory = root / "etc/qemu-ga"
        hook, environment = directory / QEMU_HOOK, directory / "vmsnap.conf"
        other = other or inside(root, directory / "fsfreeze-hook")
        files = (
            text_file(environment, f"FSFREEZE_HOOK_PATHNAME={inside(root, hook)}"),
            # Of two files, the later one wins: systemd.exec(5).
            text_file(
                root / f"etc/systemd/system/{unit}.d/50-vmsnap.conf",
                f"[Service]\nEnvironmentFile={inside(root, environment)}",
            ),
        )
    else:
        directory = root / "etc/qemu"
        hook, conf = directory / QEMU_HOOK, directory / "qemu-ga.conf"
        other = last(IN_CONF, conf)
        additions = (Addition(conf, f"[general]\nfsfreeze-hook={inside(root, hook)}\n"),)
    program = call("qemu", '"$@"', "qemu-ga calls this before it freezes and when it has thawed.")
    if other not in (None, "", "/dev/null"):
        program = QEMU_CHAIN.format(other=shlex.quote(str(other))).encode()
    return Connection(
        programs=("usr/sbin/qemu-ga", "usr/bin/qemu-ga"),
        units=(unit,),
        package="qemu-guest-agent",
        host="virsh snapshot-create-as DOMAIN NAME --disk-only --atomic --quiesce, or a backup of "
        "the platform with its guest agent option on",
        files=(File(hook, program, 0o755), *files),
        additions=additions,
        restart=True,
        label="virt_qemu_ga_unconfined_exec_t",  # selinux-policy, virt_supplementary.{fc,te}
        boolean="virt_qemu_ga_run_unconfined",
        channel="dev/virtio-ports/org.qemu.guest_agent.0",
    )


def inside(root: Path, path: Path) -> str:
    """As it is called on the machine whose root this is."""
    return f"/{path.relative_to(root)}"


def text_file(path: Path, lines: str) -> File:
    return File(path, f"{WRITTEN}\n{lines}\n".encode(), 0o644)


def last(pattern: re.Pattern[str], path: Path) -> str | None:
    """The last value that a file gives, leaving aside what we have added."""
    found = pattern.findall(without(text_of(path)))
    return str(found[-1]) if found else None


# --- hypervisors with agents of their own --------------------------------------------------------


def vmware(root: Path) -> Connection:
    """services/plugins/vmbackup/scriptOps.c."""
    why = "vmtoolsd calls this before it freezes, when it has thawed, and when that has failed."
    directory = root / "etc/vmware-tools/backupScripts.d"
    return Connection(
        programs=("usr/bin/vmtoolsd",),
        units=("open-vm-tools.service", "vmtoolsd.service"),
        package="open-vm-tools",
        host="govc snapshot.create -vm VM -m=false -q NAME, or a quiesced one of a backup product",
        files=(File(directory / "50-vmsnap", call("vmware", '"$1"', why), 0o755),),
    )


def nutanix(root: Path) -> Connection:
    """Nutanix Guest Tools: both root's, 0700."""
    directory = root / "usr/local/sbin"
    why = "Nutanix Guest Tools call this {} they freeze."
    return Connection(
        programs=("usr/local/nutanix/ngt",),
        units=("ngt_guest_agent.service",),
        package="Nutanix Guest Tools",
        host="an application-consistent snapshot in Prism, or by a protection policy",
        files=tuple(
            File(directory / event, call("nutanix", event, why.format(when)), 0o700)
            for event, when in (("pre_freeze", "before"), ("post_thaw", "after"))
        ),
    )


# --- clouds --------------------------------------------------------------------------------------


def google(root: Path) -> Connection:
    """google_guest_agent/snapshot_listener: of a section that is there twice, both count, and of a
    key the later one."""
    why = "google-guest-agent calls this {} a snapshot with guest flush; it freezes nothing."
    return Connection(
        programs=("usr/bin/google_guest_agent", "usr/bin/google_guest_agent_manager"),
        units=("google-guest-agent.service", "google-guest-agent-manager.service"),
        package="google-guest-agent",
        host="gcloud compute disks snapshot DISK --guest-flush",
        files=tuple(
            File(
                root / f"etc/google/snapshots/{event}.sh",
                call("google", f'{event} "$@"', why.format(when)),
                0o700,
            )
            for event, when in (("pre", "before"), ("post", "after"))
        ),
        additions=(
            Addition(root / "etc/default/instance_configs.cfg", "[Snapshots]\nenabled = true\n"),
        ),
        restart=True,
    )


def aws(_: Path) -> Connection:
    """Nothing is to be written: the SSM agent runs what the document says."""
    return Connection(
        programs=("usr/bin/amazon-ssm-agent", "snap/bin/amazon-ssm-agent.ssm-cli"),
        units=("amazon-ssm-agent.service", "snap.amazon-ssm-agent.amazon-ssm-agent.service"),
        package="amazon-ssm-agent",
        host="a Data Lifecycle Manager policy with the SSM document of "
        "/usr/share/vmsnap/aws/ssm-document.yaml",
    )


def azure(root: Path) -> Connection:
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
        "timeoutInSeconds": AZURE_SECONDS,
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
                File(root / path.lstrip("/"), call("azure", event, why.format(when)), 0o700)
                for (event, path), when in zip(AZURE_HOOKS.items(), ("before", "after"))
            ),
            File(
                root / "etc/azure/VMSnapshotScriptPluginConfig.json",
                (json.dumps(app, indent=4) + "\n").encode(),
                0o600,
            ),
        ),
    )


CONNECTIONS: Mapping[str, Callable[[Path], Connection]] = {
    "qemu": qemu,
    "vmware": vmware,
    "google": google,
    "aws": aws,
    "nutanix": nutanix,
    "azure": azure,
}
