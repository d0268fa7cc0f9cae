# SPDX-License-Identifier: Apache-2.0
"""The signed repositories as files: what is in them, that every signature and checksum is right,
and that a mistake leaves what was there.

That apt refuses what was tampered with is in test_apt.py.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import subprocess
import sys
import tempfile
import xml.etree.ElementTree as ET
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from release import repository, signing
from release.command import Failed

from . import contents, made
from .made import NEW, OLD, ON_DEBIAN, ROOT


@pytest.fixture(scope="module")
def published() -> Path:
    return made.repositories()


@pytest.fixture
def public(tmp_path: Path, published: Path) -> Path:
    """The published key, as gpgv wants it."""
    ring = tmp_path / "vmsnap.gpg"
    ring.write_bytes(contents.call("gpg", "--dearmor", stdin=key_of(published)))
    return ring


def key_of(published: Path) -> bytes:
    return (published / "vmsnap.asc").read_bytes()


def sum_of(path: Path, algorithm: str = "sha256") -> str:
    return hashlib.new(algorithm, path.read_bytes()).hexdigest()


def verified(public: Path, *files: Path) -> bool:
    command = ["gpgv", "--keyring", str(public), *map(str, files)]
    done = subprocess.run(command, capture_output=True, check=False)
    return done.returncode == 0


def stanzas(text: str) -> list[dict[str, str]]:
    found = [dict(re.findall(r"^(\S+): (.*)$", part, re.M)) for part in text.split("\n\n")]
    return [stanza for stanza in found if stanza]


def test_no_secret_key_is_published(published: Path) -> None:
    listed = contents.call("gpg", "--show-keys", "--with-colons", stdin=key_of(published))
    kinds = [line.split(":")[0] for line in listed.decode().splitlines()]
    assert kinds.count("pub") == 1
    assert {"sec", "ssb"} & set(kinds) == set()
    fingerprints = [x.split(":")[9] for x in listed.decode().splitlines() if x.startswith("fpr")]
    assert fingerprints == [made.key()]
    for path in published.rglob("*"):
        assert path.is_dir() or b"PRIVATE KEY" not in path.read_bytes(), path


def readable(published: Path) -> None:
    for path in (published, *published.rglob("*")):
        assert path.stat().st_mode & 0o777 == (0o755 if path.is_dir() else 0o644), path


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


# --- making them: additions and mistakes ---


@pytest.fixture
def dist(tmp_path: Path) -> Path:
    """The packages of the old version, and nothing published yet."""
    made.key()
    directory = tmp_path / "dist"
    (directory / "deb").mkdir(parents=True)
    (directory / "rpm" / ON_DEBIAN.name).mkdir(parents=True)
    put(directory, OLD)
    return directory


def put(dist: Path, version: str) -> None:
    shutil.copy(made.package(version), dist / "deb")
    for path in made.rpms(version=version):
        shutil.copy(path, dist / "rpm" / ON_DEBIAN.name)


def everything(directory: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(directory)): path.read_bytes()
        for path in directory.rglob("*")
        if path.is_file()
    }


def test_a_new_version_is_added_and_the_one_before_can_still_be_installed(dist: Path) -> None:
    published = repository.make(dist, made.key(), "https://a.example/")
    assert "https://a.example/apt/" in (published / "vmsnap.sources").read_text(encoding="utf-8")
    before = everything(published / "apt")
    # Whoever builds the next version may have nothing but that.
    shutil.rmtree(dist / "deb")
    shutil.rmtree(dist / "rpm")
    (dist / "deb").mkdir()
    (dist / "rpm" / ON_DEBIAN.name).mkdir(parents=True)
    put(dist, NEW)
    repository.make(dist, made.key(), "https://a.example/")
    index = (published / "apt/Packages").read_text(encoding="utf-8")
    assert sorted(entry["Version"] for entry in stanzas(index)) == [OLD, NEW]
    package = f"vmsnap_{OLD}_all.deb"
    assert (published / "apt" / package).read_bytes() == before[package]
    primary = next((published / "rpm" / ON_DEBIAN.name).glob("repodata/*primary.xml.gz"))
    text = contents.call("gzip", "-dc", primary).decode()
    assert {f"vmsnap-{OLD}-1.deb12.noarch.rpm", f"vmsnap-{NEW}-1.deb12.noarch.rpm"} <= set(
        re.findall(r'href="([^"]+)"', text)
    )


def test_what_is_published_already_is_not_signed_again(dist: Path) -> None:
    """A client that has read the index of before must find the package that it names there."""
    published = repository.make(dist, made.key())
    before = {path.name: path for path in published.rglob("*.rpm")}
    # gpg's signatures of the same second are the same, so those of before are made others.
    macros = ("__gpg /usr/bin/gpg", f"_gpg_name {made.key()}", "_gpg_digest_algo sha512")
    contents.call(
        "rpmsign", *(f"--define={macro}" for macro in macros), "--resign", *before.values()
    )
    signed = {name: path.read_bytes() for name, path in before.items()}
    put(dist, NEW)
    repository.make(dist, made.key())
    after = {path.name: path.read_bytes() for path in published.rglob("*.rpm")}
    assert len(after) > len(signed) > 1
    assert {name: after[name] for name in signed} == signed


def test_making_it_again_changes_no_package(dist: Path) -> None:
    published = repository.make(dist, made.key())

    def packages() -> dict[str, tuple[bytes, int]]:
        paths = [*published.rglob("*.deb"), *published.rglob("*.rpm")]
        # The time as well: gpg's signatures of the same second are the same.
        return {path.name: (path.read_bytes(), path.stat().st_mtime_ns) for path in paths}

    before = packages()
    repository.make(dist, made.key())
    assert len(before) == 3
    assert packages() == before


Rename = Callable[[Path, Path], Path]


def interrupted_before(rename: Rename, path: Path, target: Path) -> Path:
    if target.name == "repo" and path.name == "made":
        raise KeyboardInterrupt
    return rename(path, target)


def interrupted_between(rename: Rename, path: Path, target: Path) -> Path:
    renamed = rename(path, target)
    if target.name == "old":
        raise KeyboardInterrupt
    return renamed


def failing(rename: Rename, path: Path, target: Path) -> Path:
    if path.name == "made":
        raise OSError("no more")
    return rename(path, target)


@pytest.mark.parametrize("how", [interrupted_before, interrupted_between, failing])
def test_what_was_published_survives_an_exchange_that_is_not_finished(
    dist: Path, monkeypatch: pytest.MonkeyPatch, how: Callable[[Rename, Path, Path], Path]
) -> None:
    published = repository.make(dist, made.key())
    before = everything(dist)
    rename = Path.rename
    monkeypatch.setattr(Path, "rename", lambda path, target: how(rename, path, target))
    with pytest.raises((KeyboardInterrupt, OSError)):
        repository.make(dist, made.key())
    monkeypatch.undo()
    assert everything(dist) == before
    assert sorted(path.name for path in dist.iterdir()) == ["deb", "repo", "rpm"]
    put(dist, NEW)
    repository.make(dist, made.key())
    assert (published / "apt" / f"vmsnap_{NEW}_all.deb").exists()


@pytest.mark.parametrize("kind", ["deb", "rpm"])
def test_a_version_that_is_published_never_gets_other_contents(dist: Path, kind: str) -> None:
    published = repository.make(dist, made.key())
    before = everything(published)
    others = made.package(NEW) if kind == "deb" else made.rpms()[-1]
    (path,) = (dist / kind).rglob(f"vmsnap?{OLD}*.{kind}")
    path.write_bytes(others.read_bytes())
    with pytest.raises(Failed, match=f"found {path.name} .*other contents.* raise the version"):
        repository.make(dist, made.key())
    assert everything(published) == before


class Keyring:
    """One of its own. gpg-agent's socket wants a short path."""

    def __init__(self, home: str) -> None:
        self.home = home

    def gpg(self, *arguments: str) -> str:
        command = ["gpg", "--batch", "--yes", "--quiet", "--passphrase", "", *arguments]
        environment = {**os.environ, "GNUPGHOME": self.home}
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
        return done.stdout

    def add(self, name: str, kind: str, use: str = "sign") -> str:
        """Make a key; return its fingerprint."""
        self.gpg("--quick-generate-key", f"{name} <{name}@keys.example>", kind, use, "never")
        listed = self.gpg("--with-colons", "--list-keys", f"<{name}@keys.example>")
        return listed.partition("\nfpr:::::::::")[2].partition(":")[0]


