# SPDX-License-Identifier: Apache-2.0
"""CHANGELOG.md, read, and written again as Debian and RPM want it.

The first release in it must be the version that vmsnap/__init__.py names: that is its only home.
"""

from __future__ import annotations

import datetime
import re
import textwrap
from dataclasses import dataclass
from pathlib import Path

MAINTAINER = "vmsnap maintainers <maintainers@vmsnap.example>"
UNRELEASED = "not released yet"
HEADING = re.compile(
    rf"^## (?P<version>\d+(?:\.\d+)+) \((?P<date>\d{{4}}-\d\d-\d\d|{UNRELEASED})\)$", re.M
)
BULLET = re.compile(r"^- (.+(?:\n+  .+)*)", re.M)
VERSION = re.compile(r'^__version__ = "(.+)"$', re.M)


@dataclass(frozen=True)
class Release:
    version: str
    when: datetime.datetime
    changes: tuple[str, ...]


class InconsistentError(Exception):
    """The change log is not in order, or does not fit the version."""


def version_of(tree: Path) -> str:
    found = VERSION.search((tree / "vmsnap/__init__.py").read_text(encoding="utf-8"))
    if not found:
        raise InconsistentError('found no __version__ = "..." in vmsnap/__init__.py, expected one')
    return found[1]


def releases(tree: Path, today: datetime.datetime) -> list[Release]:
    """All releases, newest first. `today` stands for the date of one that is not released yet.

    Raises InconsistentError if the newest is not the version of the package, or anything would be
    lost or misunderstood: a heading without version and date, a point with another bullet, a
    release without points or of a day before the one below it."""
    text = (tree / "CHANGELOG.md").read_text(encoding="utf-8")
    for line in text.splitlines():
        insist_on_form(line)
    headings = list(HEADING.finditer(text))
    ends = [*(heading.start() for heading in headings[1:]), len(text)]
    found = [
        Release(
            heading["version"], date_of(heading["date"], today), changes(text[heading.end() : end])
        )
        for heading, end in zip(headings, ends)
    ]
    version = version_of(tree)
    if not found or found[0].version != version:
        newest = found[0].version if found else "no release"
        raise InconsistentError(
            f"found {newest} first in CHANGELOG.md, expected {version} of vmsnap/__init__.py"
        )
    insist_on_order(found)
    return found


def insist_on_form(line: str) -> None:
    if line.startswith("## ") and not HEADING.match(line):
        raise InconsistentError(
            f"found {line!r} in CHANGELOG.md, expected '## 1.2.3 (2026-12-01)', or "
            f"{UNRELEASED!r} for the date"
        )
    if line.startswith(("* ", "+ ")):
        raise InconsistentError(
            f"found {line!r} in CHANGELOG.md, expected a point that begins '- '"
        )


def insist_on_order(found: list[Release]) -> None:
    for release in found:
        if not release.changes:
            raise InconsistentError(
                f"found no points of {release.version} in CHANGELOG.md, expected one"
            )
    for later, earlier in zip(found, found[1:]):
        if later.when.date() < earlier.when.date():
            raise InconsistentError(
                f"found {later.version} of {later.when:%Y-%m-%d} above {earlier.version} of "
                f"{earlier.when:%Y-%m-%d} in CHANGELOG.md, expected the newest first"
            )


def date_of(words: str, today: datetime.datetime) -> datetime.datetime:
    if words == UNRELEASED:
        return today
    try:
        day = datetime.date.fromisoformat(words)
    except ValueError:
        raise InconsistentError(
            f"found {words} in CHANGELOG.md, expected a day that exists"
        ) from None
    return datetime.datetime.combine(day, datetime.time(12), datetime.timezone.utc)


def changes(section: str) -> tuple[str, ...]:
    """The points of one release as plain lines of text."""
    return tuple(" ".join(match[1].split()) for match in BULLET.finditer(section))


def debian(found: list[Release]) -> str:
    """deb-changelog(5)."""
    return "\n".join(
        f"vmsnap ({release.version}) unstable; urgency=medium\n\n"
        + "".join(f"{wrapped(change)}\n" for change in release.changes)
        + f"\n -- {MAINTAINER}  {release.when:%a, %d %b %Y %H:%M:%S %z}\n"
        for release in found
    )


def wrapped(change: str) -> str:
    return textwrap.fill(
        change,
        78,
        initial_indent="  * ",
        subsequent_indent="    ",
        break_on_hyphens=False,
        break_long_words=False,
    )


def rpm(found: list[Release]) -> str:
    """The %changelog of a spec, with a line for each point: rpm takes one that begins with # or %if
    for something else. A percent sign would be a macro."""
    return "\n".join(
        f"* {release.when:%a %b %d %Y} {MAINTAINER} - {release.version}-1\n"
        + "".join(f"- {change}\n" for change in release.changes).replace("%", "%%")
        for release in found
    )
