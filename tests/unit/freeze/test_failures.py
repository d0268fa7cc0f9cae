# SPDX-License-Identifier: Apache-2.0
"""What is compared after the thaw with the plan by which everything was frozen."""

from __future__ import annotations

from dataclasses import replace

import pytest

from vmsnap.freeze.failures import newly_read_only, newly_writable
from vmsnap.freeze.filesystem import Filesystem
from vmsnap.freeze.mountinfo import Mount
from vmsnap.freeze.plan import Action, Entry, Plan

DATA = Mount(40, "8:17", "/", "/data", "ext4", "/dev/sdb1", "rw")
HIDDEN = Mount(-1, "8:33", "/", "/dev/sdc1", "ext4", "/dev/sdc1", "", hidden=True)


def plan(*mounts: Mount) -> Plan:
    return Plan(tuple(Entry((mount,), Action.FREEZE, 1, "") for mount in mounts))


def frozen(mount: Mount, hidden_read_only: bool = False) -> Filesystem:
    (entry,) = plan(mount).entries
    return Filesystem(entry, -1, 1.0, 1.1, thawed_at=2.0, hidden_read_only=hidden_read_only)


@pytest.mark.parametrize("told", [[], ["/dev/sdc1"]])
def test_what_was_hidden_and_left_alone_counts_when_it_shows_up_writable(told: list[str]) -> None:
    shown = replace(HIDDEN, point="/mnt", options="rw", hidden=False)
    found = newly_writable(plan(DATA, HIDDEN), plan(DATA, shown), ["/data", *told])
    assert [problem.subject for problem in found] == ([] if told else ["/mnt"])


@pytest.mark.parametrize("writable", [True, False])
def test_what_became_read_only_counts_however_it_is_mounted(writable: bool) -> None:
    after = plan(replace(DATA, options="ro", writable=writable))
    assert [p.subject for p in newly_read_only([frozen(DATA)], after)] == ["/data"]


@pytest.mark.parametrize("read_only", [True, False])
def test_what_is_hidden_says_itself_that_it_became_read_only(read_only: bool) -> None:
    found = newly_read_only([frozen(HIDDEN, read_only)], plan(DATA, HIDDEN))
    assert [problem.subject for problem in found] == (["/dev/sdc1"] if read_only else [])