@pytest.fixture(scope="module")
def keyring() -> Iterator[Keyring]:
    with tempfile.TemporaryDirectory(prefix="gpg-") as home:
        try:
            yield Keyring(home)
        finally:
            environment = {**os.environ, "GNUPGHOME": home}
            subprocess.run(["gpgconf", "--kill", "gpg-agent"], env=environment, check=True)


@pytest.fixture(scope="module")
def unfit(keyring: Keyring) -> dict[str, str]:
    """Names of keys that do not do, by what is wrong with them."""
    keyring.add("one", "rsa3072")
    public_only = keyring.add("two", "rsa3072")
    keyring.gpg("--delete-secret-keys", public_only)
    certifies = keyring.add("four", "rsa3072", "cert")
    keyring.gpg("--quick-add-key", certifies, "ed25519", "sign", "never")
    mixed = keyring.add("seven", "rsa3072")
    keyring.gpg("--quick-add-key", mixed, "ed25519", "sign", "never")
    weak_part = keyring.add("eight", "rsa3072")
    keyring.gpg("--quick-add-key", weak_part, "rsa2048", "sign", "never")
    return {
        "none given": "",
        "nobody's": "0" * 40,
        "an option": "--armor",
        "several": "keys.example",
        "its secret is elsewhere": public_only,
        "not RSA": keyring.add("five", "ed25519"),
        "a part that is not RSA signs": certifies,
        "a part that is not RSA signs as well": mixed,
        "short": keyring.add("nine", "rsa2048"),
        "a short part signs as well": weak_part,
        "signs nothing": keyring.add("six", "rsa3072", "cert"),
    }


