# SPDX-License-Identifier: Apache-2.0
"""The main job on real input, as `make demo` does it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

CHECKOUT = Path(__file__).parents[2]


def test_the_demo_proves_an_application_consistent_snapshot() -> None:
    demo = subprocess.run(
        [sys.executable, "-B", "-m", "demo"],
        cwd=CHECKOUT,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    assert demo.returncode == 0, demo.stdout
    assert "With vmsnap, every proof held: the snapshot is application-consistent." in demo.stdout
