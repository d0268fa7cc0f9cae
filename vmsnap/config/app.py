# SPDX-License-Identifier: Apache-2.0
"""Text of configuration files -> frozen dataclasses. Opening and trusting files is not done here.

Every error names key, what was found and what was expected; nothing is guessed or converted.
"""

from __future__ import annotations

import configparser
import json
import math
import re
import shlex
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vmsnap.consistency import Level
from vmsnap.system.trusted import encodable

PLAIN_WORD = "a plain word of letters, digits, '.', '_' and '-'"
LONGEST_SCRIPT = 1800.0  # seconds; Azure's framework allows no more


class Incorrect(Exception):
    """A configuration says something that cannot be meant."""


@dataclass(frozen=True)
class Script:
    """One script of an app: what to run, and how long and how often. `budget` is in seconds."""

    path: str
    params: tuple[str, ...]
    retries: int
    budget: float
    identity: tuple[int, int] | None = None  # device and inode, once it has been checked


@dataclass(frozen=True)
class App:
    name: str
    config: str
    pre: Script | None
    post: Script | None
    required: bool  # continueBackupOnFailure: false
    freeze: bool


@dataclass(frozen=True)
class Settings:
    """vmsnap's own settings. Times are in seconds."""

    freeze_timeout: float = 30.0
    hold: float = 60.0
    only: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()
    require: Level | None = None
    command: tuple[str, ...] = ()
    kill_grace: float = 5.0
    textfile: str = ""


# --- app files: JSON ---------------------------------------------------------------------------


def parse_app(text: str, path: str, name: str) -> tuple[App, list[str]]:
    """Return the app and warnings about keys that mean nothing. Raises Incorrect."""
    document = load_json(text, path)
    try:
        validate(document, path)
    except RecursionError:
        raise Incorrect(f"{path}: found JSON that is nested too deep, expected an app") from None
    for key in ("preScriptLocation", "postScriptLocation"):
        location = document.get(key, "")
        if location and not location.startswith("/"):  # a $ in the schema also matches before "\n"
            raise Incorrect(
                f"{path}: key {key!r}: found {shown(location)}, expected an absolute path"
            )
    for key in ("preScriptParams", "postScriptParams"):
        for word in document.get(key, ()):
            if not encodable(word):
                raise Incorrect(
                    f"{path}: key {key!r}: found {shown(word)}, expected whole characters"
                )
    known = schema()["properties"]
    warnings = [
        f"{path}: found the unknown key {key!r}; it is ignored"
        for key in document
        if key not in known
    ]
    budget = float(min(document.get("timeoutInSeconds", 30), LONGEST_SCRIPT))
    app = App(
        name=document.get("appName", name),
        config=path,
        pre=script_of(document, "pre", budget),
        post=script_of(document, "post", budget),
        required=not document.get("continueBackupOnFailure", True),
        freeze=document.get("fsFreezeEnabled", True),
    )
    return app, warnings


def script_of(document: dict[str, Any], phase: str, budget: float) -> Script | None:
    path = document.get(f"{phase}ScriptLocation", "")
    if not path:
        return None
    params = tuple(document.get(f"{phase}ScriptParams", ()))
    return Script(path, params, int(document.get(f"{phase}ScriptNoOfRetries", 0)), budget)


def load_json(text: str, path: str) -> dict[str, Any]:
    document = parse_json(text, path)
    if not isinstance(document, dict):
        raise Incorrect(f"{path}: found {shown(document)}, expected a JSON object")
    return document


def parse_json(text: str, path: str) -> Any:
    """As the standard has it (RFC 8259), and no key twice. Raises Incorrect."""

    def no_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        seen: dict[str, Any] = {}
        for key, value in pairs:
            if key in seen:
                raise Incorrect(f"{path}: found the key {key!r} twice, expected it once")
            seen[key] = value
        return seen

    def no_constant(word: str) -> None:
        raise Incorrect(f"{path}: found {word}, which is not JSON")

    try:
        return json.loads(text, object_pairs_hook=no_duplicates, parse_constant=no_constant)
    except json.JSONDecodeError as e:
        raise Incorrect(
            f"{path}:{e.lineno}: found malformed JSON in column {e.colno}: {e.msg}"
        ) from None
    except RecursionError:
        raise Incorrect(f"{path}: found JSON that is nested too deep") from None
    except ValueError as e:  # a number of thousands of digits
        raise Incorrect(f"{path}: found JSON that cannot be read: {e}") from None


def schema() -> dict[str, Any]:
    """The JSON Schema (draft-07) of an app file, as it is installed."""
    text = Path(__file__).with_name("app.schema.json").read_text(encoding="utf-8")
    result: dict[str, Any] = json.loads(text)
    return result


