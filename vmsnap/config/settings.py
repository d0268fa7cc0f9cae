# SPDX-License-Identifier: Apache-2.0
"""vmsnap's own settings: vmsnap.conf and its drop-ins, INI as systemd has it."""

from __future__ import annotations

import math
import re
import shlex
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from vmsnap.config.formats import ConfigError, load_ini
from vmsnap.consistency import Level


@dataclass(frozen=True)
class Settings:
    """vmsnap's own settings. Times are in seconds."""

    freeze: bool = True  # false only by Azure's vmbackup.conf
    freeze_timeout: float = 30.0
    hold: float = 60.0
    only: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()
    kill_blocking_writers: bool = False
    require: Level | None = None
    command: tuple[str, ...] = ()
    kill_grace: float = 5.0
    textfile: str = ""


def spelled(value: object) -> str:
    """A value of JSON as a setting of an INI file."""
    if isinstance(value, bool):
        return "yes" if value else "no"
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


def boolean(value: str) -> bool:
    if value not in ("yes", "no"):
        raise ValueError("yes or no")
    return value == "yes"


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
    ("freeze", "kill_blocking_writers"): ("kill_blocking_writers", boolean),
    ("snapshot", "require"): ("require", level),
    ("snapshot", "command"): ("command", command_line),
    ("scripts", "kill_grace"): ("kill_grace", seconds(0, 600)),
    ("metrics", "textfile"): ("textfile", absolute),
}


def parse_settings(text: str, path: str, values: dict[str, Any]) -> list[str]:
    """Read one file of settings into `values`, over what earlier files said. Return warnings.

    As in systemd's drop-ins, a later file wins, lists grow from file to file, and an empty value
    goes back to the default. Raises ConfigError.
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
                raise ConfigError(
                    f"{path}: key {key!r} in [{section}]: found {value!r}, expected {e}"
                ) from None
            if isinstance(converted, list):
                converted = (*values.get(field, ()), *converted)
            values[field] = converted
    return warnings
