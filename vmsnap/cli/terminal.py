# SPDX-License-Identifier: Apache-2.0
"""The three standard streams: what people and programs see of a command, and what can go wrong
with them."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import sys
from collections.abc import Callable, Iterator
from types import FrameType

from vmsnap.system.printable import LINES, printable
from vmsnap.system.streams import nonblocking
from vmsnap.system.waiter import STOP_SIGNALS


def progress_line() -> Callable[[str], None]:
    """On a terminal, one line that says what a person waits for; an empty one ends it. Not to be
    called while anything is frozen. A terminal that is stopped (^S) misses it, and stops nobody
    while an application is quiesced."""
    if not sys.stderr.isatty():
        return lambda _: None
    fd = nonblocking(2)

    def show(text: str) -> None:
        with contextlib.suppress(OSError):
            os.write(fd, (f"\r\033[K{text} ..." if text else "\r\033[K").encode())

    return show


def print_json(document: object) -> None:
    print(json.dumps(document, indent=2))


def complain(message: str) -> None:
    """Print it on stderr, whatever characters are in it."""
    print_report(printable(message, LINES))


def print_report(message: str) -> None:
    """Print on stderr what report/ has made, with colours in it; that it cannot be written changes
    nothing."""
    prefix = "<3>" if is_journal(2) else ""  # sd-daemon(3)
    with contextlib.suppress(OSError):
        for line in message.splitlines():
            print(f"{prefix}{line}", file=sys.stderr)
        sys.stderr.flush()


def is_journal(fd: int) -> bool:
    """Whether systemd has connected it to the journal (JOURNAL_STREAM, systemd.exec(5))."""
    status = os.fstat(fd)
    return os.environ.get("JOURNAL_STREAM") == f"{status.st_dev}:{status.st_ino}"


def colourful(stream: object) -> bool:
    isatty: Callable[[], bool] = getattr(stream, "isatty", bool)
    return isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"


@contextlib.contextmanager
def whoever_reads() -> Iterator[None]:
    """What is printed within it changes no exit code: that is the session's. A signal ends it, be
    it that nobody reads."""

    def give_up(_number: int, _frame: FrameType | None) -> None:
        hush(1)
        hush(2)
        raise InterruptedError

    before = [signal.signal(number, give_up) for number in STOP_SIGNALS]
    try:
        yield
        sys.stdout.flush()
    except OSError as e:
        unwritten(e)
    finally:
        for number, handler in zip(STOP_SIGNALS, before):
            signal.signal(number, handler)


def unwritten(error: OSError) -> bool:
    """Print no more on stdout, and say why. False if just the reader has gone, which is no
    error."""
    hush(1)
    if isinstance(error, BrokenPipeError):
        return False
    complain(f"vmsnap: the output could not be written: {error.strerror}")
    return True


def let_go_of_stdio() -> bool:
    """Flush. False, and a message on stderr, if what was printed cannot be written. What was for
    stderr, which may be full or have hung up, makes no exit code, as Python would."""
    good = True
    try:
        sys.stdout.flush()
    except OSError as e:
        good = not unwritten(e)
    try:
        sys.stderr.flush()
    except OSError:
        hush(2)
    return good


def hush(fd: int) -> None:
    """Let what is written to it go nowhere from now on, also what is still in a buffer."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), fd)


def ensure_stdio() -> None:
    """A process started without one of its three standard descriptors would get it for a pipe."""
    while (fd := os.open(os.devnull, os.O_RDWR)) <= 2:
        pass
    os.close(fd)
    sys.stdin = sys.stdin or open(0, closefd=False)  # noqa: SIM115 - stays open
    sys.stdout = sys.stdout or open(1, "w", closefd=False)  # noqa: SIM115 - stays open
    sys.stderr = sys.stderr or open(2, "w", closefd=False)  # noqa: SIM115 - stays open
