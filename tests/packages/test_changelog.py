# SPDX-License-Identifier: Apache-2.0
"""CHANGELOG.md as dpkg and rpm read what is made of it. Their own parsers are asked."""

from __future__ import annotations

import datetime
import re
import string
import subprocess
import tempfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from release import changelog, source
from release.changelog import InconsistentError, Release

from .made import NEW, ROOT

COMMITTED = datetime.datetime(2026, 3, 4, 5, 6, 7, tzinfo=datetime.timezone.utc)
SPEC = """\
Name: vmsnap
Version: 1
Release: 1
Summary: s
License: l
BuildArch: noarch
%description
d
%changelog
"""


def sources(directory: Path, version: str, text: str) -> Path:
    (directory / "vmsnap").mkdir()
    init = f'"""Words."""\n\n__version__ = "{version}"\n'
    (directory / "vmsnap/__init__.py").write_text(init, encoding="utf-8")
    (directory / "CHANGELOG.md").write_text(text, encoding="utf-8")
    return directory


def words(text: str) -> list[str]:
    """Of the points of one release, without the bullets."""
    return [" ".join(point.split()) for point in ("\n" + text).split("\n- ")[1:]]


def as_dpkg_reads(text: str) -> list[dict[str, str]]:
    """The fields of each release."""
    with tempfile.NamedTemporaryFile("w", encoding="utf-8", suffix=".changelog") as file:
        file.write(text)
        file.flush()
        done = subprocess.run(
            ["dpkg-parsechangelog", "-l", file.name, "--all", "--format", "rfc822"],
            capture_output=True,
            text=True,
            check=True,
        )
    assert done.stderr == ""  # where it warns of what it does not understand
    found = []
    for stanza in done.stdout.rstrip("\n").split("\n\n"):
        fields: dict[str, str] = {}
        name = ""
        for line in stanza.split("\n"):
            if line.startswith(" "):
                fields[name] += "\n" + ("" if line == " ." else line[1:])
            else:
                name, _, value = line.partition(":")
                fields[name] = value.strip()
        found.append(fields)
    return found


def points(changes: str) -> list[str]:
    """Of the Changes field: below the first line, each with a star."""
    _, _, below = changes.strip("\n").partition("\n\n")
    return words(f"\n{below}".replace("\n  * ", "\n- "))


def as_rpm_reads(text: str) -> list[tuple[int, str, str]]:
    """(seconds, name, text) of each release."""
    with tempfile.NamedTemporaryFile("w", encoding="utf-8", suffix=".spec") as file:
        file.write(SPEC + text)
        file.flush()
        done = subprocess.run(
            ["rpmspec", "-q", "--qf", "[%{CHANGELOGTIME}\1%{CHANGELOGNAME}\1%{CHANGELOGTEXT}\2]"]
            + [file.name],
            env={"PATH": "/usr/bin:/bin", "LANG": "C.UTF-8"},
            capture_output=True,
            text=True,
            check=False,
        )
    assert (done.returncode, done.stderr) == (0, "")
    found = [entry.split("\1") for entry in done.stdout.split("\2")[:-1]]
    return [(int(seconds), name, text) for seconds, name, text in found]


# What a person writes, and what either format would take for its own.
HARMLESS = st.one_of(
    st.text(string.ascii_letters + string.digits + "`-_./=,:;'\"()[]", min_size=1, max_size=12),
    st.sampled_from(["-", "--", "*", "**", "á", "→", "naïve", "Closes:", "x" * 100]),
    st.sampled_from(["--", "<a@b.c>", "Mon, 01 Jan 2024 00:00:00 +0000", "vmsnap (1.0) stable;"]),
)
PERCENT = st.sampled_from(["%", "%%", "%%%", "%{", "%{name}", "%(date)", "100%", "%files", "%%{x}"])
FIRST = st.text(string.ascii_letters, min_size=1, max_size=8)
VERSIONS = st.lists(st.integers(0, 99), min_size=2, max_size=4).map(lambda n: ".".join(map(str, n)))
DAYS = st.dates(datetime.date(2000, 1, 1), datetime.date(2099, 12, 31))


@st.composite
def release_lists(draw: st.DrawFn, extra: st.SearchStrategy[str]) -> list[Release]:
    line = st.tuples(FIRST, st.lists(HARMLESS | extra, max_size=30)).map(
        lambda found: " ".join([found[0], *found[1]])
    )
    days = sorted(draw(st.lists(DAYS, min_size=1, max_size=5)), reverse=True)
    return [
        Release(
            draw(VERSIONS),
            datetime.datetime.combine(day, datetime.time(12), datetime.timezone.utc),
            tuple(" ".join(c.split()) for c in draw(st.lists(line, min_size=1, max_size=5))),
        )
        for day in days
    ]


