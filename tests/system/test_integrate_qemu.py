# SPDX-License-Identifier: Apache-2.0
"""`vmsnap integrate qemu` with Debian's agent, which then calls vmsnap when the host freezes."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from .agents import CHANNEL, QEMU_GA, QEMU_UNIT, Host, Platform
from .apps import until

HOOK, CONF = "/etc/qemu/fsfreeze-hook.d/50-vmsnap", "/etc/qemu/qemu-ga.conf"
OTHER = "/run/vmsnap-test/other"
ADM = 4


@pytest.fixture
def agent(platform: Platform) -> Platform:
    """The agent as Debian starts it: with no option that names a hook."""
    platform.container.path("/run/qga.state").unlink(missing_ok=True)  # of a test that failed
    platform.unit(QEMU_UNIT, f"ExecStart=-{QEMU_GA}", "Restart=always", "RestartSec=0")
    return platform


@pytest.fixture
def host(agent: Platform) -> Iterator[Host]:
    """What is connected to the agent after `vmsnap integrate` has restarted it."""
    agent.connect("qemu")
    made = Host(agent.container)
    yield made
    made.close()


def dumped(platform: Platform) -> str:
    """The hook that the agent itself understands from its configuration."""
    told = platform.container.run("qemu-ga", "-D", check=True).stdout
    return next(
        (x.partition("=")[2] for x in told.splitlines() if x.startswith("fsfreeze-hook=")), ""
    )


# --- snapshots -----------------------------------------------------------------------------------


def test_the_agent_calls_vmsnap_when_the_host_freezes(agent: Platform) -> None:
    agent.database()
    done = agent.connect("qemu")
    assert f"wrote {HOOK}\nwrote {CONF}\nrestarted {QEMU_UNIT}\n" in done.out.decode()
    host = Host(agent.container)
    assert host.ask("guest-fsfreeze-freeze") == 1
    assert agent.events.heard == ["quiesced"]
    assert agent.container.frozen("/")
    assert host.ask("guest-fsfreeze-thaw") == 1
    assert agent.events.wait("resumed") == "success application"
    assert agent.last == ("success", "application", [])
    assert agent.complaints == []
    host.close()


def test_a_pre_script_that_fails_aborts_the_freeze_only_if_that_is_required(
    agent: Platform, host: Host
) -> None:
    agent.database(pre="exit 1")
    assert host.ask("guest-fsfreeze-freeze") == 1
    assert host.ask("guest-fsfreeze-thaw") == 1
    assert agent.last[:2] == ("success", "filesystem")
    agent.strict()
    assert "hook" in str(host.ask("guest-fsfreeze-freeze"))
    assert not agent.container.frozen("/")
    assert host.ask("guest-fsfreeze-status") == "thawed"
    assert agent.last[:2] == ("failed", "none")


def other(platform: Platform, code: int = 0, path: str = OTHER) -> str:
    """Somebody's hook that was called until now, and is to be called from now on."""
    platform.container.write(
        path, f'#!/bin/sh\n{platform.say("other $1")}\n[ "$1" = thaw ] || exit {code}\n', 0o700
    )
    return f"[general]\nfsfreeze-hook = {path}\n"


@pytest.mark.parametrize("path", [OTHER, f"{OTHER} $(of) somebody's"])
def test_another_hook_is_called_before_ours_and_after_it(agent: Platform, path: str) -> None:
    agent.container.write(CONF, other(agent, path=path))
    agent.connect("qemu")
    assert dumped(agent) == HOOK
    agent.database()
    host = Host(agent.container)
    assert host.ask("guest-fsfreeze-freeze") == 1
    assert host.ask("guest-fsfreeze-thaw") == 1
    assert agent.events.heard == [
        *("other freeze", "quiesced", "resumed success application", "other thaw")
    ]
    host.close()


