# SPDX-License-Identifier: Apache-2.0
"""The configuration on this machine, checked: apps that may run, and a list of problems.

`vmsnap check` prints the problems; a session starts from the same list. Nothing here has effects.
"""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from vmsnap.config import app as config
from vmsnap.config.app import App, Script
from vmsnap.config.azure import (
    AZURE_HOOKS,
    LONGEST_SCRIPT,
    QUIESCED,
    parse_plugin_host,
    parse_vmbackup,
    workload_of,
)
from vmsnap.config.formats import PLAIN_WORD, ConfigError
from vmsnap.config.settings import Settings, parse_settings
from vmsnap.config.startable import interpreter_doubt, why_not_startable
from vmsnap.consistency import Level, consistency
from vmsnap.errors import OF_APPS, SCRIPT, Kind, Problem, Severity
from vmsnap.system.bounded import NoAnswerError, bounded
from vmsnap.system.trusted import (
    InsecurePathError,
    MayWaitError,
    UnreadableFileError,
    check_directory,
    is_directory,
    open_trusted,
    read_text,
    text_of,
    walk,
)

What = TypeVar("What")
APP_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")


@dataclass
class Inspection:
    """The configuration as found: every app whose file could be read, and what is wrong."""

    settings: Settings = field(default_factory=Settings)
    apps: list[App] = field(default_factory=list)
    problems: list[Problem] = field(default_factory=list)

    @property
    def errors(self) -> list[Problem]:
        return [p for p in self.problems if p.severity is Severity.ERROR]

    @property
    def runnable(self) -> list[App]:
        """The apps whose scripts may run."""
        disabled = {problem.subject for problem in self.errors if problem.kind in OF_APPS}
        return [app for app in self.apps if app.name not in disabled]

    @property
    def apps_meant(self) -> bool:
        """Whether any app is configured, be it wrongly."""
        return bool(self.apps or self.errors)

    @property
    def level(self) -> Level:
        """The best that a snapshot can be all the same."""
        return consistency(
            (p.kind for p in self.errors), apps=self.apps_meant, freezing=self.freezing
        )

    @property
    def freezing(self) -> bool:
        """Whether filesystems are meant to be frozen."""
        return self.settings.freeze and all(app.freeze for app in self.apps)

    def error(self, kind: Kind, path: str, message: str, subject: str = "") -> None:
        self.problems.append(Problem(kind, message, path=path, subject=subject))

    def warn(self, kind: Kind, path: str, message: str) -> None:
        self.problems.append(Problem(kind, message, path=path, severity=Severity.WARNING))


def inspect(etc: Path) -> Inspection:
    """Read and check everything below `etc`, usually /etc."""
    found = Inspection()
    inspect_settings(found, etc)
    inspect_apps(found, etc)
    return found


# --- settings ----------------------------------------------------------------------------------


def inspect_settings(found: Inspection, etc: Path) -> None:
    values: dict[str, Any] = {}
    kind = Kind.INCORRECT_SETTINGS
    vmbackup = etc / "azure/vmbackup.conf"
    # Azure never asked for a mode here, so being readable is no error; being writable is.
    text = read(found, kind, vmbackup, forbidden=0o022)
    if text is not None:
        attempt(found, kind, vmbackup, lambda: parse_vmbackup(text, str(vmbackup), values))
    main = etc / "vmsnap/vmsnap.conf"
    for path in [main, *directory(found, kind, etc / "vmsnap/vmsnap.conf.d", ".conf")]:
        content = read(found, kind, path)
        if content is not None:
            parse = partial(parse_settings, content, str(path), values)
            for warning in attempt(found, kind, path, parse) or ():
                found.warn(kind, str(path), warning)
    found.settings = Settings(**values)
    if not found.settings.freeze:
        found.warn(
            kind,
            str(vmbackup),
            f"{vmbackup}: found 'fsfreeze' switched off, so no session freezes anything; expected "
            "True, unless a freeze does harm to this machine",
        )


def inspect_metrics(found: Inspection) -> None:
    """Warn of a directory for metrics that others can write to. That is how collectors are
    installed, and only the metrics depend on it, so a session does not repeat it."""
    textfile = found.settings.textfile
    if not textfile:
        return

    def look() -> None:
        with walk(Path(textfile).parent) as (fd, step):
            check_directory(fd, step)

    try:
        bounded(look)
    except NoAnswerError as e:
        found.warn(Kind.INCORRECT_SETTINGS, textfile, f"{e}: no metrics can be written there")
    except InsecurePathError as e:
        what = "others than root can change the metrics there, or keep them from being written"
        found.warn(Kind.INCORRECT_SETTINGS, textfile, f"{e}: {what}")
    except (UnreadableFileError, OSError):
        pass  # the session will say that it could not write them