@settings(max_examples=40)
@given(release_lists(PERCENT))
def test_dpkg_reads_back_every_release_with_its_version_date_and_points(
    written: list[Release],
) -> None:
    read = as_dpkg_reads(changelog.debian(written))
    assert [entry["Version"] for entry in read] == [release.version for release in written]
    assert [int(e["Timestamp"]) for e in read] == [int(r.when.timestamp()) for r in written]
    assert {entry["Maintainer"] for entry in read} == {changelog.MAINTAINER}
    assert {entry["Distribution"] for entry in read} == {"unstable"}
    without_spaces = [["".join(p.split()) for p in points(e["Changes"])] for e in read]
    assert without_spaces == [["".join(c.split()) for c in r.changes] for r in written]


@settings(max_examples=100)
@given(release_lists(PERCENT))
def test_rpm_reads_back_every_release_with_its_version_date_and_points(
    written: list[Release],
) -> None:
    read = as_rpm_reads(changelog.rpm(written))
    assert [name for _, name, _ in read] == [
        f"{changelog.MAINTAINER} - {release.version}-1" for release in written
    ]
    assert [seconds for seconds, _, _ in read] == [int(r.when.timestamp()) for r in written]
    without_spaces = [["".join(point.split()) for point in words(text)] for _, _, text in read]
    assert without_spaces == [["".join(c.split()) for c in r.changes] for r in written]


@pytest.mark.parametrize("word", ["#123", "%if", "%endif"])
def test_rpm_keeps_a_line_that_begins_with_what_a_spec_gives_a_meaning(word: str) -> None:
    filling = "x" * 75  # so that the word comes first on its line
    written = [Release("1.0", COMMITTED, (f"{filling} {word} is mended.",))]
    ((_, _, read),) = as_rpm_reads(changelog.rpm(written))
    assert words(read) == list(written[0].changes)


@pytest.mark.parametrize("word", ["`vmsnap-session.service`", "application-consistent", "y" * 90])
def test_no_word_is_cut_in_two_where_a_line_ends(word: str) -> None:
    written = [Release("1.0", COMMITTED, (" ".join(["xx"] * n + [word]),)) for n in range(20, 27)]
    expected = [list(release.changes) for release in written]
    assert [words(text) for _, _, text in as_rpm_reads(changelog.rpm(written))] == expected
    in_debian = as_dpkg_reads(changelog.debian(written))
    assert [points(entry["Changes"]) for entry in in_debian] == expected


def test_the_real_change_log_says_the_same_to_everybody() -> None:
    found = changelog.releases(ROOT, source.committed(ROOT))
    assert found[0].version == NEW
    text = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    section = text.partition(f"\n## {NEW}")[2].partition("\n")[2].partition("\n## ")[0]
    newest = words("\n".join(line for line in section.split("\n") if line.startswith(("- ", "  "))))
    assert len(newest) > 3
    assert list(found[0].changes) == newest
    assert words(as_rpm_reads(changelog.rpm(found))[0][2]) == newest
    assert points(as_dpkg_reads(changelog.debian(found))[0]["Changes"]) == newest


def test_every_release_has_its_own_points_and_nothing_of_the_text_around_them(
    tmp_path: Path,
) -> None:
    text = """\
# Changes

- not a point of any release

## 1.1 (not released yet)

About this one.

- One point
  on two lines.
- Another.

## 1.0.1 (2025-02-03)

- Old.
"""
    newest, oldest = changelog.releases(sources(tmp_path, "1.1", text), COMMITTED)
    assert (newest.version, newest.changes) == ("1.1", ("One point on two lines.", "Another."))
    assert (oldest.version, oldest.changes) == ("1.0.1", ("Old.",))


def test_every_paragraph_of_a_point_is_kept(tmp_path: Path) -> None:
    text = """\
## 1.1 (2026-02-03)

- One point.

  Its second paragraph,
  on two lines.

  And a third.

- Another.

About all of them.
"""
    (found,) = changelog.releases(sources(tmp_path, "1.1", text), COMMITTED)
    whole = "One point. Its second paragraph, on two lines. And a third."
    assert found.changes == (whole, "Another.")


