# SPDX-License-Identifier: Apache-2.0
"""The source of sdnotify: fetched once, and never another than the one whose checksum is known."""

from __future__ import annotations

import gzip
import hashlib
import shutil
from pathlib import Path

import pytest

from release import rpm
from release.command import ToolError
from release.rpm import TARGETS

from . import made


class Sources:
    """Where the checksum of sdnotify's source is written down, and where it was fetched to."""

    def __init__(self, checkout: Path) -> None:
        rpm.sdnotify()
        self.specs, self.fetched = checkout / "rpm", checkout / "build/sources"
        shutil.copytree(rpm.SPECS, self.specs)
        shutil.copytree(rpm.SPECS.parent / "build/sources", self.fetched)
        (self.archive,) = self.fetched.iterdir()
        self.genuine = self.archive.read_bytes()

    def change(self, archive: Path) -> None:
        """What is in it stays the same, so that only a checksum tells."""
        archive.write_bytes(gzip.compress(gzip.decompress(self.genuine), 1))
        assert archive.read_bytes() != self.genuine

    def want(self, version: str, data: bytes) -> None:
        checksum = hashlib.sha256(data).hexdigest()
        text = f"sdnotify=={version} --hash=sha256:{checksum}\n"
        (self.specs / "sources.txt").write_text(text, encoding="ascii")


@pytest.fixture
def sources(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Sources:
    """A copy, and no network."""
    copied = Sources(tmp_path / "checkout")
    monkeypatch.setattr(rpm, "SPECS", copied.specs)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    return copied


def refused(tmp_path: Path) -> str:
    """Why nothing is built for a distribution that needs sdnotify."""
    with pytest.raises(ToolError) as caught:
        rpm.build(made.archive(), TARGETS[0], tmp_path / "built")
    assert list((tmp_path / "built").rglob("*.rpm")) == []
    return str(caught.value)


def test_a_source_that_was_changed_after_it_was_fetched_is_refused(
    tmp_path: Path, sources: Sources
) -> None:
    sources.change(sources.archive)
    said = refused(tmp_path)
    assert f"found {sources.archive} with the checksum " in said
    assert said.endswith("remove it")


def test_a_source_is_fetched_when_there_is_none_and_a_changed_one_is_not_kept(
    tmp_path: Path, sources: Sources, monkeypatch: pytest.MonkeyPatch
) -> None:
    index = tmp_path / "index"
    index.mkdir()
    offered = Path(shutil.move(sources.archive, index))
    monkeypatch.setenv("PIP_FIND_LINKS", str(index))
    sources.change(offered)
    assert "DO NOT MATCH THE HASHES" in refused(tmp_path)
    assert list(sources.fetched.iterdir()) == []
    offered.write_bytes(sources.genuine)
    assert rpm.sdnotify().read_bytes() == sources.genuine


def test_what_was_fetched_of_another_version_than_the_wanted_is_not_taken_for_it(
    tmp_path: Path, sources: Sources
) -> None:
    sources.want("0.3.1", b"of 0.3.1")
    assert "sdnotify==0.3.1" in refused(tmp_path)


def test_a_wanted_version_that_the_spec_does_not_have_is_not_ignored(
    tmp_path: Path, sources: Sources
) -> None:
    sources.archive.rename(sources.fetched / "sdnotify-0.3.3.tar.gz")
    sources.want("0.3.3", sources.genuine)
    assert "sdnotify-0.3.2.tar.gz" in refused(tmp_path)  # what the spec wants to unpack
