# SPDX-License-Identifier: Apache-2.0
"""What becomes of a script's output: lines for the journal, and the end of it for the error."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vmsnap.journal import Journal, Priority
from vmsnap.scripts import LINE_BYTES, TAIL_BYTES, Output


class Kept(Journal):
    """A journal that keeps what it is told."""

    def __init__(self) -> None:
        super().__init__()
        self.lines: list[tuple[Priority, str]] = []

    def send(
        self,
        message: str,
        message_id: str,
        priority: Priority = Priority.INFO,
        identifier: str = "vmsnap",
        **fields: str,
    ) -> None:
        assert (identifier, fields["VMSNAP_PHASE"]) == ("vmsnap-script", "pre")
        self.lines.append((priority, message))


def told(*pieces: bytes) -> list[str]:
    journal = Kept()
    output = Output(journal, "pre")
    for piece in pieces:
        output.take(piece)
    output.end()
    return [message for _, message in journal.lines]


@pytest.mark.parametrize(
    ("pieces", "lines"),
    [
        ([b"one\ntwo\n"], ["one", "two"]),
        ([b"o", b"ne\nt", b"wo"], ["one", "two"]),
        ([b"\n\n"], ["", ""]),
        ([], []),
        ([b"gr\xc3", b"\xb6\xc3\x9fe\n"], ["größe"]),
        ([b"\xff\n"], ["\ufffd"]),
    ],
)
def test_output_becomes_one_record_for_each_line_however_it_arrives(
    pieces: list[bytes], lines: list[str]
) -> None:
    assert told(*pieces) == lines


@given(st.lists(st.text(st.characters(codec="ascii", categories=["L", "N"]))), st.data())
def test_no_line_is_lost_or_changed_however_it_is_cut(
    lines: list[str], data: st.DataObject
) -> None:
    whole = "".join(f"{line}\n" for line in lines).encode()
    cut = data.draw(st.integers(0, len(whole)))
    assert told(whole[:cut], whole[cut:]) == lines


def test_a_line_without_an_end_is_recorded_in_pieces_and_not_kept_in_memory() -> None:
    pieces = told(*[b"x" * 1000] * 100)
    assert "".join(pieces) == "x" * 100_000
    assert max(map(len, pieces)) <= LINE_BYTES


@pytest.mark.parametrize(
    ("line", "priority", "message"),
    [
        (b"<3>bad\n", Priority.ERROR, "bad"),
        (b"<4>so so\n", Priority.WARNING, "so so"),
        (b"<0>\n", Priority.ERROR, ""),
        (b"<7>chatter\n", Priority.INFO, "chatter"),
        (b"<8>none\n", Priority.INFO, "<8>none"),
        (b" <3>none\n", Priority.INFO, " <3>none"),
    ],
)
def test_a_script_may_set_the_priority_of_a_line(
    line: bytes, priority: Priority, message: str
) -> None:
    journal = Kept()
    Output(journal, "pre").take(line)
    assert journal.lines == [(priority, message)]


@pytest.mark.parametrize("size", [0, 1, TAIL_BYTES, TAIL_BYTES + 1, 300_000])
def test_the_last_four_kibibytes_are_kept_for_the_error(size: int) -> None:
    data = bytes(97 + i % 26 for i in range(size))
    output = Output(Kept(), "pre")
    for start in range(0, size, 7000):
        output.take(data[start : start + 7000])
    assert output.tail == data[-4096:]