@pytest.fixture
def project(dist: Path) -> Path:
    """Where `python -m release repo` finds something published, and packages."""
    repository.make(dist, made.key())
    put(dist, NEW)
    shutil.copytree(ROOT / "release", dist.parent / "release")
    return dist.parent


def run(project: Path, key: str, home: str, umask: int = 0o022) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-B", "-m", "release", "repo", f"--key={key}"],
        cwd=project,
        env={"PATH": os.environ["PATH"], "GNUPGHOME": home},
        umask=umask,
        capture_output=True,
        text=True,
        check=False,
    )


def test_a_key_that_does_not_do_is_one_clear_error_and_changes_nothing(
    project: Path, keyring: Keyring, unfit: dict[str, str]
) -> None:
    before = everything(project / "dist")
    for reason, name in unfit.items():
        done = run(project, name, keyring.home)
        assert (done.returncode, done.stdout) == (1, ""), reason
        assert re.fullmatch(
            r"release: found .*, expected the fingerprint .* KEY=.*--list-secret-keys`\n",
            done.stderr,
        ), (reason, done.stderr)
        assert everything(project / "dist") == before, reason


def test_a_name_that_a_strangers_public_key_bears_as_well_publishes_only_ours(
    project: Path, keyring: Keyring
) -> None:
    shutil.rmtree(project / "dist/repo")
    stranger = keyring.add("not-mine", "rsa3072")
    keyring.gpg("--delete-secret-keys", stranger)
    ours = keyring.add("mine", "rsa3072")
    done = run(project, "mine", keyring.home)
    assert done.returncode == 0, done.stderr
    asc = key_of(project / "dist/repo")
    listed = contents.call("gpg", "--show-keys", "--with-colons", stdin=asc).decode()
    fields = [line.split(":") for line in listed.splitlines()]
    assert [field[9] for field in fields if field[0] == "fpr"] == [ours]
    assert [field[0] for field in fields].count("pub") == 1


