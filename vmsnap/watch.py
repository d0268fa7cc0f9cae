# SPDX-License-Identifier: Apache-2.0
"""Having systemd look again when a script changes: `vmsnap check --watch`.

vmsnap-check.path watches the directories of the configuration. Those of the scripts are known only
to the configuration, so each gets an instance of vmsnap-check@.path.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from vmsnap.config import App
from vmsnap.errors import Impossible
from vmsnap.process import output_of


class Unwatchable(Impossible):
    """systemd does not watch the scripts."""


def watch_scripts(apps: Iterable[App]) -> None:
    """Watch the directories of all scripts. Raises Unwatchable."""
    scripts = [script for app in apps for script in (app.pre, app.post) if script]
    directories = sorted({str(Path(script.path).parent) for script in scripts})
    if directories:
        units = ask("systemd-escape", "--path", "--template=vmsnap-check@.path", "--", *directories)
        ask("systemctl", "start", "--no-block", "--", *units.split())


def ask(*argv: str) -> str:
    try:
        code, output, error = output_of(argv)
    except OSError as e:
        raise Unwatchable(f"{argv[0]}: {e.strerror}") from None
    if code:
        raise Unwatchable(" ".join(error.split()) or f"{argv[0]} ended with {code}")
    return output
