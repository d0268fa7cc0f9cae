# SPDX-License-Identifier: Apache-2.0
"""What only one server and its quiescer have."""

from __future__ import annotations

import subprocess

import pytest

from . import mariadb
from .apps import until
from .databases import DATA, LOG, POSITION, POST, Site, explained
from .mariadb import MARIADB
from .postgresql import ARCHIVE, CLUSTER, POSTGRESQL, WAL, assert_complete, sql
from .redis import DIRECTORY, REDIS, SAVING, ask
from .servers import Server


def only(server: Server) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("server", [server], ids=str)


# --- PostgreSQL ----------------------------------------------------------------------------------


@only(POSTGRESQL)
def test_writes_go_on_in_the_hold(site: Site) -> None:
    POSTGRESQL.start_with_data(site)
    site.freeze("--no-fsfreeze")
    POSTGRESQL.write(site)
    assert POSTGRESQL.is_written(site)
    assert site.scene.thaw().verdict == ("success", "application", 0)


@only(POSTGRESQL)
def test_disks_copied_at_different_moments_recover_with_the_label_and_the_archive(
    site: Site,
) -> None:
    """As by a platform that stops one disk after the other, and freezes none."""
    archive = f"archive_command=cp %p {ARCHIVE}/%f"
    POSTGRESQL.start_busy(site, "-c", "archive_mode=on", "-c", archive)
    site.freeze("--no-fsfreeze")
    acknowledged = site.acknowledged
    # Files, as nobody syncs the disks. The WAL first is the worst: it lacks what is in the data.
    copy(site, WAL, f"{LOG}/wal-then")
    sql(site, "CHECKPOINT")
    copy(site, CLUSTER, f"{DATA}/then")
    assert site.scene.thaw().verdict == ("success", "application", 0)
    sql(site, "SELECT pg_switch_wal()")
    POSTGRESQL.stop(site)  # archives the rest
    for there, then in ((CLUSTER, f"{DATA}/then"), (WAL, f"{LOG}/wal-then")):
        site.root("rm", "-r", there)
        site.root("mv", then, there)
    site.root("cp", f"{POSITION}/backup_label", CLUSTER)
    site.root("touch", f"{CLUSTER}/recovery.signal")
    site.root("chown", "postgres", f"{CLUSTER}/backup_label", f"{CLUSTER}/recovery.signal")
    POSTGRESQL.start(site, "-c", f"restore_command=cp {ARCHIVE}/%f %p")
    until(lambda: sql(site, "SELECT pg_is_in_recovery()") == ["f"])
    assert_complete(site, acknowledged)


def copy(site: Site, directory: str, to: str) -> None:
    site.machine.run("cp", "-a", directory, to)  # fails, as files go away meanwhile


@only(POSTGRESQL)
def test_a_role_needs_no_more_than_the_manual_says(site: Site) -> None:
    POSTGRESQL.start(site)
    sql(site, "CREATE ROLE nobody LOGIN")
    site.app("--user=nobody", "--system-user=nobody")
    site.assert_refused("granted what docs/quiesce.md says")
    sql(site, "GRANT pg_read_all_settings TO nobody")
    sql(site, "GRANT EXECUTE ON FUNCTION pg_backup_start, pg_backup_stop TO nobody")
    assert site.run().verdict == ("success", "application", 0)


# --- MariaDB -------------------------------------------------------------------------------------


@only(MARIADB)
def test_who_waits_for_a_lock_gives_up_and_stops_nobody(site: Site) -> None:
    MARIADB.start_with_data(site)
    other = site.machine.popen(*mariadb.SQL, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    other.stdin.write("LOCK TABLES c WRITE; SELECT 'locked';\n")
    other.stdin.flush()
    assert other.stdout.readline() == "locked\n"
    site.app("--lock-wait=1", "--read-lock")
    site.assert_refused("see SHOW PROCESSLIST")
    MARIADB.write(site)
    site.assert_nothing_is_left()


# --- Redis ---------------------------------------------------------------------------------------


@only(REDIS)
def test_a_server_that_keeps_nothing_is_refused(site: Site) -> None:
    REDIS.start(site, "--appendonly", "no", "--save", "")
    site.assert_refused("found persistence disabled")


@only(REDIS)
def test_a_save_that_fails_is_told_and_writes_go_on(site: Site) -> None:
    REDIS.start(site, *SAVING, "--stop-writes-on-bgsave-error", "no")
    site.root("chown", "root", DIRECTORY)
    site.assert_refused("BGSAVE failed")
    REDIS.write(site)


@only(REDIS)
def test_who_ends_the_pause_in_the_hold_is_found_out(site: Site) -> None:
    REDIS.start(site)
    site.freeze("--no-fsfreeze")
    ask(site, "CLIENT", "UNPAUSE")
    REDIS.write(site)
    assert "another client has ended the pause" in explained(site.scene.thaw(), POST)


@only(REDIS)
def test_the_first_rewrite_of_an_append_only_file_is_waited_for(site: Site) -> None:
    """Before its end the file has not all of the data."""
    REDIS.start(site, *SAVING, "--rdb-key-save-delay", "200", "--enable-debug-command", "yes")
    ask(site, "DEBUG", "POPULATE", "5000")
    ask(site, "CONFIG", "SET", "appendonly", "yes")
    assert "aof_rewrite_in_progress:1" in ask(site, "INFO", "persistence")
    site.freeze()
    copies = site.snapshot()
    assert site.scene.thaw().verdict == ("success", "application", 0)
    site.restore(copies)
    REDIS.start(site)
    assert ask(site, "DBSIZE") == "5000"
