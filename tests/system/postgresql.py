# SPDX-License-Identifier: Apache-2.0
"""Debian's PostgreSQL, with the WAL and a tablespace on another disk than the rest."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager

from .databases import DATA, LOG, Site
from .servers import Server

BIN = "/usr/lib/postgresql/15/bin"
CLUSTER, WAL, ARCHIVE = f"{DATA}/pg", f"{LOG}/wal", f"{LOG}/archive"
TABLESPACE = f"{LOG}/far"
AS_POSTGRES = ("runuser", "-u", "postgres", "--")
SQL = (*AS_POSTGRES, "psql", "-qAtX", "-v", "ON_ERROR_STOP=1")
TRANSACTION = (
    "BEGIN; INSERT INTO a VALUES ({id}); INSERT INTO b VALUES ({id}); COMMIT;\nSELECT {id};\n"
)
PGPASS = "/root/.pgpass"


class Postgresql(Server):
    quiescer, called, user = "postgresql", "PostgreSQL", "postgres"
    names = ("postgresql",)
    left = 2  # the holder and psql
    clients = ("psql",)
    writing = (*SQL, "-c", "INSERT INTO a VALUES (1)")
    resumed = "PostgreSQL has ended the backup"
    replica = "found a standby"
    secrets = (PGPASS,)

    def make(self, site: Site) -> None:
        auth = ("--auth-local=peer", "--auth-host=scram-sha-256")
        initdb = (f"{BIN}/initdb", "--no-sync", *auth, f"--waldir={WAL}", CLUSTER)
        site.root(*AS_POSTGRES, *initdb)
        site.root("install", "-d", "-o", "postgres", "/run/postgresql", ARCHIVE)

    def start(self, site: Site, *options: str) -> None:
        site.start(f"{BIN}/postgres", "-D", CLUSTER, *options)

    def stop(self, site: Site) -> None:
        site.root(*AS_POSTGRES, f"{BIN}/pg_ctl", "stop", "-D", CLUSTER)

    def start_replica(self, site: Site) -> None:
        site.root("touch", f"{CLUSTER}/standby.signal")
        site.root("chown", "postgres", f"{CLUSTER}/standby.signal")
        self.start(site)

    def start_with_data(self, site: Site, *options: str) -> None:
        """One of the two tables is not on the disk of the other."""
        self.start(site, *options)
        site.root("install", "-d", "-o", "postgres", TABLESPACE)
        sql(site, f"CREATE TABLESPACE far LOCATION '{TABLESPACE}'")
        sql(site, "CREATE TABLE a (id bigint); CREATE TABLE b (id bigint) TABLESPACE far")

    def start_busy(self, site: Site, *options: str) -> None:
        self.start_with_data(site, *options)
        site.load(TRANSACTION, *SQL)

    def is_written(self, site: Site) -> bool:
        return sql(site, "SELECT id FROM a") == ["1"]

    def connections(self, site: Site) -> list[str]:
        return sql(site, "SELECT pid FROM pg_stat_activity WHERE application_name = 'vmsnap'")

    def mistakes(self, site: Site) -> Iterator[str]:
        self.start(site)
        sql(site, "CREATE ROLE backup LOGIN SUPERUSER PASSWORD 'right'")
        site.app("--user=backup")
        yield "--system-user"
        site.app("--user=nobody", "--system-user=nobody")
        yield "name an existing role"
        site.app("--user=backup", "--host=127.0.0.1", "--system-user=root")
        yield "put it into ~/.pgpass"
        site.machine.write(PGPASS, "127.0.0.1:5432:*:backup:wrong\n")
        yield "password authentication failed"
        site.machine.write(PGPASS, "127.0.0.1:5432:*:backup:right\n")

    @contextmanager
    def position_is_right(self, site: Site, acknowledged: set[int]) -> Iterator[None]:
        position = site.position
        control = site.root(f"{BIN}/pg_controldata", CLUSTER)
        assert re.search(rf"REDO location: +{position['start_lsn']}\n", control)
        assert re.search(rf"checkpoint location: +{position['checkpoint_lsn']}\n", control)
        yield
        assert_complete(site, acknowledged)


POSTGRESQL = Postgresql()


def sql(site: Site, statement: str) -> list[str]:
    return site.root(*SQL, "-c", statement).splitlines()


def assert_complete(site: Site, acknowledged: set[int]) -> None:
    a, b = ({int(id) for id in sql(site, f"SELECT id FROM {table}")} for table in "ab")
    assert a == b, "half a transaction"
    assert acknowledged <= a, "lost transactions"
