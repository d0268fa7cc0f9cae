# SPDX-License-Identifier: Apache-2.0
"""The application's control socket: one request and one answer, a line each, per connection.

    quiesce SECONDS   stand still between two transactions    ->  quiesced N
    resume            go on                                   ->  resumed N after S s
    await N           answer when transaction N is done       ->  reached N
    status                                                    ->  at N

`python -m demo.control SOCKET REQUEST` asks from a script and fails if the application refuses.
"""

from __future__ import annotations

import contextlib
import select
import socket
import sys
from dataclasses import dataclass
from pathlib import Path

REFUSED = "refused:"
# A client that connects and then says nothing may not stop the application.
SILENCE_S = 1.0


@dataclass(frozen=True)
class Request:
    connection: socket.socket
    verb: str
    argument: str

    def answer(self, text: str) -> None:
        with self.connection, contextlib.suppress(OSError):
            self.connection.sendall(f"{text}\n".encode())


class Control:
    """The application's end. Its life hangs on a pipe: when the other end is closed, it stops."""

    def __init__(self, path: Path, lifeline: int) -> None:
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._listener.bind(str(path))
        self._listener.listen()
        self._poll = select.poll()
        self._poll.register(self._listener, select.POLLIN)
        self._poll.register(lifeline, select.POLLIN)
        self._lifeline = lifeline
        self.wanted = True

    def request(self, wait_s: float) -> Request | None:
        """The next request; None if none came in time, or if nobody wants the application."""
        ready = [descriptor for descriptor, _ in self._poll.poll(wait_s * 1000)]
        if self._lifeline in ready:
            self.wanted = False
        if not self.wanted or not ready:
            return None
        connection, _ = self._listener.accept()
        connection.settimeout(SILENCE_S)
        with contextlib.suppress(OSError), connection.makefile() as lines:
            verb, _, argument = lines.readline().strip().partition(" ")
            return Request(connection, verb, argument)
        connection.close()
        return None


class RefusedError(Exception):
    """The application is not there, or did not do what it was asked."""


def ask(path: Path, request: str, timeout_s: float = 40.0) -> str:
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
            connection.settimeout(timeout_s)
            connection.connect(str(path))
            connection.sendall(f"{request}\n".encode())
            with connection.makefile() as lines:
                answer = lines.readline().strip()
    except OSError as error:
        raise RefusedError(f"the application does not answer '{request}': {error}") from error
    if not answer or answer.startswith(REFUSED):
        raise RefusedError(f"the application to '{request}': {answer or 'hung up'}")
    return answer


def main(arguments: list[str]) -> int:
    try:
        print(ask(Path(arguments[0]), " ".join(arguments[1:])))
    except RefusedError as refused:
        print(refused, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
