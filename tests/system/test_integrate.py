# SPDX-License-Identifier: Apache-2.0
"""`vmsnap integrate`, whatever the agent is: which one, and what goes wrong on the way."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.fs.running import Outcome

from .agents import Platform
from .apps import until

HOOK, CONF = "/etc/qemu/fsfreeze-hook.d/50-vmsnap", "/etc/qemu/qemu-ga.conf"
SCRIPTS = "/etc/vmware-tools/backupScripts.d"
STATE, RECORD = "/var/lib/vmsnap", "integration.json"
EVERYTHING = ("/etc", "/usr/local", STATE)
INSTANCE = "/run/cloud-init/instance-data.json"


def connected(platform: Platform) -> list[str]:
    """The agents, as `vmsnap check` names them."""
    (line,) = [
        line
        for line in platform.vmsnap("check").out.decode().splitlines()
        if line.startswith("connected agents: ")
    ]
    return line.partition(": ")[2].split(", ")


def instance_of(platform: Platform, cloud: str) -> None:
    platform.container.write(INSTANCE, json.dumps({"v1": {"cloud_name": cloud}}), 0o644)
    platform.container.added.callback(platform.container.path(INSTANCE).unlink)


# --- which agent ---------------------------------------------------------------------------------


def test_where_no_agent_is_known_that_is_said_in_one_line(platform: Platform) -> None:
    platform.pretend()
    before = platform.tree(*EVERYTHING)
    done = platform.integrate("--json")
    assert (done.code, done.out, done.err.count("\n")) == (1, b"", 1)
    assert "found no agent that vmsnap knows" in done.err
    assert "vmsnap integrate qemu" in done.err
    assert platform.tree(*EVERYTHING) == before


@pytest.mark.parametrize("word", ["kvm", "qemu"])
def test_a_machine_of_kvm_has_the_agent_of_qemu(platform: Platform, word: str) -> None:
    platform.pretend(word=word)
    done = platform.integrate("--dry-run").out.decode()
    assert done.startswith(f"agent: qemu\nwould write {HOOK}\nwould write {CONF}\n")
    assert "virsh snapshot-create-as" in done


def test_a_machine_of_kvm_with_the_tools_of_nutanix_has_their_agent(platform: Platform) -> None:
    platform.pretend(word="kvm")
    platform.container.path("/usr/local/nutanix/ngt").mkdir(parents=True)
    assert platform.integrate("--dry-run").out.startswith(b"agent: nutanix\n")


@pytest.mark.parametrize(
    ("cloud", "agent"), [("gce", "google"), ("aws", "aws"), ("azure", "azure")]
)
def test_cloud_init_knows_the_cloud(platform: Platform, cloud: str, agent: str) -> None:
    platform.pretend(word="kvm")
    instance_of(platform, cloud)
    assert platform.integrate("--dry-run").out.startswith(f"agent: {agent}\n".encode())


# --- what is told, and what is not done ----------------------------------------------------------


def test_a_trial_changes_nothing(platform: Platform) -> None:
    before = platform.tree(*EVERYTHING)
    for agent in ("qemu", "vmware", "google", "aws", "nutanix", "azure"):
        done = platform.integrate("--dry-run", agent)
        assert (done.code, done.err) == (0, "")
        assert (b"would write /" in done.out) == (agent != "aws")
    assert platform.tree(*EVERYTHING) == before


def test_what_is_done_is_one_document(platform: Platform) -> None:
    told = platform.integrate("qemu", "--json").result
    assert told["agents"]["qemu"]["written"] == [HOOK, CONF]
    assert told["ok"] is False
    assert [problem["name"] for problem in told["problems"]] == ["IncorrectIntegration"]
    assert connected(platform) == ["qemu"]
    told = platform.integrate("--remove", "--json").result
    assert (told["agents"]["qemu"]["removed"], told["ok"]) == ([HOOK, CONF], True)
    assert connected(platform) == ["none"]


def test_two_agents_are_undone_at_once(platform: Platform) -> None:
    before = platform.tree(*EVERYTHING)
    for agent in ("nutanix", "vmware"):
        assert platform.integrate(agent).code == 1  # neither runs here, which is told
    assert connected(platform) == ["nutanix", "vmware"]
    assert platform.integrate("--remove").code == 0
    assert platform.tree(*EVERYTHING) == before


def test_while_a_session_is_in_progress_nothing_changes(platform: Platform) -> None:
    platform.freeze("--no-fsfreeze")
    before = platform.tree(*EVERYTHING)
    done = platform.integrate("qemu")
    assert (done.code, "SessionInProgress" in done.err) == (75, True)
    assert platform.tree(*EVERYTHING) == before
    assert platform.thaw().code == 0


def test_a_removal_waits_for_the_end_of_the_session(platform: Platform) -> None:
    """The package's own does: its hooks are not to be left behind."""
    platform.integrate("vmware")
    platform.freeze("--no-fsfreeze")
    running = platform.start("integrate", "--remove")
    until(lambda: any(waits_for_a_lock(pid) for pid in running.below))
    assert connected(platform) == ["vmware"]
    assert platform.thaw().code == 0
    assert running.finish().code == 0
    assert connected(platform) == ["none"]


