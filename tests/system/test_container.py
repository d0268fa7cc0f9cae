# SPDX-License-Identifier: Apache-2.0
"""The container itself: what every other test here relies on."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.fs import kernel
from tests.fs.processes import reap, wait_for_end

from .apps import until
from .container import REPOSITORY, Container, TimedOutError, UnsafeError, device_of, remove

TWO_SYSTEM_CALLS = """
import fcntl, os, sys
fcntl.ioctl(os.open("/", os.O_RDONLY), int(sys.argv[1]), 0)
"""


def test_it_boots_with_vmsnap_installed(container: Container) -> None:
    assert container.systemctl("is-system-running").stdout == "running\n"
    assert container.run("vmsnap", "--version", check=True).stdout.startswith("vmsnap ")
    assert container.show("vmsnap-session.service", "LoadState") == {"LoadState": "loaded"}


def test_the_root_filesystem_can_be_frozen_from_outside(container: Container) -> None:
    assert not container.frozen()
    kernel.freeze(container.path("/"))
    assert container.frozen()
    assert container.thaw()
    assert not container.frozen()


def test_the_root_filesystem_can_be_frozen_from_inside(container: Container) -> None:
    for request, frozen in ((kernel.FIFREEZE, True), (kernel.FITHAW, False)):
        container.run("python3", "-BIc", TWO_SYSTEM_CALLS, str(request), check=True)
        assert container.frozen() is frozen


def test_the_system_goes_on_while_its_root_filesystem_is_frozen(container: Container) -> None:
    kernel.freeze(container.path("/"))
    for command in (
        ("systemctl", "--no-pager", "status"),
        ("systemctl", "start", "tmp.mount"),
        ("logger", "said while frozen"),
        ("python3", "-c", "import json"),
    ):
        container.run(*command, timeout=10.0)
    assert container.thaw()
    assert [record["MESSAGE"] for record in container.journal("-t", "root")] == [
        "said while frozen"
    ]


def test_a_command_that_hangs_on_a_frozen_filesystem_times_out(container: Container) -> None:
    kernel.freeze(container.path("/"))
    with pytest.raises(TimedOutError):
        container.run("touch", "/root/file", timeout=0.5)
    assert container.thaw()


def test_nothing_of_the_machine_is_visible_inside(container: Container) -> None:
    container.assert_only_own_filesystems()
    pids = container.pids()
    assert container.leader in pids
    tables = {Path(f"/proc/{pid}/ns/mnt").readlink(): pid for pid in pids}
    for pid in tables.values():
        assert device_of(Path("/")) not in Path(f"/proc/{pid}/mountinfo").read_text().split()


def test_a_filesystem_of_somebody_else_is_refused(container: Container) -> None:
    container.add_filesystem("/srv/other")
    container.assert_only_own_filesystems()
    device = device_of(container.path("/srv/other"))
    fd = container.thawers.pop(device)
    with pytest.raises(UnsafeError, match="/srv/other"):
        container.assert_only_own_filesystems()
    container.thawers[device] = fd


def test_the_plan_inside_names_only_own_filesystems(container: Container) -> None:
    container.add_filesystem("/srv/data", "xfs")
    entries = json.loads(container.run("vmsnap", "plan", "--json", check=True).stdout)
    planned = {entry["mount"]: entry["device"] for entry in entries if entry["action"] == "freeze"}
    assert planned == {"/": device_of(container.root), "/srv/data": [*container.thawers][-1]}
    disks = {entry["device"] for entry in entries if not entry["device"].startswith("0:")}
    assert disks == set(container.thawers)


@pytest.mark.parametrize("fstype", ["ext4", "xfs"])
def test_an_added_filesystem_is_its_own_until_the_reset(container: Container, fstype: str) -> None:
    container.add_filesystem("/srv/data", fstype)
    container.write("/srv/data/file", "text")
    kernel.freeze(container.path("/srv/data"))
    assert (container.frozen("/srv/data"), container.frozen("/")) == (True, False)
    assert container.run("cat", "/srv/data/file").stdout == "text"
    container.reset()
    assert not container.path("/srv/data/file").exists()
    assert len(container.thawers) == 1


def test_reset_brings_back_what_was_installed(container: Container) -> None:
    before = sorted(str(p) for p in container.path("/etc/vmsnap").rglob("*"))
    container.write("/etc/vmsnap/apps.d/db.json", "{}")
    container.write("/etc/systemd/system/vmsnap-broken.service", "[Service]\nExecStart=false\n")
    container.systemctl("daemon-reload", check=True)
    assert container.systemctl("start", "vmsnap-broken").returncode == 0
    process = container.popen("sleep", "600")
    kernel.freeze(container.path("/"))
    container.reset()
    assert not container.frozen()
    assert sorted(str(p) for p in container.path("/etc/vmsnap").rglob("*")) == before
    assert container.show("vmsnap-broken", "LoadState") == {"LoadState": "not-found"}
    assert process.returncode == -signal.SIGKILL
    assert container.systemctl("is-system-running").stdout == "running\n"


def test_reset_ends_what_a_command_left_running(container: Container) -> None:
    container.run("sh", "-c", "setsid sleep 600 >/dev/null 2>&1 &", check=True)
    until(lambda: container.pids("sleep"))  # the shell ends before it is one
    container.reset()
    assert not container.pids("sleep")


def test_a_process_is_found_by_the_number_it_has_inside(container: Container) -> None:
    inside = int(container.show("dbus.service", "MainPID")["MainPID"])
    assert container.pids("dbus-daemon") == [container.outside(inside)]


def test_it_can_be_closed_when_it_is_frozen_and_nspawn_was_killed(machine: Container) -> None:
    made = Container()
    assert made.stage
    kernel.freeze(made.path("/"))
    made.stage.kill()
    made.stage.wait()
    made.close()
    assert not made.directory.exists()


DIES = """
import signal
from tests.fs import kernel
from tests.system.container import Container
made = Container()
with made.guarded():
    kernel.freeze(made.path("/"))
    print(made.leader, made.stage.pid, made.directory, flush=True)
    signal.pause()
"""


def test_a_frozen_container_ends_when_the_test_run_is_killed(machine: Container) -> None:
    program = [sys.executable, "-Bc", DIES]
    with subprocess.Popen(program, stdout=subprocess.PIPE, cwd=REPOSITORY) as run:
        assert run.stdout
        leader, nspawn, directory = run.stdout.readline().decode().split()
        run.kill()
    assert wait_for_end(int(leader), 30.0)
    assert wait_for_end(int(nspawn), 30.0)
    reap(int(nspawn))
    remove(Path(directory))
