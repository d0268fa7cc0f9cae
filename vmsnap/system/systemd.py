# SPDX-License-Identifier: Apache-2.0
"""systemd: whether it runs here, systemctl(1), systemd-detect-virt(1) and the like, sd_notify(3).

Everything but the notifier starts a process, so nothing of it is for while anything is frozen.
What is asked raises OSError if the program is not there.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from vmsnap.system.printable import printable
from vmsnap.system.process import output_of

BOOTED = Path("/run/systemd/system")  # sd_booted(3)
RUNNING = ("active", "activating", "reloading")  # systemctl is-active


def booted() -> bool:
    return BOOTED.is_dir()


def systemctl(*arguments: str) -> tuple[int, str]:
    """Return the exit code, and on one line what it complained of."""
    code, _, error = output_of(["systemctl", *arguments])
    return code, " ".join(error.split())


def show(unit: str, name: str) -> str:
    """A property of a unit; "" if it has none of that name."""
    return output_of(["systemctl", "show", "--value", f"--property={name}", unit])[1].strip()


def is_running(unit: str) -> bool:
    """Or about to be, as at boot."""
    return output_of(["systemctl", "is-active", unit])[1].strip() in RUNNING


def jobs() -> list[tuple[str, str]]:
    """The unit and the type of every job that is not done."""
    listed = output_of(["systemctl", "list-jobs", "--plain", "--no-legend"])[1]
    rows = (line.split() for line in listed.splitlines())
    return [(row[1], row[2]) for row in rows if len(row) > 2]


def start_instances(template: str, paths: Sequence[str]) -> dict[str, str]:
    """Start the instance of a template unit for each path; return what was complained of, by
    path."""
    complaint = start_together(template, paths)
    if complaint and len(paths) > 1:  # of whichever
        each = ((path, start_together(template, [path])) for path in paths)
        return {path: complaint for path, complaint in each if complaint}
    return dict.fromkeys(paths, complaint) if complaint else {}


def start_together(template: str, paths: Sequence[str]) -> str:
    escape = ["systemd-escape", "--path", f"--template={template}", "--", *paths]
    code, units, error = output_of(escape)
    if not code:
        code, error = systemctl("start", "--", *units.split())
    return (" ".join(error.split()) or f"exit code {code}") if code else ""


def elapses(calendar: str) -> bool:
    """Whether it is an expression of systemd.time(7), of a time that is yet to come."""
    code, out, _ = output_of(["systemd-analyze", "calendar", "--", calendar])
    return code == 0 and "elapse: never" not in out


def virtualization() -> str:
    """A word of systemd-detect-virt(1); "none" on hardware."""
    return output_of(["systemd-detect-virt", "--vm"])[1].strip()


class Notifier:
    """Speaks to the service manager as the main process of a unit. What this process starts is not
    that, so the environment loses what is needed for it."""

    def __init__(self) -> None:
        import sdnotify

        self._notifier = sdnotify.SystemdNotifier()
        for name in ("NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID"):
            os.environ.pop(name, None)

    def send(self, *lines: str) -> None:
        # The library encodes in latin-1 and hides the error; the manager wants UTF-8.
        text = "\n".join(map(printable, lines))  # a newline in a line would begin an order
        self._notifier.notify(text.encode().decode("latin-1"))

    def close(self) -> None:
        self._notifier.socket.close()
