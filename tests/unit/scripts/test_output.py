# SPDX-License-Identifier: Apache-2.0
"""What becomes of a script's output: lines for the journal, and the end of it for the error."""

from __future__ import annotations

import string

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vmsnap.journal.sender import Event, Journal, Priority
from vmsnap.scripts.output import LINE_BYTES, TAIL_BYTES, Output


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


@given(st.lists(st.text(string.ascii_letters + string.digits)), st.data())
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


# --- room --------------------------------------------------------------------------------------


class Told(Journal):
    """A journal that keeps everything, be it of the script or of vmsnap."""

    def __init__(self) -> None:
        super().__init__()
        self.records: list[tuple[str, str, Priority]] = []  # identifier, message, priority
        self.ids: list[str] = []

    def send(
        self,
        message: str,
        message_id: str,
        priority: Priority = Priority.INFO,
        identifier: str = "vmsnap",
        **fields: str,
    ) -> None:
        assert fields == {"VMSNAP_PHASE": "post"}
        self.records.append((identifier, message, priority))
        self.ids.append(message_id)

    def of(self, identifier: str) -> list[str]:
        return [message for name, message, _ in self.records if name == identifier]


def flood(lines: int, room: int) -> tuple[Told, Output]:
    journal = Told()
    output = Output(journal, "post", room)
    for number in range(lines):
        output.take(b"line %d\n" % number)
    return journal, output


@pytest.mark.parametrize(
    ("lines", "room", "words"),
    [
        (0, 0, []),
        (3, 4, []),
        (3, 3, []),
        (4, 3, ["1 more line of output is left out"]),
        (5, 3, ["2 more lines of output are left out"]),
        (2, 0, ["2 more lines of output are left out"]),
        (5000, 10, ["4990 more lines of output are left out"]),
    ],
)
def test_lines_without_room_are_counted_and_said_once(
    lines: int, room: int, words: list[str]
) -> None:
    journal, output = flood(lines, room)
    assert journal.of("vmsnap") == []  # nothing is said before the count is known
    output.end()
    assert journal.of("vmsnap-script") == [f"line {n}" for n in range(min(lines, room))]
    assert journal.of("vmsnap") == words


def test_what_is_said_of_lines_left_out_is_a_warning_of_ours_and_comes_last() -> None:
    journal, output = flood(9, 2)
    output.end()
    identifier, _, priority = journal.records[-1]
    assert (identifier, priority) == ("vmsnap", Priority.WARNING)
    assert journal.ids == [Event.SCRIPT_OUTPUT.value] * 2 + [Event.NOTE.value]


def test_a_line_without_an_end_needs_room_too() -> None:
    journal, output = flood(2, 2)
    output.take(b"the last words")
    output.end()
    assert len(journal.of("vmsnap-script")) == 2
    assert len(journal.of("vmsnap")) == 1


def test_the_pieces_of_a_long_line_need_room_each() -> None:
    journal = Told()
    output = Output(journal, "post", 2)
    output.take(b"x" * (5 * LINE_BYTES))
    output.end()
    assert [len(piece) for piece in journal.of("vmsnap-script")] == [LINE_BYTES] * 2
    assert output.left_out == 3


def test_the_tail_is_kept_of_lines_that_are_left_out_too() -> None:
    _, output = flood(5000, 1)
    assert output.tail == b"".join(b"line %d\n" % n for n in range(5000))[-TAIL_BYTES:]


def test_the_last_words_are_without_priorities() -> None:
    output = Output(Kept(), "pre")
    output.take(b"<3>no route\nto <3> hosts\n<6>given up\n")
    assert output.last_words() == "no route\nto <3> hosts\ngiven up\n"


@pytest.mark.parametrize(("lines", "room", "left"), [(0, 5, 5), (2, 5, 3), (5, 5, 0), (9, 5, 0)])
def test_the_room_that_is_left_is_known_for_the_next_attempt(
    lines: int, room: int, left: int
) -> None:
    assert flood(lines, room)[1].room == left


@given(st.integers(0, 30), st.integers(0, 30))
def test_every_line_is_recorded_or_counted(lines: int, room: int) -> None:
    journal, output = flood(lines, room)
    assert len(journal.of("vmsnap-script")) + output.left_out == lines
    assert output.room >= 0
