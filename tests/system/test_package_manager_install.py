# SPDX-License-Identifier: Apache-2.0
"""vmsnap installed from a signed repository, as an administrator does it, and that what is
installed does its work."""

from __future__ import annotations

import json
import stat
from collections.abc import Iterator

import pytest

from release import source
from tests.packages import made
from vmsnap.errors import Kind

from .apps import UNIT, Scene, scene_of, until
from .container import Container
from .debian import APT
from .distribution import DNF
from .image import OURS, Recipe
from .package_manager import (
    BACKUP,
    CHECK,
    CONFIGURATION,
    DOCUMENTS,
    MODULES,
    PATH,
    TIMER,
    PackageManager,
    booted,
    default,
    stale_bytecode,
    state,
)

PAGES = (
    ("1", "vmsnap"),
    ("5", "vmsnap.conf"),
    ("5", "vmsnap-app"),
    ("8", "vmsnap-session.service"),
)


@pytest.fixture(
    scope="module",
    params=[(manager, system) for manager in (APT, DNF) for system in manager.systems],
    ids=lambda param: f"{param[0]}-{param[1].name}",
)
def installation(request: pytest.FixtureRequest) -> Iterator[tuple[PackageManager, Container]]:
    """Where it has just been installed."""
    manager: PackageManager = request.param[0]
    system: Recipe = request.param[1]
    with booted(system, manager.prepare) as container:
        manager.add_repository(container)
        manager.run(container, "install")
        yield manager, container


@pytest.fixture
def manager(installation: tuple[PackageManager, Container]) -> PackageManager:
    return installation[0]


@pytest.fixture
def installed(installation: tuple[PackageManager, Container]) -> Iterator[Container]:
    with installation[1].guarded():
        yield installation[1]


@pytest.fixture
def scene(installed: Container) -> Iterator[Scene]:
    with scene_of(installed) as found:
        yield found
    for path in installed.path("/etc/vmsnap").glob("*/*"):
        path.unlink()
    until(lambda: state(installed, CHECK)[1] == "active")


# --- what is there after the installation --------------------------------------------------------


def test_the_newest_version_is_installed_and_in_order(
    manager: PackageManager, installed: Container
) -> None:
    manager.assert_well(installed, made.NEW)
    assert "everything is in order" in installed.status(CHECK)


def test_nothing_is_frozen_or_scheduled_or_left_running(installed: Container) -> None:
    assert state(installed, TIMER) == ("disabled", "inactive")
    for unit in (UNIT, BACKUP):
        assert state(installed, unit) == ("static", "inactive")
    assert not installed.frozen("/")
    assert not [name for name in ("vmsnap", "vmsnap-guard") if installed.pids(name)]
    assert not installed.path("/run/vmsnap").exists()


def test_what_it_needs_comes_from_the_distribution_and_from_us_only_what_that_lacks(
    manager: PackageManager, installed: Container
) -> None:
    expected = {name: {"vmsnap" if name in manager.from_ours else "distribution"} for name in OURS}
    assert manager.origins(installed) == expected
    installed.run("python3", "-IBc", "import distro, jsonschema, sdnotify", check=True)


def test_only_root_reads_the_configuration_and_the_state(installed: Container) -> None:
    directories = ("apps.d", "scripts", "vmsnap.conf.d")
    for directory in ("/var/lib/vmsnap", "/etc/vmsnap", *(f"/etc/vmsnap/{d}" for d in directories)):
        assert mode_and_owner(installed, directory) == (0o700, 0, 0), directory
    assert mode_and_owner(installed, CONFIGURATION) == (0o600, 0, 0)
    assert installed.read(CONFIGURATION) == default(made.NEW)


def mode_and_owner(container: Container, inside: str) -> tuple[int, int, int]:
    found = container.path(inside).stat()
    return stat.S_IMODE(found.st_mode), found.st_uid, found.st_gid


def test_the_manual_can_be_read(installed: Container) -> None:
    for section, page in PAGES:
        text = installed.run("man", section, page, check=True).stdout
        assert text.splitlines()[0].startswith(f"{page.upper()}({section})"), text[:200]


