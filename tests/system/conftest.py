# SPDX-License-Identifier: Apache-2.0
"""One booted container for all tests, brought back to its first state before each of them."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from . import container as containers
from .agents import Platform, container_of_agents, platform_in
from .container import Container


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
