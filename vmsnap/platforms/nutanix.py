# SPDX-License-Identifier: Apache-2.0
"""Nutanix Guest Tools, on AHV. They freeze between their two scripts."""

from __future__ import annotations

from pathlib import Path

from vmsnap.platforms.agent import Act, Agent, Connection, Detection, HookOutcome, program
from vmsnap.system.files import File

PROGRAM = "usr/local/nutanix/ngt"


def connection(root: Path) -> Connection:
    """Both scripts must be root's, 0700."""
    directory = root / "usr/local/sbin"
    why = "Nutanix Guest Tools call this {} they freeze."
    return Connection(
        programs=(PROGRAM,),
        units=("ngt_guest_agent.service",),
        package="Nutanix Guest Tools",
        host="an application-consistent snapshot in Prism, or by a protection policy",
        files=tuple(
            File(directory / event, program("nutanix", event, why.format(when)), 0o700)
            for event, when in (("pre_freeze", "before"), ("post_thaw", "after"))
        ),
    )


AGENT = Agent(
    name="nutanix",
    events={"pre_freeze": Act.BEGIN, "post_thaw": Act.END},
    freezes=True,
    patience=55,
    codes={HookOutcome.NONE: 0},
    connection=connection,
    # AHV is KVM; a machine on it may have QEMU's agent instead.
    detection=Detection(sign=lambda root: (root / PROGRAM).exists(), instead_of="qemu"),
)
