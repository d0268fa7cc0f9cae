# SPDX-License-Identifier: Apache-2.0
"""`vmsnap provision` and systemd: the timer, and the check that looks again by itself."""

from __future__ import annotations

import json
from typing import Any

import pytest

from .apps import until
from .container import Container

TIMER, CHECK, PATH = "vmsnap-backup.timer", "vmsnap-check.service", "vmsnap-check.path"
DROP_IN = "/etc/systemd/system/vmsnap-backup.timer.d/50-provision.conf"
COMMAND: dict[str, Any] = {"conf": {"snapshot": {"command": "true"}}}


def provision(container: Container, document: object) -> tuple[int, str]:
    done = container.run("vmsnap", "provision", "-", input=json.dumps(document))
    return done.returncode, done.stdout + done.stderr


def timer(container: Container) -> tuple[str, str, str]:
    """Whether it is enabled and active, and when it elapses."""
    shown = container.show(TIMER, "UnitFileState", "ActiveState", "TimersCalendar")
    return shown["UnitFileState"], shown["ActiveState"], shown["TimersCalendar"]


def test_a_timer_is_enabled_changed_and_disabled(container: Container) -> None:
    assert timer(container)[:2] == ("disabled", "inactive")
    for calendar, said in (("daily", "*-*-* 00:00:00"), ("*-*-* 03:30", "*-*-* 03:30:00")):
        code, words = provision(container, {**COMMAND, "timer": calendar})
        assert (code, f"{TIMER}: enabled" in words) == (0, True), words
        until(lambda: timer(container)[:2] == ("enabled", "active"))
        assert timer(container)[2].count("OnCalendar") == 1
        assert f"OnCalendar={said} " in timer(container)[2]
    assert provision(container, COMMAND)[0] == 0  # says nothing of it
    assert timer(container)[:2] == ("enabled", "active")
    code, words = provision(container, {"timer": False})
    assert (code, f"{TIMER}: disabled" in words) == (0, True), words
    until(lambda: timer(container)[:2] == ("disabled", "inactive"))


@pytest.mark.parametrize(
    "calendar", ["sometimes", "2020-01-01", "@0", "daily\n[Service]", "daily Mars/Olympus", " "]
)
def test_a_time_that_never_comes_is_refused(container: Container, calendar: str) -> None:
    code, words = provision(container, {**COMMAND, "timer": calendar})
    assert (code, "timer: expected a time to come" in words) == (1, True), words
    assert not container.path(DROP_IN).exists()
    assert timer(container)[:2] == ("disabled", "inactive")


@pytest.mark.parametrize("conf", [{}, {"snapshot": {"command": " "}}, {"freeze": {"hold": 9}}])
def test_a_timer_without_a_command_is_refused(
    container: Container, conf: dict[str, object]
) -> None:
    code, words = provision(container, {"conf": conf, "timer": "daily"})
    assert (code, "no conf.snapshot.command for it to run" in words) == (1, True), words
    assert timer(container)[:2] == ("disabled", "inactive")


def test_a_command_that_is_there_already_will_do(container: Container) -> None:
    assert provision(container, COMMAND)[0] == 0
    assert provision(container, {"timer": "daily"})[0] == 0


def test_a_timer_that_systemd_refuses_is_a_failure(container: Container) -> None:
    container.systemctl("start", PATH, check=True)
    container.systemctl("mask", TIMER, check=True)
    container.added.callback(container.systemctl, "unmask", TIMER)
    code, words = provision(container, {**COMMAND, "timer": "daily"})
    assert (code, "systemctl enable" in words, "masked" in words) == (1, True, True), words
    assert "wrote /etc/vmsnap/vmsnap.conf.d/50-provision.conf" in words
    until(lambda: container.show(CHECK, "ActiveState")["ActiveState"] == "failed")


def test_the_check_fails_and_turns_green_by_itself(container: Container) -> None:
    container.systemctl("start", PATH, check=True)
    assert provision(container, {"confi": {}})[0] == 1
    until(lambda: container.show(CHECK, "ActiveState")["ActiveState"] == "failed")
    assert "ProvisioningFailed" in container.status(CHECK)
    assert provision(container, COMMAND)[0] == 0
    until(lambda: container.show(CHECK, "ActiveState")["ActiveState"] == "active")
    assert provision(container, {"confi": {}})[0] == 1
    until(lambda: container.show(CHECK, "ActiveState")["ActiveState"] == "failed")
    container.path("/var/lib/vmsnap/provision.json").unlink()
    until(lambda: container.show(CHECK, "ActiveState")["ActiveState"] == "active")
