# SPDX-License-Identifier: Apache-2.0
"""A laboratory for each test, in a mount namespace of the test run's own."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from . import kernel
from .lab import VMSNAP, Lab, missing_tools


@pytest.fixture(scope="session", autouse=True)
def switch(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Enter a namespace, and return what stands in it for the kernel's switch, which all processes
    of a test run would share: a guard does not touch one that it finds on."""
    if os.geteuid() != 0:
        pytest.fail("tests/fs freezes filesystems: run it as root", pytrace=False)
    missing = [*missing_tools(), *([] if VMSNAP.exists() else [str(VMSNAP)])]
    if missing:
        pytest.fail(f"not installed: {', '.join(missing)}", pytrace=False)
    kernel.enter_private_namespace()
    kernel.become_subreaper()
    switch = tmp_path_factory.mktemp("sys") / kernel.RCU_EXPEDITED.name
    switch.write_text("0\n")
    kernel.bind(switch, kernel.RCU_EXPEDITED)
    return switch


@pytest.fixture
def lab() -> Iterator[Lab]:
    made = Lab()
    try:
        yield made
    finally:
        made.close()
