# SPDX-License-Identifier: Apache-2.0
"""A platform is one file: put it into the folder, and every command knows it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from vmsnap import platforms
from vmsnap.cli.main import parser
from vmsnap.config.checks import Inspection
from vmsnap.platforms import detect, diagnose
from vmsnap.platforms.agent import Act
from vmsnap.platforms.integrate import connect, disconnect, traces
from vmsnap.platforms.registry import agents
from vmsnap.provision.validation import schema

ACME = '''
"""The guest agent of Acme's cloud."""

from vmsnap.platforms.agent import Act, Agent, Connection, Detection, error, program
from vmsnap.system.files import File


def connection(root):
    return Connection(
        programs=("usr/bin/acme-agent",),
        units=("acme-agent.service",),
        package="acme-agent",
        host="acme snapshot VM",
        files=(File(root / "etc/acme/hook", program("acme", '"$1"', "acme calls this."), 0o755),),
    )


def checks(connected, running, root):
    if (root / "etc/acme/off").exists():
        yield error(root / "etc/acme/off", "acme is switched off")


AGENT = Agent(
    name="acme",
    events={"quiesce": Act.BEGIN, "resume": Act.END},
    freezes=False,
    connection=connection,
    detection=Detection(vendors=("Acme",)),
    checks=checks,
)
'''
SHIPPED = ["aws", "azure", "google", "nutanix", "qemu", "vmware"]


@pytest.fixture
def acme(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    folder = tmp_path / "platforms"
    folder.mkdir()
    (folder / "acme.py").write_text(ACME)
    monkeypatch.setattr(platforms, "__path__", [*platforms.__path__, str(folder)])
    agents.cache_clear()
    yield
    agents.cache_clear()


@pytest.fixture
def root(trusted_dir: Path) -> Path:
    path = trusted_dir / "root"
    path.mkdir()
    return path


def test_the_platforms_that_vmsnap_comes_with() -> None:
    assert list(agents()) == SHIPPED


def test_a_module_is_named_after_its_agent() -> None:
    for name in agents():
        assert (Path(platforms.__file__).parent / f"{name}.py").exists()


def test_every_agent_begins_and_ends_sessions() -> None:
    for agent in agents().values():
        assert {Act.BEGIN, Act.END} <= set(agent.events.values())


@pytest.mark.parametrize(
    "words",
    [("integrate", "acme", "--dry-run"), ("hook", "acme", "quiesce"), ("hook", "acme", "x")],
)
def test_the_command_line_takes_a_new_platform(acme: None, words: tuple[str, ...]) -> None:
    assert parser().parse_args(words).agent == "acme"


def test_without_its_file_a_platform_is_unknown(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        parser().parse_args(["integrate", "acme"])
    assert all(name in capsys.readouterr().err for name in SHIPPED[:1])


def test_a_new_platform_is_connected_and_disconnected(acme: None, root: Path) -> None:
    state = root / "state"
    connect("acme", state, root=root)
    assert "hook acme" in (root / "etc/acme/hook").read_text()
    assert traces(state, root) == ["acme"]
    disconnect("acme", state, root=root)
    assert not (root / "etc/acme").exists()


def test_a_new_platform_is_checked(acme: None, root: Path) -> None:
    program = root / "usr/bin/acme-agent"
    program.parent.mkdir(parents=True)
    program.touch()
    connect("acme", root / "state", root=root)
    (root / "etc/acme/off").touch()
    found = Inspection()
    diagnose.inspect(found, root / "state", root, running=False)
    assert [problem.message for problem in found.problems] == ["acme: acme is switched off"]


def test_a_new_platform_is_recognized(acme: None, root: Path) -> None:
    vendor = root / "sys/class/dmi/id/sys_vendor"
    vendor.parent.mkdir(parents=True)
    vendor.write_text("Acme Inc.\n")
    assert detect.agent(root) == "acme"


def test_a_document_can_name_a_new_platform(acme: None) -> None:
    assert schema()["properties"]["integrate"]["enum"] == ["auto", "acme", *SHIPPED, False]
