# SPDX-License-Identifier: Apache-2.0
"""A real PostgreSQL under load, its data on XFS and its WAL on ext4, and the snapshots of the two
disks that a hypervisor's host takes: what they are worth with vmsnap, and without.
"""

from __future__ import annotations

import contextlib
import json
import os
import shlex
import shutil
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest

from tests.fs.lab import MKFS, call
from tests.system import databases
from tests.system.databases import DATA, LOADER, LOG, WORKERS, Site, site_of
from tests.system.postgresql import (
    AS_POSTGRES,
    BIN,
    CLUSTER,
    POSTGRESQL,
    SQL,
    TRANSACTION,
    WAL,
    assert_complete,
    sql,
)

from . import libvirt, machine
from .guest import Guest
from .libvirt import Host

DISKS = {DATA: "vda", LOG: "vdb"}  # in the machine
LOAD = "/run/load"
FORGET = "SELECT pg_switch_wal()"  # and with the next checkpoint, the server needs no older WAL
# As much of it as this slow machine needs.
CONF = "[freeze]\nhold = 600\n"
APP = ("--hold=600",)
MARKS = 20
# How to mount what: with what its log says, and without.
REPLAYED = {DATA: "loop,nouuid", LOG: "loop"}
FORBIDDEN = {DATA: "loop,nouuid,ro,norecovery", LOG: "loop,ro,noload"}
# A file that can't be read is none.
READ = 'mount -o "$1" "$2" /mnt; cd /mnt; find . -type f -exec sha256sum {} + || :'
Disks = dict[str, Path]  # by where they are mounted


@dataclass(frozen=True)
class World:
    """The machine that is busy, and the place where its snapshots are looked into."""

    guest: Guest
    container: databases.Machine
    sessions: set[str] = field(default_factory=set)  # that have been looked at

    @property
    def acknowledged(self) -> set[int]:
        """The transactions that have been committed until now, as their clients know."""
        return {int(line) for line in self.guest.run(f"cat {LOAD}/acknowledged").splitlines()}

    @property
    def last(self) -> dict[str, Any]:
        """The result of vmsnap's last session, which nobody has looked at before."""
        result: dict[str, Any] = json.loads(self.guest.run("vmsnap status --json"))["last"]
        assert result["session"] not in self.sessions
        self.sessions.add(result["session"])
        return result

    def mark(self, name: str) -> None:
        """Have files on both disks, each of them safe, as the kernel says."""
        for mount in DISKS:
            directory = f"{mount}/{name}"
            write = f"for i in $(seq {MARKS}); do echo $i >$i; done; sync * . .."
            self.guest.run(f"mkdir {directory}; cd {directory}; {write}")

    def snapshot(self, *mounts: str, quiesce: bool = False) -> Disks:
        layers = self.guest.snapshot(*(DISKS[mount] for mount in mounts), quiesce=quiesce)
        return {mount: layers[DISKS[mount]] for mount in mounts}


def blank(disk: Path) -> Path:
    """Make an empty XFS."""
    size, mkfs = MKFS["xfs"]
    with disk.open("wb") as file:
        file.truncate((size + 100) << 20)
    call(*mkfs, disk)
    return disk


def new_cluster(site: Site, directory: Path) -> Disks:
    """Disks with an empty database; it is made outside, where nothing is emulated."""
    site.machine.exchange(DATA, blank(directory / "blank"))
    site.root("chown", "postgres", DATA)
    site.root(*AS_POSTGRES, f"{BIN}/initdb", "--no-sync", f"--waldir={WAL}", CLUSTER)
    starting(site)
    sql(site, "CREATE TABLE a (id bigint); CREATE TABLE b (id bigint)")
    site.stop()
    disks = {}
    for mount, device in DISKS.items():
        site.root("mount", "-o", "remount,ro", mount)
        disks[mount] = directory / f"{device}.img"
        shutil.copyfile(site.machine.copy(mount), disks[mount])
    return disks


def starting(site: Site) -> None:
    """Start the server in the container, where its user may have another number."""
    site.root("install", "-d", "-o", "postgres", "/run/postgresql")
    site.root("chown", "-R", "postgres", *DISKS)
    POSTGRESQL.start(site)


def set_up(guest: Guest, app: str) -> None:
    """vmsnap with this app, and with the agent; the database, and its load."""
    guest.write("/etc/vmsnap/vmsnap.conf.d/hold.conf", CONF)
    guest.write("/etc/vmsnap/apps.d/db.json", app)
    guest.run("vmsnap integrate qemu; systemctl start qemu-guest-agent")
    guest.wait_for_agent()
    # What is only in a log stays only there, until somebody freezes.
    never = "fs.xfs.xfssyncd_centisecs=720000 vm.dirty_writeback_centisecs=0"
    guest.run(f"modprobe xfs; sysctl -q {never}")
    for mount, device in DISKS.items():
        guest.run(f"mkdir {mount}; mount /dev/{device} {mount}; chown -R postgres {mount}")
    guest.run("install -d -o postgres /run/postgresql")
    # vmsnap goes before what keeps the machine busy.
    unit = ("--quiet", "--nice=19", "--working-directory=/")
    server = ("--service-type=notify", "--uid=postgres", f"{BIN}/postgres", "-D", CLUSTER)
    guest.run(shlex.join(("systemd-run", *unit, *server)))
    guest.run(f"mkdir {LOAD}; mkfifo {LOAD}/events")
    guest.write(f"{LOAD}/loader", LOADER.replace("{directory}", LOAD))
    for worker in range(1, WORKERS + 1):
        loader = ("python3", f"{LOAD}/loader", str(worker), TRANSACTION, *SQL)
        guest.run(shlex.join(("systemd-run", *unit, *loader)))
    busy = guest.run(f"head -n {WORKERS} {LOAD}/events")
    assert len(busy.splitlines()) == WORKERS


