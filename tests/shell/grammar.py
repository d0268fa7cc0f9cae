# SPDX-License-Identifier: Apache-2.0
"""What the parser of the command line knows, for those who compare something with it."""

from __future__ import annotations

import argparse

from vmsnap.cli.main import parser

INTERNAL = "session"  # the unit's, documented with it


def commands() -> dict[str, argparse.ArgumentParser]:
    """The commands for people, by name."""
    subparsers = next(a for a in parser()._actions if isinstance(a, argparse._SubParsersAction))
    return {name: sub for name, sub in subparsers.choices.items() if name != INTERNAL}


def options(of: argparse.ArgumentParser) -> set[str]:
    """The long options."""
    return {word for action in of._actions for word in action.option_strings if word[:2] == "--"}


COMMANDS = sorted(commands())
EVERY_OPTION = options(parser()).union(*(options(sub) for sub in commands().values()))
