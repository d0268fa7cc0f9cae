# SPDX-License-Identifier: Apache-2.0
"""What every quiescer must keep, against Debian's servers: a snapshot has all that was acknowledged
before it, and the position is that of the snapshot. test_quiescers_failures.py has what can go
wrong."""

from __future__ import annotations

import json
from typing import NamedTuple

import pytest

from .apps import until
from .databases import POSITION, QUIESCE, Machine, Site
from .mariadb import MARIADB
from .postgresql import POSTGRESQL
from .redis import REDIS, SAVING
from .servers import Server

SERVERS = (POSTGRESQL, MARIADB, REDIS)
TAKEN = ("success", "application", 0)


class Way(NamedTuple):
    """One of the ways in which a quiescer holds its server."""

    name: str
    server: Server
    parameters: tuple[str, ...] = ()  # of the quiescer
    options: tuple[str, ...] = ()  # of the server


WAYS = (
    Way("postgresql", POSTGRESQL),
    Way("mariadb-stages", MARIADB),
    Way("mariadb-read-lock", MARIADB, parameters=("--read-lock",)),
    Way("redis-aof", REDIS),
    Way("redis-rdb", REDIS, options=SAVING),
)


@pytest.mark.parametrize(
    ("server", "way"),
    [pytest.param(way.server, way, id=way.name) for way in WAYS],
)
def test_a_snapshot_under_load_has_every_transaction(server: Server, way: Way, site: Site) -> None:
    server.start_busy(site, *way.options)
    site.app(*way.parameters)
    held = site.freeze()
    acknowledged = site.acknowledged
    copies = site.snapshot()
    assert site.scene.thaw().verdict == TAKEN
    site.restore(copies)
    assert site.position["session"] == held["session"]
    with server.position_is_right(site, acknowledged):
        server.start(site, *way.options)


@pytest.mark.parametrize(
    ("server", "name"),
    [pytest.param(server, name, id=name) for server in SERVERS for name in server.names],
)
def test_init_is_enough(server: Server, name: str, site: Site) -> None:
    """The server runs as Debian sets it up: a session is application-consistent."""
    server.start(site, *server.as_installed)
    installed = site.machine.path(QUIESCE)
    before = sorted(installed.rglob("*"))
    site.init(name)
    held = site.freeze()
    assert site.scene.thaw().verdict == TAKEN, site.said
    position = site.machine.read(f"/var/lib/vmsnap/quiesce/{name}/position.json")
    assert json.loads(position)["session"] == held["session"]
    assert sorted(installed.rglob("*")) == before, "something was compiled"


@pytest.mark.parametrize("server", [MARIADB, REDIS], ids=str)
def test_writes_wait_for_the_thaw_and_reads_do_not(server: Server, site: Site) -> None:
    server.start_with_data(site)
    site.freeze("--no-fsfreeze")
    write = site.machine.popen(*server.writing)
    until(lambda: server.has_waiting(site))
    assert not server.is_written(site)  # who reads is not stopped
    assert write.poll() is None
    assert site.scene.thaw().verdict == TAKEN
    assert write.wait(10.0) == 0
    assert server.is_written(site)


def test_pre_ends_its_output_and_post_waits_for_the_end_of_the_holder(
    server: Server, site: Site
) -> None:
    server.start(site)
    site.root("install", "-d", "-m", "700", "/run/vmsnap-test/app")
    env = {"VMSNAP_SCRIPT_DIR": "/run/vmsnap-test/app", "VMSNAP_TIMEOUT": "30"}
    for phase, left in (("pre", server.left), ("post", 0)):
        site.root(f"{QUIESCE}/{server.quiescer}", env={**env, "VMSNAP_PHASE": phase})
        assert len(site.left) == left


def test_one_session_after_another_is_taken_each_with_its_own_position(
    server: Server, site: Site
) -> None:
    server.start(site)
    for _ in range(2):
        outcome = site.run()
        assert outcome.verdict == TAKEN
        assert site.position["session"] == outcome.result["session"]
    site.assert_nothing_is_left()
    until(lambda: server.connections(site) == [])


def test_a_position_is_written_only_where_nobody_else_can_write(server: Server, site: Site) -> None:
    server.start(site)
    site.root("install", "-d", "-o", server.user, POSITION)
    site.assert_refused("expected a directory of root's own")
    site.root("rmdir", POSITION)
    site.root("ln", "-s", "/etc", POSITION)
    site.assert_refused("Not a directory")


def test_a_failed_pre_script_leaves_no_position_of_an_older_snapshot(
    server: Server, site: Site
) -> None:
    server.start(site)
    assert site.run().verdict == TAKEN
    assert site.position
    site.stop()
    site.assert_refused("is the server running")
    assert list(site.machine.path(POSITION).iterdir()) == []


def test_help_names_the_options_that_all_quiescers_have(
    server: Server, databases_machine: Machine
) -> None:
    """Without a session, and whether the server runs or not."""
    shown = databases_machine.run(f"{QUIESCE}/{server.quiescer}", "--help", check=True)
    assert shown.stdout.startswith(f"usage: {server.quiescer} ")
    assert "--hold SECONDS" in shown.stdout
    assert "--position DIR" in shown.stdout
    bare = databases_machine.run(f"{QUIESCE}/{server.quiescer}")
    assert (bare.returncode, bare.stdout) == (2, "")
    assert "a pre- and post-script of vmsnap" in bare.stderr
