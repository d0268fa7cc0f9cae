# SPDX-License-Identifier: Apache-2.0
"""The catalogue: the names and numbers that other programs and Azure's documentation know."""

from __future__ import annotations

import re

import pytest

from vmsnap.errors import SCRIPT, Kind, Problem
from vmsnap.journal.sender import Event

DESIGNED = {
    "FreezeFailed": 121,
    "FreezeTimeout": 122,
    "MountOpenFailed": 123,
    "ThawFailed": 125,
    "HoldExpired": 126,
    "ThawedEarly": 127,
    "GuardLost": 128,
    "SnapshotFailed": 130,
    "SessionInProgress": 140,
    "Pre-ScriptExecutionFailed": 300,
    "Post-ScriptExecutionFailed": 301,
    "Pre-ScriptNotFound": 302,
    "Post-ScriptNotFound": 303,
    "IncorrectPluginhostFile": 304,
    "IncorrectJSONConfigFile": 305,
    "InsufficientPermissionforPre-Script": 306,
    "InsufficientPermissionforPost-Script": 307,
    "Pre-ScriptTimeout": 308,
    "Post-ScriptTimeout": 309,
}
# The design has no error for these: what happened to filesystems meanwhile, a killed engine, our
# own settings, nothing to thaw, a document that cannot be put into effect.
OURS = {
    "NotFrozen": 124,
    "EngineLost": 129,
    "BecameReadOnly": 133,
    "IncorrectSettings": 141,
    "NoSession": 142,
    "ProvisioningFailed": 143,
    "IncorrectIntegration": 144,
}


def test_names_and_codes_are_those_of_the_design() -> None:
    assert {kind.label: kind.code for kind in Kind} == {**DESIGNED, **OURS}


def test_no_two_records_share_a_message_id() -> None:
    ids = [kind.message_id for kind in Kind] + [event.value for event in Event]
    assert len(set(ids)) == len(ids)


@pytest.mark.parametrize("message_id", [k.message_id for k in Kind] + [e.value for e in Event])
def test_a_message_id_is_128_bits_in_lower_case_hexadecimal(message_id: str) -> None:
    assert re.fullmatch("[0-9a-f]{32}", message_id)


@pytest.mark.parametrize("kind", Kind)
def test_every_error_has_one_line_that_sums_it_up_and_an_action(kind: Kind) -> None:
    assert kind.summary
    assert "\n" not in kind.summary
    assert len(kind.action) > len("See the manual")
    assert "\n" not in kind.action


@pytest.mark.parametrize(
    ("label", "words"),
    [
        ("Pre-ScriptExecutionFailed", "journal"),
        ("Post-ScriptExecutionFailed", "application"),
        ("IncorrectPluginhostFile", "optional"),
        ("IncorrectJSONConfigFile", "vmsnap init"),
        ("InsufficientPermissionforPre-Script", "0700"),
        ("InsufficientPermissionforPost-Script", "0700"),
        ("Pre-ScriptTimeout", "timeoutInSeconds"),
        ("Post-ScriptTimeout", "timeoutInSeconds"),
        ("ThawFailed", "vmsnap thaw --force"),
        ("HoldExpired", "--hold"),
    ],
)
def test_the_action_names_what_helps(label: str, words: str) -> None:
    assert words in next(kind.action for kind in Kind if kind.label == label)


@pytest.mark.parametrize(("phase", "prefix"), [("pre", "Pre-Script"), ("post", "Post-Script")])
def test_each_phase_fails_under_its_own_name(phase: str, prefix: str) -> None:
    kinds = SCRIPT[phase]
    for kind in (kinds.not_found, kinds.untrusted, kinds.failed, kinds.timeout):
        assert prefix in kind.label


def test_a_problem_is_exactly_what_check_json_promises() -> None:
    problem = Problem(Kind.PRE_SCRIPT_NOT_FOUND, "not there", path="/opt/pre", subject="web")
    assert problem.to_json() == {
        "severity": "error",
        "name": "Pre-ScriptNotFound",
        "code": 302,
        "path": "/opt/pre",
        "message": "not there",
        "action": Kind.PRE_SCRIPT_NOT_FOUND.action,
    }
