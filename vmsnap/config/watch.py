# SPDX-License-Identifier: Apache-2.0
"""Having systemd look again when something changes: `vmsnap check --watch`.

Each directory of the configuration and of scripts gets an instance of vmsnap-check@.path. It is
PID 1 that looks at it then. So this is done only where nothing can keep it waiting: it would wait
in uninterruptible sleep, and the whole machine with it.
"""

from __future__ import annotations

import os
from pathlib import Path

from vmsnap.config.checks import Inspection
from vmsnap.errors import Kind, Problem, Severity
from vmsnap.system import systemd
from vmsnap.system.trusted import InsecurePathError, UnreadableFileError, is_directory, walk

# Below /etc, and below the state directory: what is watched wherever scripts are.
CONFIGURATION = ("vmsnap", "vmsnap/apps.d", "vmsnap/vmsnap.conf.d", "vmsnap/scripts", "azure")
OUTCOME = "provision.json"
UNIT, ALL = "vmsnap-check@.path", "vmsnap-check.path"
ELSEWHERE = (
    "found it on FUSE, on another machine or below an automount, where process 1 would wait for a "
    "server; after a change run `systemctl restart vmsnap-check`"
)


def watch(found: Inspection, etc: Path, state: Path) -> list[Problem]:
    """Watch the configuration, all scripts and all apps, and how `vmsnap provision` went. Return
    warnings of what systemd does not watch."""
    scripts = [script for app in found.apps for script in (app.pre, app.post) if script]
    files = {
        *(script.path for script in scripts),
        *(app.config for app in found.apps),
        *(p.path for p in found.problems if p.kind is Kind.INCORRECT_JSON_CONFIG_FILE),
    }
    watched = {str(etc / name) for name in CONFIGURATION} | {str(state / OUTCOME)}
    watched |= {os.path.normpath(Path(file).parent) for file in files}
    if not systemd.is_running(ALL):  # the administrator has stopped it, or disabled it
        return []
    reachable = {path: is_reachable(path) for path in sorted(watched)}
    unwatched = dict.fromkeys((path for path in reachable if not reachable[path]), ELSEWHERE)
    try:
        unwatched |= systemd.start_instances(UNIT, [path for path in reachable if reachable[path]])
    except OSError as e:
        unwatched[f"{e.filename}"] = e.strerror or "it cannot be run"
    return [
        Problem(
            Kind.INCORRECT_SETTINGS,
            f"{path}: systemd does not watch it: {why}",
            path=path,
            severity=Severity.WARNING,
        )
        for path, why in unwatched.items()
    ]


def is_reachable(path: str) -> bool:
    """Whether systemd can look there without being led elsewhere by a user's link, or waiting for a
    FUSE, another machine or an automounter. What is missing may come: then the directory above it
    decides, which is watched for that. That a script lies there is a problem of its own."""
    for step in (Path(path), *Path(path).parents):
        try:
            with walk(step, is_directory):
                return True
        except (InsecurePathError, UnreadableFileError):
            return step == Path("/")
        except OSError:
            continue
    return False
