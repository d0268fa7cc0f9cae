# SPDX-License-Identifier: Apache-2.0
"""vmsnap-check.service and what starts it: a broken configuration is a failed unit by itself."""

from __future__ import annotations

import json
import os
import select
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from vmsnap.errors import Kind

from .container import Container, end

CHECK, PATH = "vmsnap-check.service", "vmsnap-check.path"
SETTINGS = "/etc/vmsnap/vmsnap.conf"
DROP_IN = "/etc/vmsnap/vmsnap.conf.d/50-local.conf"
APP = "/etc/vmsnap/apps.d/db.json"
SCRIPTS = "/etc/vmsnap/scripts/db"
PRE = f"{SCRIPTS}/pre"
AZURE = "/etc/azure/VMSnapshotScriptPluginConfig.json"
PLUGIN_HOST = "/etc/azure/VMSnapshotPluginHost.conf"
ELSEWHERE = "/opt/quiesce/pre"
SCRIPT = "#!/bin/sh\nexit 0\n"
PATIENCE = 20.0  # seconds after which something is wrong; the rescue comes after 30


def until(container: Container, predicate: Callable[[], bool], seconds: float = PATIENCE) -> None:
    """Wait for a predicate to become true. It is asked whenever systemd has said something.

    What the journal has already is read first, so nothing is missed.
    """
    follower = container.popen(
        *("journalctl", "--follow", "--quiet", "--output=cat", f"--cursor={container.cursor}"),
        "SYSLOG_IDENTIFIER=systemd",
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    )
    deadline = time.monotonic() + seconds
    try:
        while not predicate():
            left = deadline - time.monotonic()
            said = left > 0 and select.select([follower.stdout], [], [], left)[0]
            assert said and os.read(follower.stdout.fileno(), 1 << 16), "it did not happen"
    finally:
        container.processes.remove(follower)
        end(follower)


@dataclass
class Check:
    """vmsnap-check.service as a person sees it."""

    container: Container

    def shown(self, name: str, unit: str = CHECK) -> str:
        return self.container.show(unit, name).get(name, "")

    @property
    def state(self) -> str:
        return f"{self.shown('ActiveState')} ({self.shown('SubState')})"

    @property
    def text(self) -> str:
        """`systemctl status`, which exits with 3 for a unit that failed."""
        return self.container.status(CHECK)

    def until(self, predicate: Callable[[], bool]) -> None:
        try:
            until(self.container, predicate)
        except AssertionError as e:
            raise AssertionError(f"{e}; this is how it is:\n{self.text}") from None

    def becomes(self, state: str) -> None:
        self.until(lambda: self.state == state)

    def becomes_broken(self) -> None:
        self.becomes("failed (failed)")

    def becomes_good(self) -> None:
        self.becomes("active (exited)")

    def checks_again_after(self, change: Callable[[], object]) -> None:
        """Wait for a check that began after the change, whatever it finds."""
        before = self.shown("InvocationID")
        change()
        states = ("active", "failed")
        self.until(
            lambda: (
                self.shown("InvocationID") not in ("", before)
                and self.shown("ActiveState") in states
            )
        )

    def watches(self, directory: str) -> None:
        """Wait until systemd watches it, for which no check waits."""
        name = directory.strip("/").replace("/", "-")
        self.until(lambda: self.shown("ActiveState", f"vmsnap-check@{name}.path") == "active")


@pytest.fixture
def check(container: Container) -> Iterator[Check]:
    """One good app, and the units started as a package does it."""
    remove_all(container)
    container.run("vmsnap", "init", "db", check=True)
    for phase in ("pre", "post"):
        container.write(f"{SCRIPTS}/{phase}", SCRIPT, 0o700)
    container.systemctl("enable", "--now", CHECK, PATH, check=True)
    found = Check(container)
    found.watches(SCRIPTS)
    yield found
    # In this order, or a check that is still to come would begin after the reset.
    container.systemctl("stop", "vmsnap-*.path", "vmsnap-recheck.service", check=True)
    container.systemctl("stop", CHECK, check=True)
    remove_all(container)


