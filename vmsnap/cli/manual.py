# SPDX-License-Identifier: Apache-2.0
"""The pages of the manual from man/*.rst, which are written by hand but for what the program knows
itself: the grammar of the command line, the agents and the errors.

`python -m vmsnap.cli.manual man/vmsnap.1.rst` prints the page as roff, when a package is built;
nothing else runs this, and nothing else needs docutils."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Iterable
from pathlib import Path

from vmsnap import __version__
from vmsnap.cli.grammar import COMMANDS, TOP, Command, Option
from vmsnap.consistency import AT_MOST
from vmsnap.errors import Kind
from vmsnap.platforms.registry import agents

# Names of options, files and units can be searched for and copied, if they are never hyphenated.
# Sentences are one space apart, wherever a line of the source has ended.
LAYOUT = ".nh\n.ad l\n.ss 12 0\n"


def filled(template: str) -> str:
    """Fill in what stands between @ signs."""
    text = re.sub(r"^@OPTIONS@\n\n((?:--.*\n(?:    .*\n|\n)+)*)", options, template, flags=re.M)
    text = re.sub(r"^@COMMAND ([a-z]+)@$", lambda match: heading(match[1]), text, flags=re.M)
    return re.sub(r"@([A-Z]+)@", lambda match: FILLED[match[1]](), text)


def roff(text: str) -> str:
    """The page. A warning of docutils is an error; nobody's configuration of it counts."""
    from docutils.core import publish_string

    overrides = {"_disable_config": True, "halt_level": 2, "output_encoding": "unicode"}
    page = str(publish_string(text, writer_name="manpage", settings_overrides=overrides))
    # From 0.22 on it has all names of a page in the header, and Name for NAME.
    page = re.sub(r'^(\.TH "[^",]*),[^"]*"', r'\1"', page, flags=re.M)
    return re.sub(r"^\.SH NAME\n", f"{LAYOUT}.SH NAME\n", page, flags=re.M | re.I)


# --- commands ------------------------------------------------------------------------------------


def synopsis() -> str:
    return "\n".join(f"| {marked(command)}" for command in COMMANDS)


def marked(command: Command) -> str:
    """Its synopsis: bold what is typed as it is, in italics what stands for something."""
    name = f"vmsnap {command.name}"
    takes = re.sub(r"(-[-a-z]*)", r"**\1**", command.synopsis[len(name) :])
    return f"**{name}**" + re.sub(r"([A-Z]+)", r"*\1*", takes)


def heading(name: str) -> str:
    (text,) = (command.synopsis for command in COMMANDS if command.name == name)
    return underlined(text)


def underlined(text: str) -> str:
    return f"{text}\n{'-' * len(text)}"


# --- options -------------------------------------------------------------------------------------


def options(match: re.Match[str]) -> str:
    """Those before any command, then those of commands, of most first. What follows
    @OPTIONS@, options without their values and some text each, is added to what the help says."""
    more = dict(re.findall(r"^(--\S+)\n((?:    .*\n|\n)+)", match[1], re.M))
    where: dict[Option, tuple[str, ...]] = {}
    for command in COMMANDS:
        for option in command.options:
            if option not in TOP:
                where[option] = (*where.get(option, ()), command.name)
    unknown = more.keys() - {option.name for option in (*TOP, *where)}
    if unknown:
        raise ValueError(f"found text about {', '.join(sorted(unknown))}, expected known options")
    text = described(TOP, more)
    for names in sorted(dict.fromkeys(where.values()), key=len, reverse=True):
        of = "every command" if len(names) == len(COMMANDS) else listed(names, "and")
        text += f"{underlined(f'Of {of}')}\n\n"
        text += described((option for option in where if where[option] == names), more)
    return text


def described(found: Iterable[Option], more: dict[str, str]) -> str:
    return "".join(entry(option, more.get(option.name, "")) for option in found)


def entry(option: Option, more: str) -> str:
    names = "-h, --help" if option.name == "--help" else f"{option.name} {option.value}".rstrip()
    summary = prose(option.summary[0].upper() + option.summary[1:])
    return f"{names}\n    {summary}.\n{more}".rstrip() + "\n\n"


# --- agents and errors ---------------------------------------------------------------------------


def events() -> str:
    return "\n\n".join(
        f"{agent.name}\n    {listed([f'**{event}**' for event in agent.events], 'and')}. "
        + ("The agent freezes, and waits " if agent.freezes else "vmsnap freezes; the agent waits ")
        + (f"{agent.patience:g} seconds." if agent.patience else "without limit.")
        for agent in agents().values()
    )


def errors() -> str:
    return "\n\n".join(
        f"{kind.label} ({kind.code})\n    "
        f"{prose(kind.summary)}. {prose(kind.action)}. {left(kind)}."
        for kind in sorted(Kind, key=lambda kind: kind.code)
    )


def left(kind: Kind) -> str:
    level = AT_MOST[kind]
    return f"Leaves at most {level.word}" if level else "There is no snapshot to rely on"


# --- text ----------------------------------------------------------------------------------------

FILLED: dict[str, Callable[[], str]] = {
    "AGENTS": lambda: listed([f"**{name}**" for name in agents()], "or"),
    "ERRORS": errors,
    "EVENTS": events,
    "SYNOPSIS": synopsis,
    "VERSION": lambda: __version__,
}


def prose(text: str) -> str:
    """A text of the program as one of the manual, where what is in backticks is bold."""
    return re.sub(r"`([^`]+)`", r"**\1**", re.sub(r"([*|_\\])", r"\\\1", text))


def listed(words: Iterable[str], last: str) -> str:
    *most, end = words
    return f"{', '.join(most)} {last} {end}" if most else end


if __name__ == "__main__":
    sys.stdout.write(roff(filled(Path(sys.argv[1]).read_text(encoding="utf-8"))))
