# SPDX-License-Identifier: Apache-2.0
"""apt, in directories of its own and without a network, takes the repository and no changed one.

That it installs from it is shown in tests/system.
"""

from __future__ import annotations

import gzip
import re
import shutil
import subprocess
import tempfile
from pathlib import Path

import pytest

from release import repository

from . import made
from .made import NEW, OLD

EMPTY = (
    "etc/apt/preferences.d",
    "etc/apt/apt.conf.d",
    "var/lib/apt/lists/partial",
    "var/cache/apt/archives/partial",
)


class Client:
    """An apt that knows one repository, by its vmsnap.sources with the paths of this test in it."""

    def __init__(self, directory: Path) -> None:
        self.root, self.published = directory / "root", directory / "published"
        for name in (*EMPTY, "etc/apt/sources.list.d", "etc/apt/keyrings", "downloads"):
            (self.root / name).mkdir(parents=True)
        (self.root / "var/lib/dpkg").mkdir(parents=True)
        (self.root / "var/lib/dpkg/status").touch()
        shutil.copytree(made.repositories() / "apt", self.published / "apt")
        key = self.root / "etc/apt/keyrings/vmsnap.asc"
        shutil.copy(made.repositories() / "vmsnap.asc", key)
        text = (made.repositories() / "vmsnap.sources").read_text(encoding="utf-8")
        text = text.replace("/etc/apt/keyrings/vmsnap.asc", str(key))
        text = text.replace(made.URL, f"file://{self.published}")
        sources = self.root / "etc/apt/sources.list.d/vmsnap.sources"
        sources.write_text(text, encoding="utf-8")
        # Read before any other configuration, so that none of this machine's is.
        self.configuration = self.root / "apt.conf"
        self.configuration.write_text(
            f'''
            Dir "{self.root}";
            Dir::State::status "{self.root}/var/lib/dpkg/status";
            Dir::Bin::methods "/usr/lib/apt/methods";
            APT::Sandbox::User "root"; // who may read pytest's directories
            APT::Architecture "amd64";
            APT::Update::Error-Mode "any";
            ''',
            encoding="utf-8",
        )

    def apt_get(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            ["apt-get", "-q", *arguments],
            cwd=self.root / "downloads",
            env={"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "APT_CONFIG": str(self.configuration)},
            capture_output=True,
            text=True,
            check=False,
        )

    def refuses(self) -> str:
        """Whether nothing of the repository can be downloaded after an update; the reason."""
        updated = self.apt_get("update")
        assert updated.returncode != 0
        assert self.apt_get("download", "vmsnap").returncode != 0
        assert self.downloaded() == []
        return updated.stderr

    def downloaded(self) -> list[str]:
        return sorted(path.name for path in (self.root / "downloads").iterdir())

    def rewrite_index(self) -> None:
        """What names another version, in all of its forms, with or without a new signature."""
        index = self.published / "apt/Packages"
        changed = index.read_bytes().replace(b"Version: ", b"Version: 9.")
        index.write_bytes(changed)
        index.with_suffix(".gz").write_bytes(gzip.compress(changed, mtime=0))


@pytest.fixture
def client(tmp_path: Path) -> Client:
    return Client(tmp_path)


def test_the_repository_is_taken_and_both_versions_can_be_had(client: Client) -> None:
    updated = client.apt_get("update")
    assert (updated.returncode, updated.stderr) == (0, "")
    for version, wanted in ((NEW, "vmsnap"), (OLD, f"vmsnap={OLD}")):
        done = client.apt_get("download", wanted)
        assert done.returncode == 0, done.stderr
        downloaded = client.root / "downloads" / f"vmsnap_{version}_all.deb"
        assert downloaded.read_bytes() == made.package(version).read_bytes()
    assert len(client.downloaded()) == 2


def test_a_changed_index_is_refused(client: Client) -> None:
    client.rewrite_index()
    assert re.search("Hash Sum mismatch|unexpected size", client.refuses())


def test_a_changed_index_with_new_checksums_is_refused_without_a_new_signature(
    client: Client,
) -> None:
    client.rewrite_index()
    signed = (client.published / "apt/InRelease").read_text(encoding="utf-8")
    genuine, forged = made.repositories() / "apt", client.published / "apt"
    for name in ("Packages", "Packages.gz"):
        for algorithm in ("md5", "sha1", "sha256", "sha512"):
            old, new = (
                subprocess.run(
                    [f"{algorithm}sum", str(place / name)],
                    capture_output=True,
                    text=True,
                    check=True,
                ).stdout.split()[0]
                for place in (genuine, forged)
            )
            assert old in signed
            size = f" {(genuine / name).stat().st_size} {name}\n"
            signed = signed.replace(old, new)
            signed = signed.replace(size, f" {(forged / name).stat().st_size} {name}\n")
    for name in ("Release", "Release.gpg"):
        (forged / name).unlink()
    (forged / "InRelease").write_text(signed, encoding="utf-8")
    assert "signatures were invalid" in client.refuses()


def test_a_changed_package_is_refused_and_not_kept(client: Client) -> None:
    assert client.apt_get("update").returncode == 0
    package = client.published / "apt" / f"vmsnap_{NEW}_all.deb"
    data = bytearray(package.read_bytes())
    data[-100] ^= 1
    package.write_bytes(data)
    done = client.apt_get("download", "vmsnap")
    assert done.returncode != 0
    assert "Hash Sum mismatch" in done.stderr
    assert client.downloaded() == []


def test_an_index_that_another_key_signed_is_refused(
    client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    # gpg-agent's socket wants a short path, and goes when it likes, which this does not mind.
    with tempfile.TemporaryDirectory(prefix="gpg-") as home:
        monkeypatch.setenv("GNUPGHOME", home)
        try:
            wanted = ("--quick-generate-key", "vmsnap test", "rsa2048", "sign", "never")
            command = ["gpg", "--batch", "--quiet", "--passphrase", "", *wanted]
            subprocess.run(command, check=True, capture_output=True)
            client.rewrite_index()
            repository.apt([], client.published / "apt", "vmsnap test")
        finally:
            subprocess.run(["gpgconf", "--kill", "gpg-agent"], check=True)
    assert "NO_PUBKEY" in client.refuses()


def test_an_index_without_a_signature_is_refused(client: Client) -> None:
    for name in ("InRelease", "Release.gpg"):
        (client.published / "apt" / name).unlink()
    assert "is not signed" in client.refuses()


def test_an_index_that_is_signed_beside_it_is_taken(client: Client) -> None:
    """Release and Release.gpg do as well: for those who read no InRelease."""
    (client.published / "apt/InRelease").unlink()
    assert client.apt_get("update").returncode == 0
    assert client.apt_get("download", "vmsnap").returncode == 0
    assert client.downloaded() == [f"vmsnap_{NEW}_all.deb"]
