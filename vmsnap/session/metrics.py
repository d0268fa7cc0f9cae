# SPDX-License-Identifier: Apache-2.0
"""The last session and counts of all, as a file for the textfile collector of node_exporter.

The counts live in the file alone: they go on from there, and begin anew if it is removed
(https://prometheus.io/docs/instrumenting/exposition_formats/).

Runs in: engine, a fork of it that writes the file. Not while frozen.
"""

from __future__ import annotations

import datetime
import errno
import math
import os
import re
import signal
import stat
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NoReturn

from vmsnap.consistency import Level
from vmsnap.errors import Kind
from vmsnap.result import Result
from vmsnap.system.files import write_atomically
from vmsnap.system.left_behind import KEEP_PATIENCE, written_in_child
from vmsnap.system.trusted import (
    MAX_BYTES,
    InsecurePathError,
    UnreadableFileError,
    is_directory,
    kind_of,
    walk,
)
from vmsnap.system.waiter import Waiter

SAMPLE = re.compile(r"(vmsnap_\w+(?:\{[^}]*\})?) ([0-9]{1,18}(?:\.[0-9]{1,9})?)")

NO_LOCK = -1
SUCCEEDED = "vmsnap_last_success_timestamp_seconds"


def write_metrics(result: Result, textfile: str, waiter: Waiter) -> str:
    """Bring the file up to date; return an error message, or "". Without a file do nothing."""
    if not textfile:
        return ""

    def write() -> None:
        signal.signal(signal.SIGALRM, give_up)
        signal.alarm(math.ceil(KEEP_PATIENCE))
        try:
            update(Path(textfile), result)
        except TooLateError:
            os._exit(1)
        except (InsecurePathError, UnreadableFileError) as e:
            raise OSError(errno.EINVAL, str(e)) from None

    # Without the lock: what hangs there must not keep the next session from starting.
    error = written_in_child(write, "vmsnap-metrics", waiter, NO_LOCK)
    return error and f"cannot write metrics to {textfile}: {error}"


class TooLateError(BaseException):
    """Nobody waits any longer. A later session may have written newer numbers."""


def give_up(*_: object) -> NoReturn:
    raise TooLateError


def update(path: Path, result: Result) -> None:
    """The directory may be another user's, the collector's, who is not trusted with more than these
    numbers: neither he nor his links lead to another directory, and only a file is read."""
    with walk(path.parent, is_directory) as (directory, step):
        is_directory(directory, step)
        there = Path(f"/proc/self/fd/{directory}", path.name)
        text = read_regular(there)
        write_atomically(there, exposition(result, samples(text)).encode(), 0o644)


def read_regular(path: Path) -> str:
    """ "" if there is no file. Raises UnreadableFileError for what is none, or too large."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY)
    except FileNotFoundError:
        return ""
    except OSError as e:
        if e.errno == errno.ELOOP:
            raise UnreadableFileError("found a symbolic link, expected a regular file") from None
        raise
    mode = os.fstat(fd).st_mode
    if not stat.S_ISREG(mode):
        os.close(fd)
        raise UnreadableFileError(f"found {kind_of(mode)}, expected a regular file")
    with open(fd, "rb") as file:
        data = file.read(MAX_BYTES + 1)
    if len(data) > MAX_BYTES:
        raise UnreadableFileError(f"found more than {MAX_BYTES} bytes, expected at most 1 MiB")
    return data.decode("utf-8", "replace")


def samples(text: str) -> dict[str, float]:
    """The values of an earlier file, by name and labels. Lines that are none of ours are no
    samples."""
    matches = (SAMPLE.fullmatch(line) for line in text.splitlines())
    return {match[1]: float(match[2]) for match in matches if match}


def exposition(result: Result, before: dict[str, float]) -> str:
    """The text of the file after this session, given the samples of the one before it."""
    return "\n".join(lines(result, before)) + "\n"


def lines(result: Result, before: dict[str, float]) -> Iterator[str]:
    started = datetime.datetime.fromisoformat(result.started).timestamp()
    ended = started + result.seconds
    succeeded = ended if result.ok else before.get(SUCCEEDED)
    level = Level[result.consistency.upper()]
    last = "vmsnap_last_session"
    yield from metric(f"{last}_start_timestamp_seconds", "When the last session began.", started)
    yield from metric(f"{last}_seconds", "How long the last session took.", result.seconds)
    yield from metric(f"{last}_success", "Whether the last session succeeded.", int(result.ok))
    yield from metric(
        f"{last}_consistency",
        "Consistency of the last snapshot: 0 none, 1 crash, 2 filesystem, 3 application.",
        int(level),
    )
    yield from metric(
        f"{last}_stall_seconds", "How long writes were stalled.", result.frozen_seconds
    )
    phases = {f'{{phase="{name}"}}': end - begin for name, begin, end in result.phases()}
    yield from family(f"{last}_phase_seconds", "How long each phase took.", "gauge", phases)
    if succeeded is not None:
        yield from metric(SUCCEEDED, "When a session last succeeded.", succeeded)
    yield from family(
        "vmsnap_sessions_total",
        "Sessions by their outcome.",
        "counter",
        {
            key: before.get(f"vmsnap_sessions_total{key}", 0) + (result.outcome == outcome)
            for outcome in ("success", "failed")
            for key in (f'{{outcome="{outcome}"}}',)
        },
    )
    names = [error.name for error in result.errors]
    errors = {
        key: before.get(f"vmsnap_errors_total{key}", 0) + names.count(kind.label)
        for kind in Kind
        for key in (f'{{name="{kind.label}",code="{kind.code}"}}',)
    }
    yield from family("vmsnap_errors_total", "Errors of sessions.", "counter", errors)


def metric(name: str, text: str, value: float) -> Iterable[str]:
    return family(name, text, "gauge", {"": value})


def family(name: str, text: str, kind: str, values: dict[str, float]) -> Iterator[str]:
    """`values` are by their labels."""
    yield f"# HELP {name} {text}"
    yield f"# TYPE {name} {kind}"
    for labels, value in values.items():
        yield f"{name}{labels} {f'{value:.6f}'.rstrip('0').rstrip('.')}"
