# SPDX-License-Identifier: Apache-2.0
"""Which hypervisor the firmware names."""

from __future__ import annotations

from pathlib import Path

import pytest

from vmsnap.host import hypervisor


@pytest.mark.parametrize(
    ("files", "name"),
    [
        ({"class/dmi/id/sys_vendor": "QEMU\n"}, "QEMU"),
        ({"class/dmi/id/sys_vendor": "Microsoft Corporation\n"}, "Microsoft Corporation"),
        ({"class/dmi/id/sys_vendor": "\n", "class/dmi/id/product_name": "KVM\n"}, "KVM"),
        ({"hypervisor/type": "xen\n"}, "xen"),
        ({}, ""),
    ],
)
def test_the_firmware_says_which_hypervisor_this_is(
    tmp_path: Path, files: dict[str, str], name: str
) -> None:
    for relative, content in files.items():
        (tmp_path / relative).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / relative).write_text(content)
    assert hypervisor(tmp_path) == name