TYPES: dict[str, Callable[[Any], bool]] = {
    "object": lambda value: isinstance(value, dict),
    "array": lambda value: isinstance(value, list),
    "string": lambda value: isinstance(value, str),
    "boolean": lambda value: isinstance(value, bool),
    "integer": lambda value: isinstance(value, int) and not isinstance(value, bool),
}


TYPE_WORDS = {
    "object": "an object",
    "array": "a list",
    "string": "a string",
    "boolean": "true or false",
    "integer": "a whole number",
    "number": "a number",
}


def certainly_valid(value: Any, rules: dict[str, Any]) -> bool:
    """Whether a value obeys those few rules of JSON Schema that the schema of an app uses.

    True is certain; anything else is for the library to judge, which takes 70 ms to import.
    """
    if "const" in rules:
        return isinstance(value, str) and value == rules["const"]
    if not TYPES[rules["type"]](value):
        return False
    if isinstance(value, dict):
        return all(key in value for key in rules.get("required", ())) and all(
            certainly_valid(value[key], rule)
            for key, rule in rules["properties"].items()
            if key in value
        )
    if isinstance(value, list):
        return all(certainly_valid(item, rules["items"]) for item in value)
    if isinstance(value, str):
        return re.search(rules.get("pattern", ""), value) is not None
    return bool(value >= rules.get("minimum", value))


def validate(document: dict[str, Any], path: str) -> None:
    if certainly_valid(document, schema()):
        return
    import jsonschema  # late, see above

    validator = jsonschema.Draft7Validator(schema())
    errors = sorted(validator.iter_errors(document), key=lambda error: list(map(str, error.path)))
    if not errors:
        return
    error = errors[0]
    if error.validator == "required":
        missing = next(key for key in error.validator_value if key not in document)
        expected = json.dumps(schema()["properties"][missing].get("const"))
        raise Incorrect(f"{path}: found no key {missing!r}, expected it to be {expected}")
    key = "".join(f"[{p}]" if isinstance(p, int) else str(p) for p in error.path)
    raise Incorrect(
        f"{path}: key {key!r}: found {shown(error.instance)}, expected {expectation(error)}"
    )


def expectation(error: Any) -> str:
    """What a rule of the schema expects, in words that say nothing of what was found."""
    value = error.validator_value
    if error.validator == "type":
        return " or ".join(
            TYPE_WORDS[word] for word in ([value] if isinstance(value, str) else value)
        )
    if error.validator == "enum":
        return ", ".join(word if isinstance(word, str) else json.dumps(word) for word in value)
    if error.validator == "const":
        return json.dumps(value)
    if error.validator == "minimum":
        return f"at least {value}"
    if "Location" in str(error.path[-1]):
        return "an absolute path, or nothing"
    return PLAIN_WORD if error.path[-1] == "appName" else "no NUL character"


def shown(value: object) -> str:
    text = json.dumps(value)
    return text if len(text) <= 60 else text[:57] + "..."


# --- settings: INI -----------------------------------------------------------------------------


def load_ini(text: str, path: str) -> configparser.ConfigParser:
    """Parse one INI file; the case of keys does not matter. Raises Incorrect, with the line."""
    # No file can spell the empty section, so none has defaults that leak into the others.
    parser = configparser.ConfigParser(interpolation=None, strict=True, default_section="")
    try:
        parser.read_string(text, source=path)
    except configparser.Error as e:
        raise Incorrect(f"{path}: found {' '.join(str(e).split())}") from None
    return parser


def spelled(value: object) -> str:
    """A value of JSON as a setting of an INI file."""
    return shlex.join(value) if isinstance(value, list) else str(value)


NUMBER = re.compile(r"[0-9]{1,9}(\.[0-9]{1,9})?")


def seconds(least: float, most: float = math.inf) -> Callable[[str], float]:
    def convert(value: str) -> float:
        number = float(value) if NUMBER.fullmatch(value.strip()) else math.nan
        if not (least <= number <= most and number < math.inf):
            raise ValueError(
                f"a number of seconds, at least {least:g}"
                + (f" and at most {most:g}" if most < math.inf else "")
            )
        return number

    return convert


def level(value: str) -> Level:
    for candidate in (Level.CRASH, Level.FILESYSTEM, Level.APPLICATION):
        if value == candidate.word:
            return candidate
    raise ValueError("crash, filesystem or application")


def words(value: str) -> list[str]:
    """As a shell splits them, but there is no shell."""
    try:
        return shlex.split(value)
    except ValueError:
        raise ValueError("every quote to be closed") from None


