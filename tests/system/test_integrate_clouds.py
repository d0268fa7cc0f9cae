# SPDX-License-Identifier: Apache-2.0
"""`vmsnap integrate google` and `aws`: a test calls what Google's agent and AWS's would call."""

from __future__ import annotations

import json
import select
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml

from .agents import Platform

GOOGLE, CONFIG = "google-guest-agent.service", "/etc/default/instance_configs.cfg"
SNAPSHOTS = "/etc/google/snapshots"
DOCUMENT = Path(__file__).parents[2] / "aws/ssm-document.yaml"
PATIENCE = 20.0


@pytest.fixture
def google(platform: Platform) -> Platform:
    """The agent itself waits for Google's metadata, which are not here."""
    platform.idle(GOOGLE)
    return platform


def call(platform: Platform, name: str) -> tuple[int, bytes]:
    """As google_guest_agent does: no shell, one argument, and it waits until nobody has the other
    end of the pipe. Return the exit code and what was read from it."""
    streams: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
    argv = (f"{SNAPSHOTS}/{name}.sh", "disk-1,disk-2")
    process = platform.container.popen(*argv, **streams, text=False)
    said = b""
    while select.select([process.stdout], [], [], PATIENCE)[0]:
        data = process.stdout.read1()
        if not data:
            return process.wait(PATIENCE), said
        said += data
    raise AssertionError("somebody still has the pipe")


# --- Google --------------------------------------------------------------------------------------


def test_googles_agent_finds_two_scripts_between_which_everything_is_frozen(
    google: Platform,
) -> None:
    google.database()
    done = google.connect("google")
    assert f"restarted {GOOGLE}\n" in done.out.decode()
    assert google.complaints == []
    assert call(google, "pre")[0] == 0
    assert google.events.heard == ["quiesced"]
    assert google.container.frozen("/")
    assert call(google, "post")[0] == 0
    assert google.events.wait("resumed") == "success application"
    assert not google.container.frozen("/")
    assert google.last == ("success", "application", [])


def test_google_is_told_that_an_application_was_not_quiesced(google: Platform) -> None:
    google.strict()
    google.database(pre="exit 1")
    google.connect("google")
    code, said = call(google, "pre")
    assert code == 1
    assert b"Pre-ScriptExecutionFailed" in said
    assert not google.container.frozen("/")


def test_what_google_finds_is_removed_again(google: Platform) -> None:
    before = google.etc
    google.connect("google")
    assert google.container.read(CONFIG).count("[Snapshots]\nenabled = true\n") == 1
    assert google.etc[f"{SNAPSHOTS}/pre.sh"][:3] == (0o100700, 0, 0)
    assert google.etc[f"{SNAPSHOTS}/post.sh"][:3] == (0o100700, 0, 0)
    assert google.integrate("--remove").code == 0
    assert google.etc == before


@pytest.mark.parametrize(
    ("name", "line", "told"),
    [
        (".template", "enabled = false", "found [Snapshots] enabled = false, expected true"),
        (".distro", "enabled=false", "found [Snapshots] enabled = false, expected true"),
        ("", "timeout_in_seconds = 5", "found [Snapshots] timeout_in_seconds = 5, expected at"),
    ],
)
def test_a_setting_that_keeps_google_from_calling_is_told(
    google: Platform, name: str, line: str, told: str
) -> None:
    google.connect("google")
    with google.container.path(CONFIG + name).open("a") as file:
        file.write(f"[Snapshots]\n{line}\n")
    assert f"{CONFIG}{name}: {told}" in "\n".join(google.complaints)


def test_a_file_that_google_cannot_read_is_told_of(google: Platform) -> None:
    google.connect("google")
    google.container.write(f"{CONFIG}.template", "[Snapshots]\nenabled\n", 0o644)
    assert f"{CONFIG}.template" in "\n".join(google.complaints)


@pytest.mark.parametrize("line", ["enabled = yes", "enabled = 1"])
def test_what_google_takes_for_true_is_true(google: Platform, line: str) -> None:
    google.connect("google")
    google.container.write(f"{CONFIG}.template", f"[Snapshots]\n{line}\n", 0o644)
    assert google.complaints == []


