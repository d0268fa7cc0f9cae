# SPDX-License-Identifier: Apache-2.0
"""Writing configuration and scripts with the owner and mode that the checks ask for."""

from __future__ import annotations

import contextlib
import json
import os
import stat
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from vmsnap import checks
from vmsnap.document import read
from vmsnap.errors import Impossible
from vmsnap.files import File, make_directories, sync, write_all
from vmsnap.mistakes import Mistake, Mistaken
from vmsnap.process import output_of
from vmsnap.provisioned import Provisioning
from vmsnap.trusted import Unreadable, Untrusted

TIMER = "vmsnap-backup.timer"

PRE = """\
#!/bin/sh
# Quiesce {name}: bring what it has on its disks into a state from which it can start, and keep it
# there until the post-script runs. The environment holds VMSNAP_SESSION, VMSNAP_APP,
# VMSNAP_PHASE, VMSNAP_ATTEMPT, VMSNAP_TIMEOUT (seconds for all attempts) and VMSNAP_SCRIPT_DIR (a
# private directory, the same for the post-script). Exit 0 only if {name} is quiesced.
echo "the pre-script of {name} has not been written yet: $0" >&2
exit 1
"""

POST = """\
#!/bin/sh
# Let {name} go on. This runs whenever the pre-script was started, also after it failed, so it
# must do no harm to an application that was never quiesced. VMSNAP_OUTCOME (success or failed)
# and VMSNAP_CONSISTENCY (application, filesystem, crash or none) tell how the session went.
echo "the post-script of {name} has not been written yet: $0" >&2
exit 1
"""


class Exists(Impossible):
    """A file that would be written is there already."""


class TimerRefused(Impossible):
    """systemd did not do what was asked of it."""


@dataclass(frozen=True)
class Written:
    config: Path
    pre: Path
    post: Path


def init(etc: Path, name: str) -> Written:
    """Write the config and the script skeletons of an app. Existing files are never touched.

    Raises Exists and OSError; what was written before an OSError is removed again.
    """
    base = etc / "vmsnap"
    scripts = base / "scripts" / name
    written = Written(base / "apps.d" / f"{name}.json", scripts / "pre", scripts / "post")
    for path in (written.config, written.pre, written.post):
        if os.path.lexists(path):
            raise Exists(f"{path}: found a file there already, expected none; it was left as it is")
    document = {
        "pluginName": "ScriptRunner",
        "preScriptLocation": str(written.pre),
        "postScriptLocation": str(written.post),
        "preScriptParams": [],
        "postScriptParams": [],
        "preScriptNoOfRetries": 0,
        "postScriptNoOfRetries": 0,
        "timeoutInSeconds": 30,
        "continueBackupOnFailure": True,
        "fsFreezeEnabled": True,
    }
    files = [
        File(written.pre, PRE.format(name=name).encode(), 0o700),
        File(written.post, POST.format(name=name).encode(), 0o700),
        File(written.config, (json.dumps(document, indent=4) + "\n").encode(), 0o600),
    ]
    try:
        write(files)
    except OSError:
        for file in files:
            file.path.unlink(missing_ok=True)
        raise
    return written


def provision(
    source: str, load: Callable[[], object], etc: Path, dry_run: bool = False
) -> Provisioning:
    """Put the document that is loaded from `source` into effect below `etc`. Whatever goes wrong is
    in what is returned: with the document, and then nothing was written, or besides it."""
    missing: list[File] = []
    there: list[File] = []
    problems: list[Mistake] = []
    timer = None
    try:
        document = read(load(), etc)
        timer = None if document.timer is None else bool(document.timer)
        there = [file for file in document.files if is_there(file)]
        wanted = [file for file in document.files if file not in there]
        if not dry_run:
            make_root_only(etc / "vmsnap")
            write(wanted)
        missing = wanted
        if not dry_run:
            set_timer(document.timer, any(TIMER in str(file.path) for file in missing))
            problems += disorder(document.apps, etc)
    except Mistaken as e:
        problems += e.mistakes
    except (Untrusted, Unreadable, TimerRefused) as e:
        problems.append(Mistake("", str(e)))
    except OSError as e:
        where = e.filename if str(e.filename).startswith("/") else source
        problems.append(Mistake("", f"{where}: {e.strerror}"))
    return Provisioning(
        source,
        problems=tuple(problems),
        written=tuple(str(file.path) for file in missing),
        unchanged=tuple(str(file.path) for file in there),
        timer=timer,
    )


def disorder(apps: tuple[str, ...], etc: Path) -> Iterator[Mistake]:
    """What is wrong all the same, in words that say nothing of what the files hold."""
    found = checks.inspect(etc)
    for problem in found.errors:
        where = f"app {problem.subject}" if problem.subject else problem.path
        yield Mistake("", f"{where}: {problem.kind.label}; `vmsnap check` says more")
    ignored = set(apps) - {app.name for app in found.apps}
    if ignored and not found.errors:
        names = ", ".join(sorted(ignored))
        yield Mistake("", f"{names}: not an app that VMSnapshotPluginHost.conf names")


def make_root_only(directory: Path) -> None:
    """cloud-init makes it for a provision.yaml, before the package does, and for all to read."""
    if directory.exists():
        directory.chmod(0o700)


def write(files: list[File]) -> None:
    """In this order, the configs after their scripts: an app exists from then on."""
    made: list[Path] = []
    try:
        for file in files:
            made += make_directories(file.path.parent, 0o755 if file.mode & 0o004 else 0o700)
        write_all(files)
        for directory in made:
            sync(directory.parent)
    except BaseException:
        for directory in reversed(made):
            with contextlib.suppress(OSError):
                directory.rmdir()
        raise


def is_there(file: File) -> bool:
    try:
        status = file.path.lstat()
        return (
            stat.S_ISREG(status.st_mode)
            and (stat.S_IMODE(status.st_mode), status.st_uid, status.st_gid) == (file.mode, 0, 0)
            and file.path.read_bytes() == file.data
        )
    except OSError:
        return False


def set_timer(calendar: str | None, changed: bool) -> None:
    """Never waiting for a job: systemd may be waiting for whoever called us (cloud-init)."""
    if calendar is None:
        return
    booted = Path("/run/systemd/system").exists()  # sd_booted(3)
    if not calendar:
        systemctl("disable", TIMER)
        if booted:
            systemctl("stop", "--no-block", TIMER)
        return
    systemctl("enable", TIMER)
    if booted:
        systemctl("restart" if changed else "start", "--no-block", TIMER)


def systemctl(*words: str) -> None:
    code, _, error = output_of(["systemctl", "--quiet", *words])
    if code:
        raise TimerRefused(f"systemctl {' '.join(words)}: {error.strip()}")
