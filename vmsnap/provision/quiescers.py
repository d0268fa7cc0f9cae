# SPDX-License-Identifier: Apache-2.0
"""The quiescers that come with vmsnap, as far as `vmsnap init` has to know them. They are programs
of their own, in `quiesce/`; what they do and take is in docs/quiesce.md."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

DIRECTORY = Path("/usr/lib/vmsnap/quiesce")  # where the packages and `make install` put them


@dataclass(frozen=True)
class Quiescer:
    """A program that is pre- and post-script."""

    name: str
    timeout: int  # seconds for each of the two
    login: str  # as whom it comes to the server, and what to do if that is not right

    @property
    def path(self) -> Path:
        return DIRECTORY / self.name


POSTGRESQL = Quiescer(
    "postgresql",
    120,  # a checkpoint
    "psql runs as system user postgres and logs in as role postgres over the local socket. For "
    "another role add --user=ROLE and --system-user=NAME to both lists of parameters and put its "
    "password into ~/.pgpass of NAME.",
)
MARIADB = Quiescer(
    "mariadb",
    60,  # statements that are running
    "The client runs as root and logs in as root over the local socket. For another account put "
    "user and password into [client] of /root/.my.cnf, mode 0600.",
)
REDIS = Quiescer(
    "redis",
    120,  # a save of all data, if there is no append-only file
    "It logs in to 127.0.0.1:6379 without a password. Put the password, if there is one, into a "
    "file, mode 0600, and add --password-file=FILE to both lists of parameters.",
)
QUIESCERS = {
    "postgresql": POSTGRESQL,
    "mariadb": MARIADB,
    "mysql": MARIADB,
    "redis": REDIS,
    "valkey": REDIS,
}