def test_everybody_can_read_it_whatever_the_umask_of_whoever_made_it(project: Path) -> None:
    run(project, made.key(), os.environ["GNUPGHOME"], umask=0o077)
    readable(project / "dist/repo")  # with what was added
    shutil.rmtree(project / "dist/repo")
    run(project, made.key(), os.environ["GNUPGHOME"], umask=0o077)
    readable(project / "dist/repo")


PINENTRY = """#!/bin/sh
# gpg-agent's stand-in for who types: pinentry's protocol, and what the agent tells of the terminal.
echo "OK ready"
while read -r line; do
    echo "$line" >>{told}
    case $line in
    GETPIN) echo "D secret"; echo OK ;;
    BYE) echo OK; exit ;;
    *) echo OK ;;
    esac
done
"""


@pytest.fixture
def locked(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A GNUPGHOME whose only key has a passphrase. Someone types it in: a log of the dialogue."""
    with tempfile.TemporaryDirectory(prefix="gpg-") as home:
        told, pinentry = Path(home, "told"), Path(home, "pinentry")
        pinentry.write_text(PINENTRY.format(told=told), encoding="utf-8")
        pinentry.chmod(0o755)
        agent = Path(home, "gpg-agent.conf")
        agent.write_text(f"pinentry-program {pinentry}\n", encoding="utf-8")
        monkeypatch.setenv("GNUPGHOME", home)
        command = ["gpg", "--batch", "--quiet", "--pinentry-mode=loopback", "--passphrase=secret"]
        command += ["--quick-generate-key", "locked", "rsa3072", "sign", "never"]
        try:
            subprocess.run(command, capture_output=True, check=True)
            subprocess.run(["gpgconf", "--kill", "gpg-agent"], check=True)  # it remembers
            yield told
        finally:
            subprocess.run(["gpgconf", "--kill", "gpg-agent"], check=True)


def test_whoever_has_a_passphrase_is_asked_for_it_on_his_terminal(
    locked: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GPG_TTY", "/dev/pts/4711")
    monkeypatch.setenv("TERM", "vt100")
    path = tmp_path / "file"
    path.write_bytes(b"to sign")
    signature = tmp_path / "file.asc"
    signature.write_bytes(signing.detached(path, signing.fingerprint("locked")))
    contents.call("gpg", "--batch", "--verify", signature, path)
    told = locked.read_text(encoding="utf-8").splitlines()
    assert {"OPTION ttyname=/dev/pts/4711", "OPTION ttytype=vt100", "GETPIN"} <= set(told)


def test_no_packages_are_one_clear_error_and_change_nothing(project: Path) -> None:
    shutil.rmtree(project / "dist/deb")
    before = everything(project / "dist")
    done = run(project, made.key(), os.environ["GNUPGHOME"])
    assert (done.returncode, done.stdout) == (1, "")
    assert re.fullmatch(r"release: found no packages .*`make deb rpm` .*\n", done.stderr)
    assert everything(project / "dist") == before


def test_a_directory_without_packages_is_not_taken_for_packages(dist: Path) -> None:
    for path in (dist / "rpm" / ON_DEBIAN.name).iterdir():
        path.unlink()
    with pytest.raises(Failed, match="found no packages"):
        repository.make(dist, made.key())


def test_a_package_that_cannot_be_signed_is_one_error_and_changes_nothing(project: Path) -> None:
    (project / "dist/rpm" / ON_DEBIAN.name / "zzz.rpm").write_bytes(b"no package")
    before = everything(project / "dist")
    done = run(project, made.key(), os.environ["GNUPGHOME"])
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith("release: ")
    assert "zzz.rpm" in done.stderr
    assert "Traceback" not in done.stderr
    assert everything(project / "dist") == before