def remove_all(container: Container) -> None:
    """What `reset` does not know of."""
    for directory in ("/etc/azure", "/opt/quiesce"):
        shutil.rmtree(container.path(directory), ignore_errors=True)


def app_file(pre: str = PRE, **more: object) -> str:
    return json.dumps({"pluginName": "ScriptRunner", "preScriptLocation": pre, **more})


def write_beside_and_rename(container: Container, inside: str, text: str, mode: int) -> None:
    """As editors save a file."""
    container.write(f"{inside}.new", text, mode).replace(container.path(inside))


# --- the verdict -------------------------------------------------------------------------------


def test_it_is_green_with_a_good_configuration(check: Check) -> None:
    assert check.state == "active (exited)"
    assert "everything is in order" in check.text
    assert check.container.systemctl("is-system-running").stdout == "running\n"
    assert not [r for r in check.container.journal("-t", "vmsnap") if int(r["PRIORITY"]) < 6]


def test_it_is_green_without_any_app(container: Container) -> None:
    container.systemctl("enable", "--now", CHECK, PATH, check=True)
    assert Check(container).state == "active (exited)"


def test_it_runs_at_boot(check: Check) -> None:
    enabled = check.container.systemctl("is-enabled", CHECK, PATH).stdout
    assert enabled == "enabled\nenabled\n"
    check.container.systemctl("stop", CHECK, PATH, check=True)
    check.container.systemctl("isolate", "default.target", check=True)  # as at the end of a boot
    check.becomes_good()
    check.until(lambda: check.shown("ActiveState", PATH) == "active")


def test_it_finds_no_more_than_a_session_does(check: Check) -> None:
    """What is covered is opened by mounting it again, for which the unit must not be too closed."""
    check.container.add_filesystem("/srv/above/data")
    check.container.run("mount", "-t", "tmpfs", "tmpfs", "/srv/above", check=True)
    try:
        by_hand = check.container.run("vmsnap", "check")
        check.container.systemctl("restart", CHECK)
        assert (by_hand.returncode, check.state) == (0, "active (exited)"), check.text
        assert "filesystems that would be frozen: 2" in check.text
    finally:
        check.container.run("umount", "/srv/above", check=True)


def test_it_can_be_run_by_hand(check: Check) -> None:
    check.container.systemctl("stop", CHECK, check=True)
    check.container.systemctl("start", CHECK, check=True)
    assert check.state == "active (exited)"
    check.container.systemctl("stop", PATH, CHECK, check=True)
    check.container.path(PRE).unlink()
    by_hand = check.container.systemctl("start", CHECK)
    assert by_hand.returncode == 1
    assert "journalctl -xeu vmsnap-check.service" in by_hand.stderr


# --- changes -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Change:
    """Something that breaks the configuration, its undoing, and what is to be said of it."""

    breaks: Callable[[Container], object]
    mends: Callable[[Container], object]
    kind: Kind
    path: str
    words: str


GOOD_SETTINGS, BAD_SETTINGS = "[freeze]\nhold = 20\n", "[freeze]\nhold = soon\n"
BAD_APP = app_file(timeoutInSeconds="3")

