# SPDX-License-Identifier: Apache-2.0
"""The signed repositories as files: what is in them, every signature and every checksum.

How they are made is in test_repository_made.py, that apt refuses what was tampered with in
test_apt.py.
"""

from __future__ import annotations

import hashlib
import re
import subprocess
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest

from . import contents, made
from .made import NEW, OLD, ON_DEBIAN
from .publishing import key_of, readable, stanzas


@pytest.fixture(scope="module")
def published() -> Path:
    return made.repositories()


@pytest.fixture
def public(tmp_path: Path, published: Path) -> Path:
    """The published key, as gpgv wants it."""
    ring = tmp_path / "vmsnap.gpg"
    ring.write_bytes(contents.call("gpg", "--dearmor", stdin=key_of(published)))
    return ring


def sum_of(path: Path, algorithm: str = "sha256") -> str:
    return hashlib.new(algorithm, path.read_bytes()).hexdigest()


def verified(public: Path, *files: Path) -> bool:
    command = ["gpgv", "--keyring", str(public), *map(str, files)]
    done = subprocess.run(command, capture_output=True, check=False)
    return done.returncode == 0


def test_no_secret_key_is_published(published: Path) -> None:
    listed = contents.call("gpg", "--show-keys", "--with-colons", stdin=key_of(published))
    kinds = [line.split(":")[0] for line in listed.decode().splitlines()]
    assert kinds.count("pub") == 1
    assert {"sec", "ssb"} & set(kinds) == set()
    fingerprints = [x.split(":")[9] for x in listed.decode().splitlines() if x.startswith("fpr")]
    assert fingerprints == [made.key()]
    for path in published.rglob("*"):
        assert path.is_dir() or b"PRIVATE KEY" not in path.read_bytes(), path


def test_a_client_can_read_everything_and_nothing_lies_around(published: Path) -> None:
    readable(published)
    assert [path for path in published.rglob("*") if path.name.startswith(".")] == []
    assert {path.name for path in published.iterdir()} == {
        "apt",
        "rpm",
        "vmsnap.asc",
        "vmsnap.sources",
    }
    assert [path.name for path in published.parent.iterdir() if path.name.startswith(".")] == []


def test_both_versions_are_in_the_index_of_apt_with_their_checksums(published: Path) -> None:
    directory = published / "apt"
    index = (directory / "Packages").read_text(encoding="utf-8")
    assert sorted(entry["Version"] for entry in stanzas(index)) == [OLD, NEW]
    for entry in stanzas(index):
        package = directory / entry["Filename"]
        assert int(entry["Size"]) == package.stat().st_size
        assert entry["SHA256"] == sum_of(package)
        assert entry["SHA512"] == sum_of(package, "sha512")
        built = made.package(entry["Version"])
        assert package.read_bytes() == built.read_bytes()


def test_the_release_file_of_apt_has_the_checksums_of_every_index(published: Path) -> None:
    directory = published / "apt"
    text = (directory / "Release").read_text(encoding="utf-8")
    listed = dict(
        (name, (digest, int(size)))
        for digest, size, name in re.findall(
            r"^ (\w+) +(\d+) (\S+)$", text.partition("SHA256:")[2].partition("SHA512:")[0], re.M
        )
    )
    assert {"Packages", "Packages.gz"} <= set(listed)
    for name, expected in listed.items():
        assert (sum_of(directory / name), (directory / name).stat().st_size) == expected, name
    assert not {"InRelease", "Release", "Release.gpg"} & set(listed)


def test_both_signatures_of_apts_index_are_of_the_published_key(
    published: Path, public: Path
) -> None:
    directory = published / "apt"
    assert verified(public, directory / "InRelease")
    assert verified(public, directory / "Release.gpg", directory / "Release")
    signed = contents.call("gpgv", "--keyring", public, "--output", "-", directory / "InRelease")
    assert signed == (directory / "Release").read_bytes()


def test_a_signature_of_a_changed_index_is_found_wrong(
    published: Path, public: Path, tmp_path: Path
) -> None:
    changed = tmp_path / "InRelease"
    text = (published / "apt/InRelease").read_text(encoding="utf-8")
    changed.write_text(text.replace("Origin: vmsnap", "Origin: somebody"), encoding="utf-8")
    assert not verified(public, changed)


