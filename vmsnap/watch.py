# SPDX-License-Identifier: Apache-2.0
"""Having systemd look again when a script changes: `vmsnap check --watch`.

vmsnap-check.path watches the directories of the configuration. Those that only the configuration
knows, of the scripts and of apps that a plugin host file names, each get an instance of
vmsnap-check@.path.
"""

from __future__ import annotations

from pathlib import Path

from vmsnap.checks import Inspection
from vmsnap.errors import Impossible, Kind
from vmsnap.process import output_of


class Unwatchable(Impossible):
    """systemd does not watch the scripts."""


def watch(found: Inspection) -> None:
    """Watch the directories of all scripts and of all apps. Raises Unwatchable."""
    scripts = [script for app in found.apps for script in (app.pre, app.post) if script]
    files = {
        *(script.path for script in scripts),
        *(app.config for app in found.apps),
        *(p.path for p in found.problems if p.kind is Kind.INCORRECT_JSON_CONFIG_FILE),
    }
    directories = sorted({str(Path(file).parent) for file in files})
    if directories:
        units = ask("systemd-escape", "--path", "--template=vmsnap-check@.path", "--", *directories)
        ask("systemctl", "start", "--", *units.split())


def ask(*argv: str) -> str:
    try:
        code, output, error = output_of(argv)
    except OSError as e:
        raise Unwatchable(f"{argv[0]}: {e.strerror}") from None
    if code:
        raise Unwatchable(" ".join(error.split()) or f"{argv[0]} ended with {code}")
    return output