CHANGES = {
    "a setting written in place": Change(
        lambda c: c.write(SETTINGS, BAD_SETTINGS),
        lambda c: c.write(SETTINGS, GOOD_SETTINGS),
        Kind.INCORRECT_SETTINGS,
        SETTINGS,
        "key 'hold' in [freeze]: found 'soon'",
    ),
    "settings saved by an editor": Change(
        lambda c: write_beside_and_rename(c, SETTINGS, BAD_SETTINGS, 0o600),
        lambda c: write_beside_and_rename(c, SETTINGS, GOOD_SETTINGS, 0o600),
        Kind.INCORRECT_SETTINGS,
        SETTINGS,
        "key 'hold' in [freeze]: found 'soon'",
    ),
    "a drop-in that comes and goes": Change(
        lambda c: c.write(DROP_IN, BAD_SETTINGS),
        lambda c: c.path(DROP_IN).unlink(),
        Kind.INCORRECT_SETTINGS,
        DROP_IN,
        "key 'hold' in [freeze]: found 'soon'",
    ),
    "the mode of the settings": Change(
        lambda c: c.path(SETTINGS).chmod(0o666),
        lambda c: c.path(SETTINGS).chmod(0o600),
        Kind.INCORRECT_SETTINGS,
        SETTINGS,
        "found mode 0666, expected mode 0600",
    ),
    "another app that comes and goes": Change(
        lambda c: c.write("/etc/vmsnap/apps.d/web.json", "{]"),
        lambda c: c.path("/etc/vmsnap/apps.d/web.json").unlink(),
        Kind.INCORRECT_JSON_CONFIG_FILE,
        "/etc/vmsnap/apps.d/web.json",
        ":1: found malformed JSON",
    ),
    "an app written in place": Change(
        lambda c: c.write(APP, BAD_APP),
        lambda c: c.write(APP, app_file()),
        Kind.INCORRECT_JSON_CONFIG_FILE,
        APP,
        "key 'timeoutInSeconds': found \"3\", expected a whole number",
    ),
    "an app saved by an editor": Change(
        lambda c: write_beside_and_rename(c, APP, BAD_APP, 0o600),
        lambda c: write_beside_and_rename(c, APP, app_file(), 0o600),
        Kind.INCORRECT_JSON_CONFIG_FILE,
        APP,
        "key 'timeoutInSeconds': found \"3\", expected a whole number",
    ),
    "the mode of an app": Change(
        lambda c: c.path(APP).chmod(0o644),
        lambda c: c.path(APP).chmod(0o600),
        Kind.INCORRECT_JSON_CONFIG_FILE,
        APP,
        "found mode 0644, expected mode 0600",
    ),
    "the owner of an app": Change(
        lambda c: os.chown(c.path(APP), 1, 1),
        lambda c: os.chown(c.path(APP), 0, 0),
        Kind.INCORRECT_JSON_CONFIG_FILE,
        APP,
        "found owner uid 1, expected owner root",
    ),
    "the mode of the directory of apps": Change(
        lambda c: c.path("/etc/vmsnap/apps.d").chmod(0o777),
        lambda c: c.path("/etc/vmsnap/apps.d").chmod(0o700),
        Kind.INCORRECT_JSON_CONFIG_FILE,
        APP,
        "/etc/vmsnap/apps.d: found mode 0777, expected mode 0755",
    ),
    "a script's mode": Change(
        lambda c: c.path(PRE).chmod(0o755),
        lambda c: c.path(PRE).chmod(0o700),
        Kind.INSUFFICIENT_PERMISSION_FOR_PRE_SCRIPT,
        PRE,
        "found mode 0755, expected mode 0700",
    ),
    "a script's owner": Change(
        lambda c: os.chown(c.path(PRE), 1, 1),
        lambda c: os.chown(c.path(PRE), 0, 0),
        Kind.INSUFFICIENT_PERMISSION_FOR_PRE_SCRIPT,
        PRE,
        "found owner uid 1, expected owner root",
    ),
    "a script saved by an editor": Change(
        lambda c: write_beside_and_rename(c, PRE, SCRIPT, 0o666),
        lambda c: write_beside_and_rename(c, PRE, SCRIPT, 0o700),
        Kind.INSUFFICIENT_PERMISSION_FOR_PRE_SCRIPT,
        PRE,
        "found mode 0666, expected mode 0",
    ),
    "a script that goes and comes back": Change(
        lambda c: c.path(PRE).unlink(),
        lambda c: c.write(PRE, SCRIPT, 0o700),
        Kind.PRE_SCRIPT_NOT_FOUND,
        PRE,
        "No such file or directory",
    ),
    "the directory of the scripts, moved and moved back": Change(
        lambda c: c.path(SCRIPTS).rename(c.path("/etc/vmsnap/scripts/away")),
        lambda c: c.path("/etc/vmsnap/scripts/away").rename(c.path(SCRIPTS)),
        Kind.PRE_SCRIPT_NOT_FOUND,
        PRE,
        "No such file or directory",
    ),
    "a configuration of Azure where there was none at boot": Change(
        lambda c: c.write(AZURE, app_file("relative")),
        lambda c: c.write(AZURE, app_file()),
        Kind.INCORRECT_JSON_CONFIG_FILE,
        AZURE,
        "key 'preScriptLocation': found \"relative\", expected an absolute path",
    ),
    "a configuration of Azure that goes with its directory": Change(
        lambda c: c.write(PLUGIN_HOST, "[pre_post]\nnumberOfPlugins = many\n"),
        lambda c: shutil.rmtree(c.path("/etc/azure")),
        Kind.INCORRECT_PLUGINHOST_FILE,
        PLUGIN_HOST,
        "key 'numberOfPlugins': found \"many\", expected a whole number",
    ),
    "settings of Azure": Change(
        lambda c: c.write("/etc/azure/vmbackup.conf", "[SnapshotThread]\ntimeout = long\n"),
        lambda c: c.write("/etc/azure/vmbackup.conf", "[SnapshotThread]\ntimeout = 50\n"),
        Kind.INCORRECT_SETTINGS,
        "/etc/azure/vmbackup.conf",
        "key 'timeout': found 'long', expected a number of seconds",
    ),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=[*CHANGES])
