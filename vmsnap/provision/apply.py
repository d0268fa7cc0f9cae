# SPDX-License-Identifier: Apache-2.0
"""Writing configuration and scripts with the owner and mode that the checks ask for."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

from vmsnap.config import checks
from vmsnap.errors import CommandError
from vmsnap.platforms import diagnose
from vmsnap.platforms.integrate import (
    Changes,
    IntegrationError,
    connect,
    disconnect,
    this_platforms_agent,
    traces,
)
from vmsnap.provision.document import Document, read
from vmsnap.provision.status import Provisioning
from vmsnap.provision.validation import InvalidDocumentError, Mistake
from vmsnap.system import systemd
from vmsnap.system.files import File, is_there, write
from vmsnap.system.trusted import InsecurePathError, UnreadableFileError

TIMER = "vmsnap-backup.timer"


class TimerError(CommandError):
    """systemd did not do what was asked of it."""


def provision(
    source: str, load: Callable[[], object], etc: Path, state: Path, dry_run: bool = False
) -> Provisioning:
    """Put the document that is loaded from `source` into effect below `etc`. Whatever goes wrong is
    in what is returned: with the document, and then nothing was written, or besides it."""
    missing: list[File] = []
    there: list[File] = []
    problems: list[Mistake] = []
    timer = None
    connected = Changes()
    try:
        document = read(load(), etc)
        timer = None if document.timer is None else bool(document.timer)
        there = [file for file in document.files if is_there(file)]
        wanted = [file for file in document.files if file not in there]
        connected = integrate(document.integrate, state, dry_run=True)  # could it be?
        refuse_both(document, connected)
        if not dry_run:
            make_root_only(etc / "vmsnap")
            write(wanted)
        missing = wanted
        if not dry_run:
            connected = integrate(document.integrate, state, dry_run=False)
            set_timer(document.timer, any(TIMER in str(file.path) for file in missing))
            problems += disorder(document.apps, etc)
            problems += disconnection(document.integrate, state)
    except InvalidDocumentError as e:
        problems += e.mistakes
    except IntegrationError as e:
        problems.append(Mistake("integrate", str(e)))
    except (InsecurePathError, UnreadableFileError, TimerError) as e:
        problems.append(Mistake("", str(e)))
    except OSError as e:
        where = e.filename if str(e.filename).startswith("/") else source
        problems.append(Mistake("", f"{where}: {e.strerror}"))
    return Provisioning(
        source,
        problems=tuple(problems),
        written=(*(str(file.path) for file in missing), *connected.written),
        unchanged=(*(str(file.path) for file in there), *connected.unchanged),
        timer=timer,
        removed=connected.removed,
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


def integrate(wanted: str | bool | None, state: Path, *, dry_run: bool) -> Changes:
    """Never waiting, either. Raises IntegrationError, and OSError."""
    if wanted is False:
        ended = [disconnect(x, state, dry_run=dry_run, wait=False) for x in traces(state)]
        written = tuple(path for changes in ended for path in changes.written)
        return Changes(written, removed=tuple(path for x in ended for path in x.removed))
    if not isinstance(wanted, str):
        return Changes()
    agent = this_platforms_agent() if wanted == "auto" else wanted
    return connect(agent, state, dry_run=dry_run, wait=False)


def refuse_both(document: Document, connected: Changes) -> None:
    """Azure's file has room for one."""
    paths = {str(file.path) for file in document.files}
    for path in (path for path in connected.written if path in paths):
        raise IntegrationError(
            f"{path}: it would hold an app, and what makes Azure's extension call vmsnap; "
            "leave out `azure: true`"
        )


def disconnection(wanted: str | bool | None, state: Path) -> Iterator[Mistake]:
    """What keeps the agent from calling us all the same; it may not run yet."""
    found = checks.Inspection()
    if wanted:
        diagnose.inspect(found, state, running=False)
    for problem in found.errors:
        yield Mistake("integrate", problem.message)


def make_root_only(directory: Path) -> None:
    """cloud-init makes it for a provision.yaml, before the package does, and for all to read."""
    if directory.exists():
        directory.chmod(0o700)


def set_timer(calendar: str | None, changed: bool) -> None:
    """Never waiting for a job: systemd may be waiting for our caller (cloud-init)."""
    if calendar is None:
        return
    booted = systemd.booted()
    if not calendar:
        systemctl("disable", TIMER)
        if booted:
            systemctl("stop", "--no-block", TIMER)
        return
    systemctl("enable", TIMER)
    if booted:
        systemctl("restart" if changed else "start", "--no-block", TIMER)


def systemctl(*arguments: str) -> None:
    code, error = systemd.systemctl("--quiet", *arguments)
    if code:
        raise TimerError(f"systemctl {' '.join(arguments)}: {error}")
