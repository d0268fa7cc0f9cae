# SPDX-License-Identifier: Apache-2.0
"""Which distribution this is, and which hypervisor it runs on."""

from __future__ import annotations

from pathlib import Path


def distribution() -> str:
    import distro  # late: most commands do not ask

    return str(distro.name(pretty=True)) or "an unknown distribution"


def hypervisor(sys: Path = Path("/sys")) -> str:
    """What the firmware says it is: DMI, else the device tree; "" if it says nothing."""
    for name in ("class/dmi/id/sys_vendor", "class/dmi/id/product_name", "hypervisor/type"):
        try:
            words = (sys / name).read_text(encoding="utf-8", errors="replace").strip("\0\n ")
        except OSError:
            continue
        if words:
            return words
    return ""
