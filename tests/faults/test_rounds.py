# SPDX-License-Identifier: Apache-2.0
"""Some rounds of the injector, other ones each time: what does not hold is told with its seed."""

from __future__ import annotations

import os
import time

import pytest

from tests.fs.lab import VMSNAP, missing_tools

from .__main__ import run

ROUNDS, JOBS = 150, 3


def test_whatever_dies_dies_harmless() -> None:
    if os.geteuid() != 0:
        pytest.fail("tests/faults freezes filesystems: run it as root", pytrace=False)
    missing = [*missing_tools(), *([] if VMSNAP.exists() else [str(VMSNAP)])]
    if missing:
        pytest.fail(f"not installed: {', '.join(missing)}", pytrace=False)
    figures = run(str(time.time_ns() % 10**9), ROUNDS, None, JOBS)
    print(figures)
    assert not figures.bad, "\n".join(map(str, figures.bad))
    assert not figures.broken, figures
    assert figures.rounds == ROUNDS