def test_a_change_is_checked_by_itself(check: Check, change: Change) -> None:
    change.breaks(check.container)
    check.becomes_broken()
    (record, *_) = check.container.journal("-t", "vmsnap", "PRIORITY=3")
    assert record["MESSAGE_ID"] == change.kind.message_id
    assert record["VMSNAP_ERROR"] == change.kind.label
    assert record["VMSNAP_CODE"] == str(change.kind.code)
    assert record["VMSNAP_PHASE"] == "check"
    assert record["VMSNAP_SUBJECT"] == change.path
    for text in (check.text, check.container.run("journalctl", "-t", "vmsnap", "-b").stdout):
        assert change.words in text
        assert change.path in text or change.words.startswith("/")  # it names a directory
        assert change.kind.action in text
    assert f'Status: "{change.kind.label} ({change.kind.code}): ' in check.text
    change.mends(check.container)
    check.becomes_good()
    assert 'Status: "everything is in order"' in check.text


CHANGES_ELSEWHERE: tuple[tuple[Callable[[Container], object], Callable[[Container], object]], ...]
CHANGES_ELSEWHERE = (
    (lambda c: c.path(ELSEWHERE).chmod(0o755), lambda c: c.path(ELSEWHERE).chmod(0o700)),
    (lambda c: c.path(ELSEWHERE).unlink(), lambda c: c.write(ELSEWHERE, SCRIPT, 0o700)),
    (
        lambda c: shutil.rmtree(c.path(ELSEWHERE).parent),
        lambda c: c.write(ELSEWHERE, SCRIPT, 0o700),
    ),
)


def test_a_script_elsewhere_is_watched_as_soon_as_an_app_names_it(check: Check) -> None:
    check.container.write(ELSEWHERE, SCRIPT, 0o700)
    check.checks_again_after(lambda: check.container.write(APP, app_file(ELSEWHERE)))
    check.watches("/opt/quiesce")
    for breaks, mends in CHANGES_ELSEWHERE:
        breaks(check.container)
        check.becomes_broken()
        assert ELSEWHERE in check.text
        mends(check.container)
        check.becomes_good()


def test_a_script_is_watched_for_whose_directory_does_not_exist_yet(check: Check) -> None:
    check.container.write(APP, app_file(ELSEWHERE))
    check.becomes_broken()
    assert f"{ELSEWHERE}: No such file or directory" in check.text
    check.watches("/opt/quiesce")
    check.container.write(ELSEWHERE, SCRIPT, 0o700)
    check.becomes_good()


def test_a_directory_with_a_strange_name_is_watched(check: Check) -> None:
    script = "/opt/quiesce/50% - a\\b/-x y/pre"
    check.container.write(script, SCRIPT, 0o700)
    check.checks_again_after(lambda: check.container.write(APP, app_file(script)))
    name = r"vmsnap-check@opt-quiesce-50\x25\x20\x2d\x20a\x5cb-\x2dx\x20y.path"
    check.until(lambda: check.shown("ActiveState", name) == "active")
    check.container.path(script).chmod(0o755)
    check.becomes_broken()
    check.container.path(script).chmod(0o700)
    check.becomes_good()


