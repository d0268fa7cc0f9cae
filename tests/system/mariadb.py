# SPDX-License-Identifier: Apache-2.0
"""Debian's MariaDB, with the binary log on a disk of its own."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from .databases import DATA, LOG, Site
from .servers import Server

DATADIR, BINLOG = f"{DATA}/my", f"{LOG}/binlog"
CLIENT = ("mariadb", "--batch", "--skip-column-names", "--unbuffered")
SQL = (*CLIENT, "test")
# c has no transactions of its own.
TRANSACTION = (
    "BEGIN; INSERT INTO a VALUES ({id}); INSERT INTO b VALUES ({id}); COMMIT; "
    "INSERT INTO c VALUES ({id}); SELECT {id};\n"
)
OPTIONS = (
    *("--no-defaults", f"--datadir={DATADIR}", f"--log-bin={BINLOG}"),
    *("--innodb-log-file-size=8M", "--myisam-recover-options=OFF", "--bind-address=127.0.0.1"),
    # What was committed is not in a file yet: the worst for a snapshot.
    "--innodb-flush-log-at-trx-commit=0",
)
MY_CNF = "/root/.my.cnf"
RIGHT = "[client]\nuser=backup\npassword=right\n"


class Mariadb(Server):
    quiescer, called, user = "mariadb", "MariaDB", "mysql"
    names = ("mariadb", "mysql")
    left = 2  # the holder and mariadb
    clients = ("mariadb", "mysql")
    writing = (*SQL, "--execute=INSERT INTO a VALUES (1)")
    resumed = "commits go on"
    secrets = (MY_CNF,)

    def make(self, site: Site) -> None:
        made = ("--no-defaults", "--user=mysql", "--skip-test-db", f"--datadir={DATADIR}")
        site.root("mariadb-install-db", *made, "--auth-root-authentication-method=socket")
        site.root("install", "-d", "-o", "mysql", "/run/mysqld")

    def start(self, site: Site, *options: str) -> None:
        site.start("/usr/sbin/mariadbd", *OPTIONS, *options)

    def start_replica(self, site: Site) -> None:
        self.start(site)
        sql(site, "CHANGE MASTER TO MASTER_HOST='192.0.2.1'", database="")

    def start_with_data(self, site: Site, *options: str) -> None:
        self.start(site, *options)
        sql(site, "CREATE DATABASE test", database="")
        for table, engine in (("a", "InnoDB"), ("b", "InnoDB"), ("c", "MyISAM")):
            sql(site, f"CREATE TABLE {table} (id BIGINT) ENGINE={engine}")

    def start_busy(self, site: Site, *options: str) -> None:
        self.start_with_data(site, *options)
        site.load(TRANSACTION, *SQL)

    def has_waiting(self, site: Site) -> bool:
        return "Waiting for backup lock" in "".join(sql(site, "SHOW PROCESSLIST"))

    def is_written(self, site: Site) -> bool:
        return ids(site, "a") == {1}

    def connections(self, site: Site) -> list[str]:
        others = "id <> CONNECTION_ID() AND user = 'root'"
        statement = f"SELECT id FROM information_schema.processlist WHERE {others}"
        return sql(site, statement, database="")

    def mistakes(self, site: Site) -> Iterator[str]:
        self.start(site, "--innodb-flush-log-at-trx-commit=1")  # 0 takes SUPER as well
        sql(site, "CREATE USER backup IDENTIFIED BY 'right'", database="")
        site.app("--user=backup")
        yield "put user and password into /root/.my.cnf"
        settings = site.machine.write(MY_CNF, RIGHT)
        site.app()
        yield "the account needs RELOAD"
        settings.unlink()
        sql(site, "GRANT RELOAD, BINLOG MONITOR, REPLICA MONITOR ON *.* TO backup", database="")
        site.machine.write(MY_CNF, RIGHT)

    @contextmanager
    def position_is_right(self, site: Site, acknowledged: set[int]) -> Iterator[None]:
        position = site.position
        # The binary log ends where the position says, and has what the tables have.
        index = site.machine.read(f"{BINLOG}.index").split()
        assert position["binlog_file"] == Path(index[-1]).name
        assert site.machine.path(index[-1]).stat().st_size == position["binlog_position"]
        logged = site.root("mariadb-binlog", *index).count("INSERT INTO a ")
        yield
        a, b, c = (ids(site, table) for table in "abc")
        assert a == b, "half a transaction"
        assert acknowledged <= a, "lost transactions"
        assert acknowledged <= c <= a
        assert logged == len(a)
        assert sql(site, "SELECT @@gtid_binlog_pos") == [position["gtid"]]
        assert sql(site, "CHECK TABLE c") == ["test.c\tcheck\tstatus\tOK"]  # it was closed


MARIADB = Mariadb()


def sql(site: Site, statement: str, database: str = "test") -> list[str]:
    return site.root(*CLIENT, f"--execute={statement}", database).splitlines()


def ids(site: Site, table: str) -> set[int]:
    return {int(id) for id in sql(site, f"SELECT id FROM {table}")}
