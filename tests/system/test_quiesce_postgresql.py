# SPDX-License-Identifier: Apache-2.0
"""The quiescer for PostgreSQL against Debian's, with the WAL and a tablespace on another disk."""

from __future__ import annotations

import os
import re
import signal
from collections.abc import Iterator

import pytest

from tests.fs.processes import wait_for_end

from .apps import until
from .databases import (
    DATA,
    LOG,
    POSITION,
    QUIESCE,
    SERVICE,
    Machine,
    Site,
    assert_init_is_enough,
    booted,
    explained,
    site_of,
)

BIN = "/usr/lib/postgresql/15/bin"
CLUSTER, WAL, ARCHIVE = f"{DATA}/pg", f"{LOG}/wal", f"{LOG}/archive"
TABLESPACE = f"{LOG}/far"
AS_POSTGRES = ("runuser", "-u", "postgres", "--")
SQL = (*AS_POSTGRES, "psql", "-qAtX", "-v", "ON_ERROR_STOP=1")
TRANSACTION = (
    "BEGIN; INSERT INTO a VALUES ({id}); INSERT INTO b VALUES ({id}); COMMIT;\nSELECT {id};\n"
)
PRE, POST = "Pre-ScriptExecutionFailed", "Post-ScriptExecutionFailed"


@pytest.fixture(scope="module")
def machine() -> Iterator[Machine]:
    with booted() as made:
        yield made


@pytest.fixture
def site(machine: Machine) -> Iterator[Site]:
    """A cluster that does not run yet."""
    with site_of(machine, "postgresql", "postgres") as site:
        auth = ("--auth-local=peer", "--auth-host=scram-sha-256")
        initdb = (f"{BIN}/initdb", "--no-sync", *auth, f"--waldir={WAL}", CLUSTER)
        site.root(*AS_POSTGRES, *initdb)
        site.root("install", "-d", "-o", "postgres", "/run/postgresql", ARCHIVE)
        site.app()
        with machine.guarded():
            yield site


def start(site: Site, *options: str) -> None:
    site.start(f"{BIN}/postgres", "-D", CLUSTER, *options)


def sql(site: Site, statement: str) -> list[str]:
    return site.root(*SQL, "-c", statement).splitlines()


def busy(site: Site, *options: str) -> None:
    """One of the two tables is not on the disk of the other."""
    start(site, *options)
    site.root("install", "-d", "-o", "postgres", TABLESPACE)
    sql(site, f"CREATE TABLESPACE far LOCATION '{TABLESPACE}'")
    sql(site, "CREATE TABLE a (id bigint); CREATE TABLE b (id bigint) TABLESPACE far")
    site.load(TRANSACTION, *SQL)


def assert_complete(site: Site, acknowledged: set[int]) -> None:
    a, b = ({int(id) for id in sql(site, f"SELECT id FROM {table}")} for table in "ab")
    assert a == b, "half a transaction"
    assert acknowledged <= a, "lost transactions"


# --- the snapshot --------------------------------------------------------------------------------


def test_a_snapshot_of_two_disks_under_load_has_every_transaction(site: Site) -> None:
    busy(site)
    held = site.freeze()
    acknowledged = site.acknowledged
    copies = site.snapshot()
    assert site.scene.thaw().verdict == ("success", "application", 0)
    site.restore(copies)
    position = site.position
    assert position["session"] == held["session"]
    control = site.root(f"{BIN}/pg_controldata", CLUSTER)
    assert re.search(rf"REDO location: +{position['start_lsn']}\n", control)
    assert re.search(rf"checkpoint location: +{position['checkpoint_lsn']}\n", control)
    start(site)
    assert_complete(site, acknowledged)


