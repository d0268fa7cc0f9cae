# SPDX-License-Identifier: Apache-2.0
"""The word lists of the shells' completions, from the grammar. The functions around them are
written by hand, in completions/.

`python -m vmsnap.cli.completion completions/vmsnap.bash.in` prints the completion of the shell
after which the file is named, when a package is built; nothing else runs this."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from vmsnap.cli.agents import AgentNames
from vmsnap.cli.arguments import LEVELS
from vmsnap.cli.grammar import COMMANDS, COMMON, TOP, Command, Option
from vmsnap.platforms.registry import agents
from vmsnap.provision.quiescers import QUIESCERS

# By the metavar, the values that there are, and what the shells have functions for.
CHOICES: dict[str, Iterable[str]] = {"LEVEL": LEVELS, "SERVER": QUIESCERS, "AGENT": AgentNames()}
PLACES = ("GLOB", "DIR", "FILE")


def place_of(option: Option) -> str:
    """What kind of value it has: one of PLACES, CHOICES, VALUE (anything) or "" (none)."""
    if not option.value or option.value in PLACES:
        return option.value
    return "CHOICES" if option.value in CHOICES else "VALUE"


def own(command: Command) -> tuple[Option, ...]:
    return tuple(option for option in command.options if option.name not in COMMON)


def every_option() -> Iterator[Option]:
    return (option for command in COMMANDS for option in command.options)


def choices(value: str) -> str:
    return " ".join(CHOICES[value])


# --- bash ----------------------------------------------------------------------------------------


def bash() -> dict[str, list[str]]:
    by_place: dict[str, dict[str, None]] = {}
    for option in every_option():
        by_place.setdefault(place_of(option), {})[option.name] = None
    by_option = {
        option.name: choices(option.value)
        for option in every_option()
        if place_of(option) == "CHOICES"
    }
    names = [*(command.name for command in COMMANDS), *(option.name for option in TOP)]
    return {
        "COMMANDS": [" ".join(names)],
        **{place: [" | ".join(by_place[place])] for place in (*PLACES, "VALUE")},
        "CHOICES": [f'{name}) words="{found}" ;;' for name, found in by_option.items()],
        "AGENTS": [choices("AGENT")],
        "EVENTS": [
            f'hook:3:{agent.name}) words="{" ".join(agent.events)}" ;;'
            for agent in agents().values()
        ],
        "OPTIONS": [f"{command.name}) words={bash_words(command)} ;;" for command in COMMANDS],
        "COMMON": [" ".join(COMMON)],
    }


def bash_words(command: Command) -> str:
    stdin = ["-"] if "-" in command.arguments else []
    return '"' + " ".join([*stdin, *(option.name for option in own(command))]) + '"'


# --- zsh -----------------------------------------------------------------------------------------

ZSH_PLACES = {
    "GLOB": "mount point:_vmsnap_mounts",
    "DIR": "directory:_files -/",
    "FILE": "file:_files",
}


def zsh() -> dict[str, list[str]]:
    shared = {option.name: option for option in every_option() if option.name in COMMON}
    return {
        "COMMANDS": [quoted(f"{c.name}:{zsh_text(c.summary)}") for c in COMMANDS],
        "COMMON": [zsh_option(shared[name]) for name in COMMON],
        "TOP": [f"{zsh_option(option)} \\" for option in TOP],
        "OPTIONS": [
            f"{command.name}) _arguments -S $common {zsh_specifications(command)} && ret=0 ;;"
            for command in COMMANDS
        ],
    }


def zsh_specifications(command: Command) -> str:
    found = [zsh_option(option) for option in own(command)]
    for index, name in enumerate(command.arguments, start=1):
        found.append(quoted(zsh_argument(index, name)))
    return " ".join(found)


def zsh_argument(index: int, name: str) -> str:
    if name == "-":
        return f"{index}:standard input:(-)"
    if name == "EVENT":
        events = sorted({event for agent in agents().values() for event in agent.events})
        return f"{index}:event:({' '.join(events)})"
    if name.endswith("..."):
        return f"*:{name[:-3].lower()}: "
    return f"{index}:{name.lower()}:{f'({choices(name)})' if name in CHOICES else ' '}"


def zsh_option(option: Option) -> str:
    """A specification of _arguments: zshcompsys(1)."""
    summary = f"[{zsh_text(option.summary)}]"
    if option.name in ("--help", "--version"):
        short = "{-h,--help}" if option.name == "--help" else option.name
        return f"'(- *)'{short}{quoted(summary)}"
    before = f"({' '.join(option.excludes)})" if option.excludes else ""
    before += "*" * option.repeatable
    if not option.value:
        return quoted(f"{before}{option.name}{summary}")
    values = f"({choices(option.value)})" if option.value in CHOICES else " "
    value = ZSH_PLACES.get(option.value, f"{option.value.lower()}:{values}")
    return quoted(f"{before}{option.name}={summary}:{value}")


def zsh_text(text: str) -> str:
    return re.sub(r"([\[\]:\\])", r"\\\1", text)


def quoted(text: str) -> str:
    """For bash and zsh; fish_text is for fish."""
    return "'" + text.replace("'", "'\\''") + "'"


# --- fish ----------------------------------------------------------------------------------------

FISH_PLACES = {
    "GLOB": "-x -a '(__vmsnap_mounts)' ",
    "DIR": "-x -a '(__fish_complete_directories (commandline -ct))' ",
    "FILE": "-r -F ",
    "VALUE": "-x ",
    "": "",
}


def fish() -> dict[str, list[str]]:
    where: dict[Option, list[str]] = {}
    for command in COMMANDS:
        for option in command.options:
            where.setdefault(option, []).append(command.name)
    everywhere = '"__vmsnap_begins; or __vmsnap_in $every"'
    return {
        "NAMES": [" ".join(command.name for command in COMMANDS)],
        "TOP": [
            *(f"{fish_option(everywhere, o)} -s h" for o in TOP if o.name == "--help"),
            *(fish_option("__vmsnap_begins", o) for o in TOP if o.name != "--help"),
        ],
        "COMMANDS": [
            f"complete -c vmsnap -n __vmsnap_begins -a {c.name} -d {fish_text(c.summary)}"
            for c in COMMANDS
        ],
        "OPTIONS": [
            *(
                fish_option(fish_in(names), option)
                for option, names in where.items()
                if option.name != "--help"
            ),
            *(
                f"complete -c vmsnap -n {fish_in([c.name])} -a - -d 'standard input'"
                for c in COMMANDS
                if "-" in c.arguments
            ),
        ],
        "AGENTS": [*fish_agents()],
    }


def fish_in(names: list[str]) -> str:
    every = len(names) == len(COMMANDS)
    return f'"__vmsnap_in {"$every" if every else " ".join(names)}"'


def fish_agents() -> Iterator[str]:
    of_agents = [command.name for command in COMMANDS if "AGENT" in command.arguments]
    unseen = f"not __fish_seen_subcommand_from {choices('AGENT')}"
    for name in of_agents:
        condition = f'"__vmsnap_in {name}; and {unseen}"'
        yield f"complete -c vmsnap -n {condition} -a {fish_text(choices('AGENT'))} -d agent"
    for agent in agents().values():
        condition = f'"__vmsnap_in hook; and __fish_seen_subcommand_from {agent.name}"'
        events = fish_text(" ".join(agent.events))
        yield f"complete -c vmsnap -n {condition} -a {events} -d event"


def fish_option(condition: str, option: Option) -> str:
    if option.value in CHOICES:
        value = f"-x -a {fish_text(choices(option.value))} "
    else:
        value = FISH_PLACES[place_of(option)]
    name = option.name[2:]
    return f"complete -c vmsnap -n {condition} -l {name} {value}-d {fish_text(option.summary)}"


def fish_text(text: str) -> str:
    return "'" + text.replace("\\", "\\\\").replace("'", "\\'") + "'"


# --- the file ------------------------------------------------------------------------------------

SHELLS: dict[str, Callable[[], dict[str, list[str]]]] = {"bash": bash, "zsh": zsh, "fish": fish}


def completion(template: str, shell: str) -> str:
    """Fill in what stands between @ signs: on a line of its own, it may be many lines."""
    found = SHELLS[shell]()

    def lines(match: re.Match[str]) -> str:
        return "".join(f"{match[1]}{line}\n" for line in found[match[2]])

    text = re.sub(r"^([ ]*)@([A-Z]+)@\n", lines, template, flags=re.M)
    return re.sub(r"@([A-Z]+)@", lambda match: "\n".join(found[match[1]]), text)


if __name__ == "__main__":
    source = Path(sys.argv[1])
    filled = completion(source.read_text(encoding="utf-8"), source.suffixes[-2][1:])
    sys.stdout.write(filled)
