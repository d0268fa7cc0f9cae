# SPDX-License-Identifier: Apache-2.0
"""Records to the journal: its native protocol, holding back, never waiting, saying what was lost.

The journal is a real datagram socket; what arrives is decoded here, independently.
"""

from __future__ import annotations

import errno
import os
import socket
import struct
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vmsnap.journal.sender import Event, Journal, Priority, encode

NOTE = Event.NOTE.value


def decode(datagram: bytes) -> dict[str, str]:
    """https://systemd.io/JOURNAL_NATIVE_PROTOCOL/: KEY=value, or KEY, length and the bytes."""
    fields: dict[str, str] = {}
    while datagram:
        head, _, rest = datagram.partition(b"\n")
        key, equals, value = head.partition(b"=")
        if not equals:
            (length,) = struct.unpack("<Q", rest[:8])
            value, end, rest = (
                rest[8 : 8 + length],
                rest[8 + length : 9 + length],
                rest[9 + length :],
            )
            assert end == b"\n"
        assert key.decode() not in fields
        fields[key.decode()] = value.decode()
        datagram = rest
    return fields


class Receiver:
    """Stands in journald's place and reads only when asked."""

    def __init__(self, path: Path) -> None:
        self.path = str(path)
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.socket.bind(self.path)
        self.socket.setblocking(False)

    def records(self) -> list[dict[str, str]]:
        found = []
        while True:
            try:
                data, fds, _, _ = socket.recv_fds(self.socket, 1 << 25, 1)
                for fd in fds:
                    data = os.pread(fd, os.fstat(fd).st_size, 0)
                    os.close(fd)
                found.append(decode(data))
            except BlockingIOError:
                return found

    def messages(self) -> list[str]:
        return [record["MESSAGE"] for record in self.records()]


@pytest.fixture
def receiver(tmp_path: Path) -> Iterator[Receiver]:
    made = Receiver(tmp_path / "socket")
    yield made
    made.socket.close()


@pytest.fixture
def journal(receiver: Receiver) -> Iterator[Journal]:
    made = Journal({"VMSNAP_SESSION": "s-1"}, receiver.path)
    yield made
    if made._socket:
        made._socket.close()


# --- what arrives ------------------------------------------------------------------------------


def test_a_record_carries_message_id_priority_identifier_session_and_its_own_fields(
    journal: Journal, receiver: Receiver
) -> None:
    journal.send("Frozen", NOTE, Priority.WARNING, VMSNAP_MOUNT="/srv")
    assert receiver.records() == [
        {
            "MESSAGE": "Frozen",
            "MESSAGE_ID": NOTE,
            "PRIORITY": "4",
            "SYSLOG_IDENTIFIER": "vmsnap",
            "VMSNAP_SESSION": "s-1",
            "VMSNAP_MOUNT": "/srv",
        }
    ]


@pytest.mark.parametrize("value", ["a\nb", "\n", "a\nPRIORITY=0\n", "end\n", "", "=", "größe"])
def test_a_value_with_newlines_or_signs_arrives_as_it_was(
    journal: Journal, receiver: Receiver, value: str
) -> None:
    journal.send(value, NOTE, VMSNAP_MOUNT=value)
    (record,) = receiver.records()
    assert (record["MESSAGE"], record["VMSNAP_MOUNT"]) == (value, value)
    assert record["PRIORITY"] == "6"


@given(st.text())
def test_any_text_is_encoded_so_that_it_decodes(value: str) -> None:
    assert decode(encode("MESSAGE", value) + encode("NEXT", "x")) == {
        "MESSAGE": value,
        "NEXT": "x",
    }


def test_a_name_that_is_no_utf_8_does_not_stop_a_record(
    journal: Journal, receiver: Receiver
) -> None:
    journal.send("Frozen", NOTE, VMSNAP_MOUNT="/srv/\udcff")
    (record,) = receiver.records()
    assert record["VMSNAP_MOUNT"].startswith("/srv/")


@pytest.mark.parametrize("why", [errno.EMSGSIZE, errno.ENOBUFS])
def test_what_no_datagram_can_take_arrives_in_a_file_of_memory(
    journal: Journal, receiver: Receiver, monkeypatch: pytest.MonkeyPatch, why: int
) -> None:
    """ENOBUFS: the kernel finds no contiguous memory for it at the moment."""

    def refuse(*_: object) -> int:
        raise OSError(why, os.strerror(why))

    monkeypatch.setattr(socket.socket, "send", refuse)
    journal.send("Session ended", Event.ENDED.value, VMSNAP_RESULT="x" * 100_000)
    (record,) = receiver.records()
    assert len(record["VMSNAP_RESULT"]) == 100_000


