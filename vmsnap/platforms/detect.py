# SPDX-License-Identifier: Apache-2.0
"""Which distribution this is, which hypervisor or cloud it runs on, and whose agent there decides
when a snapshot is taken."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable
from pathlib import Path

from vmsnap.platforms.additions import text_of
from vmsnap.platforms.agent import Detection
from vmsnap.platforms.registry import agents
from vmsnap.system import systemd


def distribution() -> str:
    import distro  # late: most commands do not ask

    return str(distro.name(pretty=True)) or "an unknown distribution"


def hypervisor(sys: Path = Path("/sys")) -> str:
    """What the firmware says it is: DMI, else the device tree; "" if it says nothing."""
    for name in ("class/dmi/id/sys_vendor", "class/dmi/id/product_name", "hypervisor/type"):
        hardware = text_of(sys / name).strip("\0\n ")
        if hardware:
            return hardware
    return ""


def agent(root: Path = Path("/")) -> str:
    """The name of the agent that begins a session on this platform, "" if none is known.

    The firmware is asked before cloud-init, which may have run elsewhere, and that before
    systemd-detect-virt(1), whose answer depends on its age.
    """
    known = {name: agent.detection for name, agent in agents().items()}
    signs = {name: one.instead_of for name, one in known.items() if one.sign(root)}
    for name, instead_of in signs.items():
        if not instead_of:
            return name
    vendor, found = hypervisor(root / "sys"), cloud(root)
    ways: tuple[Callable[[Detection], bool], ...] = (
        lambda one: vendor.startswith(one.vendors),
        lambda one: found in one.clouds,
        lambda one: virtualization() in one.hypervisors,
    )
    for matches in ways:
        for name, one in known.items():
            if matches(one):
                return next((other for other, it in signs.items() if it == name), name)
    return ""


def cloud(root: Path = Path("/")) -> str:
    """As cloud-init's instance data name it; "" if it has not run."""
    with contextlib.suppress(ValueError, KeyError, TypeError):
        return str(
            json.loads(text_of(root / "run/cloud-init/instance-data.json"))["v1"]["cloud_name"]
        )
    return ""


def virtualization() -> str:
    """A word of systemd-detect-virt(1); "none" on hardware."""
    with contextlib.suppress(OSError):
        return systemd.virtualization()
    return ""
