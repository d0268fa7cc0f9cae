# SPDX-License-Identifier: Apache-2.0
"""Having systemd look again when a script changes: `vmsnap check --watch`.

vmsnap-check.path watches the directories of the configuration. Those that only the configuration
knows, of the scripts and of apps that a plugin host file names, each get an instance of
vmsnap-check@.path.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from vmsnap.config.checks import Inspection
from vmsnap.errors import Kind, Problem, Severity
from vmsnap.system import systemd
from vmsnap.system.trusted import InsecurePathError, UnreadableFileError, is_directory, walk


def watch(found: Inspection) -> list[Problem]:
    """Watch the directories of all scripts and of all apps. Return warnings of those that systemd
    does not watch."""
    scripts = [script for app in found.apps for script in (app.pre, app.post) if script]
    files = {
        *(script.path for script in scripts),
        *(app.config for app in found.apps),
        *(p.path for p in found.problems if p.kind is Kind.INCORRECT_JSON_CONFIG_FILE),
    }
    directories = sorted({os.path.normpath(Path(file).parent) for file in files})
    return [
        problem
        for directory in directories
        if is_reachable(directory)
        for problem in watch_directory(directory)
    ]


def is_reachable(directory: str) -> bool:
    """Whether systemd can look there without being led elsewhere by a user's link, or waiting for a
    user's FUSE server. That those are there is a problem of its own, and noted."""
    try:
        with walk(directory, is_directory):
            return True
    except (InsecurePathError, UnreadableFileError):
        return directory == "/"
    except OSError:  # missing: it may come
        return True


def watch_directory(directory: str) -> Iterator[Problem]:
    try:
        error = systemd.start_instance("vmsnap-check@.path", directory)
    except OSError as e:
        error = f"{e.filename}: {e.strerror}"
    if error:
        message = f"{directory}: systemd does not watch it: {error}"
        yield Problem(Kind.INCORRECT_SETTINGS, message, path=directory, severity=Severity.WARNING)
