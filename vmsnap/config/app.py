# SPDX-License-Identifier: Apache-2.0
"""The JSON of an app -> a frozen dataclass. Opening and trusting the file is not done here.

Every error names key, what was found and what was expected; nothing is guessed or converted.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vmsnap.config.azure import LONGEST_SCRIPT
from vmsnap.config.formats import ConfigError, expectation, load_json, shown
from vmsnap.system.trusted import encodable

# Of newer templates: how often Azure's extension looks whether a script has ended. Not needed here.
POLL_TIME = "ScriptsExecutionPollTimeSeconds"


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


def parse_app(text: str, path: str, name: str) -> tuple[App, list[str]]:
    """Return the app and warnings about keys that mean nothing. Raises ConfigError."""
    document = load_json(text, path)
    try:
        validate({key: document[key] for key in document if key != POLL_TIME}, path)
    except RecursionError:
        raise ConfigError(f"{path}: found JSON that is nested too deep, expected an app") from None
    for key in ("preScriptLocation", "postScriptLocation"):
        location = document.get(key, "")
        if location and not location.startswith("/"):  # a $ in the schema also matches before "\n"
            raise ConfigError(
                f"{path}: key {key!r}: found {shown(location)}, expected an absolute path"
            )
    for key in ("preScriptParams", "postScriptParams"):
        for word in document.get(key, ()):
            if not encodable(word):
                raise ConfigError(
                    f"{path}: key {key!r}: found {shown(word)}, expected whole characters"
                )
    known = schema()["properties"]
    warnings = [
        f"{path}: found the unknown key {key!r}; it is ignored"
        for key in document
        if key not in known
    ]
    poll = document.get(POLL_TIME, 1)
    if not (TYPES["integer"](poll) and 1 <= poll <= 5):
        wanted = "a whole number from 1 to 5, as Azure's extension does"
        warnings.append(
            f"{path}: key {POLL_TIME!r}: found {shown(poll)}, expected {wanted}; it is ignored"
        )
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


def certainly_valid(value: Any, rules: dict[str, Any]) -> bool:
    """Whether a value obeys those few rules of JSON Schema that the schema of an app uses.

    True is certain; anything else is for the library to judge, which takes 70 ms to import.
    """
    if "const" in rules:
        return isinstance(value, str) and value == rules["const"]
    if not TYPES[rules["type"]](value):
        return False
    if isinstance(value, dict):
        return all(
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
    key = "".join(f"[{p}]" if isinstance(p, int) else str(p) for p in error.path)
    raise ConfigError(
        f"{path}: key {key!r}: found {shown(error.instance)}, expected {expectation(error)}"
    )
