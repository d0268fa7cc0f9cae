# SPDX-License-Identifier: Apache-2.0
"""Servers that do not answer, below what the units look at: the machine boots, PID 1 looks at none
of it, the check ends by itself, and a held session is none the worse."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from .apps import Scene, scene_of
from .container import Container, install, status
from .test_check_unit import until

CHECK, PATH = "vmsnap-check.service", "vmsnap-check.path"
SERVER_UNIT = "dead-server.service"
# One server for all: it mounts itself early in the boot, and answers nothing, not even that it is
# there (FUSE_INIT). As NFS does, whoever looks at it waits in uninterruptible sleep.
SERVER = """
import ctypes, os, signal, socket, stat, sys
libc = ctypes.CDLL(None, use_errno=True)
if not os.path.exists("/dev/fuse"):
    os.mknod("/dev/fuse", stat.S_IFCHR | 0o600, os.makedev(10, 229))
for place in sys.argv[1:]:
    source, point, fstype = place.split(",")
    os.makedirs(point, 0o755, exist_ok=True)
    connection = os.open("/dev/fuse", os.O_RDWR)
    options = f"fd={connection},rootmode=40000,user_id=0,group_id=0,allow_other"
    words = [os.fsencode(word) for word in (source, point, fstype)]
    assert libc.mount(*words, 0, options.encode()) == 0, os.strerror(ctypes.get_errno())
with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as notify:
    notify.sendto(b"READY=1", os.environ["NOTIFY_SOCKET"])
