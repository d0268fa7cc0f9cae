# SPDX-License-Identifier: Apache-2.0
"""What a session tells the service manager, in words for people and in those of sd_notify(3)."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import cast

import pytest

from vmsnap.errors import Kind, Problem
from vmsnap.freeze.freezer import Freezer
from vmsnap.result import PHASES, Phase, error_result
from vmsnap.session.hold import Hold
from vmsnap.session.notify import EXTEND, Manager, outcome_line, status
from vmsnap.session.session import Session

from ..test_result import FULL
from .test_session import app, session

VARIABLES = ("VMSNAP_UNIT", "NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID")
GOOD = replace(FULL, outcome="success", consistency="application", errors=())


@dataclass
class Frozen:
    """A freezer, as far as its state is told."""

    filesystems: tuple[str, ...]
    holding: bool = True


class ServiceManager:
    """systemd's end of the notification socket."""

    def __init__(self, path: Path) -> None:
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.socket.bind(str(path))
        self.socket.setblocking(False)

    def heard(self) -> list[list[str]]:
        """The lines of every datagram that has come."""
        datagrams = []
        while True:
            try:
                datagrams.append(
                    self.socket.recv(65536).decode("utf-8", "backslashreplace").split("\n")
                )
            except BlockingIOError:
                return datagrams


@pytest.fixture
def systemd(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[ServiceManager]:
    path = tmp_path / "notify"
    for name, value in zip(VARIABLES, ("vmsnap.service", str(path), "15000000", str(os.getpid()))):
        monkeypatch.setenv(name, value)
    manager = ServiceManager(path)
    yield manager
    manager.socket.close()


@pytest.fixture
def manager(systemd: ServiceManager) -> Iterator[Manager]:
    """Our end of it."""
    made = Manager()
    yield made
    assert made._notifier is not None
    made._notifier.close()  # sdnotify leaves that to the end of the process


@pytest.fixture
def noon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vmsnap.session.notify.time.monotonic", lambda: 990.0)


def at(
    phase: str,
    *apps: str,
    frozen: int | None = None,
    holding: bool = True,
    hold_ends: float | None = None,
) -> Session:
    """A session in this phase; `frozen` is the number of its filesystems, None without a freeze."""
    made = session(*(app(name) for name in apps))
    made.record.phase = Phase[phase.upper()]
    if hold_ends is not None:
        made.hold = Hold(None, made.waiter, 0.0)
        made.hold.ends = hold_ends
    if frozen is not None:
        mounts = tuple(f"/mnt/{n}" for n in range(frozen))
        made.freezer = cast(Freezer, Frozen(mounts, holding))
    return made


# --- the words ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("where", "words"),
    [
        (at("check"), "Checking the configuration"),
        (at("pre"), "No apps to quiesce"),
        (at("pre", "web"), "Running pre-scripts: web"),
        (at("pre", "web", "db"), "Running pre-scripts: web, db"),
        (at("presync"), "Writing back dirty pages"),
        (at("freeze", frozen=1), "Freezing 1 filesystem"),
        (at("freeze", frozen=2), "Freezing 2 filesystems"),
        (at("freeze", frozen=0), "Freezing 0 filesystems"),
        (at("thaw", frozen=1), "Thawing 1 filesystem"),
        (at("thaw", frozen=16), "Thawing 16 filesystems"),
        (at("post"), "No apps to resume"),
        (at("post", "web", "db"), "Running post-scripts: web, db"),
        (at("report"), "Writing the result"),
    ],
)
def test_the_status_says_what_the_session_does(where: Session, words: str) -> None:
    assert status(where) == words


@pytest.mark.parametrize(
    ("where", "words"),
    [
        (at("snapshot", "web", frozen=1, hold_ends=1000), "Holding 1 filesystem frozen, 10 s left"),
        (at("snapshot", frozen=3, hold_ends=1050), "Holding 3 filesystems frozen, 60 s left"),
        (at("snapshot", "web", "db", hold_ends=1000), "Holding web, db, 10 s left"),
        (at("snapshot", hold_ends=1000), "Holding nothing, 10 s left"),
        (
            at("snapshot", "web", frozen=3, holding=False, hold_ends=989),
            "Holding web, 0 s left",
        ),
        (at("snapshot", "web", frozen=1), "Holding 1 filesystem frozen, 0 s left"),
    ],
)
def test_the_status_of_a_hold_says_what_is_held_and_for_how_long(
    noon: None, where: Session, words: str
) -> None:
    assert status(where) == words


