# SPDX-License-Identifier: Apache-2.0
"""What can be wrong with the document of `vmsnap provision`.

Mistakes name keys and never show a value: cloud-init passes them on to files that everybody can
read. As many as possible are told at once, since whoever wrote the document may have to create a
machine to try the next one.
"""

from __future__ import annotations

import difflib
import json
import math
import os
import re
import stat
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vmsnap.config import app as config
from vmsnap.config import checks
from vmsnap.config.formats import PLAIN_WORD, expectation
from vmsnap.config.settings import SETTINGS, spelled
from vmsnap.config.startable import why_not_startable
from vmsnap.errors import VmsnapError
from vmsnap.platforms.registry import agents
from vmsnap.system import systemd
from vmsnap.system.bounded import NoAnswerError, bounded
from vmsnap.system.trusted import (
    InsecurePathError,
    MayWaitError,
    UnreadableFileError,
    encodable,
    open_trusted,
)

MOST_SHOWN = 20  # mistakes; a document of another kind has as many as it has keys
PLAIN_KEY = re.compile(r"[A-Za-z0-9._-]{1,64}")


@dataclass(frozen=True)
class Mistake:
    """Something in the document that cannot be meant; `key` is a path such as apps.db.config."""

    key: str
    message: str

    def __str__(self) -> str:
        return f"{self.key}: {self.message}" if self.key else self.message


class InvalidDocumentError(VmsnapError):
    """A document with mistakes in it."""

    def __init__(self, mistakes: Sequence[Mistake]) -> None:
        more = len(mistakes) - MOST_SHOWN
        rest = [Mistake("", f"there are {more} mistakes more")] if more > 0 else []
        self.mistakes = (*mistakes[:MOST_SHOWN], *rest)
        super().__init__("\n".join(map(str, self.mistakes)))


def shown(path: Iterable[object]) -> str:
    """A key path as text: apps.db.config.preScriptParams[0]."""
    text = ""
    for part in path:
        if isinstance(part, int):
            text += f"[{part}]"
        else:
            key = str(part)
            text += "." * bool(text)
            text += key if PLAIN_KEY.fullmatch(key) else json.dumps(key[:64])
    return text


def kind_of(value: object) -> str:
    kinds = {bool: "true or false", int: "a whole number", float: "a number", str: "a string"}
    return {**kinds, list: "a list", dict: "an object"}.get(type(value), "nothing (null)")


# --- the form ------------------------------------------------------------------------------------


def not_json(value: object, path: tuple[object, ...]) -> Iterator[Mistake]:
    """What YAML or JSON can say and no configuration can hold."""
    if isinstance(value, dict):
        for key, below in value.items():
            if isinstance(key, str):
                yield from not_json(below, (*path, key))
            else:
                yield Mistake(shown(path), "found a key that is no string; put it in quotes")
    elif isinstance(value, list):
        for index, below in enumerate(value):
            yield from not_json(below, (*path, index))
    elif isinstance(value, str):
        if not encodable(value) or "\0" in value:
            yield Mistake(shown(path), "found half a character or a NUL, expected text")
    elif isinstance(value, float) and not math.isfinite(value):
        yield Mistake(shown(path), "found a number that is not finite")
    elif not isinstance(value, (int, float, type(None))):
        yield Mistake(shown(path), "found a date or binary data; put it in quotes")


def schema() -> dict[str, Any]:
    """The JSON Schema (draft-07) of the document, with that of an app and the agents in it."""
    text = Path(__file__).with_name("provision.schema.json").read_text(encoding="utf-8")
    whole: dict[str, Any] = json.loads(text)
    whole["properties"]["integrate"]["enum"][1:1] = agents()
    app = config.schema()
    whole["definitions"]["config"] = {
        "description": app["description"],
        "type": "object",
        "additionalProperties": False,  # else a typing error stays hidden until the next restore
        "properties": app["properties"],
    }
    return whole


def against_schema(found: object) -> Iterator[Mistake]:
    import jsonschema  # late: takes 70 ms

    errors = jsonschema.Draft7Validator(schema()).iter_errors(found)
    for error in sorted(errors, key=lambda error: list(map(str, error.path))):
        path = tuple(error.path)
        if "propertyNames" in error.schema_path:
            yield Mistake(shown((*path, error.instance)), f"expected {PLAIN_WORD}")
        elif error.validator == "additionalProperties":
            known = list(error.schema["properties"])
            for key in [key for key in error.instance if key not in known]:
                yield Mistake(shown((*path, key)), f"unknown key; {nearest(key, known)}")
            if not path and "vmsnap" in error.instance:
                yield Mistake("", "this is user-data, expected what stands below vmsnap: in it")
        elif error.validator == "minProperties":
            keys = error.schema.get("properties", ("a name",))
            yield Mistake(shown(path), f"nothing is in it, expected {' or '.join(keys)}")
        else:
            wanted = expectation(error)
            yield Mistake(shown(path), f"found {kind_of(error.instance)}, expected {wanted}")


def nearest(key: str, known: list[str]) -> str:
    lower = {word.lower(): word for word in known}
    close = difflib.get_close_matches(key.lower(), lower, n=1)
    if close:
        return f"did you mean {lower[close[0]]!r}?"
    return f"expected {', '.join(known)}"


# --- the meaning ---------------------------------------------------------------------------------


