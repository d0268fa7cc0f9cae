# SPDX-License-Identifier: Apache-2.0
"""What every quiescer must keep when something goes wrong, against Debian's servers: the session
tells it, and nothing stays held."""

from __future__ import annotations

import os
import signal

import pytest

from tests.fs.processes import wait_for_end

from .apps import until
from .databases import POST, SERVICE, Site, explained
from .mariadb import MARIADB
from .postgresql import POSTGRESQL
from .servers import Server

HOLDERS = (POSTGRESQL, MARIADB)  # their quiescers leave one; Redis keeps a deadline itself


# --- what pre finds ------------------------------------------------------------------------------


def test_a_server_that_does_not_run_is_told_and_post_does_no_harm(
    server: Server, site: Site
) -> None:
    site.assert_refused("is the server running")
    assert f"{server.called} was not held: the pre-script did not succeed" in site.said


@pytest.mark.parametrize("server", HOLDERS, ids=str)
def test_a_missing_client_is_told(server: Server, site: Site) -> None:
    """Redis needs none."""
    server.start(site)
    programs = [f"/usr/bin/{client}" for client in server.clients]
    for program in programs:
        site.root("mv", program, f"{program}.away")
    try:
        site.assert_refused(f"found no program {server.clients[-1]}")
    finally:
        for program in programs:
            site.root("mv", f"{program}.away", program)


def test_wrong_credentials_are_told_and_right_ones_do(server: Server, site: Site) -> None:
    for words in server.mistakes(site):
        site.assert_refused(words)
    assert site.run().verdict == ("success", "application", 0)


def test_a_replica_is_refused(server: Server, site: Site) -> None:
    server.start_replica(site)
    site.assert_refused(server.replica)
    site.assert_nothing_is_left()


# --- the server in the hold ----------------------------------------------------------------------


def test_a_server_killed_in_the_hold_is_told(server: Server, site: Site) -> None:
    server.start_busy(site)
    site.freeze()
    server.kill(site)
    thaw = site.scene.thaw()
    assert thaw.verdict == ("success", "filesystem", 0)
    assert server.killed in explained(thaw, POST)
    site.assert_nothing_is_left()


def test_a_server_restarted_in_the_hold_is_told(server: Server, site: Site) -> None:
    server.start_with_data(site)
    site.freeze("--no-fsfreeze")
    server.stop(site)
    server.start(site)
    assert server.restarted in explained(site.scene.thaw(), POST)
    site.assert_nothing_is_left()


def test_a_server_that_hangs_in_the_hold_is_told(server: Server, site: Site) -> None:
    server.start(site)
    site.app(timeout=6)
    site.freeze("--no-fsfreeze")
    site.machine.systemctl("kill", "--signal=STOP", SERVICE, check=True)
    thaw = site.scene.thaw()
    site.machine.systemctl("kill", "--signal=CONT", SERVICE, check=True)
    assert server.hangs in explained(thaw, POST)
    site.assert_nothing_is_left()


# --- vmsnap and the holder -----------------------------------------------------------------------


def test_the_server_is_released_at_the_deadline_and_post_says_so(
    server: Server, site: Site
) -> None:
    server.start_with_data(site)
    site.app("--hold=1")
    site.freeze("--no-fsfreeze")
    server.write(site)  # waits for that, where writes wait
    site.assert_nothing_is_left()
    assert "at its deadline" in explained(site.scene.thaw(), POST)
    site.assert_nothing_is_left()


def test_the_server_is_released_when_all_of_vmsnap_is_killed(server: Server, site: Site) -> None:
    server.start_with_data(site)
    site.app("--hold=3")
    site.freeze("--no-fsfreeze")
    assert len(site.left) == server.left
    site.kill_vmsnap()
    server.write(site)
    site.assert_nothing_is_left()
    until(lambda: server.connections(site) == [])


def test_a_killed_engine_leaves_nothing_held(server: Server, site: Site) -> None:
    server.start_with_data(site)
    site.freeze()
    left = site.left
    assert len(left) == server.left
    site.machine.kill(site.scene.engine)
    assert all(wait_for_end(pid, 10.0) for pid in left)
    server.write(site)
    site.scene.wait_for_failure()
    site.assert_nothing_is_left()
    assert server.resumed in site.said


@pytest.mark.parametrize("server", HOLDERS, ids=str)
def test_a_killed_holder_leaves_nothing_held_and_is_told(server: Server, site: Site) -> None:
    server.start_with_data(site)
    site.freeze("--no-fsfreeze")
    os.kill(site.holder, signal.SIGKILL)
    server.write(site)
    assert "the holder was killed" in explained(site.scene.thaw(), POST)
    site.assert_nothing_is_left()
