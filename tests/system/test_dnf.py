# SPDX-License-Identifier: Apache-2.0
"""`dnf install vmsnap` from a signed repository, and that what it installs does its work."""

from __future__ import annotations

import json
import stat
from collections.abc import Iterator

import pytest

from tests.packages import made
from vmsnap.errors import Kind

from . import distribution
from .apps import UNIT, Scene, scene_of, until
from .container import Container
from .image import DNF

CHECK, PATH, TIMER = "vmsnap-check.service", "vmsnap-check.path", "vmsnap-backup.timer"
CONFIGURATION = "/etc/vmsnap/vmsnap.conf"
PAGES = (
    ("1", "vmsnap"),
    ("5", "vmsnap.conf"),
    ("5", "vmsnap-app"),
    ("8", "vmsnap-session.service"),
)


@pytest.fixture(scope="module")
def machine() -> Iterator[Container]:
    """Where it has just been installed, as an administrator does it."""
    container = Container(DNF, distribution.prepare)
    try:
        distribution.done(container, "install", "vmsnap")
        yield container
    finally:
        container.close()


@pytest.fixture
def installed(machine: Container) -> Iterator[Container]:
    with machine.guarded():
        yield machine


@pytest.fixture
def scene(installed: Container) -> Iterator[Scene]:
    with scene_of(installed) as found:
        yield found
    for path in installed.path("/etc/vmsnap").glob("*/*"):
        path.unlink()


# --- what is there after the installation --------------------------------------------------------


def test_the_installed_program_runs(installed: Container) -> None:
    assert installed.run("vmsnap", "--version", check=True).stdout == f"vmsnap {made.NEW}\n"
    assert distribution.versions(installed) == [made.NEW]


def test_sdnotify_comes_from_our_repository_and_the_rest_from_the_distribution(
    installed: Container,
) -> None:
    form = "%{name} %{from_repo}"
    argv = ("dnf", "--quiet", "repoquery", "--installed", f"--queryformat={form}", "python3-*")
    sources = dict(line.split() for line in installed.run(*argv, check=True).stdout.splitlines())
    assert sources == {
        "python3-distro": "distribution",
        "python3-jsonschema": "distribution",
        "python3-sdnotify": "vmsnap",
    }
    installed.run("python3", "-IBc", "import distro, jsonschema, sdnotify", check=True)


def test_no_key_but_ours_is_trusted(installed: Container) -> None:
    argv = ("rpm", "--query", "--queryformat", "%{VERSION}\n", "gpg-pubkey")
    assert installed.run(*argv, check=True).stdout.split() == [made.key()[-8:].lower()]


def test_the_configuration_is_watched_at_once_and_nothing_else_is_on(installed: Container) -> None:
    assert distribution.state(installed, CHECK) == ("enabled", "active")
    assert distribution.state(installed, PATH) == ("enabled", "active")
    assert distribution.state(installed, TIMER) == ("disabled", "inactive")
    assert distribution.state(installed, "vmsnap-backup.service")[1] == "inactive"
    assert distribution.state(installed, UNIT)[1] == "inactive"


def test_nothing_failed_and_nothing_is_frozen(installed: Container) -> None:
    assert installed.systemctl("is-system-running").stdout == "running\n"
    assert not installed.frozen("/")
    assert not installed.path("/run/vmsnap").exists()


def test_only_root_reads_the_configuration_and_the_state(installed: Container) -> None:
    directories = ("apps.d", "scripts", "vmsnap.conf.d")
    for directory in ("/var/lib/vmsnap", "/etc/vmsnap", *(f"/etc/vmsnap/{d}" for d in directories)):
        assert mode_and_owner(installed, directory) == (0o700, 0, 0), directory
    assert mode_and_owner(installed, CONFIGURATION) == (0o600, 0, 0)
    assert installed.read(CONFIGURATION) == (made.ROOT / "etc/vmsnap.conf").read_text()


def mode_and_owner(container: Container, inside: str) -> tuple[int, int, int]:
    found = container.path(inside).stat()
    return stat.S_IMODE(found.st_mode), found.st_uid, found.st_gid


def test_the_manual_can_be_read(installed: Container) -> None:
    for section, page in PAGES:
        text = installed.run("man", section, page, check=True).stdout
        assert text.splitlines()[0].startswith(f"{page.upper()}({section})"), text[:200]


def test_the_documents_and_the_schema_can_be_read(installed: Container) -> None:
    listed = installed.run("rpm", "--query", "--docfiles", "vmsnap", check=True).stdout.split()
    for path in listed:
        assert installed.path(path).exists(), path
    for name in ("/README.md", "/units.md", "/session.svg", "/examples/README.md"):
        assert [path for path in listed if path.endswith(name)], name
    schema = json.loads(installed.read("/usr/share/vmsnap/app.schema.json"))
    assert "preScriptLocation" in schema["properties"]


# --- and what is done with it --------------------------------------------------------------------


def test_the_modules_are_compiled_and_nothing_is_compiled_later(scene: Scene) -> None:
    container = scene.container
    argv = ("find", "/usr/lib/python3/dist-packages", "-name", "*.pyc", "-printf", "%p %T@\\n")
    before = container.run(*argv, check=True).stdout
    assert distribution.stale_bytecode(container) == []
    scene.database()
    scene.freeze()
    for command in (("thaw",), ("status",), ("history",), ("plan",), ("check",), ("--version",)):
        assert scene.vmsnap(*command).code == 0
    assert container.run(*argv, check=True).stdout == before


def test_a_session_with_the_root_filesystem_frozen_is_application_consistent(scene: Scene) -> None:
    scene.database()
    held = scene.freeze("--hold=20")
    assert held["filesystems"] == ["/"]
    assert scene.container.frozen("/")
    outcome = scene.thaw()
    assert not scene.container.frozen("/")
    assert outcome.verdict == ("success", "application", 0)
    assert outcome.errors == []
    assert scene.events.heard == ["quiesced", "resumed success application"]


def test_rpm_finds_nothing_changed_after_a_session(scene: Scene) -> None:
    scene.freeze()
    assert scene.thaw().code == 0
    packages = ("vmsnap", "python3-sdnotify")
    verified = scene.container.run("rpm", "--verify", *packages)
    assert (verified.returncode, verified.stdout) == (0, "")


def test_the_journal_explains_what_went_wrong(scene: Scene) -> None:
    scene.database(pre="exit 1")
    session = scene.vmsnap("run", "--json", "--no-fsfreeze", "--", "true").result["session"]
    match = f"VMSNAP_SESSION={session}"
    scene.container.run("journalctl", "--sync", check=True)
    told = scene.container.run("journalctl", "-x", "-p", "err", match, check=True).stdout
    text = " ".join(told.replace("\u2591\u2591", "").split())
    kind = Kind.PRE_SCRIPT_EXECUTION_FAILED
    assert f"Subject: {kind.summary}" in text
    assert f"What to do: {kind.action}." in text


def test_a_broken_app_file_is_a_failed_unit_by_itself_until_it_is_mended(scene: Scene) -> None:
    container = scene.container
    scene.app(pre="exit 0")
    app = container.path("/etc/vmsnap/apps.d/db.json")
    good = app.read_text()
    app.write_text(good.replace("ScriptRunner", "scriptrunner"))
    until(lambda: distribution.state(container, CHECK)[1] == "failed")
    assert "scriptrunner" in container.status(CHECK)
    app.write_text(good)
    until(lambda: distribution.state(container, CHECK)[1] == "active")
    assert container.systemctl("is-system-running").stdout == "running\n"