# --- AWS -----------------------------------------------------------------------------------------


@pytest.fixture
def aws(platform: Platform) -> Platform:
    """Debian has no amazon-ssm-agent. Where that writes, nothing is frozen: there is a disk
    besides."""
    platform.container.add_filesystem("/data")
    program = platform.container.write("/usr/bin/amazon-ssm-agent", "#!/bin/sh\n", 0o755)
    platform.container.added.callback(program.unlink)
    platform.idle("amazon-ssm-agent.service")
    return platform


def document() -> Mapping[str, Any]:
    """What is uploaded: JSON would do as well."""
    found: Mapping[str, Any] = json.loads(json.dumps(yaml.safe_load(DOCUMENT.read_text())))
    return found


def send(platform: Platform, command: str) -> int:
    """As the SSM agent does: what the document says, put into a file, by sh."""
    (step,) = document()["mainSteps"]
    text = "\n".join(step["inputs"]["runCommand"]).replace("{{ command }}", command)
    assert "{{" not in text
    platform.container.write("/run/vmsnap-test/_script.sh", text, 0o700)
    return platform.container.run("sh", "-c", "/run/vmsnap-test/_script.sh").returncode


def test_the_document_has_all_that_data_lifecycle_manager_asks_for() -> None:
    found = document()
    assert found["schemaVersion"] == "2.2"
    parameters = found["parameters"]
    assert parameters["command"]["default"] == "dry-run"
    assert parameters["command"]["allowedValues"] == ["pre-script", "post-script", "dry-run"]
    assert {parameter["type"] for parameter in parameters.values()} == {"String"}
    assert parameters["executionId"]["default"] == "None"
    uuid = "[a-fA-F0-9]{8}-[a-fA-F0-9]{4}-[a-fA-F0-9]{4}-[a-fA-F0-9]{4}-[a-fA-F0-9]{12}"
    assert parameters["executionId"]["allowedPattern"] == f"^(None|{uuid})$"
    (step,) = found["mainSteps"]
    assert step["action"] == "aws:runShellScript"
    assert step["precondition"] == {"StringEquals": ["platformType", "Linux"]}


def test_data_lifecycle_manager_begins_and_ends_a_session(aws: Platform) -> None:
    aws.database()
    before = aws.etc
    aws.connect("aws")
    assert aws.etc == before  # the document is all there is to it
    (told,) = aws.complaints
    assert told.startswith("warning: aws: / is not frozen in its sessions")
    assert send(aws, "dry-run") == 0
    assert send(aws, "post-script") == 205
    assert send(aws, "pre-script") == 0
    assert (aws.container.frozen("/data"), aws.container.frozen("/")) == (True, False)
    assert send(aws, "pre-script") == 204
    assert send(aws, "post-script") == 0
    assert not aws.container.frozen("/data")
    assert aws.last == ("success", "application", [])


def test_data_lifecycle_manager_is_told_what_failed(aws: Platform) -> None:
    aws.strict()
    aws.app(pre="exit 1", post=":")
    assert send(aws, "pre-script") == 201
    aws.app(pre=":", post="exit 1")
    assert send(aws, "pre-script") == 0
    assert send(aws, "post-script") == 202
    aws.container.write("/etc/vmsnap/apps.d/db.json", "{")
    assert send(aws, "dry-run") == 206


def test_data_lifecycle_manager_is_told_that_it_came_too_late(aws: Platform) -> None:
    aws.container.write("/etc/vmsnap/vmsnap.conf.d/hold.conf", "[freeze]\nhold = 1\n")
    assert send(aws, "pre-script") == 0
    aws.wait_for_failure()
    assert send(aws, "post-script") == 203


def test_without_the_agent_of_aws_nobody_would_call(platform: Platform) -> None:
    done = platform.integrate("aws")
    assert (done.code, "install amazon-ssm-agent" in done.err) == (1, True)
    assert len(platform.complaints) == 1
    assert platform.integrate("--remove").code == 0
    assert platform.complaints == []
    assert not platform.container.path("/var/lib/vmsnap/integration.json").exists()
