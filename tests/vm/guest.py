# SPDX-License-Identifier: Apache-2.0
"""A running machine with QEMU's guest agent and disks for data, whose host is libvirt.

A shell on a serial port of its own says what happens inside, also while everything is frozen.
"""

from __future__ import annotations

import contextlib
import shlex
import socket
from collections.abc import Mapping
from pathlib import Path

from tests.fs.lab import call
from tests.system import image
from tests.system.apps import until
from tests.system.container import REPOSITORY

from .libvirt import Host
from .machine import KERNEL, extract_kernel

PATIENCE = 600.0  # seconds after which something is wrong
NAME = "vm"
SHELL = """\
[Service]
TimeoutStartSec=infinity
ExecStartPre=udevadm wait /dev/virtio-ports/shell
ExecStart=sh -c 'exec sh <>/dev/virtio-ports/shell >&0 2>&1'
"""
INSTALL = """
mount -o loop "$1" /mnt
make -C "$2" install DESTDIR=/mnt
units=/mnt/etc/systemd/system
printf %s "$3" >$units/shell.service
mkdir -p $units/multi-user.target.wants
ln -s ../shell.service $units/multi-user.target.wants
umount /mnt
"""
# Nobody's data is at stake, so QEMU need not wait for the host's disk. The root filesystem is on
# NVMe, as there is no initrd, and libvirt knows no NVMe.
DOMAIN = """\
<domain type="qemu" xmlns:qemu="http://libvirt.org/schemas/domain/qemu/1.0">
  <name>{name}</name>
  <memory unit="MiB">1024</memory>
  <vcpu>2</vcpu>
  <os>
    <type arch="x86_64" machine="pc">hvm</type>
    <kernel>{kernel}</kernel>
    <cmdline>{cmdline}</cmdline>
  </os>
  <features><acpi/></features>
  <devices>
    <controller type="usb" model="none"/>
    <memballoon model="none"/>
    <serial type="file"><source path="{directory}/console"/></serial>
    <channel type="unix"><target type="virtio" name="org.qemu.guest_agent.0"/></channel>
    <channel type="unix">
      <source mode="bind" path="{directory}/shell"/><target type="virtio" name="shell"/>
    </channel>
    {disks}
  </devices>
  <qemu:commandline>
    <qemu:arg value="-drive"/>
    <qemu:arg value="file={directory}/root.img,format=raw,cache=unsafe,if=none,id=root"/>
    <qemu:arg value="-device"/><qemu:arg value="nvme,serial=vm,addr=0x1e"/>
    <qemu:arg value="-device"/><qemu:arg value="nvme-ns,drive=root"/>
  </qemu:commandline>
</domain>
"""
DISK = """\
    <disk type="file">
      <driver name="qemu" type="raw" cache="unsafe"/>
      <source file="{file}"/><target dev="{device}" bus="virtio"/>
    </disk>
"""


class Guest:
    """The machine, from its boot on. It ends with the host."""

    def __init__(self, host: Host, disks: Mapping[str, Path]) -> None:
        """The disks have names of their devices: `vda` and so on."""
        self.host, self.directory = host, host.directory
        self.active, self.snapshots = dict(disks), 0
        source = image.ensure(image.VM_DATABASE)
        root, domain = self.directory / "root.img", self.directory / "domain.xml"
        call("cp", "--sparse=always", source, root)
        call("unshare", "--mount", "sh", "-ec", INSTALL, "sh", root, REPOSITORY, SHELL)
        domain.write_text(
            DOMAIN.format(
                name=NAME,
                kernel=extract_kernel(source, self.directory),
                cmdline=KERNEL,
                directory=self.directory,
                disks="".join(DISK.format(device=name, file=file) for name, file in disks.items()),
            )
        )
        host.virsh("create", str(domain))
        self.shell = socket.socket(socket.AF_UNIX)
        self.shell.settimeout(PATIENCE)
        self.shell.connect(str(self.directory / "shell"))
        self.answers = self.shell.makefile("rb")

    def close(self) -> None:
        self.answers.close()
        self.shell.close()

    # --- inside ---

    def run(self, script: str) -> str:
        """Run lines of shell; return what they have said. Any that fails is the test's failure."""
        line = f"sh -ec {shlex.quote(script)} </dev/null; printf '\\0%d\\n' $?\n"
        self.shell.sendall(line.encode())
        said = b""
        while not said.endswith(b"\n") or b"\0" not in said:
            more = self.answers.readline()
            assert more, f"the machine is gone: {self.console}"
            said += more
        text, _, code = said.decode().rpartition("\0")
        assert int(code) == 0, f"{script}: {code}{text}"
        return text

    def write(self, path: str, text: str, mode: int = 0o600) -> None:
        quoted = shlex.quote(path)
        self.run(f"printf %s {shlex.quote(text)} >{quoted}; chmod {mode:o} {quoted}")

    @property
    def console(self) -> str:
        return (self.directory / "console").read_text(errors="replace")[-4000:]

    # --- what the host does ---

    def virsh(self, command: str, *words: str) -> str:
        return self.host.virsh(command, NAME, *words)

    def wait_for_agent(self) -> None:
        """It has been started; that libvirt has seen this is not announced."""
        until(self.agent_answers)
        # A session is long on a machine that is emulated, and so is the answer.
        self.virsh("guest-agent-timeout", "--timeout", f"{PATIENCE:.0f}")

    def agent_answers(self) -> bool:
        with contextlib.suppress(AssertionError):
            return "return" in self.virsh("qemu-agent-command", '{"execute": "guest-ping"}')
        return False

    def snapshot(self, *disks: str, quiesce: bool = False) -> dict[str, Path]:
        """Take a snapshot of these disks in one transaction; return its layers, see `flat`.

        QEMU goes on with new files, and what has been written to until then is the snapshot.
        """
        self.snapshots += 1
        layers = {disk: self.active[disk] for disk in disks}
        new = {disk: self.directory / f"{disk}.{self.snapshots}" for disk in disks}
        specs = [
            f"--diskspec={disk},{f'file={new[disk]}' if disk in new else 'snapshot=no'}"
            for disk in self.active
        ]
        options = ("--disk-only", "--atomic", "--no-metadata", *(["--quiesce"] * quiesce))
        self.virsh("snapshot-create-as", "--name=snapshot", *options, *specs)
        self.active.update(new)
        return layers

    def flat(self, layers: Mapping[str, Path]) -> dict[str, Path]:
        """The disks as they are in a snapshot: raw copies, the caller's own."""
        made = {disk: self.directory / f"{disk}.{self.snapshots}.flat" for disk in layers}
        for disk, layer in layers.items():
            call("qemu-img", "convert", "-U", "-O", "raw", layer, made[disk])
        return made
