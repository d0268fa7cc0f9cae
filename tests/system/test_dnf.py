# SPDX-License-Identifier: Apache-2.0
"""What only dnf has: presets, and keys that are trusted for all repositories. What it does not
install: packages and indexes that nobody signed, or somebody else, or that were changed
afterwards."""

from __future__ import annotations

import functools
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from release import signing
from release.command import call
from tests.packages import made

from .container import Container
from .distribution import DNF, KEPT
from .package_manager import CHECK, PATH, PATIENCE, TIMER, booted, state

INDEX = "repodata/repomd.xml"
PRESETS = "/etc/systemd/system-preset/10-local.preset"


@pytest.fixture(scope="module")
def machine() -> Iterator[Container]:
    with booted(DNF.system, DNF.prepare) as container:
        DNF.add_repository(container)
        yield container


@pytest.fixture
def repository(machine: Container) -> Iterator[Path]:
    """What a web server of ours would hand out, for a test to change."""
    whole = machine.path(KEPT)
    yield whole / "rpm/debian"
    shutil.rmtree(whole)
    shutil.copytree(made.repositories(), whole)


@functools.cache
def another_key() -> str:
    """Of somebody else, whom no administrator has been told to trust."""
    ours = made.key()
    wanted = ("--quick-generate-key", "somebody else", "rsa3072", "sign", "never")
    call("gpg", "--batch", "--quiet", "--passphrase", "", *wanted)
    listed = call("gpg", "--batch", "--with-colons", "--list-secret-keys").decode()
    fingerprints = [line.split(":")[9] for line in listed.splitlines() if line.startswith("fpr:")]
    return next(found for found in fingerprints if found != ours)


def newest(repository: Path) -> Path:
    (package,) = repository.glob(f"vmsnap-{made.NEW}-*.rpm")
    return package


def change(path: Path) -> None:
    """One bit in the middle."""
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def sign(repository: Path, key: str) -> None:
    index = repository / INDEX
    index.with_name("repomd.xml.asc").write_bytes(signing.detached(index, key))


def make_index(repository: Path) -> None:
    """Anew, and with our signature: as if all that is there were ours."""
    call("createrepo_c", "--quiet", "--no-database", repository)
    sign(repository, made.key())


# --- what somebody can do to it ------------------------------------------------------------------


def change_the_index(repository: Path) -> None:
    change(repository / INDEX)


def remove_the_signature_of_the_index(repository: Path) -> None:
    (repository / f"{INDEX}.asc").unlink()


def sign_the_index_with_another_key(repository: Path) -> None:
    sign(repository, another_key())


def replace_all_the_keys_but_the_administrators(repository: Path) -> None:
    """Somebody who has the server: everything is signed by one key, only not by ours."""
    signing.sign_rpms(list(repository.glob("*.rpm")), another_key())
    make_index(repository)
    sign(repository, another_key())


def change_the_package(repository: Path) -> None:
    change(newest(repository))


def change_the_package_and_its_entry_in_the_index(repository: Path) -> None:
    change(newest(repository))
    make_index(repository)


def remove_the_signature_of_the_package(repository: Path) -> None:
    call("rpmsign", "--delsign", newest(repository))
    make_index(repository)


def sign_the_package_with_another_key(repository: Path) -> None:
    signing.sign_rpms([newest(repository)], another_key())
    make_index(repository)


@pytest.mark.parametrize(
    ("tamper", "word"),
    [
        (change_the_index, "signature"),
        (remove_the_signature_of_the_index, "repomd.xml.asc"),
        (sign_the_index_with_another_key, "signature"),
        (replace_all_the_keys_but_the_administrators, "signature"),
        (change_the_package, "checksum"),
        (change_the_package_and_its_entry_in_the_index, "gpg check failed"),
        (remove_the_signature_of_the_package, "not signed"),
        (sign_the_package_with_another_key, "gpg check failed"),
    ],
    ids=lambda value: value.__name__ if callable(value) else "",
)
def test_nothing_is_installed(
    machine: Container,
    repository: Path,
    tamper: Callable[[Path], None],
    word: str,
) -> None:
    tamper(repository)
    before = machine.run("rpm", "-qa", check=True).stdout
    machine.run("dnf", "clean", "all", check=True)
    refused = machine.run(*DNF.argv("install"), timeout=PATIENCE)
    said = refused.stdout + refused.stderr
    assert refused.returncode != 0, said
    assert word in said.lower(), said
    after = machine.run("rpm", "-qa", check=True).stdout
    assert after == before
    assert not machine.path("/usr/bin/vmsnap").exists()


def test_what_nobody_touched_is_installed(machine: Container) -> None:
    machine.run("dnf", "clean", "all", check=True)
    DNF.run(machine, "install")
    assert DNF.version(machine) == made.NEW


# --- keys and presets ----------------------------------------------------------------------------


def test_no_key_but_ours_is_trusted(machine: Container) -> None:
    DNF.run(machine, "install")
    argv = ("rpm", "--query", "--queryformat", "%{VERSION}\n", "gpg-pubkey")
    assert machine.run(*argv, check=True).stdout.split() == [made.key()[-8:].lower()]


def test_what_a_preset_of_the_administrator_disables_is_not_started(machine: Container) -> None:
    DNF.erase(machine)
    machine.write(PRESETS, "disable vmsnap-*\n", 0o644)
    DNF.run(machine, "install")
    for unit in (CHECK, PATH, TIMER):
        assert state(machine, unit) == ("disabled", "inactive"), unit
    assert machine.run("vmsnap", "check").returncode == 0
