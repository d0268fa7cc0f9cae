# SPDX-License-Identifier: Apache-2.0
"""QEMU's guest agent, qemu-ga: libvirt, Proxmox, OpenStack, KubeVirt, oVirt. It freezes, one
filesystem after the other, between its hook's `freeze` and `thaw` (qga/commands-posix.c)."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator, Sequence
from pathlib import Path

from vmsnap.errors import Problem
from vmsnap.platforms.additions import WRITTEN, text_of, without
from vmsnap.platforms.agent import (
    VMSNAP,
    Act,
    Addition,
    Agent,
    Connection,
    Detection,
    HookOutcome,
    error,
    inside,
    program,
    text_file,
)
from vmsnap.system import systemd
from vmsnap.system.files import File

HOOK = "fsfreeze-hook.d/50-vmsnap"
# The agent's own dispatcher, fsfreeze-hook, forgets how the hooks in fsfreeze-hook.d have ended, so
# none of them can keep it from freezing. That is why the agent is told to call ours; which is among
# them all the same, since that is where SELinux lets a hook do something.
CHAIN = f"""\
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
BLOCKED = re.compile(r"^[ \t]*(block-rpcs|blacklist)[ \t]*=.*guest-fsfreeze", re.M)


def connection(root: Path) -> Connection:
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
        hook, environment = directory / HOOK, directory / "vmsnap.conf"
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
        hook, conf = directory / HOOK, directory / "qemu-ga.conf"
        other = last(IN_CONF, conf)
        additions = (Addition(conf, f"[general]\nfsfreeze-hook={inside(root, hook)}\n"),)
    called = program("qemu", '"$@"', "qemu-ga calls this before it freezes and when it has thawed.")
    if other not in (None, "", "/dev/null"):
        called = CHAIN.format(other=shlex.quote(str(other))).encode()
    return Connection(
        programs=("usr/sbin/qemu-ga", "usr/bin/qemu-ga"),
        units=(unit,),
        package="qemu-guest-agent",
        host="virsh snapshot-create-as DOMAIN NAME --disk-only --atomic --quiesce, or a backup of "
        "the platform with its guest agent option on",
        files=(File(hook, called, 0o755), *files),
        additions=additions,
        restart=True,
        label="virt_qemu_ga_unconfined_exec_t",  # selinux-policy, virt_supplementary.{fc,te}
        boolean="virt_qemu_ga_run_unconfined",
        channel="dev/virtio-ports/org.qemu.guest_agent.0",
    )


def last(pattern: re.Pattern[str], path: Path) -> str | None:
    """The last value that a file gives, leaving aside what we have added."""
    found = pattern.findall(without(text_of(path)))
    return str(found[-1]) if found else None


def checks(connected: Connection, running: Sequence[str], root: Path) -> Iterator[Problem]:
    expected = inside(root, connected.files[0].path)
    for addition in connected.additions:
        if BLOCKED.search(text_of(addition.path)):
            message = "found that guest-fsfreeze-freeze is among the blocked commands"
            yield error(addition.path, f"{addition.path}: {message}")
        if IN_CONF.findall(text_of(addition.path))[-1:] != [expected]:
            message = f"found that fsfreeze-hook= is not {expected}; run `vmsnap integrate`"
            yield error(addition.path, f"{addition.path}: {message}")
    for unit in running:
        pid = systemd.show(unit, "MainPID")
        argv = text_of(Path("/proc") / pid / "cmdline").split("\0")
        hooks = [word for word in argv if (word + "=").startswith(("-F", "--fsfreeze-hook="))]
        wanted = (f"-F{expected}", f"--fsfreeze-hook={expected}")
        # Of the command line and the file, the former wins.
        if any(word not in wanted for word in hooks) or not (hooks or connected.additions):
            found = " ".join(hooks) or "no -F"
            message = f"{unit} runs with {found}, expected -F{expected}; see `systemctl cat {unit}`"
            yield error(root, message)


AGENT = Agent(
    name="qemu",
    # No limit. It says thaw whether or not anything was frozen.
    events={"freeze": Act.BEGIN, "thaw": Act.END},
    freezes=True,
    codes={HookOutcome.NONE: 0},
    connection=connection,
    detection=Detection(hypervisors=("kvm", "qemu")),
    checks=checks,
)
