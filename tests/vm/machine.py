# SPDX-License-Identifier: Apache-2.0
"""A whole virtual machine: QEMU without KVM, Debian's kernel, and a disk for cloud-init.

It leaves nothing: the image is only read, what it writes goes to a file that QEMU has unlinked
already, and QEMU does not outlive the thread that has started it.
"""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

from tests.fs.lab import call
from tests.system import image

TOOLS = ("qemu-system-x86_64", "setpriv", "debugfs", *image.TOOLS)
QEMU = (
    *("setpriv", "--pdeathsig", "KILL", "--"),
    *("qemu-system-x86_64", "-nodefaults", "-no-reboot", "-display", "none", "-serial", "stdio"),
    *("-accel", "tcg,thread=multi", "-smp", "2", "-m", "1024"),
)
# This kernel has NVMe built in: that saves the initrd, a quarter of the boot. Emulated, mitigations
# cost much and protect nobody. A panic is the end (-no-reboot).
KERNEL = (
    "root=/dev/nvme0n1 rootwait rw console=ttyS0 quiet systemd.show_status=no panic=-1 "
    "mitigations=off"
)
BEGIN, END = "-----BEGIN REPORT-----", "-----END REPORT-----"


class Machine:
    """Devices, and then one boot."""

    def __init__(self, directory: Path) -> None:
        """The directory is for what QEMU reads."""
        self.directory = directory
        root = image.ensure(image.VM)
        kernel = extract_kernel(root, directory)
        self.argv = [*QEMU, "-kernel", str(kernel), "-append", KERNEL]
        self.add("-device", "nvme,serial=vm")
        self.add_disk("root", f"file={root},format=raw,snapshot=on")

    def add(self, *words: str) -> None:
        """Add a device, in QEMU's words."""
        self.argv += words

    def add_disk(self, name: str, drive: str) -> None:
        """Add a disk, in QEMU's words; they are nvme0n1, nvme0n2 and so on, as they are added."""
        # Not virtio: cloud-init looks for its seed before udev has loaded a module.
        self.add("-drive", f"{drive},if=none,id={name}", "-device", f"nvme-ns,drive={name}")

    def add_files(self, files: Path, label: str) -> None:
        """Add a disk with what is in a directory: QEMU shows it as a read-only FAT filesystem."""
        self.add_disk(label, f"driver=vvfat,dir={files},label={label},read-only=on")

    def add_seed(self, user_data: dict[str, Any]) -> None:
        """Add what cloud-init's data source NoCloud looks for."""
        seed = self.directory / "seed"
        seed.mkdir()
        for name, told in (
            ("user-data", user_data),
            ("meta-data", {"instance-id": "vm"}),
            ("network-config", {"config": "disabled"}),
        ):
            (seed / name).write_text("#cloud-config\n" + json.dumps(told))  # JSON is YAML
        self.add_files(seed, "cidata")

    def run(self, seconds: float) -> str:
        """Boot; return what was said on the serial console, once it is off, or killed."""
        process = subprocess.Popen(
            self.argv, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
        )
        try:
            said, last = process.communicate(timeout=seconds)[0], b""
        except subprocess.TimeoutExpired:
            process.kill()
            said, last = process.communicate()[0], f"[killed after {seconds:.0f} s]\n".encode()
        except BaseException:
            process.kill()
            process.wait()
            raise
        return (said + last).decode(errors="replace").replace("\r", "")


def extract_kernel(root: Path, directory: Path) -> Path:
    """Copy the kernel of an image."""
    call("debugfs", "-R", f"rdump /boot {directory}", root)
    (kernel,) = directory.glob("boot/vmlinuz-*")
    return kernel


def report(console: str) -> dict[str, Any]:
    """What the machine has said between the markers."""
    _, begun, rest = console.rpartition(BEGIN)
    told, ended, _ = rest.partition(END)
    assert begun and ended, f"no report; the console's end:\n{console[-6000:]}"
    found: dict[str, Any] = json.loads(told)
    return found


def missing_tools() -> list[str]:
    return [tool for tool in TOOLS if shutil.which(tool) is None]