# --- apps --------------------------------------------------------------------------------------


def inspect_apps(found: Inspection, etc: Path) -> None:
    seen: set[tuple[int, int]] = set()
    cap, azure = azure_apps(found, etc)
    inspect_workload(found, etc / "azure/workload.conf")
    for path in directory(found, Kind.INCORRECT_JSON_CONFIG_FILE, etc / "vmsnap/apps.d", ".json"):
        inspect_app(found, path, path.stem, cap, seen)
    for path in azure:
        name = "azure" if path.name == "VMSnapshotScriptPluginConfig.json" else path.stem
        inspect_app(found, path, name, cap, seen)


def azure_apps(found: Inspection, etc: Path) -> tuple[float, list[Path]]:
    """The longest that any script may take in seconds, and the app files of Azure's framework."""
    host = etc / "azure/VMSnapshotPluginHost.conf"
    if exists(host):
        # Readable by others, as it is shipped; not to be written or executed by them.
        text = read(found, Kind.INCORRECT_PLUGINHOST_FILE, host, forbidden=0o7133)
        parsed = (
            None
            if text is None
            else attempt(
                found,
                Kind.INCORRECT_PLUGINHOST_FILE,
                host,
                lambda: parse_plugin_host(text, str(host)),
            )
        )
        if parsed is None:
            return LONGEST_SCRIPT, []
        cap, paths = parsed
        missing = [path for path in paths if is_missing(path)]
        for path in missing:
            found.error(
                Kind.INCORRECT_PLUGINHOST_FILE,
                str(host),
                f"{host}: found {path!r} as a pluginConfigPath, expected a file that exists",
            )
        return cap, [Path(path) for path in paths if path not in missing]
    default = etc / "azure/VMSnapshotScriptPluginConfig.json"
    return LONGEST_SCRIPT, [default] if exists(default) else []


def inspect_workload(found: Inspection, path: Path) -> None:
    """Warn of a database that Azure's own framework would quiesce: its scripts are in Azure's
    extension. Who may read or write the file is that one's concern."""
    kind = Kind.INCORRECT_JSON_CONFIG_FILE
    try:
        name = workload_of(bounded(lambda: read_text(path, 0)), str(path))
    except FileNotFoundError:
        return
    except (InsecurePathError, UnreadableFileError, OSError) as e:
        found.warn(kind, str(path), f"{e}; whether it names a database is not known")
        return
    except ConfigError:  # whose text could show a password
        found.warn(
            kind, str(path), f"{path}: found no INI file, expected one that names a database"
        )
        return
    if name:
        init = f"`vmsnap init --quiesce {QUIESCED[name]}`" if name in QUIESCED else "`vmsnap init`"
        found.warn(
            kind,
            str(path),
            f"{path}: found the database {name!r} of Azure's framework for databases, which vmsnap "
            f"does not take part in; expected an app for it: {init} makes one",
        )


def is_missing(path: str) -> bool:
    """Whether there is nothing, asked without a word to a server that may not answer."""

    def look() -> None:
        with walk(path):
            pass

    try:
        bounded(look)
    except FileNotFoundError:
        return True
    except (InsecurePathError, UnreadableFileError, OSError):
        pass  # what is wrong with it, is said when it is read
    return False


def inspect_app(
    found: Inspection, path: Path, name: str, cap: float, seen: set[tuple[int, int]]
) -> None:
    kind = Kind.INCORRECT_JSON_CONFIG_FILE
    file = attempt(found, kind, path, lambda: bounded(lambda: read_text_of(path)))
    if file is None:
        return
    text, identity = file
    if identity in seen:
        found.warn(
            kind,
            str(path),
            f"{path}: found a file that another name has already led to; its app runs once",
        )
        return
    seen.add(identity)
    parsed = attempt(found, kind, path, lambda: config.parse_app(text, str(path), name))
    if parsed is None:
        return
    app, warnings = parsed
    if app.pre and app.pre.path == AZURE_HOOKS["pre"]:
        return
    for warning in warnings:
        found.warn(kind, str(path), warning)
    if not APP_NAME.fullmatch(app.name):
        found.error(
            kind,
            str(path),
            f"{path}: found the app name {app.name!r}, expected {PLAIN_WORD}; "
            "set appName or rename the file",
        )
        return
    if app.name in {other.name for other in found.apps}:
        other = next(other for other in found.apps if other.name == app.name)
        found.error(
            kind,
            str(path),
            f"{path}: found the app name {app.name!r}, which {other.config} "
            "has already; expected one that is not taken",
        )
        return
    app = replace(
        app,
        pre=inspect_script(found, app, "pre", app.pre, cap),
        post=inspect_script(found, app, "post", app.post, cap),
    )
    if app.pre is None and app.post is None:
        found.error(
            Kind.PRE_SCRIPT_NOT_FOUND,
            str(path),
            f"{path}: found neither 'preScriptLocation' nor 'postScriptLocation', expected one",
            app.name,
        )
    found.apps.append(app)


