# SPDX-License-Identifier: Apache-2.0
"""Reads what the two mounted filesystems of the application hold, whatever state they are in.

Nothing here trusts the application: files and lines are recomputed from `transfers`.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from urllib.parse import quote

from demo.ledger import DATABASE
from demo.transfers import Transfer, balances, pages, parsed, receipts


@dataclass(frozen=True)
class Database:
    integrity: str  # SQLite's own word: "ok" or what is wrong
    rollback: str  # what SQLite would have to undo or redo; empty if nothing
    rows: tuple[Transfer, ...] = ()
    balances: tuple[tuple[int, int], ...] = ()

    @property
    def readable(self) -> bool:
        return bool(self.balances)

    @property
    def balanced(self) -> bool:
        return dict(self.balances) == balances(self.rows)


@dataclass(frozen=True)
class Ledger:
    entries: tuple[Transfer, ...]
    torn: int  # lines whose checksum is wrong


@dataclass(frozen=True)
class Documents:
    expected: int
    wrong: int  # missing, too short, or with other content


def last(transfers: tuple[Transfer, ...]) -> int:
    return transfers[-1].number if transfers else 0


def unbroken(transfers: tuple[Transfer, ...]) -> bool:
    """Numbered 1, 2, 3, … without a gap."""
    return [each.number for each in transfers] == list(range(1, len(transfers) + 1))


def database(directory: Path, mode: str) -> Database:
    """Opened with SQLite's `mode` "ro" (nothing may be rolled back) or "rw"."""
    path = directory / DATABASE
    rollback = ", ".join(to_roll_back(path))
    try:
        with closing(sqlite3.connect(f"file:{quote(str(path))}?mode={mode}", uri=True)) as opened:
            integrity = str(opened.execute("PRAGMA integrity_check(1)").fetchone()[0])
            rows = opened.execute("SELECT * FROM transfer ORDER BY number").fetchall()
            held = opened.execute("SELECT id, cents FROM account").fetchall()
    except sqlite3.Error as error:
        return Database(str(error), rollback)
    return Database(integrity, rollback, tuple(Transfer(*row) for row in rows), tuple(held))


def to_roll_back(path: Path) -> Iterator[str]:
    """SQLite's journals that are not empty (their headers are zero when they are done with)."""
    for suffix in ("-journal", "-wal"):
        journal = path.with_name(path.name + suffix)
        content = begins(journal, 8)
        if content.strip(b"\0"):
            yield f"{journal.stat().st_size / 1024:.0f} KiB in {suffix}"


def begins(path: Path, length: int) -> bytes:
    """The first bytes of a file; none if it is not there or the filesystem cannot read it."""
    try:
        with path.open("rb") as opened:
            return opened.read(length)
    except OSError:
        return b""


def ledger(directory: Path) -> Ledger:
    lines = [line for page in sorted(directory.glob("page-*")) for line in lines_of(page)]
    entries = [parsed(line) for line in lines]
    return Ledger(tuple(entry for entry in entries if entry), entries.count(None))


def lines_of(page: Path) -> list[str]:
    try:
        return page.read_text(errors="replace").splitlines(keepends=True)
    except OSError:
        return []


def documents(accounts: Path, ledger: Path, number: int) -> Documents:
    """Every file that must be there after transaction `number`, compared byte by byte."""
    wanted = chain(
        ((accounts / name, content) for name, content in receipts(number)),
        ((ledger / name, content) for name, content in pages(number)),
    )
    right = [begins(path, len(content)) == content for path, content in wanted]
    return Documents(len(right), right.count(False))