def test_a_release_has_its_own_date_and_what_is_not_released_that_of_the_commit(
    tmp_path: Path,
) -> None:
    text = "## 1.1 (not released yet)\n\n- a\n\n## 1.0 (2025-02-03)\n\n- b\n"
    found = changelog.releases(sources(tmp_path, "1.1", text), COMMITTED)
    dates = [entry["Date"] for entry in as_dpkg_reads(changelog.debian(found))]
    assert dates == ["Wed, 04 Mar 2026 05:06:07 +0000", "Mon, 03 Feb 2025 12:00:00 +0000"]


@pytest.mark.parametrize(
    "date", ["2026-13-01", "2026-1-5", "2026-W48-1", "20261201", "5 March 2026", "released soon"]
)
def test_a_date_that_is_none_is_an_error_and_not_the_date_of_the_commit(
    tmp_path: Path, date: str
) -> None:
    tree = sources(tmp_path, "1.1", f"## 1.1 ({date})\n\n- a\n")
    with pytest.raises(InconsistentError, match=date):
        changelog.releases(tree, COMMITTED)


@pytest.mark.parametrize("heading", ["## 1.0 - 2025-02-03", "## [1.0] (2025-02-03)", "## v1.0"])
def test_a_heading_that_is_no_release_is_an_error_and_not_part_of_the_release_above(
    tmp_path: Path, heading: str
) -> None:
    tree = sources(tmp_path, "1.1", f"## 1.1 (2026-02-03)\n\n- a\n\n{heading}\n\n- b\n")
    with pytest.raises(InconsistentError):
        changelog.releases(tree, COMMITTED)


@pytest.mark.parametrize("bullet", ["*", "+"])
def test_a_point_with_another_bullet_is_an_error_and_not_left_out(
    tmp_path: Path, bullet: str
) -> None:
    tree = sources(tmp_path, "1.1", f"## 1.1 (2026-02-03)\n\n- a\n{bullet} b\n")
    with pytest.raises(InconsistentError, match=re.escape(f"found '{bullet} b' in CHANGELOG.md")):
        changelog.releases(tree, COMMITTED)


def test_a_release_without_points_is_an_error(tmp_path: Path) -> None:
    text = "## 1.1 (2026-02-03)\n\n- a\n\n## 1.0 (2025-02-03)\n\nWords.\n"
    with pytest.raises(InconsistentError, match="found no points of 1.0 "):
        changelog.releases(sources(tmp_path, "1.1", text), COMMITTED)


@pytest.mark.parametrize("date", ["2026-02-03", "not released yet"])
def test_a_release_that_is_older_than_the_one_before_it_is_an_error(
    tmp_path: Path, date: str
) -> None:
    """rpm would complain, and build nothing."""
    text = f"## 1.1 ({date})\n\n- a\n\n## 1.0 (2026-03-05)\n\n- b\n"
    with pytest.raises(InconsistentError, match="found 1.1 of .* above 1.0 of 2026-03-05 "):
        changelog.releases(sources(tmp_path, "1.1", text), COMMITTED)


def test_what_is_not_released_yet_may_be_of_the_day_of_the_last_release(tmp_path: Path) -> None:
    text = "## 1.1 (not released yet)\n\n- a\n\n## 1.0 (2026-03-04)\n\n- b\n"
    found = changelog.releases(sources(tmp_path, "1.1", text), COMMITTED)
    assert [words(read) for _, _, read in as_rpm_reads(changelog.rpm(found))] == [["a"], ["b"]]


@pytest.mark.parametrize(
    ("text", "first"),
    [
        ("## 1.0 (2025-02-03)\n\n- a\n", "1.0"),
        ("## 1.0 (2025-02-03)\n\n- a\n\n## 1.1 (2025-02-02)\n\n- b\n", "1.0"),
        ("# Changes\n", "no release"),
    ],
)
def test_the_version_of_the_package_must_be_first_in_the_change_log(
    tmp_path: Path, text: str, first: str
) -> None:
    with pytest.raises(InconsistentError) as caught:
        changelog.releases(sources(tmp_path, "1.1", text), COMMITTED)
    said = str(caught.value)
    assert said == f"found {first} first in CHANGELOG.md, expected 1.1 of vmsnap/__init__.py"


def test_a_package_without_a_version_is_said_to_have_none(tmp_path: Path) -> None:
    tree = sources(tmp_path, "1.1", "## 1.1 (2026-12-01)\n\n- a\n")
    (tree / "vmsnap/__init__.py").write_text("version = 1\n", encoding="utf-8")
    with pytest.raises(InconsistentError, match=r"__version__ .* in vmsnap/__init__.py"):
        changelog.releases(tree, COMMITTED)