def test_a_result_with_hundreds_of_filesystems_arrives_whole(
    journal: Journal, receiver: Receiver
) -> None:
    """history and plot read sessions back from VMSNAP_RESULT. tests/fs has larger ones, for which
    only root can raise the limit."""
    journal.send("Session ended", Event.ENDED.value, VMSNAP_RESULT="x" * 100_000)
    (record,) = receiver.records()
    assert len(record["VMSNAP_RESULT"]) == 100_000


# --- what --debug shows ---------------------------------------------------------------------------


def test_a_decision_is_for_debugging_alone_and_no_record(
    journal: Journal, receiver: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    journal.decided("before there is anybody to show it to")
    decided: list[str] = []
    monkeypatch.setattr(Journal, "debug", decided)
    journal.decided("/srv: freeze in step 1")
    journal.send("Frozen", NOTE)
    assert decided == ["/srv: freeze in step 1", "Frozen"]
    assert receiver.messages() == ["Frozen"]


def test_debugging_writes_nothing_to_stderr_itself(
    journal: Journal, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """It may lie on a filesystem that cannot be thawed."""
    monkeypatch.setattr(Journal, "debug", [])
    journal.buffer()
    journal.decided("thaw")
    journal.send("Thawed", NOTE)
    journal.release()
    assert capsys.readouterr().err == ""


# --- holding back ------------------------------------------------------------------------------


def test_what_is_held_arrives_after_the_release_in_order_and_before_what_follows(
    journal: Journal, receiver: Receiver
) -> None:
    journal.send("before", NOTE)
    journal.buffer()
    journal.send("one", NOTE)
    journal.send("two", NOTE)
    assert receiver.messages() == ["before"]
    journal.release()
    journal.send("after", NOTE)
    assert receiver.messages() == ["one", "two", "after"]


def test_holding_twice_loses_nothing_and_releasing_twice_repeats_nothing(
    journal: Journal, receiver: Receiver
) -> None:
    journal.buffer()
    journal.send("one", NOTE)
    journal.buffer()
    journal.send("two", NOTE)
    journal.release()
    journal.release()
    assert receiver.messages() == ["one", "two"]


def test_while_held_not_even_a_socket_is_opened(
    journal: Journal, receiver: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    def forbidden(*_: object) -> None:
        pytest.fail("opened a socket while frozen")

    journal.buffer()
    with monkeypatch.context() as patch:
        patch.setattr(socket, "socket", forbidden)
        journal.send("one", NOTE)
    journal.release()
    assert receiver.messages() == ["one"]


# --- a journal that does not read --------------------------------------------------------------

MANY = 2000


@pytest.mark.usefixtures("never_hangs")
def test_a_journal_that_does_not_read_stops_nobody_and_the_loss_is_counted_and_said(
    journal: Journal, receiver: Receiver
) -> None:
    for number in range(MANY):
        journal.send(f"record {number}", NOTE)
    arrived = receiver.messages()
    assert arrived == [f"record {number}" for number in range(len(arrived))]
    assert len(arrived) < MANY
    journal.send("last", NOTE)
    said, last = receiver.records()
    assert said["MESSAGE"].startswith(f"{MANY - len(arrived)} records were lost")
    assert (said["PRIORITY"], said["MESSAGE_ID"]) == ("4", Event.DROPPED.value)
    assert said["VMSNAP_SESSION"] == "s-1"
    assert last["MESSAGE"] == "last"
    journal.send("later", NOTE)
    assert receiver.messages() == ["later"]


@pytest.mark.usefixtures("never_hangs")
def test_releasing_more_than_the_journal_takes_stops_nobody(
    journal: Journal, receiver: Receiver
) -> None:
    journal.buffer()
    for number in range(MANY):
        journal.send(f"record {number}", NOTE)
    journal.release()
    assert len(receiver.messages()) < MANY


def test_a_journal_that_goes_away_raises_nothing(journal: Journal, receiver: Receiver) -> None:
    journal.send("one", NOTE)
    receiver.socket.close()
    Path(receiver.path).unlink()
    journal.send("two", NOTE)


# --- no journal --------------------------------------------------------------------------------


@pytest.mark.parametrize("priority", Priority)
def test_without_a_journal_each_line_goes_to_stderr_with_its_priority(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], priority: Priority
) -> None:
    Journal(path=str(tmp_path / "none")).send("one\ntwo", NOTE, priority)
    captured = capfd.readouterr()
    assert captured.err == f"<{int(priority)}>one\n<{int(priority)}>two\n"
    assert captured.out == ""


def test_without_a_journal_held_records_are_written_after_the_release(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    journal = Journal(path=str(tmp_path / "none"))
    journal.buffer()
    journal.send("one", NOTE)
    assert capfd.readouterr().err == ""
    journal.release()
    assert capfd.readouterr().err == "<6>one\n"
