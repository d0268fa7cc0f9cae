# SPDX-License-Identifier: Apache-2.0
"""Looking at what an administrator has put on another machine or below an automount: in a child,
for a time that is limited.

Runs in: engine, caller. Not while anything is frozen.
"""

from __future__ import annotations

import contextlib
import math
import os
import pickle
import select
import signal
import time
from collections.abc import Callable
from typing import TypeVar

from vmsnap.system.process import READ_BYTES, fork
from vmsnap.system.trusted import InsecurePathError, MayWaitError, patient

PATIENCE = 2.0  # seconds, for servers and automounters
Found = TypeVar("Found")

dead: set[str] = set()  # steps of paths that have not answered: they are not asked again


class NoAnswerError(InsecurePathError):
    """Whether others than root can change a path is not known: `step` of it does not answer."""

    def __init__(self, step: str) -> None:
        super().__init__(step, "a mount that does not answer", "one that does")
        self.args = (step,)


def bounded(look: Callable[[], Found]) -> Found:
    """Do what follows paths and changes nothing. If a path leads to where one may have to wait, a
    child does it, and sends what it has found. Raises what `look` raises, and NoAnswerError;
    OSError if there is no process for it."""
    try:
        return look()
    except MayWaitError as e:
        step = e.step
    if step in dead:
        raise NoAnswerError(step)
    answer = in_patient_child(look)
    if not answer:
        dead.add(step)
        raise NoAnswerError(step)
    found, error = answer
    if error:
        raise error
    return found


def in_patient_child(look: Callable[[], Found]) -> tuple[Found, Exception | None] | None:
    """What it has found, or what it has raised; None if it did neither in time."""
    read, write = os.pipe()

    def body() -> None:
        patient()
        answer: tuple[Found | None, Exception | None]
        try:
            answer = look(), None
        except Exception as e:
            answer = None, e
        with open(write, "wb") as pipe:
            pickle.dump(answer, pipe)

    try:
        child = fork(body, "vmsnap-look", {2, write})
    except OSError:
        os.close(read)
        raise
    finally:
        os.close(write)
    with contextlib.closing(open(read, "rb", buffering=0)) as pipe:
        received = received_in_time(pipe.fileno())
    with contextlib.suppress(ProcessLookupError):
        os.kill(child, signal.SIGKILL)  # it has sent all, or is late
    with contextlib.suppress(ChildProcessError):
        os.waitpid(child, os.WNOHANG)
    with contextlib.suppress(EOFError, pickle.UnpicklingError):  # cut off
        answer: tuple[Found, Exception | None] = pickle.loads(received)
        return answer
    return None


def received_in_time(pipe: int) -> bytes:
    """What comes out of it until it ends, or as much as there is in time."""
    received = b""
    deadline = time.monotonic() + PATIENCE
    poll = select.poll()
    poll.register(pipe, select.POLLIN)
    while poll.poll(max(0, math.ceil((deadline - time.monotonic()) * 1000))):
        data = os.read(pipe, READ_BYTES)
        if not data:
            break
        received += data
    return received
