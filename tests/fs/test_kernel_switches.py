# SPDX-License-Identifier: Apache-2.0
"""The guard makes the kernel freeze faster, and puts its switch back whatever happens."""

from __future__ import annotations

import os
import resource
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from . import kernel, stuck
from .faults import kill_all, kill_both
from .lab import Lab
from .processes import wait_for_end, wait_until

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


def test_an_engine_without_descriptors_puts_the_switch_back(lab: Lab) -> None:
    lab.conf("[freeze]\ntimeout = 1\n")
    made = stuck.prepare(lab)
    session = lab.start("exit 0", only=made.only)
    guard = stuck.wait_until_inside(session, made)
    assert RCU.read_text() == "1\n"
    hard = resource.prlimit(session.pid, resource.RLIMIT_NOFILE)[1]
    resource.prlimit(session.pid, resource.RLIMIT_NOFILE, (3, hard))
    os.kill(guard, signal.SIGKILL)
    wait_until(lambda: RCU.read_text() == "0\n")
    kernel.thaw(made.parent.mount)
    session.process.wait()
    lab.wait_for_rest()
    assert lab.frozen == []


# Another session, of another run directory, has the switch on when this one begins, and puts it
# back before this one freezes.
ANOTHER_SESSION = """
import sys
from pathlib import Path
from vmsnap.cli import main
from vmsnap.freeze.freezer import Freezer
switch, presync = Path("/sys/kernel/rcu_expedited"), Freezer.presync
def another(self):
    presync(self)
    switch.write_text("0")
Freezer.presync = another
sys.exit(main.main())
"""


def test_the_switch_is_put_back_by_who_has_set_it(lab: Lab) -> None:
    lab.conf("[freeze]\ntimeout = 1\n")
    made = stuck.prepare(lab)
    RCU.write_text("1")
    session = lab.start("exit 0", only=made.only, program=(sys.executable, "-IBc", ANOTHER_SESSION))
    guard = stuck.wait_until_inside(session, made)
    os.kill(guard, signal.SIGKILL)
    session.finish()
    after = RCU.read_text()
    RCU.write_text("0")
    kernel.thaw(made.parent.mount)
    lab.wait_for_rest()
    assert after == "0\n"