@pytest.mark.parametrize("phase", PHASES)
def test_every_phase_has_words_of_its_own(noon: None, phase: str) -> None:
    words = {status(at(other, "web", frozen=2)) for other in PHASES if other != phase}
    here = status(at(phase, "web", frozen=2))
    assert here not in words
    assert here != "Starting"
    assert here[0].isupper()
    assert "\n" not in here


# --- the verdict -------------------------------------------------------------------------------


def test_a_good_session_is_told_by_its_consistency() -> None:
    assert outcome_line(GOOD) == "Ended: application-consistent snapshot"


def test_a_failed_session_is_told_by_its_first_error() -> None:
    second = error_result(Problem(Kind.THAW_FAILED, "later", "thaw", "/"))
    failed = replace(FULL, errors=(*FULL.errors, second))
    assert outcome_line(failed) == "Failed: FreezeFailed (121): it is busy"


def test_a_session_that_succeeded_all_the_same_is_told_with_what_was_wrong() -> None:
    passed = replace(FULL, outcome="success")
    assert outcome_line(passed) == "crash-consistent snapshot: FreezeFailed (121): it is busy"


def test_a_verdict_is_one_line_whatever_a_script_said() -> None:
    error = replace(FULL.errors[0], message="it said:\n  READY=1\r\n\tMAINPID=1\n")
    words = outcome_line(replace(FULL, errors=(error,)))
    assert words == "Failed: FreezeFailed (121): it said: READY=1 MAINPID=1"


# --- sd_notify ---------------------------------------------------------------------------------


def test_readiness_is_told_once_and_with_the_status(
    systemd: ServiceManager, manager: Manager, noon: None
) -> None:
    manager.ready(at("snapshot", "web", frozen=2, hold_ends=1000))
    assert systemd.heard() == [["READY=1", "STATUS=Holding 2 filesystems frozen, 10 s left"]]


def test_every_pulse_tells_the_status_that_the_engine_lives_and_needs_time(
    systemd: ServiceManager, manager: Manager
) -> None:
    where = at("pre", "web")
    manager.follow(where)
    pulse = where.waiter.pulse
    assert pulse is not None
    pulse()
    where.record.phase = Phase.REPORT
    pulse()
    rest = ["WATCHDOG=1", f"EXTEND_TIMEOUT_USEC={EXTEND * 1_000_000}"]
    assert systemd.heard() == [
        ["STATUS=Running pre-scripts: web", *rest],
        ["STATUS=Writing the result", *rest],
    ]


def test_nothing_is_told_before_there_is_something_to_say(
    systemd: ServiceManager, manager: Manager
) -> None:
    manager.follow(at("check"))
    assert systemd.heard() == []


@pytest.mark.parametrize("message", ["größer als früher", "voll → nichts geht", "名前"])
def test_a_message_in_any_language_reaches_the_service_manager(
    systemd: ServiceManager, manager: Manager, message: str
) -> None:
    error = replace(FULL.errors[0], message=message)
    manager.notify(f"STATUS={outcome_line(replace(FULL, errors=(error,)))}", "WATCHDOG=1")
    assert systemd.heard() == [[f"STATUS=Failed: FreezeFailed (121): {message}", "WATCHDOG=1"]]


@pytest.mark.usefixtures("manager")
def test_what_the_session_starts_inherits_no_way_to_speak_for_it() -> None:
    assert {name for name in VARIABLES if name in os.environ} == set()


@pytest.mark.usefixtures("manager")
def test_a_second_manager_of_the_same_process_has_nobody_to_tell(systemd: ServiceManager) -> None:
    Manager().notify("READY=1")
    assert systemd.heard() == []


@pytest.mark.parametrize("address", [None, ""])
def test_without_a_service_manager_nothing_is_told_and_nobody_is_woken(
    monkeypatch: pytest.MonkeyPatch, address: str | None
) -> None:
    monkeypatch.delenv("NOTIFY_SOCKET", raising=False)
    if address is not None:
        monkeypatch.setenv("VMSNAP_UNIT", "vmsnap-session.service")
        monkeypatch.setenv("NOTIFY_SOCKET", address)
    where = at("check")
    manager = Manager()
    manager.follow(where)
    manager.ready(where)
    manager.notify("STATUS=nobody hears this")
    assert getattr(where.waiter, "pulse", None) is None


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # sdnotify's socket
def test_a_service_manager_that_is_gone_stops_nothing(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("VMSNAP_UNIT", "vmsnap-session.service")
    monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "gone"))
    Manager().notify("READY=1")
    assert list(tmp_path.iterdir()) == []