def test_disks_copied_at_different_moments_recover_with_the_label_and_the_archive(
    site: Site,
) -> None:
    """As by a platform that stops one disk after the other, and freezes none."""
    archive = f"archive_command=cp %p {ARCHIVE}/%f"
    busy(site, "-c", "archive_mode=on", "-c", archive)
    site.freeze("--no-fsfreeze")
    acknowledged = site.acknowledged
    # Files, as nobody syncs the disks. The WAL first is the worst: it lacks what is in the data.
    copy(site, WAL, f"{LOG}/wal-then")
    sql(site, "CHECKPOINT")
    copy(site, CLUSTER, f"{DATA}/then")
    assert site.scene.thaw().verdict == ("success", "application", 0)
    sql(site, "SELECT pg_switch_wal()")
    site.root(*AS_POSTGRES, f"{BIN}/pg_ctl", "stop", "-D", CLUSTER)  # archives the rest
    for there, then in ((CLUSTER, f"{DATA}/then"), (WAL, f"{LOG}/wal-then")):
        site.root("rm", "-r", there)
        site.root("mv", then, there)
    site.root("cp", f"{POSITION}/backup_label", CLUSTER)
    site.root("touch", f"{CLUSTER}/recovery.signal")
    site.root("chown", "postgres", f"{CLUSTER}/backup_label", f"{CLUSTER}/recovery.signal")
    start(site, "-c", f"restore_command=cp {ARCHIVE}/%f %p")
    until(lambda: sql(site, "SELECT pg_is_in_recovery()") == ["f"])
    assert_complete(site, acknowledged)


def copy(site: Site, directory: str, to: str) -> None:
    site.machine.run("cp", "-a", directory, to)  # fails, as files go away meanwhile


def test_init_is_enough(site: Site) -> None:
    start(site)
    assert_init_is_enough(site, "postgresql")


# --- what can go wrong ----------------------------------------------------------------------------


def test_a_server_killed_in_the_hold_is_told(site: Site) -> None:
    busy(site)
    site.freeze()
    site.kill()
    thaw = site.scene.thaw()
    assert thaw.verdict == ("success", "filesystem", 0)
    assert "not held until now" in explained(thaw, POST)
    site.assert_nothing_is_left()


def test_a_server_restarted_in_the_hold_is_told(site: Site) -> None:
    start(site)
    site.freeze("--no-fsfreeze")
    site.root(*AS_POSTGRES, f"{BIN}/pg_ctl", "stop", "-D", CLUSTER)
    start(site)
    assert "not held until now" in explained(site.scene.thaw(), POST)
    site.assert_nothing_is_left()


def test_a_server_that_does_not_run_is_told_and_post_does_no_harm(site: Site) -> None:
    said = explained(site.run(), PRE)
    assert "is the server running" in said
    assert "PostgreSQL was not held: the pre-script did not succeed" in site.said


def test_a_missing_client_is_told(site: Site) -> None:
    start(site)
    site.root("mv", "/usr/bin/psql", "/usr/bin/psql.away")
    try:
        assert "found no program psql" in explained(site.run(), PRE)
    finally:
        site.root("mv", "/usr/bin/psql.away", "/usr/bin/psql")


def test_wrong_credentials_are_told(site: Site) -> None:
    start(site)
    sql(site, "CREATE ROLE backup LOGIN SUPERUSER PASSWORD 'right'")
    site.app("--user=backup")
    assert "--system-user" in explained(site.run(), PRE)
    site.app("--user=nobody", "--system-user=nobody")
    assert "name an existing role" in explained(site.run(), PRE)
    site.app("--user=backup", "--host=127.0.0.1", "--system-user=root")
    assert "put it into ~/.pgpass" in explained(site.run(), PRE)
    site.machine.write("/root/.pgpass", "127.0.0.1:5432:*:backup:wrong\n")
    assert "password authentication failed" in explained(site.run(), PRE)
    site.machine.write("/root/.pgpass", "127.0.0.1:5432:*:backup:right\n")
    assert site.run().verdict == ("success", "application", 0)
    site.machine.path("/root/.pgpass").unlink()


