# SPDX-License-Identifier: Apache-2.0
"""What is known to keep the freeze from succeeding ends a session before the first pre-script, if
that has to succeed."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from . import strange
from .lab import VMSNAP, Lab
from .test_damaged_filesystems import covered_by_a_tmpfs, going_down, mounted_as_a_fifo
from .test_freeze_failures import fill

LIMIT = 20.0  # seconds
Options = list[str]


def the_run_directory_would_be_frozen(lab: Lab) -> Options:
    run = lab.filesystems[0].mount / "run"
    run.mkdir(mode=0o700)
    return [f"--run={run}"]


def the_run_directory_is_full(lab: Lab) -> Options:
    fill(lab.run_directory)
    return []


def one_is_covered(lab: Lab) -> Options:
    return [f"--only={covered_by_a_tmpfs(lab).name}"]


def one_has_no_directory(lab: Lab) -> Options:
    return [f"--only={mounted_as_a_fifo(lab).name}"]


def one_was_shut_down(lab: Lab) -> Options:
    return [f"--only={going_down(lab, 'xfs').name}"]


def the_guard_cannot_be_started(lab: Lab) -> Options:
    """Not more descriptors than the engine needs for itself."""
    for number in range(12):
        mount = strange.point(lab, f"more{number}")
        lab.mount("-o", "loop", strange.image(lab, f"more{number}"), mount)
    return [f"--only={lab.directory}/more*"]


CASES: list[Callable[[Lab], Options]] = [
    the_run_directory_would_be_frozen,
    the_run_directory_is_full,
    one_is_covered,
    one_has_no_directory,
    one_was_shut_down,
    the_guard_cannot_be_started,
]


@pytest.mark.parametrize("make", CASES)
@pytest.mark.parametrize("level", ["filesystem", "application"])
def test_nothing_is_quiesced(lab: Lab, make: Callable[[Lab], Options], level: str) -> None:
    lab.filesystem()
    lab.app(pre=lab.say("quiesced"), post=lab.say("resumed"))
    options = make(lab)
    few = ("prlimit", "--nofile=18:18") if make is the_guard_cannot_be_started else ()
    program = (*few, str(VMSNAP))
    outcome = lab.start(
        lab.say("taken"), *options, f"--require={level}", only=lab.mounts[:1], program=program
    ).finish(LIMIT)
    if outcome.code == 0:  # it could be frozen after all
        assert outcome.result["consistency"] in ("filesystem", "application")
    else:
        assert [word for word in lab.events.heard if word != "there"] == []
