# SPDX-License-Identifier: Apache-2.0
"""`apt-get install vmsnap` from a signed repository, and that what it installs does its work."""

from __future__ import annotations

import json
import stat
from collections.abc import Iterator

import pytest

from release import source
from tests.packages import made
from vmsnap.errors import Kind

from . import debian
from .apps import UNIT, Scene, scene_of, until
from .container import Container
from .debian import CHECK, CONFIGURATION, PATH, TIMER
from .image import DEBIAN11, DEBIAN12, DEBIAN13, OURS, Recipe

SYSTEMS = (DEBIAN11, DEBIAN12, DEBIAN13)
PACKAGES = "/usr/lib/python3/dist-packages"
DOCUMENTS = "/usr/share/doc/vmsnap"
PAGES = (
    ("1", "vmsnap"),
    ("5", "vmsnap.conf"),
    ("5", "vmsnap-app"),
    ("8", "vmsnap-session.service"),
)
COMPLETIONS = (
    "/usr/share/bash-completion/completions/vmsnap",
    "/usr/share/zsh/vendor-completions/_vmsnap",
    "/usr/share/fish/vendor_completions.d/vmsnap.fish",
)


@pytest.fixture(scope="module", params=SYSTEMS, ids=lambda recipe: recipe.name)
def machine(request: pytest.FixtureRequest) -> Iterator[Container]:
    """Where it has just been installed, as an administrator does it."""
    recipe: Recipe = request.param
    container = Container(recipe, debian.prepare)
    try:
        debian.add_repository(container)
        debian.apt(container, "install", "vmsnap")
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
    until(lambda: debian.state(installed, CHECK)[1] == "active")


# --- what is there after the installation --------------------------------------------------------


def test_the_newest_version_is_installed_and_in_order(installed: Container) -> None:
    debian.assert_well(installed, made.NEW)
    assert "everything is in order" in installed.status(CHECK)


def test_nothing_is_frozen_or_scheduled_or_left_running(installed: Container) -> None:
    assert debian.state(installed, TIMER) == ("disabled", "inactive")
    for unit in (UNIT, "vmsnap-backup.service"):
        assert debian.state(installed, unit) == ("static", "inactive")
    assert not installed.frozen("/")
    assert not [name for name in ("vmsnap", "vmsnap-guard") if installed.pids(name)]
    assert not installed.path("/run/vmsnap").exists()


def test_what_it_needs_comes_from_debian(installed: Container) -> None:
    for package in OURS:
        policy = installed.run("apt-cache", "policy", package, check=True).stdout
        _, _, here = policy.partition("***")  # the installed version, then where it is from
        assert "/srv/debian" in here, policy
        assert "/srv/vmsnap" not in here, policy
    installed.run("python3", "-IBc", "import distro, jsonschema, sdnotify", check=True)


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


def test_completion_schema_and_examples_are_there(installed: Container) -> None:
    for path in COMPLETIONS:
        assert "vmsnap" in installed.read(path)
    schema = json.loads(installed.read("/usr/share/vmsnap/app.schema.json"))
    assert "preScriptLocation" in schema["properties"]
    for tracked in source.tracked(made.ROOT):
        if tracked.parts[0] == "examples":
            found = f"{DOCUMENTS}/{tracked}"
            assert installed.path(found).exists() or installed.path(f"{found}.gz").exists(), found


def test_debian_finds_all_files_as_they_were_packed(installed: Container) -> None:
    verified = installed.run("dpkg", "--verify", "vmsnap")
    assert (verified.returncode, verified.stdout) == (0, "")


# --- and what is done with it --------------------------------------------------------------------


def test_the_modules_are_compiled_and_nothing_is_compiled_later(scene: Scene) -> None:
    container = scene.container
    tag = "import sys; print(sys.implementation.cache_tag)"
    cached = f".{container.run('python3', '-Ic', tag, check=True).stdout.strip()}.pyc"
    modules = container.path(f"{PACKAGES}/vmsnap")
    sources = set(modules.rglob("*.py"))
    assert modules / "session/session.py" in sources
    compiled = {path.parent / "__pycache__" / f"{path.stem}{cached}" for path in sources}
    assert set(modules.rglob("*.pyc")) == compiled
    argv = ("find", PACKAGES, "-name", "*.pyc", "-printf", "%p %T@\\n")
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
    until(lambda: debian.state(container, CHECK)[1] == "failed")
    assert "scriptrunner" in container.status(CHECK)
    app.write_text(good)
    until(lambda: debian.state(container, CHECK)[1] == "active")
    assert debian.state(container, PATH)[1] == "active"
    assert container.systemctl("is-system-running").stdout == "running\n"
