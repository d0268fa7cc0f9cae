# SPDX-License-Identifier: Apache-2.0
"""What leaves for a terminal, a status line or the journal's messages, is text and no order."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vmsnap.cli.terminal import complain
from vmsnap.journal.sender import Event, Journal
from vmsnap.system.printable import LINES, printable
from vmsnap.system.systemd import Notifier

ORDERS = "\033]0;owned\a\033[2J\r\x9b1m\u202egpj.exe \udcff"
HARMLESS = r"\x1b]0;owned\x07\x1b[2J\r\x9b1m\u202egpj.exe \udcff"


@pytest.fixture
def receiver(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[socket.socket]:
    """The socket of a service manager, or of a journal."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as made:
        made.bind(str(tmp_path / "socket"))
        monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "socket"))
        made.settimeout(10)
        yield made


@given(st.text())
def test_nothing_is_left_that_a_terminal_obeys(text: str) -> None:
    assert printable(text).isprintable()
    assert all(c.isprintable() or c in LINES for c in printable(text, LINES))
    assert printable(printable(text)) == printable(text)


def test_a_status_line_is_one_line_of_text(receiver: socket.socket) -> None:
    notifier = Notifier()
    notifier.send(f"STATUS=Failed: {ORDERS}\nMAINPID=1\nREADY=1", "WATCHDOG=1")
    notifier.close()
    status, watchdog = receiver.recv(4096).decode().split("\n")
    assert status == rf"STATUS=Failed: {HARMLESS}\nMAINPID=1\nREADY=1"
    assert watchdog == "WATCHDOG=1"


def test_a_message_of_the_journal_is_lines_of_text(receiver: socket.socket, tmp_path: Path) -> None:
    journal = Journal(path=str(tmp_path / "socket"))
    journal.send(f"a\tb {ORDERS}", Event.NOTE.value)
    assert journal._socket
    journal._socket.close()
    assert f"MESSAGE=a\tb {HARMLESS}\n".encode() in receiver.recv(4096)


def test_without_a_journal_too(capfd: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    Journal(path=str(tmp_path / "none")).send(f"one {ORDERS}\ntwo", Event.NOTE.value)
    assert capfd.readouterr().err == f"<6>one {HARMLESS}\n<6>two\n"


def test_a_complaint_is_lines_of_text(capsys: pytest.CaptureFixture[str]) -> None:
    complain(f"vmsnap run: {ORDERS}\nmore")
    assert capsys.readouterr().err == f"vmsnap run: {HARMLESS}\nmore\n"