def test_a_role_needs_no_more_than_the_manual_says(site: Site) -> None:
    start(site)
    sql(site, "CREATE ROLE nobody LOGIN")
    site.app("--user=nobody", "--system-user=nobody")
    assert "granted what docs/quiesce.md says" in explained(site.run(), PRE)
    sql(site, "GRANT pg_read_all_settings TO nobody")
    sql(site, "GRANT EXECUTE ON FUNCTION pg_backup_start, pg_backup_stop TO nobody")
    assert site.run().verdict == ("success", "application", 0)


def test_a_position_is_written_only_where_nobody_else_can_write(site: Site) -> None:
    start(site)
    site.root("install", "-d", "-o", "postgres", POSITION)
    assert "expected a directory of root's own" in explained(site.run(), PRE)
    site.root("rmdir", POSITION)
    site.root("ln", "-s", "/etc", POSITION)
    assert "Not a directory" in explained(site.run(), PRE)


def test_a_failed_pre_script_leaves_no_position_of_an_older_snapshot(site: Site) -> None:
    start(site)
    assert site.run().verdict == ("success", "application", 0)
    assert site.position
    site.stop()
    assert "is the server running" in explained(site.run(), PRE)
    assert list(site.machine.path(POSITION).iterdir()) == []


def test_pre_ends_its_output_and_post_waits_for_the_holder(site: Site) -> None:
    start(site)
    site.root("install", "-d", "-m", "700", "/run/vmsnap-test/app")
    env = {"VMSNAP_SCRIPT_DIR": "/run/vmsnap-test/app", "VMSNAP_TIMEOUT": "30"}
    for phase, left in (("pre", 2), ("post", 0)):
        site.root(f"{QUIESCE}/postgresql", env={**env, "VMSNAP_PHASE": phase})
        assert len(site.left) == left  # the holder and psql


def test_a_server_that_hangs_in_the_hold_is_told(site: Site) -> None:
    start(site)
    site.app(timeout=6)
    site.freeze("--no-fsfreeze")
    site.machine.systemctl("kill", "--signal=STOP", SERVICE, check=True)
    thaw = site.scene.thaw()
    site.machine.systemctl("kill", "--signal=CONT", SERVICE, check=True)
    assert "the server does not answer" in explained(thaw, POST)
    site.assert_nothing_is_left()


def test_a_standby_is_refused(site: Site) -> None:
    site.root("touch", f"{CLUSTER}/standby.signal")
    site.root("chown", "postgres", f"{CLUSTER}/standby.signal")
    start(site)
    assert "found a standby" in explained(site.run(), PRE)
    site.assert_nothing_is_left()


def backups(site: Site) -> list[str]:
    """Sessions of the server that a quiescer has opened."""
    return sql(site, "SELECT pid FROM pg_stat_activity WHERE application_name = 'vmsnap'")


def test_the_holder_gives_up_at_its_deadline_and_post_says_so(site: Site) -> None:
    start(site)
    site.app("--hold=1")
    site.freeze("--no-fsfreeze")
    assert wait_for_end(site.holder)
    assert "at its deadline" in explained(site.scene.thaw(), POST)
    site.assert_nothing_is_left()


def test_the_holder_gives_up_when_all_of_vmsnap_is_killed(site: Site) -> None:
    start(site)
    site.app("--hold=3")
    site.freeze("--no-fsfreeze")
    holder = site.holder
    site.kill_vmsnap()
    assert wait_for_end(holder)
    site.assert_nothing_is_left()
    assert not backups(site)


def test_a_killed_engine_leaves_nothing_held(site: Site) -> None:
    start(site)
    site.freeze()
    holder = site.holder
    site.machine.kill(site.scene.engine)
    assert wait_for_end(holder, 10.0)
    site.scene.wait_for_failure()
    site.assert_nothing_is_left()
    assert "PostgreSQL has ended the backup" in site.said


def test_a_killed_holder_is_told(site: Site) -> None:
    start(site)
    site.freeze("--no-fsfreeze")
    os.kill(site.holder, signal.SIGKILL)
    assert "the holder was killed" in explained(site.scene.thaw(), POST)
    site.assert_nothing_is_left()
