# SPDX-License-Identifier: Apache-2.0
"""The grammar of the command line: commands, options, their help. What they do: take.py."""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from vmsnap import __version__
from vmsnap.consistency import Level
from vmsnap.provision.quiescers import QUIESCERS

OK, FAILED, USAGE, IN_PROGRESS, NOT_ROOT = 0, 1, 2, 75, 77  # exit codes

LEVELS = {level.word: level for level in (Level.CRASH, Level.FILESYSTEM, Level.APPLICATION)}

DESCRIPTION = "Application-consistent snapshots of this virtual machine, from inside it."
EXAMPLES = """\
examples:
  vmsnap init ledger                  write a config and script skeletons to edit
  vmsnap init --quiesce postgresql    set up what quiesces a database
  vmsnap provision --file FILE        write the configuration from one document (cloud-init)
  vmsnap integrate                    have the platform's agent call vmsnap at every snapshot
  vmsnap check                        is everything right? (changes nothing)
  vmsnap plan                         which filesystems would be frozen, and why not the others
  vmsnap run -- ./take-snapshot       quiesce, freeze, run the command, thaw, resume
  vmsnap freeze, vmsnap thaw          the same in two halves, held by systemd in between
  vmsnap status                       the session in progress, or how the last one went
  vmsnap history --since yesterday    sessions, read back from the journal
  vmsnap plot 3f2a > session.svg      what happened when in one of them
  vmsnap thaw --force                 emergency exit: thaw what a killed session left frozen

exit codes: 0 succeeded, 1 failed, 2 usage, 75 another session is in progress, 77 not root
"""
FREEZE_EXAMPLES = """\
examples:
  vmsnap freeze --hold 30 || exit
  if ./take-snapshot; then vmsnap thaw; else vmsnap thaw --failed; fi

  vmsnap freeze --require application --json
  vmsnap freeze --only /srv --only /var/lib/postgresql

Returns when everything is frozen, or says why not. The session is vmsnap-session.service from then
on: `vmsnap thaw` or `systemctl stop vmsnap-session` ends it, and so does the end of the hold.
Interrupting `vmsnap freeze` (Ctrl-C) ends it too; killing it does not.
"""
THAW_EXAMPLES = """\
examples:
  vmsnap thaw             thaw, run post-scripts, say what the snapshot is worth
  vmsnap thaw 3f2a        the same, if the session whose UUID begins so is in progress
  vmsnap thaw --failed    the same, but there is no snapshot
  vmsnap thaw --force     thaw what a killed session left frozen

Exits with 1 if the hold had expired meanwhile: a snapshot that was not finished by then is none.
"""
HISTORY_EXAMPLES = """\
examples:
  vmsnap history --since yesterday
  vmsnap history --since '2026-11-01 00:00'
  vmsnap history --json | jq -r '.[] | select(.outcome == "failed") | .session'
"""
PLOT_EXAMPLES = """\
examples:
  vmsnap plot 3f2a > session.svg
"""
PROVISION_EXAMPLES = """\
examples:
  vmsnap provision --dry-run --file provision.yaml    is it right? (changes nothing)
  vmsnap provision --file /etc/vmsnap/provision.yaml
  vmsnap provision - < provision.json

The document is what stands under `vmsnap:` in cloud-init's user-data: vmsnap-provision(5). All of
it is put into effect or, if anything in it is wrong, nothing. What it does not mention is left as
it is.
"""
INIT_EXAMPLES = """\
examples:
  vmsnap init ledger                         a config and two skeletons, to be edited
  vmsnap init --quiesce postgresql           an app that needs no script of yours
  vmsnap init --quiesce mariadb shop-db      the same under another name
"""
HOOK_EXAMPLES = """\
examples:
  vmsnap hook qemu freeze     what qemu-ga calls before it freezes: exit code 1 keeps it from it
  vmsnap hook qemu thaw
  vmsnap hook aws pre-script  exit codes 201 to 206 as Data Lifecycle Manager has them

The agents are told to call this by the files that `vmsnap integrate` writes.
"""
INTEGRATE_EXAMPLES = """\
examples:
  vmsnap integrate --dry-run    what would be written, for which agent
  vmsnap integrate              connect to the agent of this platform
  vmsnap integrate qemu         to this one (`vmsnap hook --help` lists them)
  vmsnap integrate --remove     leave everything as it was before

What the agent of the platform calls from then on is `vmsnap hook`. `vmsnap check` says whether that
is still so.
"""
RUN_EXAMPLES = """\
examples:
  vmsnap run -- /usr/local/sbin/take-snapshot
  vmsnap run --hold 20 --require application -- ./cloud-snapshot
  vmsnap run --no-fsfreeze -- lvcreate --snapshot --name backup --size 5G vg/data   (LVM freezes)
  vmsnap run --only /srv --only /var/lib/postgresql -- ./take-snapshot
  vmsnap run --json -- ./take-snapshot 2>/dev/null | jq .consistency

Without COMMAND, that of [snapshot] command= in vmsnap.conf is run.
COMMAND finds VMSNAP_SESSION and VMSNAP_CONSISTENCY in its environment. It must not write to a
frozen filesystem: it would wait for the thaw. Its output appears after the thaw.
"""


