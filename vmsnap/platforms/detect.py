# SPDX-License-Identifier: Apache-2.0
"""Which distribution this is, which hypervisor or cloud it runs on, and whose agent there decides
when a snapshot is taken."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path

from vmsnap.system.process import output_of

# How the firmware's vendor begins, what cloud-init calls the cloud and systemd-detect-virt(1) the
# hypervisor -> the agent, as `vmsnap hook` knows it. In this order: cloud-init may have run
# elsewhere, and what the detection says depends on its age.
VENDORS = {"Amazon EC2": "aws", "Google": "google", "VMware": "vmware"}
CLOUDS = {"aws": "aws", "gce": "google", "azure": "azure"}
HYPERVISORS = {"amazon": "aws", "google": "google", "vmware": "vmware"}
HYPERVISORS.update(kvm="qemu", qemu="qemu")
# Of Azure's machines; others of Hyper-V have the same vendor (cloud-init, ds-identify).
AZURE_TAG = "7783-7084-3265-9085-8269-3286-77"


def distribution() -> str:
    import distro  # late: most commands do not ask

    return str(distro.name(pretty=True)) or "an unknown distribution"


def hypervisor(sys: Path = Path("/sys")) -> str:
    """What the firmware says it is: DMI, else the device tree; "" if it says nothing."""
    for name in ("class/dmi/id/sys_vendor", "class/dmi/id/product_name", "hypervisor/type"):
        words = said(sys / name)
        if words:
            return words
    return ""


def said(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace").strip("\0\n ")
    except OSError:
        return ""


def agent(root: Path = Path("/")) -> str:
    """Whose hook begins a session on this platform: a name of hook.AGENTS, "" if nobody's known."""
    if said(root / "sys/class/dmi/id/chassis_asset_tag") == AZURE_TAG:
        return "azure"
    vendor = hypervisor(root / "sys")
    by_vendor = (agent for begins, agent in VENDORS.items() if vendor.startswith(begins))
    found = next(by_vendor, None) or CLOUDS.get(cloud(root))
    found = found or HYPERVISORS.get(virtualization(), "")
    # AHV is KVM, and has an agent of its own, or QEMU's.
    if found == "qemu" and (root / "usr/local/nutanix/ngt").exists():
        return "nutanix"
    return found


def cloud(root: Path = Path("/")) -> str:
    """As cloud-init's instance data name it; "" if it has not run."""
    with contextlib.suppress(ValueError, KeyError, TypeError):
        return str(json.loads(said(root / "run/cloud-init/instance-data.json"))["v1"]["cloud_name"])
    return ""


def virtualization() -> str:
    """A word of systemd-detect-virt(1); "none" on hardware."""
    with contextlib.suppress(OSError):
        return output_of(["systemd-detect-virt", "--vm"])[1].strip()
    return ""
