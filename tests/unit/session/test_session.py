# SPDX-License-Identifier: Apache-2.0
"""What a session requires and what it has reached, for what was found and what went wrong.

Whole sessions run in tests/fs; here nothing is started.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import cast

import pytest

from vmsnap.config.app import App, Script
from vmsnap.config.settings import Settings
from vmsnap.consistency import Level
from vmsnap.errors import Kind, Problem, Severity
from vmsnap.journal.sender import Journal
from vmsnap.result import Phase
from vmsnap.session.options import Options
from vmsnap.session.recovery import NoTaker
from vmsnap.session.session import Session
from vmsnap.system.waiter import Waiter


@dataclass
class Quiet:
    """Stands for a Waiter that nobody has to wait for."""

    interrupted: str = ""


def app(name: str = "web", required: bool = False, freeze: bool = True) -> App:
    script = Script("/opt/pre", (), 0, 30.0)
    return App(name, f"/etc/vmsnap/apps.d/{name}.json", script, None, required, freeze)


def session(
    *apps: App,
    require: Level | None = None,
    fsfreeze: bool = True,
    setting: Level | None = None,
    interrupted: str = "",
) -> Session:
    waiter = cast(Waiter, Quiet(interrupted))
    options = Options(("true",), require=require, fsfreeze=fsfreeze)
    made = Session(options, -1, waiter, NoTaker(held=False))
    made.record.journal = Journal(path="/nonexistent/journal")
    made.record.phase = Phase.CHECK
    made.found.apps.extend(apps)
    made.found.settings = Settings(require=setting)
    made.required = made.what_is_required()
    return made


def fail(where: Session, *kinds: Kind) -> None:
    where.record.fail(*(Problem(kind, "it went wrong", "pre", "web") for kind in kinds))


@pytest.fixture(params=[1, 2, 7])
def disks(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> int:
    count = int(request.param)
    monkeypatch.setattr("vmsnap.session.session.count_disks", lambda: count)
    return count


# --- the required level ------------------------------------------------------------------------


def test_without_wishes_crash_consistency_is_required(disks: int) -> None:
    assert session().required == Level.CRASH
    assert session(app()).required == Level.CRASH


def test_an_app_that_stops_the_backup_counts_only_with_several_disks(disks: int) -> None:
    strict = session(app("a"), app("b", required=True))
    assert strict.required == (Level.APPLICATION if disks > 1 else Level.CRASH)


@pytest.mark.parametrize("wish", [Level.CRASH, Level.FILESYSTEM, Level.APPLICATION])
def test_the_caller_and_the_settings_still_win_on_a_single_disk(disks: int, wish: Level) -> None:
    assert session(app(), require=wish).required == wish
    assert session(app(), setting=wish).required == wish


@pytest.mark.parametrize("wish", [Level.CRASH, Level.FILESYSTEM])
def test_require_raises_and_never_lowers(monkeypatch: pytest.MonkeyPatch, wish: Level) -> None:
    monkeypatch.setattr("vmsnap.session.session.count_disks", lambda: 2)
    assert session(app(required=True), require=wish, setting=wish).required == Level.APPLICATION
    assert session(require=Level.APPLICATION, setting=wish).required == Level.APPLICATION


def warn(where: Session, name: str) -> None:
    kind = Kind.PRE_SCRIPT_EXECUTION_FAILED
    where.record.fail(Problem(kind, "exit code 2", "pre", name, tolerated=True))


def test_a_warning_of_a_script_stops_no_snapshot_that_only_apps_require(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("vmsnap.session.session.count_disks", lambda: 2)
    strict = session(app("a", required=True), app("b", required=True))
    warn(strict, "a")
    assert (strict.level, strict.required) == (Level.FILESYSTEM, Level.APPLICATION)
    assert strict.may_go_on()
    fail(strict, Kind.PRE_SCRIPT_EXECUTION_FAILED)
    assert not strict.may_go_on()


def test_a_warning_does_not_hide_what_else_went_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vmsnap.session.session.count_disks", lambda: 2)
    strict = session(app("a", required=True))
    warn(strict, "a")
    fail(strict, Kind.FREEZE_FAILED)
    assert not strict.may_go_on()


@pytest.mark.parametrize("wish", [Level.CRASH, Level.FILESYSTEM, Level.APPLICATION])
def test_the_caller_and_the_settings_know_no_warnings(wish: Level) -> None:
    for made in (session(app(), require=wish), session(app(), setting=wish)):
        warn(made, "web")
        assert made.may_go_on() is (wish <= Level.FILESYSTEM)


def test_azure_can_switch_the_freeze_off() -> None:
    made = session(app())
    made.found.settings = Settings(freeze=False)
    assert (made.freezing, made.level) == (False, Level.APPLICATION)
    fail(made, Kind.PRE_SCRIPT_TIMEOUT)
    assert made.level == Level.CRASH


# --- the level reached -------------------------------------------------------------------------


def test_a_session_without_apps_starts_at_filesystem_and_one_with_apps_at_application() -> None:
    assert session().level.word == "filesystem"
    assert session(app()).level.word == "application"


def test_an_app_whose_file_cannot_be_read_still_counts_as_meant() -> None:
    broken = session()
    broken.found.error(Kind.INCORRECT_JSON_CONFIG_FILE, "/etc/vmsnap/apps.d/a.json", "broken")
    fail(broken, Kind.INCORRECT_JSON_CONFIG_FILE)
    assert broken.level.word == "filesystem"


def test_one_app_that_disables_freezing_disables_it_for_the_session() -> None:
    unfrozen = session(app("a"), app("b", freeze=False))
    assert not unfrozen.freezing
    assert unfrozen.level.word == "application"
    fail(unfrozen, Kind.PRE_SCRIPT_EXECUTION_FAILED)
    assert unfrozen.level.word == "crash"


def test_when_the_platform_freezes_the_table_reads_as_if_we_had() -> None:
    platform = session(app(), fsfreeze=False)
    fail(platform, Kind.PRE_SCRIPT_TIMEOUT)
    assert platform.level.word == "filesystem"


# --- whether there is a snapshot, and whether it is a success ------------------------------------


def test_no_snapshot_is_taken_below_the_required_level(disks: int) -> None:
    strict = session(app(required=True))
    assert strict.may_go_on()
    fail(strict, Kind.PRE_SCRIPT_EXECUTION_FAILED)
    assert strict.may_go_on() is (disks == 1)


@pytest.mark.parametrize("kind", [Kind.FREEZE_FAILED, Kind.FREEZE_TIMEOUT, Kind.GUARD_LOST])
def test_a_failed_freeze_still_gives_a_crash_consistent_snapshot(kind: Kind) -> None:
    lax, strict = session(), session(require=Level.FILESYSTEM)
    fail(lax, kind)
    fail(strict, kind)
    assert lax.may_go_on()
    assert not strict.may_go_on()


@pytest.mark.parametrize("kind", [Kind.SNAPSHOT_FAILED, Kind.INCORRECT_SETTINGS])
def test_nothing_goes_on_without_a_snapshot_command_or_usable_settings(kind: Kind) -> None:
    hopeless = session()
    fail(hopeless, kind)
    assert not hopeless.may_go_on()


def test_an_interrupted_session_does_not_go_on_and_says_so_once() -> None:
    stopped = session(app(), interrupted="SIGTERM")
    assert not stopped.may_go_on()
    assert not stopped.may_go_on()
    assert [failure.kind for failure in stopped.record.failures] == [Kind.SNAPSHOT_FAILED]
    assert "SIGTERM" in stopped.record.failures[0].message


def test_a_level_without_a_snapshot_is_none() -> None:
    untaken = session(app())
    result = untaken.result()
    assert (result.outcome, result.consistency) == ("failed", "none")


@pytest.mark.parametrize(
    ("kind", "require", "outcome", "consistency"),
    [
        (Kind.POST_SCRIPT_EXECUTION_FAILED, None, "success", "filesystem"),
        (Kind.POST_SCRIPT_EXECUTION_FAILED, Level.APPLICATION, "failed", "filesystem"),
        (Kind.HOLD_EXPIRED, None, "success", "crash"),
        (Kind.THAWED_EARLY, Level.FILESYSTEM, "failed", "crash"),
        (None, Level.APPLICATION, "success", "application"),
    ],
)
def test_a_taken_snapshot_succeeds_if_it_is_as_consistent_as_required(
    kind: Kind | None, require: Level | None, outcome: str, consistency: str
) -> None:
    taken = session(app(), require=require)
    taken.taken = True
    fail(taken, *([kind] if kind else []))
    result = taken.result()
    assert (result.outcome, result.consistency) == (outcome, consistency)


def test_only_apps_without_errors_are_runnable() -> None:
    found = session(app("good"), app("bad")).found
    found.error(Kind.PRE_SCRIPT_NOT_FOUND, "/opt/pre", "missing", "bad")
    found.problems.append(
        Problem(
            Kind.INCORRECT_JSON_CONFIG_FILE,
            "unknown key",
            path="/x",
            subject="good",
            severity=Severity.WARNING,
        )
    )
    assert [each.name for each in found.runnable] == ["good"]