def parser() -> argparse.ArgumentParser:
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument(
        "--etc", type=Path, default=Path("/etc"), metavar="DIR", help="configuration (/etc)"
    )
    common.add_argument(
        "--run", type=Path, default=Path("/run/vmsnap"), metavar="DIR", help="tmpfs (/run/vmsnap)"
    )
    common.add_argument(
        "--state",
        type=Path,
        default=Path("/var/lib/vmsnap"),
        metavar="DIR",
        help="last result (/var/lib/vmsnap)",
    )
    common.add_argument("--json", action="store_true", help="print one JSON document on stdout")

    selection = argparse.ArgumentParser(add_help=False)
    for name, words in (("only", "freeze no others than"), ("exclude", "do not freeze")):
        selection.add_argument(
            f"--{name}",
            action="append",
            default=[],
            metavar="GLOB",
            help=f"{words} the filesystems mounted there (repeatable)",
        )

    top = argparse.ArgumentParser(
        prog="vmsnap",
        description=DESCRIPTION,
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    top.add_argument("--version", action="version", version=f"vmsnap {__version__}")
    commands = top.add_subparsers(dest="command_name", metavar="COMMAND", required=True)

    def command(
        name: str,
        words: str,
        *parents: argparse.ArgumentParser,
        epilog: str = "",
        usage: str | None = None,
    ) -> argparse.ArgumentParser:
        listed: dict[str, Any] = (
            {"help": words} if name != "session" else {}
        )  # nobody but the unit needs it
        sub = commands.add_parser(
            name,
            **listed,
            description=words[0].upper() + words[1:] + ".",
            parents=[*parents, common],
            epilog=epilog,
            usage=usage,
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
        )
        sub.set_defaults(parser=sub)
        return sub

    session = argparse.ArgumentParser(add_help=False)
    session.add_argument(
        "--hold", type=seconds, metavar="SECONDS", help="thaw after this time at the latest (60)"
    )
    session.add_argument(
        "--require",
        type=level,
        metavar="LEVEL",
        help="take no snapshot below crash, filesystem or application consistency",
    )
    session.add_argument(
        "--no-fsfreeze", action="store_true", help="the platform's agent freezes, vmsnap does not"
    )
    command(
        "run",
        "take a snapshot with COMMAND while everything is quiesced and frozen",
        selection,
        session,
        epilog=RUN_EXAMPLES,
        usage="vmsnap run [options] [-- COMMAND [ARGUMENT...]]",
    )
    command(
        "freeze",
        "quiesce and freeze, and hold that until `vmsnap thaw`",
        selection,
        session,
        epilog=FREEZE_EXAMPLES,
    )
    thaw = command("thaw", "end what `vmsnap freeze` began", epilog=THAW_EXAMPLES)
    thaw.add_argument("session", nargs="?", metavar="SESSION", help="end no other than this one")
    how = thaw.add_mutually_exclusive_group()
    how.add_argument(
        "--failed", action="store_true", help="and say that the snapshot has not been taken"
    )
    how.add_argument("--force", action="store_true", help="thaw what a killed session left frozen")
    check = command("check", "check configuration, scripts and filesystems", selection)
    check.add_argument(
        "--watch",
        action="store_true",
        help="and have systemd check again when a script's directory changes",
    )
    command(
        "plan",
        "show which filesystems would be frozen, and in which order",
        selection,
    )
    init = command(
        "init",
        "write the config of an app and skeletons of its scripts",
        epilog=INIT_EXAMPLES,
        usage="vmsnap init [options] [NAME]",
    )
    init.add_argument("name", nargs="?", metavar="NAME", help="a plain word: ledger")
    init.add_argument(
        "--quiesce", type=quiescer, metavar="SERVER", help=f"set up for {', '.join(QUIESCERS)}"
    )
    provision = command(
        "provision",
        "write the configuration that one document describes, as cloud-init does",
        epilog=PROVISION_EXAMPLES,
        usage="vmsnap provision [options] (- | --file FILE)",
    )
    provision.add_argument("stdin", nargs="?", metavar="-", help="read JSON from stdin")
    provision.add_argument(
        "--file", type=Path, metavar="FILE", help="read FILE: YAML, or JSON if named *.json"
    )
    provision.add_argument(
        "--dry-run", action="store_true", help="say what would be written (needs no root)"
    )
    add_agents(command)
    command("status", "show the session in progress, or how the last one went")
    past = command("history", "show past sessions, newest first", epilog=HISTORY_EXAMPLES)
    past.add_argument("--since", default="", metavar="TIME", help="as journalctl takes it")
    plot = command("plot", "draw what happened in a session, as SVG", epilog=PLOT_EXAMPLES)
    plot.add_argument("session", metavar="SESSION", help="its UUID, or the beginning of it")
    unit = command("session", "the main process of vmsnap-session.service")
    unit.add_argument("--stopped", action="store_true", help="its ExecStopPost=")
    return top


class AgentNames:
    """The known agents, looked up when argparse asks for them: most commands start without them."""

    def __iter__(self) -> Iterator[str]:
        from vmsnap.platforms.registry import agents

        return iter(agents())

    def __contains__(self, name: object) -> bool:
        return name in tuple(self)


def add_agents(command: Callable[..., argparse.ArgumentParser]) -> None:
    """The commands about the agents of platforms."""
    integrate = command(
        "integrate",
        "connect to the agent of the platform, which then calls vmsnap at every snapshot",
        epilog=INTEGRATE_EXAMPLES,
    )
    integrate.add_argument(
        "agent",
        nargs="?",
        metavar="AGENT",
        choices=AgentNames(),
        help="this one, and not that of the platform that this is",
    )
    integrate.add_argument(
        "--remove", action="store_true", help="undo it: for AGENT, or for all that are connected"
    )
    integrate.add_argument(
        "--dry-run", action="store_true", help="say what would be done, and do nothing"
    )
    hook = command(
        "hook",
        "begin or end a session for the agent of a platform, which calls this",
        epilog=HOOK_EXAMPLES,
        usage="vmsnap hook [options] AGENT EVENT [ARGUMENT...]",
    )
    hook.add_argument("agent", metavar="AGENT", choices=AgentNames(), help="%(choices)s")
    hook.add_argument("event", metavar="EVENT", help="as the agent says it")
    hook.add_argument(
        "--within", type=seconds, metavar="SECONDS", help="how long the agent waits for an answer"
    )
    hook.add_argument("rest", metavar="ARGUMENT...", nargs="*", help="what the agent says besides")


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


def quiescer(word: str) -> str:
    if word not in QUIESCERS:
        raise argparse.ArgumentTypeError(f"found {word!r}, expected {', '.join(QUIESCERS)}")
    return word