def test_one_path_that_systemd_cannot_take_keeps_no_other_from_being_watched(check: Check) -> None:
    long = f"/opt/{'a' * 200}/{'b' * 100}/pre"
    check.container.write(APP, app_file(long))
    check.becomes_broken()
    assert "systemd does not watch it" in check.text
    check.watches(SCRIPTS.rpartition("/")[0])
    check.container.write(APP, app_file())
    check.becomes_good()


def test_what_is_watched_is_so_again_when_it_is_started_again(check: Check) -> None:
    check.container.systemctl("stop", PATH, check=True)
    assert check.shown("ActiveState", "vmsnap-check@etc-vmsnap.path") == "inactive"
    check.container.systemctl("start", PATH, check=True)
    check.watches("/etc/vmsnap")
    check.watches(SCRIPTS)


def test_nothing_is_watched_against_the_word_of_the_administrator(check: Check) -> None:
    check.container.systemctl("stop", PATH, check=True)
    check.container.systemctl("restart", CHECK, check=True)
    assert check.state == "active (exited)"
    assert check.shown("ActiveState", "vmsnap-check@etc-vmsnap.path") == "inactive"


@pytest.mark.parametrize("directory", ["apps.d", "vmsnap.conf.d", "scripts"])
def test_a_directory_made_anew_is_watched_again(check: Check, directory: str) -> None:
    inside = check.container.path("/etc/vmsnap") / directory
    away = check.container.path("/etc/away")
    shutil.rmtree(away, ignore_errors=True)
    check.checks_again_after(lambda: inside.rename(away))
    check.checks_again_after(lambda: inside.mkdir(0o700))
    check.checks_again_after(lambda: (inside / "file").touch())
    check.checks_again_after(lambda: (inside / "file").unlink())
    check.checks_again_after(lambda: shutil.rmtree(inside))
    check.checks_again_after(lambda: away.rename(inside))
    check.becomes_good()


def test_the_whole_directory_may_go_and_come_back(check: Check) -> None:
    inside, away = check.container.path("/etc/vmsnap"), check.container.path("/etc/away")
    check.checks_again_after(lambda: inside.rename(away))
    assert check.state == "active (exited)"  # nothing configured is nothing wrong
    check.checks_again_after(lambda: away.rename(inside))
    check.becomes_good()
    check.container.write(APP, BAD_APP)
    check.becomes_broken()
    check.container.write(APP, app_file())
    check.becomes_good()


# --- bursts ------------------------------------------------------------------------------------


def test_a_burst_of_changes_ends_in_the_right_verdict(check: Check) -> None:
    for number in range(50):
        check.container.write(SETTINGS, f"[freeze]\nhold = wrong-{number}\n")
    check.until(lambda: "found 'wrong-49'" in check.shown("StatusText"))
    check.becomes_broken()
    for number in range(49):
        check.container.write(SETTINGS, f"[freeze]\nhold = wrong-{number}\n")
    check.container.write(SETTINGS, GOOD_SETTINGS)
    check.becomes_good()
    assert check.shown("ActiveState", PATH) == "active"
    assert check.shown("Result", PATH) == "success"
    check.container.write(SETTINGS, BAD_SETTINGS)  # it still looks
    check.becomes_broken()


def test_a_burst_everywhere_ends_in_the_right_verdict(check: Check) -> None:
    paths: list[Path] = [check.container.path(p) for p in (SETTINGS, APP, PRE)]
    for number in range(50):
        for path in paths:
            path.chmod(0o600 if number % 2 else 0o666)
    check.until(lambda: "found mode 0600, expected 0700: executable" in check.text)
    check.becomes_broken()
    check.container.path(PRE).chmod(0o700)
    check.becomes_good()
    for unit in (PATH, "vmsnap-check@etc-vmsnap-scripts-db.path"):
        assert check.shown("ActiveState", unit) == "active"
        assert check.shown("SubState", unit) == "waiting"
