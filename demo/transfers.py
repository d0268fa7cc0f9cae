# SPDX-License-Identifier: Apache-2.0
"""What the application books: transfer number n is always the same, and so are its documents.

The application writes from this module and the proof recomputes from it, so that the proof needs
no word of the application but the number of its last transaction.
"""

from __future__ import annotations

import hashlib
import zlib
from collections.abc import Iterator
from dataclasses import dataclass

ACCOUNTS = 100
OPENING_CENTS = 1_000_000
PAGE_LENGTH = 100
RECEIPT_EVERY = 5
RECEIPT_BYTES = 6_000


@dataclass(frozen=True)
class Transfer:
    number: int
    source: int
    target: int
    cents: int

    @property
    def line(self) -> str:
        """The ledger's line, which ends in its own checksum."""
        text = f"{self.number} {self.source} {self.target} {self.cents}"
        return f"{text} {zlib.crc32(text.encode()):08x}\n"


def transfer(number: int) -> Transfer:
    digest = hashlib.blake2b(str(number).encode(), digest_size=8).digest()
    source = digest[0] % ACCOUNTS
    target = (source + 1 + digest[1] % (ACCOUNTS - 1)) % ACCOUNTS
    return Transfer(number, source, target, 1 + int.from_bytes(digest[2:4], "big"))


def parsed(line: str) -> Transfer | None:
    """The transfer of a ledger line; None if the line is torn."""
    words = line.split()
    if len(words) != 5 or not all(word.isdecimal() for word in words[:4]):
        return None
    found = Transfer(*map(int, words[:4]))
    return found if found.line == line else None


def balances(transfers: tuple[Transfer, ...]) -> dict[int, int]:
    """What every account holds after these transfers, in cents."""
    cents = dict.fromkeys(range(ACCOUNTS), OPENING_CENTS)
    for each in transfers:
        cents[each.source] -= each.cents
        cents[each.target] += each.cents
    return cents


def page_name(number: int) -> str:
    return f"page-{(number - 1) // PAGE_LENGTH:06d}"


def page(index: int, last: int) -> bytes:
    """The ledger's page `index` after transaction `last`."""
    first = index * PAGE_LENGTH + 1
    numbers = range(first, min(last, first + PAGE_LENGTH - 1) + 1)
    return "".join(transfer(number).line for number in numbers).encode()


def receipt_name(number: int) -> str:
    return f"receipt-{number:08d}"


def receipt(number: int) -> bytes:
    line = transfer(number).line.encode()
    return (line * (RECEIPT_BYTES // len(line) + 1))[:RECEIPT_BYTES]


def pages(last: int) -> Iterator[tuple[str, bytes]]:
    """Every page that the ledger has after transaction `last`."""
    for index in range(-(-last // PAGE_LENGTH)):
        yield page_name(index * PAGE_LENGTH + 1), page(index, last)


def receipts(last: int) -> Iterator[tuple[str, bytes]]:
    """Every receipt that lies beside the database after transaction `last`."""
    for number in range(RECEIPT_EVERY, last + 1, RECEIPT_EVERY):
        yield receipt_name(number), receipt(number)
