# SPDX-License-Identifier: Apache-2.0
"""JSON and INI as configuration files: strict, and with messages that say what was found, where,
and what was expected. What the keys mean is not known here."""

from __future__ import annotations

import configparser
import json
from typing import Any

from vmsnap.errors import VmsnapError

PLAIN_WORD = "a plain word of letters, digits, '.', '_' and '-'"


class ConfigError(VmsnapError):
    """A configuration is malformed, or has an impossible value."""


def load_json(text: str, path: str) -> dict[str, Any]:
    document = parse_json(text, path)
    if not isinstance(document, dict):
        raise ConfigError(f"{path}: found {shown(document)}, expected a JSON object")
    return document


def parse_json(text: str, path: str) -> Any:
    """As the standard has it (RFC 8259), and no key twice. Raises ConfigError."""

    def no_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        seen: dict[str, Any] = {}
        for key, value in pairs:
            if key in seen:
                raise ConfigError(f"{path}: found the key {key!r} twice, expected it once")
            seen[key] = value
        return seen

    def no_constant(word: str) -> None:
        raise ConfigError(f"{path}: found {word}, which is not JSON")

    try:
        return json.loads(text, object_pairs_hook=no_duplicates, parse_constant=no_constant)
    except json.JSONDecodeError as e:
        raise ConfigError(
            f"{path}:{e.lineno}: found malformed JSON in column {e.colno}: {e.msg}"
        ) from None
    except RecursionError:
        raise ConfigError(f"{path}: found JSON that is nested too deep") from None
    except ValueError as e:  # a number of thousands of digits
        raise ConfigError(f"{path}: found JSON that cannot be read: {e}") from None


TYPE_WORDS = {
    "object": "an object",
    "array": "a list",
    "string": "a string",
    "boolean": "true or false",
    "integer": "a whole number",
    "number": "a number",
}


def expectation(error: Any) -> str:
    """What a rule of the schema expects, without what was found."""
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


def load_ini(text: str, path: str) -> configparser.ConfigParser:
    """Parse one INI file; the case of keys does not matter. Raises ConfigError, with the line."""
    # No file can spell the empty section, so none has defaults that leak into the others.
    parser = configparser.ConfigParser(interpolation=None, strict=True, default_section="")
    try:
        parser.read_string(text, source=path)
    except configparser.Error as e:
        raise ConfigError(f"{path}: found {' '.join(str(e).split())}") from None
    return parser
