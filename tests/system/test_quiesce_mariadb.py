# SPDX-License-Identifier: Apache-2.0
"""The quiescer for MariaDB against Debian's, with the binary log on a disk of its own."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.fs.processes import wait_for_end

from .apps import until
from .databases import (
    DATA,
    LOG,
    Machine,
    Site,
    assert_init_is_enough,
    booted,
    explained,
    site_of,
)

DATADIR, BINLOG = f"{DATA}/my", f"{LOG}/binlog"
CLIENT = ("mariadb", "--batch", "--skip-column-names", "--unbuffered")
SQL = (*CLIENT, "test")
# c has no transactions of its own.
TRANSACTION = (
    "BEGIN; INSERT INTO a VALUES ({id}); INSERT INTO b VALUES ({id}); COMMIT; "
    "INSERT INTO c VALUES ({id}); SELECT {id};\n"
)
PRE, POST = "Pre-ScriptExecutionFailed", "Post-ScriptExecutionFailed"
OPTIONS = (
    *("--no-defaults", f"--datadir={DATADIR}", f"--log-bin={BINLOG}"),
    *("--innodb-log-file-size=8M", "--myisam-recover-options=OFF", "--bind-address=127.0.0.1"),
    # What was committed is not in a file yet: the worst for a snapshot.
    "--innodb-flush-log-at-trx-commit=0",
)


@pytest.fixture(scope="module")
def machine() -> Iterator[Machine]:
    with booted() as made:
        yield made


@pytest.fixture
def site(machine: Machine) -> Iterator[Site]:
    """An empty server that does not run yet."""
    with site_of(machine, "mariadb", "mysql") as site:
        made = ("--no-defaults", "--user=mysql", "--skip-test-db", f"--datadir={DATADIR}")
        site.root("mariadb-install-db", *made, "--auth-root-authentication-method=socket")
        site.root("install", "-d", "-o", "mysql", "/run/mysqld")
        site.app()
        with machine.guarded():
            yield site


def start(site: Site, *options: str) -> None:
    site.start("/usr/sbin/mariadbd", *OPTIONS, *options)


def sql(site: Site, statement: str, database: str = "test") -> list[str]:
    return site.root(*CLIENT, f"--execute={statement}", database).splitlines()


def tables(site: Site) -> None:
    start(site)
    sql(site, "CREATE DATABASE test", database="")
    for table, engine in (("a", "InnoDB"), ("b", "InnoDB"), ("c", "MyISAM")):
        sql(site, f"CREATE TABLE {table} (id BIGINT) ENGINE={engine}")


def busy(site: Site) -> None:
    tables(site)
    site.load(TRANSACTION, *SQL)


def ids(site: Site, table: str) -> set[int]:
    return {int(id) for id in sql(site, f"SELECT id FROM {table}")}


# --- the snapshot --------------------------------------------------------------------------------


@pytest.mark.parametrize("how", [(), ("--read-lock",)], ids=["stages", "read lock"])
def test_a_snapshot_of_two_disks_under_load_has_every_transaction(
    site: Site, how: tuple[str, ...]
) -> None:
    busy(site)
    site.app(*how)
    held = site.freeze()
    acknowledged = site.acknowledged
    copies = site.snapshot()
    assert site.scene.thaw().verdict == ("success", "application", 0)
    site.restore(copies)
    position = site.position
    assert position["session"] == held["session"]
    # The binary log ends where the position says, and has what the tables have.
    index = site.machine.read(f"{BINLOG}.index").split()
    assert position["binlog_file"] == Path(index[-1]).name
    assert site.machine.path(index[-1]).stat().st_size == position["binlog_position"]
    logged = site.root("mariadb-binlog", *index).count("INSERT INTO a ")
    start(site)
    a, b, c = (ids(site, table) for table in "abc")
    assert a == b, "half a transaction"
    assert acknowledged <= a, "lost transactions"
    assert acknowledged <= c <= a
    assert logged == len(a)
    assert sql(site, "SELECT @@gtid_binlog_pos") == [position["gtid"]]
    assert sql(site, "CHECK TABLE c") == ["test.c\tcheck\tstatus\tOK"]  # it was closed


def test_nothing_is_committed_until_the_thaw(site: Site) -> None:
    tables(site)
    site.freeze("--no-fsfreeze")
    insert = site.machine.popen(*SQL, "--execute=INSERT INTO a VALUES (1)")
    until(lambda: "Waiting for backup lock" in "".join(sql(site, "SHOW PROCESSLIST")))
    assert ids(site, "a") == set()  # who reads is not stopped
    assert insert.poll() is None
    assert site.scene.thaw().verdict == ("success", "application", 0)
    assert insert.wait(10.0) == 0
    assert ids(site, "a") == {1}


@pytest.mark.parametrize("server", ["mariadb", "mysql"])
def test_init_is_enough(site: Site, server: str) -> None:
    start(site)
    assert_init_is_enough(site, server)


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
    tables(site)
    site.freeze("--no-fsfreeze")
    site.stop()
    start(site)
    assert "not held until now" in explained(site.scene.thaw(), POST)
    site.assert_nothing_is_left()


def test_a_server_that_does_not_run_is_told_and_post_does_no_harm(site: Site) -> None:
    assert "is the server running" in explained(site.run(), PRE)
    assert "MariaDB was not held: the pre-script did not succeed" in site.said


def test_wrong_credentials_are_told(site: Site) -> None:
    start(site, "--innodb-flush-log-at-trx-commit=1")  # 0 takes SUPER as well
    sql(site, "CREATE USER backup IDENTIFIED BY 'right'", database="")
    site.app("--user=backup")
    assert "put user and password into /root/.my.cnf" in explained(site.run(), PRE)
    settings = site.machine.write("/root/.my.cnf", "[client]\nuser=backup\npassword=right\n")
    site.app()
    assert "the account needs RELOAD" in explained(site.run(), PRE)
    settings.unlink()
    sql(site, "GRANT RELOAD, BINLOG MONITOR, REPLICA MONITOR ON *.* TO backup", database="")
    settings.write_text("[client]\nuser=backup\npassword=right\n")
    outcome = site.run()
    settings.unlink()
    assert outcome.verdict == ("success", "application", 0)


def test_a_replica_is_refused(site: Site) -> None:
    start(site)
    sql(site, "CHANGE MASTER TO MASTER_HOST='192.0.2.1'", database="")
    assert "found a replica" in explained(site.run(), PRE)
    site.assert_nothing_is_left()


def test_who_waits_for_a_lock_gives_up_and_stops_nobody(site: Site) -> None:
    tables(site)
    other = site.machine.popen(*SQL, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    other.stdin.write("LOCK TABLES c WRITE; SELECT 'locked';\n")
    other.stdin.flush()
    assert other.stdout.readline() == "locked\n"
    site.app("--lock-wait=1", "--read-lock")
    assert "see SHOW PROCESSLIST" in explained(site.run(), PRE)
    sql(site, "INSERT INTO a VALUES (1)")
    site.assert_nothing_is_left()


def test_the_holder_gives_up_at_its_deadline_and_post_says_so(site: Site) -> None:
    tables(site)
    site.app("--hold=1")
    site.freeze("--no-fsfreeze")
    sql(site, "INSERT INTO a VALUES (1)")  # waits for that
    assert "at its deadline" in explained(site.scene.thaw(), POST)
    site.assert_nothing_is_left()


def test_the_holder_gives_up_when_all_of_vmsnap_is_killed(site: Site) -> None:
    tables(site)
    site.app("--hold=3")
    site.freeze("--no-fsfreeze")
    site.kill_vmsnap()
    sql(site, "INSERT INTO a VALUES (1)")
    site.assert_nothing_is_left()


def test_a_killed_engine_leaves_nothing_held(site: Site) -> None:
    tables(site)
    site.freeze()
    holder = site.holder
    site.machine.kill(site.scene.engine)
    assert wait_for_end(holder, 10.0)
    sql(site, "INSERT INTO a VALUES (1)")
    site.scene.wait_for_failure()
    site.assert_nothing_is_left()
    assert "commits go on" in site.said


def test_a_killed_holder_leaves_nothing_held_and_is_told(site: Site) -> None:
    tables(site)
    site.freeze("--no-fsfreeze")
    os.kill(site.holder, signal.SIGKILL)
    sql(site, "INSERT INTO a VALUES (1)")
    assert "the holder was killed" in explained(site.scene.thaw(), POST)
    site.assert_nothing_is_left()