def inspect_script(
    found: Inspection, app: App, phase: str, script: Script | None, cap: float
) -> Script | None:
    """Check one script and pin its identity."""
    if script is None:
        return None
    kinds = SCRIPT[phase]
    path = script.path

    def error(kind: Kind, message: str) -> None:
        found.error(kind, path, f"{message} (app {app.name!r}, {phase}-script)", app.name)

    script = replace(script, budget=min(script.budget, cap))
    try:
        mode, identity, wrong, doubt = bounded(lambda: look_at_script(path))
    except NoAnswerError as e:
        error(kinds.not_found, str(e))
        return script
    except InsecurePathError as e:
        error(kinds.untrusted, str(e))
        return script
    except UnreadableFileError as e:
        error(kinds.not_found, str(e))
        return script
    except OSError as e:
        error(kinds.not_found, f"{script.path}: {e.strerror}")
        return script
    if not mode & stat.S_IXUSR:
        error(
            kinds.untrusted,
            f"{path}: found mode {mode:04o}, expected 0700: executable by its owner",
        )
    if wrong:
        error(kinds.untrusted, f"{path}: {wrong}")
    elif doubt:
        found.warn(kinds.untrusted, path, f"{path}: {doubt} (app {app.name!r}, {phase}-script)")
    return replace(script, identity=identity)


def look_at_script(path: str) -> tuple[int, tuple[int, int], str, str]:
    """Mode, device and inode, why it cannot be started, and a doubt. Raises as open_trusted."""
    with open(open_trusted(path, 0o7077), "rb") as file:
        status = os.fstat(file.fileno())
        wrong = why_not_startable(file.fileno(), path) if status.st_mode & stat.S_IXUSR else ""
        doubt = interpreter_doubt(file.fileno())
    return stat.S_IMODE(status.st_mode), (status.st_dev, status.st_ino), wrong, doubt


# --- reading -----------------------------------------------------------------------------------


def directory(found: Inspection, kind: Kind, path: Path, suffix: str) -> Iterator[Path]:
    """The files of a drop-in directory in the order of their names; none if it does not exist."""

    def look() -> list[str]:
        with walk(path, is_directory) as (pinned, step):
            is_directory(pinned, step)
            fd = os.open(".", os.O_RDONLY | os.O_DIRECTORY, dir_fd=pinned)
        try:
            return sorted(os.listdir(fd))
        finally:
            os.close(fd)

    try:
        names = bounded(look)
    except FileNotFoundError:
        return
    except (InsecurePathError, UnreadableFileError) as e:
        found.error(kind, str(path), str(e))
        return
    except OSError as e:
        found.error(kind, str(path), f"{path}: {e.strerror}; expected a directory")
        return
    for name in names:
        if name.endswith(suffix) and not name.startswith("."):
            yield path / name


def exists(path: Path) -> bool:
    """Whether there is anything, be it a link to nothing. FUSE is not asked: what is wrong there,
    is said when it is read, and so is what does not answer."""
    try:
        return bounded(lambda: is_there(path))
    except NoAnswerError:
        return True


def is_there(path: Path) -> bool:
    try:
        with walk(path, is_directory):
            return True
    except MayWaitError:
        raise
    except (FileNotFoundError, NotADirectoryError):
        pass
    except (InsecurePathError, UnreadableFileError, OSError):
        return True
    try:
        with walk(path.parent, is_directory) as (above, _):
            os.close(os.open(path.name, os.O_PATH | os.O_NOFOLLOW, dir_fd=above))
            return True
    except (InsecurePathError, UnreadableFileError, OSError):
        return False


def read(found: Inspection, kind: Kind, path: Path, forbidden: int = 0o7177) -> str | None:
    """The text of a file; None if there is none, or if a problem has been noted."""
    if not exists(path):
        return None
    return attempt(found, kind, path, lambda: bounded(lambda: read_text(path, forbidden)))


def read_text_of(path: Path) -> tuple[str, tuple[int, int]]:
    """Its text, and its device and inode."""
    with open(open_trusted(path), "rb") as file:
        status = os.fstat(file.fileno())
        return text_of(file, path), (status.st_dev, status.st_ino)


def attempt(found: Inspection, kind: Kind, path: Path, step: Callable[[], What]) -> What | None:
    """Do one step of reading a file. If it cannot be done, note the problem and return None."""
    try:
        return step()
    except (InsecurePathError, UnreadableFileError, ConfigError) as e:
        found.error(kind, str(path), str(e))
    except OSError as e:
        found.error(kind, str(path), f"{path}: {e.strerror}; expected a file that root can read")
    return None