def command_line(value: str) -> tuple[str, ...]:
    """Unlike a list it does not grow."""
    return tuple(words(value))


def absolute(value: str) -> str:
    if value and not value.startswith("/"):
        raise ValueError("an absolute path")
    return value


SETTINGS: dict[tuple[str, str], tuple[str, Callable[[str], Any]]] = {
    ("freeze", "timeout"): ("freeze_timeout", seconds(0.1, 3600)),
    ("freeze", "hold"): ("hold", seconds(0.1, 86400)),
    ("freeze", "only"): ("only", words),
    ("freeze", "exclude"): ("exclude", words),
    ("snapshot", "require"): ("require", level),
    ("snapshot", "command"): ("command", command_line),
    ("scripts", "kill_grace"): ("kill_grace", seconds(0, 600)),
    ("metrics", "textfile"): ("textfile", absolute),
}


def parse_settings(text: str, path: str, values: dict[str, Any]) -> list[str]:
    """Read one file of settings into `values`, over what earlier files said. Return warnings.

    As in systemd's drop-ins, a later file wins, lists grow from file to file, and an empty value
    goes back to the default. Raises Incorrect.
    """
    warnings = []
    parser = load_ini(text, path)
    for section in parser.sections():
        for key, value in parser[section].items():
            if (section, key) not in SETTINGS:
                warnings.append(
                    f"{path}: found the unknown key {key!r} in [{section}]; it is ignored"
                )
                continue
            field, convert = SETTINGS[section, key]
            if not value.strip():
                values.pop(field, None)
                continue
            try:
                converted = convert(value)
            except ValueError as e:
                raise Incorrect(
                    f"{path}: key {key!r} in [{section}]: found {value!r}, expected {e}"
                ) from None
            if isinstance(converted, list):
                converted = (*values.get(field, ()), *converted)
            values[field] = converted
    return warnings


# --- Azure's INI files -------------------------------------------------------------------------


def parse_vmbackup(text: str, path: str, values: dict[str, Any]) -> None:
    """Read `MountsToSkip` (separated by commas) and `timeout` of Azure's vmbackup.conf."""
    parser = load_ini(text, path)
    if not parser.has_section("SnapshotThread"):
        return
    section = parser["SnapshotThread"]
    skipped = [mount.strip() for mount in section.get("MountsToSkip", "").split(",")]
    values["exclude"] = tuple(mount for mount in skipped if mount)
    if section.get("timeout", "").strip():
        try:
            values["hold"] = seconds(0.1, 86400)(section["timeout"])
        except ValueError as e:
            raise Incorrect(
                f"{path}: key 'timeout': found {section['timeout']!r}, expected {e}"
            ) from None


def parse_plugin_host(text: str, path: str) -> tuple[float, tuple[str, ...]]:
    """Return the cap of every script's budget in seconds, and the paths of the apps' files.

    The format is that of Azure's VMSnapshotPluginHost.conf. Raises Incorrect.
    """
    parser = load_ini(text, path)
    if not parser.has_section("pre_post"):
        raise Incorrect(f"{path}: found no section [pre_post], expected one")
    section = parser["pre_post"]
    cap = float(
        whole_number(section, "timeoutInSeconds", path, least=1, default=int(LONGEST_SCRIPT))
    )
    configs = []
    for index in range(whole_number(section, "numberOfPlugins", path, least=0, most=100)):
        name = section.get(f"pluginName{index}")
        if name != "ScriptRunner":
            raise Incorrect(
                f"{path}: key 'pluginName{index}': found {shown(name)}, expected ScriptRunner"
            )
        config = section.get(f"pluginConfigPath{index}")
        if not config or not config.startswith("/"):
            raise Incorrect(
                f"{path}: key 'pluginConfigPath{index}': found {shown(config)}, "
                "expected an absolute path"
            )
        configs.append(config)
    return min(cap, LONGEST_SCRIPT), tuple(configs)


def whole_number(
    section: configparser.SectionProxy,
    key: str,
    path: str,
    least: int,
    most: int | None = None,
    default: int | None = None,
) -> int:
    value = section.get(key)
    if value is None and default is not None:
        return default
    wanted = f"a whole number, at least {least}" + (f" and at most {most}" if most else "")
    if value is None or not (value.isascii() and value.isdigit() and len(value) < 10):
        raise Incorrect(f"{path}: key {key!r}: found {shown(value)}, expected {wanted}")
    if int(value) < least or (most is not None and int(value) > most):
        raise Incorrect(f"{path}: key {key!r}: found {value}, expected {wanted}")
    return int(value)
