# SPDX-License-Identifier: Apache-2.0
"""The booted containers that several files share: one for most of them, one with the agents of
platforms, one with database servers. Before each test they are as they were at first."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from . import container as containers
from .agents import Platform, container_of_agents, platform_in
from .container import Container
from .databases import Machine, Site, booted
from .mariadb import MARIADB
from .postgresql import POSTGRESQL
from .redis import REDIS
from .servers import Server


@pytest.fixture(scope="package")
def machine() -> Iterator[Container]:
    if os.geteuid() != 0:
        pytest.fail("tests/system boots a container: run it as root", pytrace=False)
    if missing := containers.missing_tools():
        pytest.fail(f"not installed: {', '.join(missing)}", pytrace=False)
    made = Container()
    try:
        yield made
    finally:
        made.close()


@pytest.fixture
def container(machine: Container) -> Iterator[Container]:
    machine.reset()
    with machine.guarded():
        yield machine


@pytest.fixture(scope="package")
def agents_machine() -> Iterator[Container]:
    with container_of_agents() as made:
        yield made


@pytest.fixture
def platform(agents_machine: Container) -> Iterator[Platform]:
    with platform_in(agents_machine) as made:
        yield made


@pytest.fixture(scope="package")
def databases_machine() -> Iterator[Machine]:
    with booted() as made:
        yield made


@pytest.fixture(params=(POSTGRESQL, MARIADB, REDIS), ids=str)
def server(request: pytest.FixtureRequest) -> Server:
    found: Server = request.param
    return found


@pytest.fixture
def site(server: Server, databases_machine: Machine) -> Iterator[Site]:
    """An empty database server that does not run yet."""
    with server.site(databases_machine) as made:
        yield made
