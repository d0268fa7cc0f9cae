# SPDX-License-Identifier: Apache-2.0
"""The grammar of the command line as data, for what is made of it when a package is built: the
completions (completion.py) and the manual (manual.py). Nothing else reads it."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from dataclasses import dataclass

from vmsnap.cli.arguments import common
from vmsnap.cli.main import parser


@dataclass(frozen=True)
class Option:
    """`value` is the metavar, "" of a flag; `excludes` are options that it cannot stand beside."""

    name: str
    summary: str
    value: str
    repeatable: bool
    excludes: tuple[str, ...]


@dataclass(frozen=True)
class Command:
    name: str
    summary: str
    options: tuple[Option, ...]
    arguments: tuple[str, ...]  # metavars of its positional arguments
    synopsis: str


def long_options(of: argparse.ArgumentParser) -> Iterator[Option]:
    for action in of._actions:
        for name in action.option_strings:
            if name.startswith("--"):
                yield Option(
                    name,
                    summary_of(action),
                    str(action.metavar) if action.nargs != 0 else "",
                    isinstance(action, argparse._AppendAction),
                    tuple(excluded_by(action, of)),
                )


def summary_of(action: argparse.Action) -> str:
    if isinstance(action, argparse._HelpAction):
        return "print a short help and exit"  # argparse's "this help" is not elsewhere
    return (action.help or "").replace("%%", "%")


def excluded_by(action: argparse.Action, of: argparse.ArgumentParser) -> Iterator[str]:
    for group in of._mutually_exclusive_groups:
        if action in group._group_actions:
            others = (other for other in group._group_actions if other is not action)
            yield from (name for other in others for name in other.option_strings)


def synopsis(name: str, of: argparse.ArgumentParser) -> str:
    if of.usage:
        return of.usage.replace("[options]", "[OPTION...]")
    groups = (group._group_actions for group in of._mutually_exclusive_groups)
    exclusive = (" | ".join(a.option_strings[-1] for a in group) for group in groups)
    positional = (action for action in of._actions if not action.option_strings)
    return " ".join(
        (
            *("vmsnap", name),
            *(f"[{names}]" for names in exclusive),
            "[OPTION...]",
            *(f"[{a.metavar}]" if a.nargs == "?" else str(a.metavar) for a in positional),
        )
    )


def commands() -> tuple[Command, ...]:
    """The commands for people."""
    added = next(a for a in parser()._actions if isinstance(a, argparse._SubParsersAction))
    return tuple(
        Command(
            str(listed.dest),
            str(listed.help),
            tuple(long_options(added.choices[listed.dest])),
            tuple(
                str(action.metavar)
                for action in added.choices[listed.dest]._actions
                if not action.option_strings
            ),
            synopsis(str(listed.dest), added.choices[listed.dest]),
        )
        for listed in added._choices_actions
    )


COMMANDS = commands()
TOP = tuple(long_options(parser()))
COMMON = ("--help", *(option.name for option in long_options(common())))
