# SPDX-License-Identifier: Apache-2.0
"""What a session sends to the service manager (sd_notify(3)), if it is in a unit of vmsnap, whose
environment says so: in any other unit it is not the main process.

Every second it sends how far the session is, that the engine lives (WATCHDOG=1), and that it needs
more time: so a timeout of the unit ends a hung engine, but never a script that may go on.

Runs in: engine, caller (`vmsnap check`). While frozen: no file, no journal, no import; the service
manager reads its socket whatever is frozen.
"""

from __future__ import annotations

import os
import time

from vmsnap.progress import plural
from vmsnap.result import Phase, Result
from vmsnap.session.session import Session
from vmsnap.system.systemd import Notifier

EXTEND = 30  # seconds for which a message keeps the unit from timing out; as TimeoutStartSec=


class Manager:
    """The service manager."""

    def __init__(self) -> None:
        self._notifier: Notifier | None = None
        if "VMSNAP_UNIT" in os.environ and os.environ.get("NOTIFY_SOCKET"):
            self._notifier = Notifier()
            del os.environ["VMSNAP_UNIT"]

    def notify(self, *lines: str) -> None:
        if self._notifier is not None:
            self._notifier.send(*lines)

    def ready(self, session: Session) -> None:
        """The unit has started: what it is for is there."""
        self.notify("READY=1", f"STATUS={status(session)}")

    def ask_for_time(self) -> None:
        self.notify(f"EXTEND_TIMEOUT_USEC={EXTEND}000000")

    def follow(self, session: Session) -> None:
        """From now on send every second how far the session is."""
        if self._notifier is not None:
            session.waiter.pulse = lambda: self.notify(
                f"STATUS={status(session)}", "WATCHDOG=1", f"EXTEND_TIMEOUT_USEC={EXTEND}000000"
            )


def status(session: Session) -> str:
    """How far a session is, in the words of `systemctl status`."""
    apps = ", ".join(app.name for app in session.found.runnable)
    frozen = session.freezer is not None and session.freezer.holding
    count = plural(len(session.freezer.filesystems), "filesystem") if session.freezer else ""
    phase = session.record.phase
    if phase is Phase.SNAPSHOT:
        left = max(0, round((session.hold.ends if session.hold else 0.0) - time.monotonic()))
        return f"Holding {f'{count} frozen' if frozen else apps or 'nothing'}, {left} s left"
    more = {
        Phase.PRE: f"{phase.doing}: {apps}" if apps else "No apps to quiesce",
        Phase.FREEZE: f"Freezing {count}",
        Phase.THAW: f"Thawing {count}",
        Phase.POST: f"{phase.doing}: {apps}" if apps else "No apps to resume",
    }
    return more.get(phase, phase.doing)


def outcome_line(result: Result) -> str:
    """How a session ended, in one line."""
    if not result.errors:
        return f"Ended: {result.consistency}-consistent snapshot"
    first = result.errors[0]
    how = f"{result.consistency}-consistent snapshot" if result.ok else "Failed"
    message = " ".join(first.message.split())
    return f"{how}: {first.name} ({first.code}): {message}"
