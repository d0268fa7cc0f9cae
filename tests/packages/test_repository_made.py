# SPDX-License-Identifier: Apache-2.0
"""Making the signed repositories, again and again: what is added, what stays, and that a mistake
leaves what was there.

Mistakes with keys are in test_repository_key.py.
"""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Callable
from email.utils import parsedate_to_datetime
from pathlib import Path

import pytest

from release import repository
from release.command import ToolError

from . import contents, made, publishing
from .made import NEW, OLD, ON_DEBIAN
from .publishing import everything, packages_of, put, readable, run, stanzas


@pytest.fixture
def dist(tmp_path: Path) -> Path:
    return packages_of(OLD, tmp_path / "dist")


@pytest.fixture
def project(tmp_path: Path) -> Path:
    return publishing.project(tmp_path)


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


def valid_for(release: Path) -> float:
    """Seconds from the date of an index to the end of its validity."""
    fields = dict(re.findall(r"^(Date|Valid-Until): (.+)$", release.read_text(), re.MULTILINE))
    date, until = (parsedate_to_datetime(fields[name]) for name in ("Date", "Valid-Until"))
    return (until - date).total_seconds()


def test_the_index_of_apt_is_valid_for_a_month(dist: Path) -> None:
    published = repository.make(dist, made.key())
    for name in ("InRelease", "Release"):
        assert valid_for(published / "apt" / name) == 30 * 24 * 3600


def test_the_index_of_apt_is_renewed_without_packages_and_nothing_else_is(dist: Path) -> None:
    published = repository.make(dist, made.key())
    release = published / "apt/Release"
    old = re.sub("^(Date|Valid-Until): .*\n", "", release.read_text(), flags=re.MULTILINE)
    release.write_text(old)
    before = everything(published)
    shutil.rmtree(dist / "deb")
    shutil.rmtree(dist / "rpm")
    assert repository.renew(dist, made.key()) == published
    assert valid_for(release) == 30 * 24 * 3600
    after = everything(published)
    changed = {name for name in {*before, *after} if before.get(name) != after.get(name)}
    assert changed <= {"apt/Release", "apt/Release.gpg", "apt/InRelease"}


def test_no_other_key_renews_it(dist: Path) -> None:
    published = repository.make(dist, made.key())
    (published / "vmsnap.asc").write_text("another")
    before = everything(published)
    with pytest.raises(ToolError, match="found another key"):
        repository.renew(dist, made.key())
    assert everything(published) == before
    with pytest.raises(ToolError, match="expected that of KEY"):
        repository.renew(dist / "elsewhere", made.key())


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
    with pytest.raises(ToolError, match=f"found {path.name} .*other contents.* raise the version"):
        repository.make(dist, made.key())
    assert everything(published) == before


def test_everybody_can_read_it_whatever_the_umask_of_whoever_made_it(project: Path) -> None:
    run(project, made.key(), os.environ["GNUPGHOME"], umask=0o077)
    readable(project / "dist/repo")  # with what was added
    shutil.rmtree(project / "dist/repo")
    run(project, made.key(), os.environ["GNUPGHOME"], umask=0o077)
    readable(project / "dist/repo")


def test_everybody_can_read_what_only_its_builder_could(dist: Path) -> None:
    packages = [*dist.rglob("*.deb"), *dist.rglob("*.rpm")]
    assert len(packages) == 3
    for package in packages:
        package.chmod(0o600)
    readable(repository.make(dist, made.key()))


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
    with pytest.raises(ToolError, match="found no packages"):
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