def test_a_removal_leaves_the_agent_its_hook_until_that_has_ended(agent: Platform) -> None:
    """What is called besides ours would never hear of the thaw, nor the host of how it went."""
    waits = f'[ "$1" = freeze ] || {{ {agent.say("thawing")}; {agent.stop_at("gate")}; }}'
    agent.container.write(OTHER, f"#!/bin/sh\n{waits}\n{agent.say('ended')}\n", 0o700)
    before = f"[general]\nfsfreeze-hook = {OTHER}\n"
    agent.container.write(CONF, before)
    agent.connect("qemu")
    host = Host(agent.container)
    assert host.ask("guest-fsfreeze-freeze") == 1
    removal = agent.start("integrate", "--remove")
    host.send("guest-fsfreeze-thaw")
    agent.events.wait("thawing")
    until(lambda: agent.container.read(CONF) == before)
    agent.open("gate")
    assert host.hear() == 1
    assert removal.finish().code == 0
    assert agent.events.heard[-1] == "ended"
    host.close()


def test_another_hook_that_fails_aborts_the_freeze_and_no_session_begins(agent: Platform) -> None:
    agent.container.write(CONF, other(agent, code=3))
    agent.connect("qemu")
    agent.database()
    host = Host(agent.container)
    assert "hook" in str(host.ask("guest-fsfreeze-freeze"))
    assert agent.events.heard == ["other freeze"]
    assert not agent.container.frozen("/")
    host.close()


def test_another_hook_is_told_of_the_end_when_ours_fails(agent: Platform) -> None:
    agent.container.write(CONF, other(agent))
    agent.connect("qemu")
    agent.strict()
    agent.database(pre="exit 1")
    host = Host(agent.container)
    assert "hook" in str(host.ask("guest-fsfreeze-freeze"))
    assert agent.events.heard == [
        *("other freeze", "quiesced", "resumed failed none", "other thaw")
    ]
    host.close()


# --- what is written -----------------------------------------------------------------------------


def test_the_second_time_nothing_changes(agent: Platform) -> None:
    agent.connect("qemu")
    before, pid = agent.etc, agent.main_pid(QEMU_UNIT)
    done = agent.integrate("qemu", "--json").result
    told = done["agents"]["qemu"]
    assert (told["written"], told["unchanged"], told["restarted"]) == ([], [HOOK, CONF], "")
    assert (agent.etc, agent.main_pid(QEMU_UNIT)) == (before, pid)


@pytest.mark.parametrize(
    ("text", "mode"),
    [
        (None, 0),
        ("", 0o644),
        ("[general]\nverbose=true\n", 0o600),
        ("[general]\nverbose=true", 0o644),
    ],
)
def test_a_removal_gives_back_the_very_tree(agent: Platform, text: str | None, mode: int) -> None:
    if text is not None:
        agent.container.write(CONF, text, mode)
    before = agent.etc
    agent.connect("qemu")
    assert agent.etc != before
    assert dumped(agent) == HOOK
    pid = agent.main_pid(QEMU_UNIT)
    done = agent.integrate("--remove")
    assert done.code == 0, done.err
    assert f"removed {HOOK}\n" in done.out.decode()
    assert agent.etc == before
    assert dumped(agent) == ""
    assert agent.main_pid(QEMU_UNIT) != pid
    assert agent.complaints == []


def test_a_configuration_behind_a_link_stays_there(agent: Platform) -> None:
    agent.container.write("/etc/qemu/site.conf", "[general]\nverbose=true\n")
    agent.container.path(CONF).symlink_to("site.conf")
    before = agent.etc
    agent.connect("qemu")
    assert agent.container.path(CONF).is_symlink()
    assert dumped(agent) == HOOK
    assert agent.complaints == []
    assert agent.integrate("--remove").code == 0
    assert agent.etc == before


def test_a_configuration_keeps_its_group(agent: Platform) -> None:
    os.chown(agent.container.write(CONF, "[general]\n", 0o640), 0, ADM)
    before = agent.etc
    agent.connect("qemu")
    assert agent.container.path(CONF).stat().st_gid == ADM
    assert agent.integrate("--remove").code == 0
    assert agent.etc == before