def contradictions(found: dict[str, Any], apps: dict[str, Any]) -> Iterator[Mistake]:
    """What is wrong though every key and type is right."""
    short = [key for key in ("config", "scripts", "azure") if key in found]
    if "apps" in found and short:
        yield Mistake(short[0], "stands beside apps, expected inside one of them")
        return
    for name, app in apps.items():
        path = ("apps", name) if "apps" in found else ()
        if not checks.APP_NAME.fullmatch(name):  # a $ in the schema also matches before "\n"
            yield Mistake(shown(path or ("config", "appName")), f"expected {PLAIN_WORD}")
        if app.get("config", {}).get("appName", name) != name:
            yield Mistake(shown((*path, "config", "appName")), f"found a name that is not {name!r}")
        yield from script_mistakes(app, path)
    if found.get("timer") in (True, ""):
        yield Mistake("timer", "expected a calendar expression, such as daily, or false")
    azure = [name for name, app in apps.items() if app.get("azure")]
    for name in azure[1:]:
        yield Mistake(
            shown(("apps", name, "azure")), f"the file is that of app {azure[0]!r} already"
        )
    for section, settings in found.get("conf", {}).items():
        for key, value in settings.items():
            yield from setting_mistakes(section, key, value)


def script_mistakes(app: dict[str, Any], path: tuple[str, ...]) -> Iterator[Mistake]:
    texts, settings = app.get("scripts", {}), app.get("config", {})
    locations = {phase: settings.get(f"{phase}ScriptLocation") for phase in ("pre", "post")}
    if not texts and not any(locations.values()):
        yield Mistake(shown(path), "found no script, expected scripts with pre, post or both")
    for phase, location in locations.items():
        key = (*path, "config", f"{phase}ScriptLocation")
        if location and phase in texts:
            yield Mistake(shown(key), f"there is scripts.{phase} too, expected one of them")
        elif location and (wrong := location_mistake(location)):
            yield Mistake(shown(key), wrong)
    for phase, text in texts.items():
        wrong = script_mistake(text)
        if wrong:
            yield Mistake(shown((*path, "scripts", phase)), wrong)


def script_mistake(text: str) -> str:
    """What keeps this text from being run as it is meant; "" if nothing does. What the kernel takes
    and nobody can mean is a mistake here as well."""
    first, _, rest = text.partition("\n")
    if "\r\n" in text:
        return "found the line ends of Windows, expected those of Unix"
    if not first.startswith("#!") and text.lstrip("\ufeff \t\n").startswith("#!"):
        return "found #! that is not at the very beginning"
    with open(os.memfd_create("script"), "wb", buffering=0) as file:
        file.write(text.encode("utf-8", "surrogatepass"))
        wrong = why_not_startable(file.fileno(), "script")
    if wrong and first.startswith("#!"):  # what it names may be a secret in the wrong place
        wrong = "found a first line (#!) that names no program which this machine can run"
    if first.startswith("#!") and not rest.strip():
        nothing = (
            "found nothing after the first line; in YAML a script begins with | and not with >"
        )
        return f"{wrong}; {nothing}" if wrong else nothing
    return wrong


def location_mistake(location: str) -> str:
    """What is wrong with a script that is named and not given, as the checks have it."""
    if not location.startswith("/"):
        return "expected an absolute path"
    try:
        return bounded(lambda: named_script_mistake(location))
    except NoAnswerError as e:
        return f"found a path on what does not answer: {e.step}"


def named_script_mistake(location: str) -> str:
    try:
        fd = open_trusted(location, 0o7077)
    except MayWaitError:
        raise
    except (InsecurePathError, UnreadableFileError):
        return "found a script that is not root's alone, expected owner root and mode 0700"
    except PermissionError:  # a dry run by another user
        return ""
    except OSError as e:
        return f"found {(e.strerror or 'no file').lower()} on this machine"
    with open(fd, "rb"):
        if not os.fstat(fd).st_mode & stat.S_IXUSR:
            return "found a script that is not executable, expected mode 0700"
        return why_not_startable(fd, location)


def setting_mistakes(section: str, key: str, value: object) -> Iterator[Mistake]:
    path = shown(("conf", section, key))
    text = spelled(value)
    if not text.isprintable():  # a newline would begin another setting
        yield Mistake(path, "expected one line of printable characters")
        return
    try:
        if text.strip():
            SETTINGS[section, key][1](text.strip())
    except ValueError as e:
        yield Mistake(path, f"expected {e}")


def of_integration(found: dict[str, Any], etc: Path) -> Iterator[Mistake]:
    if "integrate" in found and etc != Path("/etc"):
        yield Mistake("integrate", f"the agents of platforms read /etc and not {etc}")


def of_timer(timer: Any, conf: dict[str, Any], etc: Path) -> Iterator[Mistake]:
    if timer is not None and etc != Path("/etc"):
        yield Mistake("timer", f"it is systemd's, which reads /etc and not {etc}")
        return
    if not timer:
        return
    try:
        wrong = not timer.isprintable() or not systemd.elapses(timer)
    except OSError:
        yield Mistake("timer", "systemd-analyze is not here to read it")
        return
    if wrong:
        yield Mistake("timer", "expected a time to come, as in systemd.time(7): daily")
    command: Any = spelled(conf.get("snapshot", {}).get("command", "")).strip()
    if "command" not in conf.get("snapshot", {}):
        settings = checks.Inspection()
        checks.inspect_settings(settings, etc)
        command = settings.settings.command
    if not command and os.geteuid() == 0:  # others cannot read the settings
        yield Mistake("timer", "there is no conf.snapshot.command for it to run")
