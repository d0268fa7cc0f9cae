# SPDX-License-Identifier: Apache-2.0
"""What only apt and dpkg have: indexes and packages that were changed on the way, a package that is
unpacked and not configured, and policy-rc.d."""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.packages import made

from .apps import Scene, scene_of
from .container import Container
from .debian import APT, FORBIDDEN, POLICY
from .package_manager import (
    DATA,
    PATIENCE,
    SERVED,
    begin_scheduled,
    booted,
    last_result,
)

FAILED = "resumed failed none"


@pytest.fixture(scope="module")
def prepared() -> Iterator[tuple[Container, str]]:
    """Where the older version was installed before the first boot, and what apt said then."""
    said: dict[str, str] = {}

    def prepare(root: Path) -> None:
        said.update(APT.prepare_with(root, ("install", made.OLD)))

    with booted(APT.system, prepare) as machine:
        yield machine, said["install"]


@pytest.fixture
def old(prepared: tuple[Container, str]) -> Iterator[Container]:
    machine, _ = prepared
    if APT.version(machine) != made.OLD:
        APT.put_back(machine, made.OLD)
    machine.reset()
    with machine.guarded():
        yield machine


@pytest.fixture
def data(old: Container) -> Iterator[Scene]:
    """With a filesystem beside `/`: apt can write while it is frozen."""
    old.add_filesystem(DATA)
    with scene_of(old) as found:
        yield found


def test_installed_where_no_systemd_runs_it_tells_of_its_links_and_of_nothing_else(
    prepared: tuple[Container, str],
) -> None:
    _, said = prepared
    block = r"^Setting up vmsnap .*\n((?:.*\n)*?)(?=Setting|Processing)"
    (ours,) = re.findall(block, said, re.M)
    assert all(line.startswith("Created symlink ") for line in filter(None, ours.split("\n"))), ours


# --- what nobody has signed ----------------------------------------------------------------------


def tamper(path: Path) -> None:
    """Its size stays."""
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("InRelease", ("update", "--error-on=any")),
        ("Packages.gz", ("update", "--error-on=any")),
        (f"vmsnap_{made.NEW}_all.deb", ("install", f"vmsnap={made.NEW}")),
    ],
    ids=["InRelease", "Packages.gz", "package"],
)
def test_what_was_tampered_with_is_refused(
    old: Container, name: str, words: tuple[str, ...]
) -> None:
    served = old.path(f"/{SERVED}")
    if name == "Packages.gz":
        (served / "apt/Packages").unlink()  # apt takes the one or the other
    try:
        tamper(served / "apt" / name)
        if words[0] == "update":  # or what has not changed would not be read again
            shutil.rmtree(old.path("/var/lib/apt/lists"))
        done = old.run(*APT.program, *words, env=APT.env, timeout=PATIENCE)
        assert done.returncode == 100, done.stdout
        assert re.search("Hash Sum mismatch|BADSIG|signature", done.stderr), done.stderr
        assert APT.version(old) == made.OLD
    finally:
        shutil.copytree(made.repositories(), served, dirs_exist_ok=True)
        old.run(*APT.program, "update", check=True, timeout=PATIENCE)
    APT.assert_well(old, made.OLD)


# --- removed -------------------------------------------------------------------------------------


def test_a_held_session_ends_when_only_the_files_of_an_upgrade_are_there(data: Scene) -> None:
    """dpkg runs no prerm then."""
    data.database()
    session = data.freeze(f"--only={DATA}")["session"]
    package = f"/{SERVED}/apt/vmsnap_{made.NEW}_all.deb"
    data.container.run("dpkg", "--unpack", package, check=True, timeout=PATIENCE)
    assert data.container.frozen(DATA)
    APT.run(data.container, "remove")
    assert not data.container.path("/usr/bin/vmsnap").exists()
    assert data.container.systemctl("list-units", "--failed", "--plain", "--no-legend").stdout == ""
    assert not data.container.pids("vmsnap")
    assert not data.container.frozen(DATA)
    assert data.events.heard == ["quiesced", FAILED]
    result = last_result(data.container)
    assert (result["session"], result["outcome"]) == (session, "failed")


def test_a_scheduled_session_ends_even_if_services_are_not_to_be_touched(data: Scene) -> None:
    begin_scheduled(data)
    policy = data.container.write(POLICY, FORBIDDEN, 0o755)
    try:
        APT.run(data.container, "remove")
    finally:
        policy.unlink()
    assert not data.container.pids("vmsnap")
    assert not data.container.frozen(DATA)
    assert data.events.heard == ["quiesced", "held", FAILED]
    assert last_result(data.container)["outcome"] == "failed"