signal.pause()
"""
UNIT = """
[Unit]
DefaultDependencies=no
After=local-fs.target
Before=sysinit.target shutdown.target
Conflicts=shutdown.target
[Service]
Type=notify
ExecStart=/usr/bin/python3 -ISB /usr/local/lib/server.py {places}
[Install]
WantedBy=sysinit.target
"""
APP = '{"preScriptLocation": "%s"}'
HERE = "/opt/quiesce/pre"
NO_FUSE = "found a FUSE filesystem, expected one of the kernel's own filesystems"
# Where a server is mounted, the script of the app, and what the check says.
PLACES = {
    "a share at /data": ("srv1:/data,/data,fuse.sshfs", HERE, ""),
    "the scripts": (
        "srv1:/scripts,/etc/vmsnap/scripts,fuse.nfs",
        "/etc/vmsnap/scripts/db/pre",
        f"/etc/vmsnap/scripts: {NO_FUSE} (app 'db', pre-script)",
    ),
    "scripts elsewhere": (
        "srv1:/opt,/opt/share,fuse.nfs",
        "/opt/share/db/pre",
        f"/opt/share: {NO_FUSE} (app 'db', pre-script)",
    ),
    "the apps": ("srv1:/apps,/etc/vmsnap/apps.d,fuse.nfs", HERE, f"/etc/vmsnap/apps.d: {NO_FUSE}"),
    "the drop-ins": (
        "srv1:/conf,/etc/vmsnap/vmsnap.conf.d,fuse.nfs",
        HERE,
        f"/etc/vmsnap/vmsnap.conf.d: {NO_FUSE}",
    ),
    "all of the configuration": ("srv1:/,/etc/vmsnap,fuse.nfs", HERE, f"/etc/vmsnap: {NO_FUSE}"),
    "the configuration of Azure": ("srv1:/,/etc/azure,fuse.nfs", HERE, f"/etc/azure: {NO_FUSE}"),
    "the state": ("srv1:/,/var/lib/vmsnap,fuse.nfs", HERE, "/var/lib/vmsnap/integration.json"),
}


def write_server(root: Path, *places: str) -> None:
    (root / "usr/local/lib/server.py").write_text(SERVER)
    unit = root / "etc/systemd/system" / SERVER_UNIT
    unit.write_text(UNIT.format(places=" ".join(places)))


@pytest.fixture
def booted(request: pytest.FixtureRequest) -> Iterator[Container]:
    """A machine that has an app, the units as the packages enable them, and a server from early in
    the boot."""
    place, script, _ = request.param

    def prepare(root: Path) -> None:
        install(root)
        write_server(root, place)
        for path, text in ((script, "#!/bin/sh\n"), ("/etc/vmsnap/apps.d/db.json", APP % script)):
            file = root / path.lstrip("/")
            file.parent.mkdir(0o700, parents=True, exist_ok=True)
            file.write_text(text)
            file.chmod(0o700 if path == script else 0o600)
        for target, directory, name in (
            ("sysinit.target", "/etc/systemd/system", SERVER_UNIT),
            ("multi-user.target", "/usr/lib/systemd/system", CHECK),
            ("paths.target", "/usr/lib/systemd/system", PATH),
        ):
            wants = root / f"etc/systemd/system/{target}.wants"
            wants.mkdir(exist_ok=True)
            (wants / name).symlink_to(f"{directory}/{name}")

    made = Container(prepare=prepare)
    try:
        yield made
    finally:
        made.systemctl("stop", "--no-block", SERVER_UNIT)
        made.close()


@pytest.mark.parametrize("booted", PLACES.values(), ids=[*PLACES], indirect=True)
def test_the_machine_boots_and_the_check_ends(
    booted: Container, request: pytest.FixtureRequest
) -> None:
    """Also of what it was booted for: the check is done again when something changes."""
    _, _, words = request.node.callspec.params["booted"]
    assert booted.show("multi-user.target", "ActiveState") == {"ActiveState": "active"}
    assert not status(booted.leader)["State"].startswith("D")
    before = booted.show(CHECK, "SubState", "InvocationID")
    assert before["SubState"] == ("failed" if words else "exited")
    assert words in booted.status(CHECK, "--full")
    booted.run("touch", "/run/vmsnap-check", check=True)
    until(booted, lambda: booted.show(CHECK, "InvocationID")["InvocationID"] not in before.values())
    until(booted, lambda: booted.show(CHECK, "SubState")["SubState"] == before["SubState"])


def test_no_boot_waits_for_the_check(container: Container) -> None:
    after = container.show("multi-user.target", "After", "Wants")
    assert CHECK not in after["After"].split()
    assert container.show(CHECK, "TimeoutStartUSec")["TimeoutStartUSec"] == "1min"


# --- a held session ------------------------------------------------------------------------------


@pytest.fixture
def scene(container: Container) -> Iterator[Scene]:
    """A disk below a server that never answers, and a share."""
    container.add_filesystem("/srv/share/disk")
    write_server(
        container.path("/"), "srv1:/share,/srv/share,fuse.nfs", "srv1:/data,/data,fuse.nfs"
    )
    container.systemctl("daemon-reload", check=True)
    container.systemctl("start", SERVER_UNIT, check=True)
    try:
        with scene_of(container) as made:
            yield made
    finally:
        container.systemctl("stop", SERVER_UNIT)
        container.run("umount", "--lazy", "/data", "/srv/share")


@pytest.mark.parametrize("only", [["--only=/"], []])
def test_it_freezes_and_thaws(scene: Scene, only: list[str]) -> None:
    scene.database()
    held = scene.freeze(*only)
    assert held["consistency"] == "application"
    assert scene.container.frozen("/")
    thaw = scene.thaw()
    assert thaw.verdict == ("success", "application", 0)
    assert not scene.container.frozen("/")
    assert len(thaw.result["filesystems"]) == (1 if only else 2)


def test_a_hook_of_an_agent_is_not_held_up(scene: Scene) -> None:
    scene.database()
    assert scene.vmsnap("hook", "vmware", "freeze").code == 0
    assert scene.events.heard == ["quiesced"]
    assert scene.vmsnap("hook", "vmware", "thaw").code == 0
    assert scene.events.wait("resumed") == "success application"


@pytest.mark.parametrize("command", ["plan", "check", "status", "history"])
def test_it_can_be_asked(scene: Scene, command: str) -> None:
    assert scene.vmsnap(command, timeout=20.0).code in (0, 1)


def test_force_ends(scene: Scene) -> None:
    scene.freeze()
    os.kill(scene.guard, signal.SIGSTOP)
    scene.container.kill(scene.engine)
    scene.wait_for_failure()
    scene.vmsnap("thaw", "--force", timeout=60.0)
    assert scene.container.thaw() == []
