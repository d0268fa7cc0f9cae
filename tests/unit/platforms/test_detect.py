# SPDX-License-Identifier: Apache-2.0
"""Which hypervisor the firmware names, and whose agent there begins a session."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from vmsnap.platforms import detect
from vmsnap.platforms.azure import TAG as AZURE_TAG
from vmsnap.platforms.detect import agent, hypervisor

DMI = "class/dmi/id"
TAG = f"sys/{DMI}/chassis_asset_tag"
VENDOR, PRODUCT = f"sys/{DMI}/sys_vendor", f"sys/{DMI}/product_name"
CLOUD = "run/cloud-init/instance-data.json"


def put(root: Path, files: dict[str, str]) -> None:
    for relative, content in files.items():
        (root / relative).parent.mkdir(parents=True, exist_ok=True)
        (root / relative).write_text(content)


def cloud(name: str) -> dict[str, str]:
    return {CLOUD: json.dumps({"v1": {"cloud_name": name}})}


@pytest.mark.parametrize(
    ("files", "name"),
    [
        ({f"{DMI}/sys_vendor": "QEMU\n"}, "QEMU"),
        ({f"{DMI}/sys_vendor": "Microsoft Corporation\n"}, "Microsoft Corporation"),
        ({f"{DMI}/sys_vendor": "\n", f"{DMI}/product_name": "KVM\n"}, "KVM"),
        ({"hypervisor/type": "xen\n"}, "xen"),
        ({}, ""),
    ],
)
def test_the_firmware_says_which_hypervisor_this_is(
    tmp_path: Path, files: dict[str, str], name: str
) -> None:
    put(tmp_path, files)
    assert hypervisor(tmp_path) == name


@pytest.mark.parametrize(
    ("files", "detected", "name"),
    [
        # libvirt, Proxmox, OpenStack, KubeVirt, oVirt
        ({VENDOR: "QEMU\n"}, "kvm", "qemu"),
        ({VENDOR: "QEMU\n"}, "qemu", "qemu"),
        ({VENDOR: "OpenStack Foundation\n", **cloud("openstack")}, "kvm", "qemu"),
        ({VENDOR: "KubeVirt\n", PRODUCT: "None\n"}, "kvm", "qemu"),
        ({VENDOR: "oVirt\n"}, "kvm", "qemu"),
        ({VENDOR: "QEMU\n", **cloud("unknown")}, "kvm", "qemu"),
        # systemd before 249 calls them kvm
        ({VENDOR: "Amazon EC2\n", PRODUCT: "m5.large\n"}, "kvm", "aws"),
        ({VENDOR: "Amazon EC2\n", PRODUCT: "m5.metal\n"}, "none", "aws"),
        ({VENDOR: "Xen\n", **cloud("aws")}, "xen", "aws"),
        ({}, "amazon", "aws"),
        ({VENDOR: "Google\n", PRODUCT: "Google Compute Engine\n"}, "kvm", "google"),
        (cloud("gce"), "kvm", "google"),
        ({VENDOR: "VMware, Inc.\n"}, "vmware", "vmware"),
        ({}, "vmware", "vmware"),
        # moved from a cloud: what cloud-init found there is in the image still
        ({VENDOR: "VMware, Inc.\n", **cloud("aws")}, "vmware", "vmware"),
        ({VENDOR: "Nutanix\n", PRODUCT: "AHV\n"}, "kvm", "qemu"),
        ({VENDOR: "Nutanix\n", "usr/local/nutanix/ngt/python": ""}, "kvm", "nutanix"),
        ({VENDOR: "Microsoft Corporation\n", TAG: f"{AZURE_TAG}\n"}, "microsoft", "azure"),
        # Hyper-V's own has no hooks
        ({VENDOR: "Microsoft Corporation\n", TAG: "1234\n"}, "microsoft", ""),
        ({VENDOR: "Xen\n"}, "xen", ""),
        ({VENDOR: "LENOVO\n"}, "none", ""),
        ({CLOUD: "no JSON"}, "none", ""),
        ({CLOUD: "[]"}, "none", ""),
        ({CLOUD: '{"v1": 3}'}, "none", ""),
    ],
)
def test_the_agent_is_that_of_the_platform(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, files: dict[str, str], detected: str, name: str
) -> None:
    monkeypatch.setattr(detect, "virtualization", lambda: detected)
    put(tmp_path, files)
    assert agent(tmp_path) == name
