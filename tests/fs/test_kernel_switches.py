# SPDX-License-Identifier: Apache-2.0
"""The guard makes the kernel freeze faster, and puts its switch back whatever happens."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from . import kernel, stuck
from .faults import kill_all, kill_both
from .lab import Lab
from .processes import wait_for_end

RCU = kernel.RCU_EXPEDITED


@pytest.fixture(autouse=True)
def the_kernels_own(switch: Path) -> Iterator[None]:
    """The real switch. No other file of tests touches it, and a file stays in one process."""
    kernel.unmount(RCU)
    yield
    kernel.bind(switch, RCU)


@pytest.mark.parametrize("ending", ["released", "engine", "guard", "both", "all"])
def test_the_kernel_waits_as_patiently_as_before(lab: Lab, ending: str) -> None:
    before = RCU.read_text()
    lab.filesystem()
    session = lab.hold()
    if ending == "released":
        lab.release()
        session.finish()
    elif ending == "engine":
        session.kill(signal.SIGKILL)
    elif ending == "guard":
        os.kill(session.guard, signal.SIGKILL)
        lab.release()
        session.finish()
    elif ending == "both":
        kill_both(session)
    else:
        kill_all(session)
        lab.release()
        assert lab.vmsnap("thaw", "--force").code == 0
    lab.wait_for_thaw()
    assert wait_for_end(session.pid)
    lab.wait_for_rest()
    assert RCU.read_text() == before


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_the_kernel_waits_as_patiently_as_before_after_a_freeze_cut_short(
    lab: Lab, number: signal.Signals
) -> None:
    lab.conf("[freeze]\ntimeout = 1\n")
    before = RCU.read_text()
    made = stuck.prepare(lab)
    session = lab.start("exit 0", only=made.only)
    guard = stuck.wait_until_inside(session, made)
    os.kill(guard, number)
    session.finish()
    assert RCU.read_text() == before
    kernel.thaw(made.parent.mount)
    lab.wait_for_rest()
    assert lab.frozen == []
