# SPDX-License-Identifier: Apache-2.0
"""Past sessions, read back from the journal: the record of a session's end carries its result.

There is no database of ours. Only what root wrote counts, since anybody may write to the journal.
"""

from __future__ import annotations

import json
from collections.abc import Iterator

from vmsnap.errors import CommandError
from vmsnap.journal.sender import Event
from vmsnap.result import Result, from_json
from vmsnap.system.process import output_of


class JournalReadError(CommandError):
    """journalctl is not there or did not answer."""


def history(since: str = "") -> Iterator[Result]:
    """The sessions that the journal knows, newest first. `since` is a time as journalctl(1) takes
    it. Raises JournalReadError."""
    argv = ["journalctl", "--quiet", "--reverse", "--all", "--output=json"]
    argv += ["--output-fields=VMSNAP_RESULT", *([f"--since={since}"] if since else [])]
    argv += ["_UID=0", f"MESSAGE_ID={Event.ENDED.value}"]
    try:
        code, output, error = output_of(argv)
    except OSError as e:
        raise JournalReadError(f"journalctl: {e.strerror}") from None
    if code:
        raise JournalReadError(" ".join(error.split()) or f"journalctl ended with {code}")
    return filter(None, map(result_in, output.splitlines()))


def result_in(line: str) -> Result | None:
    """The result in one record of the journal; None if a newer or older vmsnap wrote it so that
    this one cannot read it."""
    try:
        return from_json(json.loads(json.loads(line)["VMSNAP_RESULT"]))
    except (ValueError, KeyError, TypeError, RecursionError):
        return None


def find(prefix: str, sessions: Iterator[Result]) -> list[Result]:
    """Those whose UUID begins so."""
    return [result for result in sessions if result.session.startswith(prefix)]
