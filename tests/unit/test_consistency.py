# SPDX-License-Identifier: Apache-2.0
"""The one rule. Its table is written out here again, in words, from the design."""

from __future__ import annotations

import itertools
from collections.abc import Iterable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vmsnap.consistency import AT_MOST, Level, consistency
from vmsnap.errors import Kind

RANKS = ["none", "crash", "filesystem", "application"]
# What the level becomes at most, by the event's name in the catalogue.
TABLE = {
    # plugin host file or an app's JSON unreadable, malformed, wrong owner or mode
    "IncorrectPluginhostFile": "filesystem",
    "IncorrectJSONConfigFile": "filesystem",
    # a script missing, or wrong owner or mode
    "Pre-ScriptNotFound": "filesystem",
    "Post-ScriptNotFound": "filesystem",
    "InsufficientPermissionforPre-Script": "filesystem",
    "InsufficientPermissionforPost-Script": "filesystem",
    # a script fails or times out
    "Pre-ScriptExecutionFailed": "filesystem",
    "Pre-ScriptTimeout": "filesystem",
    "Post-ScriptExecutionFailed": "filesystem",
    "Post-ScriptTimeout": "filesystem",
    # a filesystem fails to freeze, or not in time
    "MountOpenFailed": "crash",
    "FreezeFailed": "crash",
    "FreezeTimeout": "crash",
    # hold expired, somebody else thawed, the guard died, a thaw that failed
    "HoldExpired": "crash",
    "ThawedEarly": "crash",
    "GuardLost": "crash",
    "ThawFailed": "crash",
    # a filesystem was not frozen: it came later, or could not be
    "NotFrozen": "crash",
    "BecameReadOnly": "crash",
    # no snapshot
    "EngineLost": "none",
    "SnapshotFailed": "none",
    "SessionInProgress": "none",
    "IncorrectSettings": "none",
    "NoSession": "none",
    # no part of a session
    "ProvisioningFailed": "filesystem",
    "IncorrectIntegration": "filesystem",
}
# Freezing is disabled by an app only, so a session without apps freezes.
CONFIGURATIONS = [(True, True), (True, False), (False, True)]

failures = st.sets(st.sampled_from(Kind))


def expected(names: Iterable[str], apps: bool, freezing: bool) -> str:
    level = "application" if apps else "filesystem"
    for name in names:
        level = min(level, TABLE[name], key=RANKS.index)
        if (
            not freezing and TABLE[name] != "application"
        ):  # freeze disabled and any of the above: nothing below is consistent
            level = min(level, "crash", key=RANKS.index)
    return level


def reached(kinds: Iterable[Kind], apps: bool, freezing: bool) -> str:
    return consistency(kinds, apps=apps, freezing=freezing).word


def labels(kinds: Iterable[Kind]) -> list[str]:
    return [kind.label for kind in kinds]


def test_every_kind_of_error_has_its_row() -> None:
    assert {kind.label: level.word for kind, level in AT_MOST.items()} == TABLE


@pytest.mark.parametrize(("apps", "freezing"), CONFIGURATIONS)
def test_any_two_failures_give_the_level_of_the_table(apps: bool, freezing: bool) -> None:
    for count in (0, 1, 2):
        for kinds in itertools.combinations(Kind, count):
            assert reached(kinds, apps, freezing) == expected(labels(kinds), apps, freezing)


@given(failures, st.sampled_from(CONFIGURATIONS))
@settings(max_examples=300)
def test_any_combination_of_failures_gives_the_level_of_the_table(
    kinds: set[Kind], configuration: tuple[bool, bool]
) -> None:
    assert reached(kinds, *configuration) == expected(labels(kinds), *configuration)


@given(failures, failures, st.sampled_from(CONFIGURATIONS))
def test_a_further_failure_never_raises_the_level(
    some: set[Kind], more: set[Kind], configuration: tuple[bool, bool]
) -> None:
    before = RANKS.index(reached(some, *configuration))
    assert RANKS.index(reached(some | more, *configuration)) <= before


@given(st.lists(st.sampled_from(Kind)), st.randoms(), st.sampled_from(CONFIGURATIONS))
def test_neither_order_nor_repetition_of_failures_matters(
    kinds: list[Kind], random: object, configuration: tuple[bool, bool]
) -> None:
    once = reached(set(kinds), *configuration)
    shuffled = [*kinds, *kinds]
    random.shuffle(shuffled)  # type: ignore[attr-defined]
    assert reached(shuffled, *configuration) == once


def test_levels_compare_from_no_snapshot_to_application_consistent() -> None:
    assert [level.word for level in sorted(Level)] == RANKS
