# SPDX-License-Identifier: Apache-2.0
"""The application: books transfers in a database and in a ledger, each transfer in both.

The database (SQLite, rollback journal) lies on one filesystem, the ledger's append-only pages on
another. Like many an application it keeps its newest ledger lines in memory (a full page it syncs)
and leaves documents to the page cache: only it can say when both sides are whole, through
`control`.
"""

from __future__ import annotations

import os
import signal
import sqlite3
import sys
import time
from pathlib import Path
from typing import BinaryIO

from demo.control import REFUSED, Control, Request
from demo.transfers import (
    ACCOUNTS,
    OPENING_CENTS,
    RECEIPT_EVERY,
    page_name,
    receipt,
    receipt_name,
    transfer,
)

DATABASE = "accounts.db"
# Between two transactions it listens this long, which also leaves the machine to others.
PAUSE_S = 0.001
PAGE_BUFFER_BYTES = 1 << 20

SCHEMA = """
    PRAGMA journal_mode = DELETE;
    PRAGMA synchronous = NORMAL;
    CREATE TABLE account (id INTEGER PRIMARY KEY, cents INTEGER NOT NULL);
    CREATE TABLE transfer (
        number INTEGER PRIMARY KEY, source INTEGER, target INTEGER, cents INTEGER);
"""


class Books:
    def __init__(self, accounts: Path, ledger: Path) -> None:
        self.number = 0
        self._accounts = accounts
        self._ledger = ledger
        self._database = sqlite3.connect(accounts / DATABASE, isolation_level=None)
        self._database.executescript(SCHEMA)
        opening = [(account, OPENING_CENTS) for account in range(ACCOUNTS)]
        with self._database:
            self._database.execute("BEGIN")
            self._database.executemany("INSERT INTO account VALUES (?, ?)", opening)
        self._name = page_name(1)
        self._page = self._open(self._name)

    def book(self) -> None:
        """One transaction, in both."""
        number = self.number + 1
        self._write_line(number)
        self._write_rows(number)
        if number % RECEIPT_EVERY == 0:
            (self._accounts / receipt_name(number)).write_bytes(receipt(number))
        self.number = number

    def settle(self) -> None:
        """Hand what is in memory to the kernel: the one thing that no freeze can do for us."""
        self._page.flush()

    def close(self) -> None:
        self._page.close()
        self._database.close()

    def _write_line(self, number: int) -> None:
        if page_name(number) != self._name:
            self._seal()
            self._name = page_name(number)
            self._page = self._open(self._name)
        self._page.write(transfer(number).line.encode())

    def _seal(self) -> None:
        """A full page is written once and for all."""
        self._page.flush()
        os.fsync(self._page.fileno())
        self._page.close()

    def _write_rows(self, number: int) -> None:
        moved = transfer(number)
        update = "UPDATE account SET cents = cents + ? WHERE id = ?"
        with self._database as database:
            database.execute("BEGIN IMMEDIATE")
            database.execute(update, (-moved.cents, moved.source))
            database.execute(update, (moved.cents, moved.target))
            row = (moved.number, moved.source, moved.target, moved.cents)
            database.execute("INSERT INTO transfer VALUES (?, ?, ?, ?)", row)

    def _open(self, name: str) -> BinaryIO:
        return (self._ledger / name).open("ab", buffering=PAGE_BUFFER_BYTES)


def work(books: Books, control: Control) -> None:
    awaiting: list[Request] = []
    while control.wanted:
        request = control.request(PAUSE_S)
        if request is None:
            books.book()
        elif request.verb == "quiesce":
            stand_still(books, control, request)
        elif request.verb == "await":
            awaiting.append(request)
        else:
            request.answer(out_of_turn(request, books))
        awaiting = still_awaiting(awaiting, books.number)


def stand_still(books: Books, control: Control, quiesce: Request) -> None:
    """Until somebody says resume; if nobody comes back in time, the business goes on without."""
    books.settle()
    quiesce.answer(f"quiesced {books.number}")
    since = time.monotonic()
    until = since + float(quiesce.argument)
    while control.wanted and time.monotonic() < until:
        request = control.request(until - time.monotonic())
        if request is None:
            continue
        if request.verb == "resume":
            stood_s = time.monotonic() - since
            request.answer(f"resumed {books.number} after {stood_s:.3f} s")
            break
        request.answer(out_of_turn(request, books))


def out_of_turn(request: Request, books: Books) -> str:
    if request.verb == "status":
        return f"at {books.number}"
    return f"{REFUSED} '{request.verb}' makes no sense now, at {books.number}"


def still_awaiting(awaiting: list[Request], number: int) -> list[Request]:
    for request in awaiting:
        if int(request.argument) <= number:
            request.answer(f"reached {number}")
    return [request for request in awaiting if int(request.argument) > number]


def main(arguments: list[str]) -> None:
    # Ctrl-C is for the demo, which ends the application in its turn.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    accounts, ledger, socket = map(Path, arguments)
    books = Books(accounts, ledger)
    control = Control(socket, sys.stdin.fileno())
    print("ready", flush=True)
    work(books, control)
    books.close()


if __name__ == "__main__":
    main(sys.argv[1:])
