# SPDX-License-Identifier: Apache-2.0
"""What installing, upgrading and removing the RPM package does to a machine's units."""

from __future__ import annotations

from pathlib import Path

import pytest

from .machine import DISCONNECT, END_CHECKS, END_EVERYTHING, FORGET, INTERRUPT, Machine


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return Machine(tmp_path)


def test_installing_the_rpm_package_applies_the_presets_and_starts_what_they_enable(
    machine: Machine,
) -> None:
    preset = (
        "systemctl --no-reload preset "
        "vmsnap-check.path vmsnap-check.service vmsnap-backup.timer vmsnap-provision.service"
    )
    starts = [f"systemctl start vmsnap-check.{kind}" for kind in ("path", "service")]
    starts.append("systemctl start --no-block vmsnap-provision.service")
    assert machine.run_rpms("POSTIN", 1) == [preset, *starts]
    assert machine.run_rpms("POSTIN", 1, DISABLED="1") == [preset]
    assert machine.run_rpms("POSTIN", 1, systemd=False) == [preset]


def test_upgrading_the_rpm_package_checks_again_and_leaves_alone_what_takes_a_snapshot(
    machine: Machine,
) -> None:
    assert machine.run_rpms("POSTIN", 2) == []
    assert machine.run_rpms("PREUN", 1) == []
    assert machine.run_rpms("POSTUN", 1) == [
        "systemctl try-restart vmsnap-check.path vmsnap-check.service"
    ]


def test_removing_the_rpm_package_ends_a_session_as_that_of_debian_does(machine: Machine) -> None:
    units = "vmsnap-check.path vmsnap-check.service vmsnap-backup.timer vmsnap-provision.service"
    disable = f"systemctl --no-reload disable {units}"
    assert machine.run_rpms("PREUN", 0) == [
        *END_EVERYTHING,
        DISCONNECT,
        disable,
        f"systemctl stop {units}",
    ]
    assert machine.run_rpms("POSTUN", 0) == [*INTERRUPT, *END_CHECKS, FORGET]
    assert machine.run_rpms("PREUN", 0, systemd=False) == [DISCONNECT, disable]
    assert machine.run_rpms("POSTUN", 0, systemd=False) == []
    assert machine.run_rpms("PREUN", 0, CODE="1")[:4] == END_EVERYTHING
    assert machine.run_rpms("POSTUN", 0, CODE="1")[:2] == INTERRUPT