def test_a_directory_behind_a_link_is_left_as_it_was(agent: Platform) -> None:
    agent.container.path("/etc/qemu").rename(agent.container.path("/etc/qemu-kept"))
    agent.container.path("/etc/qemu").symlink_to("qemu-kept")
    agent.container.added.callback(agent.container.run, "rm", "-r", "/etc/qemu", "/etc/qemu-kept")
    before = agent.etc
    agent.connect("qemu")
    assert dumped(agent) == HOOK
    assert agent.integrate("--remove").code == 0
    assert agent.etc == before


def test_a_removal_starts_no_agent_that_was_stopped(agent: Platform) -> None:
    agent.connect("qemu")
    agent.container.systemctl("stop", QEMU_UNIT, check=True)
    assert agent.integrate("--remove").code == 0
    assert agent.container.show(QEMU_UNIT, "ActiveState")["ActiveState"] == "inactive"


def test_what_was_added_meanwhile_stays(agent: Platform) -> None:
    agent.connect("qemu")
    with agent.container.path(CONF).open("a") as file:
        file.write("[general]\nverbose=true\n")
    (told,) = agent.complaints
    assert f"{QEMU_UNIT} has not read its settings" in told
    agent.container.systemctl("restart", QEMU_UNIT, check=True)
    assert agent.complaints == []
    assert agent.integrate("--remove").code == 0
    assert agent.container.read(CONF) == "[general]\nverbose=true\n"


# --- what is not so any more ---------------------------------------------------------------------


def broken(agent: Platform, how: str) -> None:
    hook, conf = agent.container.path(HOOK), agent.container.path(CONF)
    if how == "removed":
        hook.unlink()
    elif how == "replaced":
        hook.write_text("#!/bin/sh\n")
    elif how == "not executable":
        hook.chmod(0o644)
    elif how == "open to all":
        hook.chmod(0o777)
    elif how == "forgotten":
        conf.write_text("[general]\nverbose=true\n")
    elif how == "commented out":
        conf.write_text(conf.read_text().replace("fsfreeze-hook", "#fsfreeze-hook"))
    elif how == "overruled":
        with conf.open("a") as file:
            file.write("[general]\nfsfreeze-hook=/etc/qemu/fsfreeze-hook\n")
    elif how == "stopped":
        agent.container.systemctl("stop", QEMU_UNIT, check=True)
    elif how == "not installed":
        agent.hide("/usr/sbin/qemu-ga")
    else:
        agent.unit(QEMU_UNIT, f"ExecStart={QEMU_GA} {how}")
        agent.container.systemctl("restart", QEMU_UNIT, check=True)


WRONG = {
    "removed": f"{HOOK}: No such file",
    "replaced": "not written by vmsnap",
    "not executable": "found owner uid 0 and mode 0644, expected root and 0755",
    "open to all": "found owner uid 0 and mode 0777, expected root and 0755",
    "forgotten": f"{CONF}: found nothing of vmsnap's in it",
    "commented out": CONF,
    "overruled": CONF,
    "stopped": f"{QEMU_UNIT} is not running",
    "not installed": "install qemu-guest-agent",
    "-F/etc/qemu/fsfreeze-hook": f"runs with -F/etc/qemu/fsfreeze-hook, expected -F{HOOK}",
    "-F": f"runs with -F, expected -F{HOOK}",
    "--fsfreeze-hook=/bin/true": "runs with --fsfreeze-hook=/bin/true",
    "--fsfreeze-hook": "runs with --fsfreeze-hook",
}


@pytest.mark.parametrize("how", WRONG)
def test_what_keeps_the_agent_from_calling_us_is_told(agent: Platform, how: str) -> None:
    agent.connect("qemu")
    assert agent.complaints == []
    broken(agent, how)
    assert WRONG[how] in "\n".join(agent.complaints)
    if how in ("removed", "replaced", "open to all", "forgotten", "commented out", "overruled"):
        assert agent.integrate("qemu").code == (how == "replaced")  # that may be anybody's
        assert bool(agent.complaints) == (how == "replaced")


def test_a_machine_without_a_channel_is_told_of_it(agent: Platform) -> None:
    agent.connect("qemu")
    agent.container.path(CHANNEL).unlink()
    try:
        (told,) = agent.complaints
    finally:
        agent.container.write(CHANNEL, "")
    assert told.startswith(f"warning: qemu: {CHANNEL} is missing")
