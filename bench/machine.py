# SPDX-License-Identifier: Apache-2.0
"""What the numbers were measured on."""

from __future__ import annotations

import os
import platform
from pathlib import Path

from bench.disks import output


def machine() -> dict[str, str]:
    total = int(Path("/proc/meminfo").read_text().split()[1])
    return {
        "CPU": f"{os.cpu_count()} x {cpu_model()}",
        "Memory": f"{total / (1 << 20):.0f} GiB",
        "Kernel": f"{platform.system()} {platform.release()} {platform.machine()}",
        "Distribution": distribution(),
        "Python": platform.python_version(),
        "qemu-ga": output("qemu-ga", "--version").rpartition(" ")[2],
        "util-linux": output("fsfreeze", "--version").rpartition(" ")[2],
    }


def cpu_model() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        name, _, value = line.partition(":")
        if name.strip() in ("model name", "Model"):
            return value.strip()
    return platform.machine()


def distribution() -> str:
    for line in Path("/etc/os-release").read_text().splitlines():
        if line.startswith("PRETTY_NAME="):
            return line.partition("=")[2].strip('"')
    return "unknown"
