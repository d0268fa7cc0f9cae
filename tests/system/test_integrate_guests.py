# SPDX-License-Identifier: Apache-2.0
"""`vmsnap integrate` with the agents of VMware and Nutanix; a test calls what those would call."""

from __future__ import annotations

import pytest

from .agents import Platform

SCRIPTS, TOOLS_CONF = "/etc/vmware-tools/backupScripts.d", "/etc/vmware-tools/tools.conf"
NGT, NGT_UNIT = "/usr/local/nutanix/ngt", "ngt_guest_agent.service"


# --- VMware --------------------------------------------------------------------------------------


@pytest.fixture
def vmware(platform: Platform) -> Platform:
    platform.idle("open-vm-tools.service")
    return platform


def call_scripts(platform: Platform, operation: str, before: str = "~") -> bool:
    """As open-vm-tools does (services/plugins/vmbackup/scriptOps.c): every regular file that is
    there, executable or not, by bash, and in reverse unless it is to freeze. What has failed gets
    no freezeFail, only those `before` it."""
    names = sorted(path.name for path in platform.container.path(SCRIPTS).iterdir())
    names = [name for name in names if name < before]
    worked = True
    for name in names if operation == "freeze" else reversed(names):
        command = f'"{SCRIPTS}/{name}" {operation}'
        worked &= platform.container.run("bash", "-c", command).returncode == 0
        if operation == "freeze" and not worked:
            call_scripts(platform, "freezeFail", before=name)
            return False
    return worked


def test_vmtoolsd_finds_a_script_that_holds_a_session(vmware: Platform) -> None:
    vmware.database()
    vmware.connect("vmware")
    assert vmware.complaints == []
    assert call_scripts(vmware, "freeze")
    assert vmware.events.heard == ["quiesced"]
    assert vmware.state[0] == "active"
    assert not vmware.container.frozen("/")  # vmtoolsd does that
    assert call_scripts(vmware, "thaw")
    assert vmware.events.wait("resumed") == "success application"
    assert vmware.last == ("success", "application", [])


def test_vmtoolsd_is_kept_from_freezing_what_is_not_quiesced(vmware: Platform) -> None:
    vmware.strict()
    vmware.database(pre="exit 1")
    vmware.connect("vmware")
    assert not call_scripts(vmware, "freeze")
    assert vmware.last[:2] == ("failed", "none")
    assert call_scripts(vmware, "thaw")  # there is nothing to end


def test_when_a_script_after_ours_fails_there_is_no_snapshot(vmware: Platform) -> None:
    vmware.database()
    vmware.connect("vmware")
    vmware.container.write(f"{SCRIPTS}/90-site", "#!/bin/sh\nexit 1\n", 0o700)
    assert not call_scripts(vmware, "freeze")
    assert vmware.events.wait("resumed") == "failed none"
    assert vmware.last == ("failed", "none", ["SnapshotFailed"])


def test_what_vmware_finds_is_removed_again(vmware: Platform) -> None:
    before = vmware.etc
    assert SCRIPTS not in before
    vmware.connect("vmware")
    assert vmware.etc[f"{SCRIPTS}/50-vmsnap"][:3] == (0o100755, 0, 0)
    assert vmware.integrate("vmware", "--remove").code == 0
    assert vmware.etc == before


@pytest.mark.parametrize("value", ["false", "0"])  # GLib takes both
def test_tools_that_run_no_scripts_are_told_of(vmware: Platform, value: str) -> None:
    vmware.connect("vmware")
    with vmware.container.path(TOOLS_CONF).open("a") as file:
        file.write(f"[vmbackup]\nexecScripts={value}\n")
    (told,) = vmware.complaints
    assert f"{TOOLS_CONF}: found [vmbackup] execScripts = {value}, expected true" in told


def test_tools_that_do_not_run_are_told_of(vmware: Platform) -> None:
    vmware.connect("vmware")
    vmware.container.systemctl("stop", "open-vm-tools.service", check=True)
    (told,) = vmware.complaints
    assert "open-vm-tools.service is not running" in told


def test_a_key_of_the_tools_without_a_value_is_no_trouble(vmware: Platform) -> None:
    vmware.connect("vmware")
    with vmware.container.path(TOOLS_CONF).open("a") as file:
        file.write("[vmbackup]\nexecScripts\n")
    assert vmware.complaints == []


# --- Nutanix -------------------------------------------------------------------------------------


@pytest.fixture
def nutanix(platform: Platform) -> Platform:
    platform.container.path(NGT).mkdir(parents=True)
    platform.idle(NGT_UNIT)
    return platform


def call(platform: Platform, name: str) -> int:
    return platform.container.run(f"/usr/local/sbin/{name}").returncode


def test_nutanix_finds_two_programs_and_calls_them_without_a_word(nutanix: Platform) -> None:
    nutanix.database()
    before = nutanix.etc
    nutanix.connect("nutanix")
    for name in ("pre_freeze", "post_thaw"):
        mode, owner, group, data = nutanix.etc[f"/usr/local/sbin/{name}"]
        assert (mode, owner, group) == (0o100700, 0, 0)
        assert b"\r" not in data
    assert nutanix.complaints == []
    assert call(nutanix, "pre_freeze") == 0
    assert nutanix.events.heard == ["quiesced"]
    assert not nutanix.container.frozen("/")
    assert call(nutanix, "post_thaw") == 0
    assert nutanix.last == ("success", "application", [])
    assert nutanix.integrate("--remove").code == 0
    assert nutanix.etc == before


def test_a_nutanix_script_of_somebody_else_is_left_alone(nutanix: Platform) -> None:
    nutanix.container.write("/usr/local/sbin/post_thaw", "#!/bin/sh\n", 0o700)
    before = nutanix.etc
    done = nutanix.integrate("nutanix")
    assert (done.code, nutanix.etc) == (1, before)
    assert "/usr/local/sbin/post_thaw: found a file that vmsnap has not written" in done.err
    assert nutanix.complaints == []
