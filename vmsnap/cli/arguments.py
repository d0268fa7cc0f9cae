# SPDX-License-Identifier: Apache-2.0
"""What the commands' grammar is made of: options that several of them share, types of values, exit
codes. The grammar of a command stands beside it."""

from __future__ import annotations

import argparse
import math
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from vmsnap.consistency import Level

OK, FAILED, USAGE, IN_PROGRESS, NOT_ROOT = 0, 1, 2, os.EX_TEMPFAIL, os.EX_NOPERM  # exit codes

LEVELS = {level.word: level for level in (Level.CRASH, Level.FILESYSTEM, Level.APPLICATION)}


class Commands:
    """The commands of the program, each with the options that all of them have."""

    def __init__(self, top: argparse.ArgumentParser) -> None:
        self._added = top.add_subparsers(dest="command_name", metavar="COMMAND", required=True)
        self._common = common()

    def add(
        self,
        name: str,
        function: Callable[[argparse.Namespace], int],
        summary: str,
        *options: argparse.ArgumentParser,
        examples: str = "",
        usage: str | None = None,
        hidden: bool = False,
    ) -> argparse.ArgumentParser:
        """Add a command that calls `function`, whose return value is the exit code. One that is
        `hidden` is not for people."""
        listed: dict[str, Any] = {} if hidden else {"help": summary}
        command: argparse.ArgumentParser = self._added.add_parser(
            name,
            **listed,
            description=summary[0].upper() + summary[1:] + ".",
            parents=[*options, self._common],
            epilog=examples,
            usage=usage,
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
        )
        command.set_defaults(function=function, parser=command)
        return command


def common() -> argparse.ArgumentParser:
    """Options of every command."""
    options = argparse.ArgumentParser(add_help=False)
    for name, default, summary in (
        ("etc", "/etc", "directory of the configuration"),
        ("run", "/run/vmsnap", "directory of a session, on a tmpfs"),
        ("state", "/var/lib/vmsnap", "directory of the last result"),
    ):
        options.add_argument(
            f"--{name}",
            type=Path,
            default=Path(default),
            metavar="DIR",
            help=f"{summary} ({default})",
        )
    options.add_argument("--json", action="store_true", help="print one JSON document on stdout")
    # Without a default, which would undo what stands before the command.
    add_debug(options, default=argparse.SUPPRESS)
    return options


def add_debug(options: argparse.ArgumentParser, default: object) -> None:
    options.add_argument(
        "--debug",
        action="store_true",
        default=default,
        help="show on stderr what is decided, and a traceback of an error",
    )


def selection() -> argparse.ArgumentParser:
    """Which filesystems."""
    options = argparse.ArgumentParser(add_help=False)
    for name, summary in (("only", "freeze no others than"), ("exclude", "do not freeze")):
        options.add_argument(
            f"--{name}",
            action="append",
            default=[],
            metavar="GLOB",
            help=f"{summary} the filesystems mounted there (repeatable)",
        )
    return options


def seconds(word: str) -> float:
    try:
        number = float(word)
    except ValueError:
        number = math.nan
    if not 0 < number <= 86400:
        raise argparse.ArgumentTypeError(
            f"found {word!r}, expected a number of seconds above 0 and at most 86400"
        )
    return number


def level(word: str) -> Level:
    if word not in LEVELS:
        raise argparse.ArgumentTypeError(f"found {word!r}, expected {', '.join(LEVELS)}")
    return LEVELS[word]