@pytest.fixture(scope="module")
def world() -> Iterator[World]:
    if os.geteuid() != 0:
        pytest.fail("tests/vm makes an image: run it as root", pytrace=False)
    if missing := [*machine.missing_tools(), *libvirt.missing_tools()]:
        pytest.fail(f"not installed: {', '.join(missing)}", pytrace=False)
    with contextlib.ExitStack() as stack:
        directory = Path(
            stack.enter_context(tempfile.TemporaryDirectory(prefix="vmsnap-test-", dir="/var/tmp"))
        )
        container = stack.enter_context(databases.booted())
        with site_of(container, "postgresql", "postgres") as site:
            site.app(*APP, timeout=600)
            app = container.read("/etc/vmsnap/apps.d/db.json")
            disks = new_cluster(site, directory)
        host = Host(directory)
        stack.callback(host.close)
        guest = Guest(host, {DISKS[mount]: disk for mount, disk in disks.items()})
        stack.callback(guest.close)
        set_up(guest, app)
        yield World(guest, container)


@pytest.fixture
def site(world: World) -> Iterator[Site]:
    """A server that is not there yet, for disks of a snapshot."""
    with site_of(world.container, "postgresql", "postgres") as site:
        yield site


def restore(site: Site, disks: Disks) -> None:
    """Have the database of a snapshot running."""
    for mount, disk in disks.items():
        site.machine.exchange(mount, disk)
    starting(site)


def files(disk: Path, options: str) -> set[str]:
    """The files of a disk, and what is in them."""
    read = call("unshare", "--mount", "sh", "-ec", READ, "sh", options, disk)
    return set(read.splitlines())


def marks(found: set[str], name: str) -> int:
    """How many of the files that `mark` has written are there, with what is in them."""
    contents = {f"./{name}/{i}": f"{i}\n".encode() for i in range(1, MARKS + 1)}
    return len(found & {f"{sha256(text).hexdigest()}  {path}" for path, text in contents.items()})


def needs_recovery(ext4: Path) -> bool:
    """Whether the filesystem itself says that it is not complete without its log."""
    return "needs_recovery" in call("dumpe2fs", "-h", ext4)


# --- with vmsnap ----------------------------------------------------------------------------------


def freeze_and_thaw(world: World) -> tuple[set[int], Disks]:
    """Whoever is told that a transaction is committed, and be it in the hold, can rely on it."""
    assert "Froze 3 filesystem" in world.guest.virsh("domfsfreeze")
    acknowledged = world.acknowledged
    layers = world.snapshot(*DISKS)
    assert "Thawed 3 filesystem" in world.guest.virsh("domfsthaw")
    return acknowledged, layers


def quiesce(world: World) -> tuple[set[int], Disks]:
    """libvirt does all of that by itself."""
    return world.acknowledged, world.snapshot(*DISKS, quiesce=True)


def assert_application_consistent(world: World, site: Site) -> None:
    """So says vmsnap of its last session, and it is this session that was restored from."""
    last = world.last
    assert (last["outcome"], last["consistency"]) == ("success", "application"), last["errors"]
    assert last["session"] == site.position["session"]


@pytest.mark.parametrize("take", [freeze_and_thaw, quiesce])
def test_a_snapshot_is_complete_without_any_log_and_has_every_transaction(
    world: World, site: Site, take: Callable[[World], tuple[set[int], Disks]]
) -> None:
    world.mark(take.__name__)
    acknowledged, layers = take(world)
    disks = world.guest.flat(layers)
    assert not needs_recovery(disks[LOG])
    for mount, disk in disks.items():
        found = files(disk, FORBIDDEN[mount])
        assert marks(found, take.__name__) == MARKS
        assert found == files(disk, REPLAYED[mount])
    restore(site, disks)
    assert acknowledged
    assert_complete(site, acknowledged)
    assert_application_consistent(world, site)


def test_as_long_as_it_is_held_disks_can_be_taken_one_after_the_other(
    world: World, site: Site
) -> None:
    world.guest.virsh("domfsfreeze")
    acknowledged = world.acknowledged
    layers = world.snapshot(DATA)
    world.guest.run(f"systemd-run --quiet {forget()}")  # waits for the thaw
    layers.update(world.snapshot(LOG))
    world.guest.virsh("domfsthaw")
    restore(site, world.guest.flat(layers))
    assert_complete(site, acknowledged)
    assert_application_consistent(world, site)


def forget() -> str:
    return shlex.join((*SQL, "-c", FORGET, "-c", "CHECKPOINT"))


# --- the same without it --------------------------------------------------------------------------


def test_without_a_freeze_files_that_are_safe_are_only_in_the_log(world: World) -> None:
    world.mark("bare")
    disks = world.guest.flat(world.snapshot(*DISKS))
    assert needs_recovery(disks[LOG])
    for mount, disk in disks.items():
        assert marks(files(disk, FORBIDDEN[mount]), "bare") < MARKS
        assert marks(files(disk, REPLAYED[mount]), "bare") == MARKS


def test_without_a_hold_disks_that_are_taken_one_after_the_other_have_no_database(
    world: World, site: Site
) -> None:
    """The data says from where to recover, and the WAL of then is no more."""
    layers = world.snapshot(DATA)
    world.guest.run(f"{forget()}; sync")
    layers.update(world.snapshot(LOG))
    with pytest.raises(AssertionError, match="could not locate a valid checkpoint record"):
        restore(site, world.guest.flat(layers))
