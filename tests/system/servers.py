# SPDX-License-Identifier: Apache-2.0
"""What differs between database servers and their quiescers: postgresql.py, mariadb.py and redis.py
say it of each.

test_quiescers.py and test_quiescers_failures.py say what all of them must keep. What can be done
with any server is in databases.py.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager

from .databases import Machine, Site, site_of


class Server(ABC):
    """What differs between servers and their quiescers. The words are those of messages."""

    quiescer: str
    called: str  # in messages
    user: str
    names: tuple[str, ...]  # for `vmsnap init --quiesce`
    left: int  # processes that a pre-script leaves
    clients: tuple[str, ...] = ()  # programs that the quiescer needs, any of them
    resumed: str  # what post says
    killed: str = "not held until now"
    restarted: str = "not held until now"
    hangs: str = "the server does not answer"
    replica: str = "found a replica"
    writing: tuple[str, ...]  # the command that commits something
    as_installed: tuple[str, ...] = ()  # options, as Debian sets it up
    secrets: tuple[str, ...] = ()  # files with a password

    def __str__(self) -> str:
        return self.quiescer

    @abstractmethod
    def make(self, site: Site) -> None:
        """An empty server that does not run yet."""

    @abstractmethod
    def start(self, site: Site, *options: str) -> None: ...

    def stop(self, site: Site) -> None:
        """With its last writes, and whatever is connected."""
        site.stop()

    def kill(self, site: Site) -> None:
        site.kill()

    @abstractmethod
    def start_replica(self, site: Site) -> None: ...

    @abstractmethod
    def start_with_data(self, site: Site, *options: str) -> None:
        """Start it and have something to `write` into."""

    @abstractmethod
    def start_busy(self, site: Site, *options: str) -> None:
        """Start it and have it commit one transaction after another."""

    def write(self, site: Site) -> None:
        """Commit something; return when that is acknowledged."""
        site.root(*self.writing)

    def has_waiting(self, site: Site) -> bool:
        """Whether a write waits now, for a server whose quiescer has them wait until post."""
        raise NotImplementedError

    @abstractmethod
    def is_written(self, site: Site) -> bool:
        """Whether who reads finds it."""

    @abstractmethod
    def connections(self, site: Site) -> list[str]:
        """Those that a quiescer has opened, or any but ours."""

    @abstractmethod
    def mistakes(self, site: Site) -> Iterator[str]:
        """Start it, and make one mistake with the credentials after another. Yield what each is
        told; have the right ones in the end."""

    @abstractmethod
    def position_is_right(self, site: Site, acknowledged: set[int]) -> AbstractContextManager[None]:
        """Compare the position and what was acknowledged with the restored disks, on which the
        server is started within. Raises AssertionError."""

    @contextmanager
    def site(self, machine: Machine) -> Iterator[Site]:
        with site_of(machine, self.quiescer, self.user) as site:
            self.make(site)
            site.app()
            with machine.guarded():
                yield site
        for path in self.secrets:
            machine.path(path).unlink(missing_ok=True)