def waits_for_a_lock(pid: int) -> bool:
    """proc(5), /proc/locks."""
    lines = Path("/proc/locks").read_text().splitlines()
    return any("->" in line and str(pid) in line.split() for line in lines)


# --- half-way ------------------------------------------------------------------------------------

# vmsnap, which is killed just before the change of a number to what it has written below.
KILLED = """
import os, signal, sys
left = int(sys.argv.pop(1))
def count(event, arguments):
    global left
    changes = event in ("os.mkdir", "os.rename", "os.link", "os.remove", "os.rmdir")
    if event == "open":
        changes = bool(arguments[2] & os.O_CREAT)
    if changes and str(arguments[0]).startswith(("/etc/", "/var/lib/vmsnap/")):
        left -= 1
        if not left:
            os.kill(os.getpid(), signal.SIGKILL)
sys.addaudithook(count)
from vmsnap.cli.main import main
sys.exit(main())
"""


def killed(platform: Platform, change: int, *words: str) -> bool:
    """Whether it was; else it has no more to change."""
    argv = ("python3", "-c", KILLED, str(change), "integrate", *words)
    return platform.container.run(*argv).returncode in (-9, 137)


@pytest.fixture(params=["qemu", "vmware"])
def agent(request: pytest.FixtureRequest, platform: Platform) -> str:
    """One that finds a file to be added to and a directory to be filled."""
    platform.container.write(CONF, "[general]\nverbose=true", 0o600)
    platform.container.path(SCRIPTS).mkdir()
    return str(request.param)


def test_what_was_killed_half_way_is_completed_and_undone(platform: Platform, agent: str) -> None:
    before = platform.etc
    platform.integrate(agent)
    complete = platform.etc
    platform.integrate("--remove")
    change = 1
    while killed(platform, change, agent):
        platform.integrate(agent)
        assert platform.etc == complete, change  # VMware would run what is left beside, as well
        platform.integrate("--remove")
        assert platform.etc == before, change
        change += 1
    assert change > 3


def test_a_removal_that_was_killed_is_completed(platform: Platform, agent: str) -> None:
    before = platform.etc
    change = 1
    platform.integrate(agent)
    while killed(platform, change, agent, "--remove"):
        assert platform.integrate("--remove").code == 0
        assert platform.etc == before, change
        platform.integrate(agent)
        change += 1
    assert change > 2
    assert platform.etc == before


@pytest.mark.parametrize("full", ["/etc/qemu/fsfreeze-hook.d", "/etc/qemu", STATE])
def test_a_full_disk_leaves_nothing(platform: Platform, full: str) -> None:
    platform.mount("-t", "tmpfs", "-o", "size=4k,mode=755", "tmpfs", full)
    platform.container.path(f"{full}/fill").write_bytes(bytes(4096))
    before = platform.tree(*EVERYTHING)
    done = platform.integrate("qemu")
    assert (done.code, "No space left on device" in done.err) == (1, True)
    assert platform.tree(*EVERYTHING) == before


# --- provisioning --------------------------------------------------------------------------------


def provision(platform: Platform, **document: object) -> Outcome:
    done = platform.container.run("vmsnap", "provision", "-", input=json.dumps(document))
    return Outcome(done.returncode, done.stdout.encode(), done.stderr)


@pytest.mark.parametrize("wanted", ["auto", "google"])
def test_a_document_connects_and_disconnects(platform: Platform, wanted: str) -> None:
    platform.idle("google-guest-agent.service")
    platform.pretend()
    instance_of(platform, "gce")
    before = platform.etc
    done = provision(platform, integrate=wanted)
    assert done.code == 0, done.err
    assert b"wrote /etc/google/snapshots/pre.sh\n" in done.out
    assert connected(platform) == ["google"]
    assert platform.complaints == []
    done = provision(platform, integrate=False)
    assert done.code == 0, done.err
    assert connected(platform) == ["none"]
    assert platform.etc == before


def test_a_document_that_connects_to_nobody_writes_nothing(platform: Platform) -> None:
    platform.pretend()
    before = platform.etc
    done = provision(platform, integrate="auto", conf={"freeze": {"hold": 9}})
    assert done.code == 1
    assert "integrate: found no agent that vmsnap knows" in done.err
    assert platform.etc == before


def test_a_document_that_contradicts_itself_writes_nothing(platform: Platform) -> None:
    """What Azure's extension runs by itself is not to be run by vmsnap as well."""
    before = platform.etc
    scripts = {"pre": "#!/bin/sh\n:\n", "post": "#!/bin/sh\n:\n"}
    done = provision(platform, integrate="azure", azure=True, scripts=scripts)
    assert (done.code, "integrate" in done.err) == (1, True)
    assert platform.etc == before


def test_a_failed_check_does_not_outlive_its_reason(platform: Platform) -> None:
    container = platform.container
    assert platform.integrate("nutanix").code == 1  # the agent is not installed
    container.systemctl("start", "vmsnap-check.service")
    assert container.show("vmsnap-check.service", "ActiveState")["ActiveState"] == "failed"
    assert platform.integrate("--remove").code == 0
    until(lambda: container.show("vmsnap-check.service", "ActiveState")["ActiveState"] == "active")