def test_the_documents_and_the_examples_can_be_read(
    manager: PackageManager, installed: Container
) -> None:
    listed = manager.documents(installed)
    for path in listed:
        assert installed.path(path).exists(), path
    names = {path.removesuffix(".gz") for path in listed}
    for name in ("README.md", "units.md", "session.svg", "examples/README.md"):
        assert [path for path in names if path.endswith(f"/{name}")], name
    for tracked in source.tracked(made.ROOT):
        if tracked.parts[0] == "examples":
            assert f"{DOCUMENTS}/{tracked}" in names


def test_the_completions_and_the_schema_are_there(
    manager: PackageManager, installed: Container
) -> None:
    bash, fish = "bash-completion/completions/vmsnap", "fish/vendor_completions.d/vmsnap.fish"
    for path in (f"/usr/share/{bash}", f"/usr/share/{fish}", f"{manager.completions}/_vmsnap"):
        assert "vmsnap" in installed.read(path)
    schema = json.loads(installed.read("/usr/share/vmsnap/app.schema.json"))
    assert "preScriptLocation" in schema["properties"]


# --- and what is done with it --------------------------------------------------------------------


def test_all_files_are_as_they_were_packed_also_after_a_session(
    manager: PackageManager, scene: Scene
) -> None:
    verified = manager.verify(scene.container)
    assert (verified.returncode, verified.stdout) == (0, "")
    scene.freeze()
    assert scene.thaw().code == 0
    verified = manager.verify(scene.container)
    assert (verified.returncode, verified.stdout) == (0, "")


def test_the_modules_are_compiled_and_nothing_is_compiled_later(scene: Scene) -> None:
    container = scene.container
    tag = "import sys; print(sys.implementation.cache_tag)"
    cached = f".{container.run('python3', '-Ic', tag, check=True).stdout.strip()}.pyc"
    modules = container.path(f"{MODULES}/vmsnap")
    sources = set(modules.rglob("*.py"))
    assert modules / "session/session.py" in sources
    compiled = {path.parent / "__pycache__" / f"{path.stem}{cached}" for path in sources}
    assert set(modules.rglob("*.pyc")) == compiled
    assert stale_bytecode(container) == []
    argv = ("find", MODULES, "-name", "*.pyc", "-printf", "%p %T@\\n")
    before = container.run(*argv, check=True).stdout
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


def test_a_session_around_a_command_is_application_consistent(scene: Scene) -> None:
    scene.database()
    outcome = scene.vmsnap("run", "--json", "--", "true")
    assert outcome.verdict == ("success", "application", 0)
    assert [entry["mount"] for entry in outcome.result["filesystems"]] == ["/"]
    assert scene.events.heard == ["quiesced", "resumed success application"]


def test_the_journal_explains_what_went_wrong(scene: Scene) -> None:
    scene.database(pre="exit 1")
    session = scene.vmsnap("run", "--json", "--no-fsfreeze", "--", "true").result["session"]
    match = f"VMSNAP_SESSION={session}"
    scene.container.run("journalctl", "--sync", check=True)
    told = scene.container.run("journalctl", "-x", "-p", "err", match, check=True).stdout
    text = " ".join(told.replace("\u2591\u2591", "").replace("-- ", "").split())
    kind = Kind.PRE_SCRIPT_EXECUTION_FAILED
    assert f"Subject: {kind.summary}" in text
    assert f"What to do: {kind.action}." in text


def test_a_broken_app_file_is_a_failed_unit_by_itself_until_it_is_mended(scene: Scene) -> None:
    container = scene.container
    scene.app(pre="exit 0")
    app = container.path("/etc/vmsnap/apps.d/db.json")
    good = app.read_text()
    app.write_text(good.replace("ScriptRunner", "scriptrunner"))
    until(lambda: state(container, CHECK)[1] == "failed")
    assert "scriptrunner" in container.status(CHECK)
    app.write_text(good)
    until(lambda: state(container, CHECK)[1] == "active")
    assert state(container, PATH)[1] == "active"
    assert container.systemctl("is-system-running").stdout == "running\n"