def test_dnfs_index_is_signed_and_names_both_versions_with_their_checksums(
    published: Path, public: Path
) -> None:
    directory = published / "rpm" / ON_DEBIAN.name
    index = directory / "repodata/repomd.xml"
    assert verified(public, index.with_name("repomd.xml.asc"), index)
    ns = {"r": "http://linux.duke.edu/metadata/repo", "c": "http://linux.duke.edu/metadata/common"}
    places = {}
    for data in ET.parse(index).getroot().findall("r:data", ns):
        location, checksum = data.find("r:location", ns), data.find("r:checksum", ns)
        assert location is not None and checksum is not None
        path = directory / location.attrib["href"]
        assert (checksum.attrib["type"], checksum.text) == ("sha256", sum_of(path))
        places[data.attrib["type"]] = path
    assert {"primary", "filelists", "other"} <= set(places)
    tree = ET.fromstring(contents.call("gzip", "-dc", places["primary"]))
    named = {}
    for package in tree.findall("c:package", ns):
        location, checksum = package.find("c:location", ns), package.find("c:checksum", ns)
        assert location is not None and checksum is not None
        named[location.attrib["href"]] = checksum.text
    assert named == {path.name: sum_of(path) for path in directory.glob("*.rpm")}
    assert {f"vmsnap-{OLD}-1.deb12.noarch.rpm", f"vmsnap-{NEW}-1.deb12.noarch.rpm"} < set(named)


def test_every_rpm_is_signed_by_the_published_key_and_else_unchanged(
    published: Path, tmp_path: Path
) -> None:
    database = f"--define=_dbpath {tmp_path / 'rpmdb'}"
    packages = sorted((published / "rpm").rglob("*.rpm"))
    check = ["rpmkeys", database, "--define=_pkgverify_level signature", "--checksig"]
    nobodys = subprocess.run([*check, str(packages[0])], capture_output=True, check=False)
    assert nobodys.returncode != 0  # before the key is there
    contents.call("rpmkeys", database, "--import", published / "vmsnap.asc")
    for package in packages:
        done = subprocess.run([*check, str(package)], capture_output=True, text=True, check=False)
        assert (done.returncode, done.stdout) == (0, f"{package}: digests signatures OK\n")
        built = published.parent / "rpm" / package.parent.name / package.name
        form = "%{SHA256HEADER}"  # of all but the signature; it has the payload's
        assert contents.query(package, form) == contents.query(built, form)


def test_a_changed_rpm_is_found_wrong(published: Path, tmp_path: Path) -> None:
    database = f"--define=_dbpath {tmp_path / 'rpmdb'}"
    contents.call("rpmkeys", database, "--import", published / "vmsnap.asc")
    (package,) = (published / "rpm" / ON_DEBIAN.name).glob(f"vmsnap-{NEW}-*.rpm")
    data = bytearray(package.read_bytes())
    data[-100] ^= 1
    changed = tmp_path / package.name
    changed.write_bytes(data)
    done = subprocess.run(
        ["rpmkeys", database, "--checksig", str(changed)], capture_output=True, check=False
    )
    assert done.returncode != 0


def test_the_files_for_the_administrator_name_the_place_and_insist_on_signatures(
    published: Path,
) -> None:
    (sources,) = stanzas((published / "vmsnap.sources").read_text(encoding="utf-8"))
    assert sources == {
        "Types": "deb",
        "URIs": f"{made.URL}/apt/",
        "Suites": "./",
        "Signed-By": "/etc/apt/keyrings/vmsnap.asc",
    }
    for directory in (published / "rpm").iterdir():
        lines = (directory / "vmsnap.repo").read_text(encoding="utf-8").splitlines()
        assert {"gpgcheck=1", "repo_gpgcheck=1", f"gpgkey={made.URL}/vmsnap.asc"} < set(lines)
        assert f"baseurl={made.URL}/rpm/{directory.name}/" in lines
