# SPDX-License-Identifier: Apache-2.0
"""Debian's Redis, which can only have its files on one disk."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

from .databases import DATA, Site
from .servers import Server

DIRECTORY = f"{DATA}/redis"
CLIENT = ("redis-cli", "--raw")
TRANSACTION = "MULTI\nSET a:{id} 1\nSET b:{id} 1\nEXEC\nECHO {id}\n"
APPENDING = ("--appendonly", "yes", "--save", "")
SAVING = ("--appendonly", "no", "--save", "3600 1")
PASSWORD = "/root/redis-password"


class Redis(Server):
    quiescer, called, user = "redis", "Redis", "redis"
    names = ("redis", "valkey")
    left = 0
    writing = (*CLIENT, "SET", "key", "value")
    resumed = "writes go on"
    killed = "is the server running"
    restarted = "it was restarted"
    hangs = "lost the server"
    as_installed = SAVING
    secrets = (PASSWORD,)

    def make(self, site: Site) -> None:
        site.root("install", "-d", "-o", "redis", DIRECTORY)

    def start(self, site: Site, *options: str) -> None:
        """With an append-only file, unless options say something else."""
        where = ("--supervised", "systemd", "--dir", DIRECTORY)
        site.start("/usr/bin/redis-server", *where, *APPENDING, *options)

    def kill(self, site: Site) -> None:
        super().kill(site)
        site.stop()  # returns when it is dead

    def start_replica(self, site: Site) -> None:
        self.start(site, "--replicaof", "192.0.2.1 6379")

    def start_with_data(self, site: Site, *options: str) -> None:
        self.start(site, *options)

    def start_busy(self, site: Site, *options: str) -> None:
        self.start(site, *options)
        site.load(TRANSACTION, *CLIENT)

    def write(self, site: Site) -> None:
        assert site.root(*self.writing) == "OK\n"

    def has_waiting(self, site: Site) -> bool:
        return "\nblocked_clients:1\n" in ask(site, "INFO", "clients")

    def is_written(self, site: Site) -> bool:
        return ask(site, "GET", "key") == "value"

    def connections(self, site: Site) -> list[str]:
        listed = ask(site, "CLIENT", "LIST").splitlines()
        return [line for line in listed if "cmd=client|list" not in line]

    def mistakes(self, site: Site) -> Iterator[str]:
        self.start(site, "--requirepass", "right")
        yield "name it with --password-file"
        file = site.machine.write(PASSWORD, "wrong\n")
        site.app(f"--password-file={PASSWORD}")
        yield "see --user and --password-file"
        file.write_text("right\n")
        file.chmod(0o644)
        yield "expected mode 0600"
        file.chmod(0o600)
        os.chown(file, 65534, 65534)
        yield "found owner uid 65534, expected root"
        os.chown(file, 0, 0)

    @contextmanager
    def position_is_right(self, site: Site, acknowledged: set[int]) -> Iterator[None]:
        position = site.position
        yield
        a, b = keys(site, "a"), keys(site, "b")
        assert a == b, "half a transaction"
        assert acknowledged <= a, "lost transactions"
        assert position["keys"]["db0"].startswith(f"keys={2 * len(a)},")


REDIS = Redis()


def ask(site: Site, *words: str) -> str:
    return site.root(*CLIENT, *words).strip()


def keys(site: Site, prefix: str) -> set[int]:
    return {int(key[2:]) for key in ask(site, "KEYS", f"{prefix}:*").split()}
