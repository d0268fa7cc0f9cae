# SPDX-License-Identifier: Apache-2.0
"""Structured records to the systemd journal, buffered while anything is frozen.

The sender is our own because it must never block for good: with / frozen journald stops reading,
and a blocking sender would then wait for the thaw that it is itself in the way of. journald's queue
holds 512 datagrams of all senders together (net.unix.max_dgram_qlen), so a full one is waited for,
but once only; then what cannot be sent at once is dropped, counted and reported. Protocol:
https://systemd.io/JOURNAL_NATIVE_PROTOCOL/

Runs in: engine, supervisor, caller. While frozen: nothing is sent; the engine has it buffer.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import select
import socket
import struct
import time
from collections.abc import Callable
from enum import Enum, IntEnum
from typing import ClassVar

from vmsnap.system.printable import LINES, printable
from vmsnap.system.streams import nonblocking

SOCKET = "/run/systemd/journal/socket"
SEND_BUFFER = 8 << 20
SO_SNDBUFFORCE = 32  # asm-generic/socket.h: SO_SNDBUF without the limit, for root
PATIENCE = 1.0  # seconds for journald to read on
F_ADD_SEALS, ALL_SEALS = 1033, 0xF  # linux/fcntl.h


class Priority(IntEnum):
    """syslog(3)."""

    ERROR = 3
    WARNING = 4
    NOTICE = 5
    INFO = 6


class Event(Enum):
    """The MESSAGE_ID of each kind of record that is not an error (those are in the catalogue)."""

    STARTED = "24c84bfcdb9341698413e64e31041ef9"
    PHASE = "85e55a3fbd1a4c0d87cf77fbdf1e63ef"
    SCRIPT_ENDED = "c60fd5338f1845dfb8daa1884939de6d"
    SCRIPT_OUTPUT = "a94285c500ec4fb9b9fc24974c9e9c3f"
    FROZEN = "186743e2281841fa896fcc414bb68dfa"
    THAWED = "2f04aa617de1427c8b18f16c68f29e86"
    ENDED = "3d5304e8279e4bc69c3d469c8147cfc1"
    PROVISIONED = "4ffc4099d556475cabf3020f56552798"
    NOTE = "35abde914f2541c5a5d95fbcc174acfa"
    DROPPED = "dcd1d00909454c8fbbd129f4e06b779a"


class Journal:
    """Where a session's records go. `fields` are added to every record."""

    # `vmsnap --debug`: what was sent and what was decided, for stderr at the command's end. Only in
    # memory until then: stderr may lie on a filesystem that cannot be thawed.
    debug: ClassVar[list[str] | None] = None

    def __init__(self, fields: dict[str, str] | None = None, path: str = SOCKET) -> None:
        self.fields = fields or {}
        self._path = path
        self._socket: socket.socket | None = None
        self._pid = 0
        self._buffered: list[tuple[Priority, bytes, str]] | None = None
        self._dropped = 0
        self._stuck = False
        self._phase: dict[str, str] = {}

    def buffer(self) -> None:
        """Keep records in memory from now on."""
        self._buffered = self._buffered or []

    def release(self) -> None:
        """Send what was buffered, and stop buffering."""
        buffered, self._buffered = self._buffered or [], None
        for record in buffered:
            self._send(*record)

    def send(
        self,
        message: str,
        message_id: str,
        priority: Priority = Priority.INFO,
        identifier: str = "vmsnap",
        **fields: str,
    ) -> None:
        message = printable(message, LINES)
        self.decided(message)
        self._phase = {k: v for k, v in fields.items() if k == "VMSNAP_PHASE"}
        record = {
            "MESSAGE": message,
            "MESSAGE_ID": message_id,
            "PRIORITY": str(int(priority)),
            "SYSLOG_IDENTIFIER": identifier,
            **self.fields,
            **fields,
        }
        encoded = b"".join(encode(key, value) for key, value in record.items())
        if self._buffered is not None:
            self._buffered.append((priority, encoded, message))
        else:
            self._send(priority, encoded, message)

    def decided(self, message: str) -> None:
        """For `vmsnap --debug` alone."""
        if Journal.debug is not None:
            Journal.debug.append(message)

    def _send(self, priority: Priority, encoded: bytes, message: str) -> None:
        if not self._connect():
            self._print(priority, message)
            return
        if self._dropped and self._datagram(self._lost()):
            self._dropped = 0
        if not self._datagram(encoded):
            self._dropped += 1

    def _connect(self) -> bool:
        """A socket is opened anew after a fork, since the child closes what it did not open."""
        if self._pid == os.getpid():
            return self._socket is not None
        if self._socket is not None:
            self._socket.detach()  # closed already, and its number may be another's by now
        self._pid, self._socket = os.getpid(), None
        client = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        client.setblocking(False)
        with contextlib.suppress(OSError):
            client.setsockopt(socket.SOL_SOCKET, SO_SNDBUFFORCE, SEND_BUFFER)
        try:
            client.connect(self._path)
        except OSError:
            client.close()
            return False
        self._socket = client
        return True

    def _datagram(self, data: bytes) -> bool:
        try:
            self._patiently(lambda client: client.send(data))
        except OSError as e:
            # No contiguous memory for so large a datagram is ENOBUFS (net/core/sock.c).
            return e.errno in (errno.EMSGSIZE, errno.ENOBUFS) and self._large(data)
        return True

    def _patiently(self, send: Callable[[socket.socket], int]) -> None:
        """Send, and if the queue is full wait for room in it, unless that was in vain before."""
        assert self._socket is not None
        try:
            send(self._socket)
        except BlockingIOError:
            if self._stuck:
                raise
            poll = select.poll()
            poll.register(self._socket, select.POLLOUT)
            deadline = time.monotonic() + PATIENCE
            while True:
                poll.poll(max(0, deadline - time.monotonic()) * 1000)
                try:
                    send(self._socket)
                    break
                except BlockingIOError:  # others were faster
                    if time.monotonic() >= deadline:
                        self._stuck = True
                        raise
        self._stuck = False

    def _large(self, data: bytes) -> bool:
        """What is too large for a datagram goes as a sealed memfd, which touches no filesystem."""
        try:
            fd = os.memfd_create("vmsnap-journal", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
            try:
                os.write(fd, data)
                fcntl.fcntl(fd, F_ADD_SEALS, ALL_SEALS)
                rights = (socket.SOL_SOCKET, socket.SCM_RIGHTS, struct.pack("i", fd))
                self._patiently(lambda client: client.sendmsg([], [rights]))
            finally:
                os.close(fd)
        except OSError:
            return False
        return True

    def _lost(self) -> bytes:
        fields = {
            "MESSAGE": f"{self._dropped} records were lost because the journal did not take them",
            "MESSAGE_ID": Event.DROPPED.value,
            "PRIORITY": str(int(Priority.WARNING)),
            "SYSLOG_IDENTIFIER": "vmsnap",
            **self.fields,
            **self._phase,
        }
        return b"".join(encode(key, value) for key, value in fields.items())

    def _print(self, priority: Priority, message: str) -> None:
        """Without a journal, to stderr: with the prefixes of sd-daemon(3) unless a person reads
        it, and then over the line of the phase in progress."""
        with contextlib.suppress(OSError):
            prefix = "\r\033[K" if os.isatty(2) else f"<{int(priority)}>"
            lines = (f"{prefix}{line}\n" for line in message.splitlines() or [""])
            fd = nonblocking(2)
            os.write(fd, "".join(lines).encode("utf-8", "replace"))
            if fd != 2:
                os.close(fd)


def encode(key: str, value: str) -> bytes:
    data = value.encode("utf-8", "replace")
    if b"\n" not in data:
        return key.encode() + b"=" + data + b"\n"
    return key.encode() + b"\n" + struct.pack("<Q", len(data)) + data + b"\n"
