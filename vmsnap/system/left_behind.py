# SPDX-License-Identifier: Apache-2.0
"""What may wait in the kernel without end, done by a child that is left behind then.

Runs in: engine, caller. While frozen: no file, no journal, no import, and so no written_in_child.
"""

from __future__ import annotations

import contextlib
import json
import os
import time
from collections.abc import Callable, Collection

from vmsnap.system.process import READ_BYTES, fork
from vmsnap.system.trusted import patient
from vmsnap.system.waiter import Waiter

KEEP_PATIENCE = 10.0  # seconds for the result to be written
WRITTEN = b"."


def in_child(
    body: Callable[[int], None],
    name: str,
    keep: Collection[int],
    waiter: Waiter,
    seconds: float,
    interruptible: bool = False,
) -> bytes | None:
    """Run `body` in a child and return what it wrote to the descriptor that it is given.

    For calls that may hang: a process that is inside one cannot end. None if the child is not done
    within `seconds`, or when interrupted if `interruptible`; it is then left to itself.
    """
    read, write = os.pipe()
    try:
        pid = fork(lambda: body(write), name, {2, write, *keep})
    except OSError:
        os.close(read)
        raise
    finally:
        os.close(write)
    received = b""
    deadline = time.monotonic() + seconds
    try:
        while time.monotonic() < deadline and not (interruptible and waiter.interrupted):
            if read in waiter.wait([read], deadline):
                data = os.read(read, READ_BYTES)
                if not data:
                    return received
                received += data
        return None
    finally:
        os.close(read)
        with contextlib.suppress(ChildProcessError):
            os.waitpid(pid, os.WNOHANG)


def send_once(pipe: int, document: object) -> None:
    """What a child of in_child has to say, in JSON. Its parent waits no longer then."""
    with contextlib.suppress(BrokenPipeError):  # the parent was killed meanwhile
        os.write(pipe, json.dumps(document).encode())
    os.close(pipe)


def written_in_child(write: Callable[[], None], name: str, waiter: Waiter, lock: int) -> str:
    """Write a file that may lie on a filesystem that would not thaw, or that another program has
    frozen. Return an error message, or ""."""

    def attempt(pipe: int) -> None:
        patient()
        try:
            write()
            os.write(pipe, WRITTEN)
        except OSError as e:
            os.write(pipe, (e.strerror or str(e)).encode())

    try:
        received = in_child(attempt, name, {lock}, waiter, KEEP_PATIENCE)
    except OSError as e:
        return f"cannot start a process for it: {e.strerror}"
    if received == WRITTEN:
        return ""
    if received is None:
        return "it takes too long"
    return received.decode() or "it was interrupted"
