# SPDX-License-Identifier: Apache-2.0
"""The entry point: parses the command line, runs the function of one command, and translates what
it raised into a message and an exit code. Only here."""

from __future__ import annotations

import argparse
import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path

from vmsnap import __version__
from vmsnap.cli import agents, configure, show, take
from vmsnap.cli.arguments import FAILED, IN_PROGRESS, NOT_ROOT, OK, USAGE, Commands, add_debug
from vmsnap.cli.take import NoCommandError, SessionRefusedError
from vmsnap.cli.terminal import complain, ensure_stdio, let_go_of_stdio, print_json
from vmsnap.errors import CommandError, Kind, Problem
from vmsnap.system.waiter import STOP_SIGNALS

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


def parser() -> argparse.ArgumentParser:
    """The whole grammar."""
    top = argparse.ArgumentParser(
        prog="vmsnap",
        description=DESCRIPTION,
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    top.add_argument(
        "--version",
        action="version",
        version=f"vmsnap {__version__}",
        help="print the version and exit",
    )
    add_debug(top, default=False)
    commands = Commands(top)
    take.register(commands)
    show.register_checks(commands)
    configure.register(commands)
    agents.register(commands)
    show.register_sessions(commands)
    return top


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code."""
    ensure_stdio()
    code = OK
    try:
        code = command_line(argv)
    finally:
        if not let_go_of_stdio() and code == OK:
            code = FAILED
    # The code is that of what was done, also while Python takes itself down.
    for number in STOP_SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    return code


def command_line(argv: Sequence[str] | None) -> int:
    from vmsnap.session.lock import RunDirectoryError, SessionInProgressError

    words = list(sys.argv[1:] if argv is None else argv)
    words, rest = split_at_dashes(words)
    arguments = parser().parse_args(join_since(words))
    arguments.words = rest
    for name in ("etc", "run", "state"):
        path = os.path.abspath(getattr(arguments, name))  # noqa: PTH100 - Path keeps ".."
        setattr(arguments, name, Path(path))
    if rest is not None and arguments.command_name != "run":
        arguments.parser.error("found a COMMAND after --, expected one only for `vmsnap run`")
    dry_run = arguments.command_name == "provision" and arguments.dry_run
    harmless = arguments.command_name == "plan" or dry_run
    if os.geteuid() != 0 and not harmless:
        complain(
            f"vmsnap {arguments.command_name}: found uid {os.geteuid()}, expected root; use sudo"
        )
        return NOT_ROOT
    try:
        return call(arguments)
    except BrokenPipeError:  # as of `vmsnap history | head`
        return OK
    except SessionInProgressError as e:
        return refuse(arguments, Kind.SESSION_IN_PROGRESS, str(e), IN_PROGRESS)
    except RunDirectoryError as e:
        return refuse(arguments, Kind.INCORRECT_SETTINGS, str(e), FAILED)
    except SessionRefusedError as e:
        return refuse(arguments, e.kind, str(e), FAILED)
    except NoCommandError as e:
        complain(f"vmsnap {arguments.command_name}: {e}")
        return USAGE
    except CommandError as e:
        complain(f"vmsnap {arguments.command_name}: {e}")
    except OSError as e:
        where = f"{e.filename}: " if e.filename else ""
        complain(f"vmsnap {arguments.command_name}: {where}{e.strerror}")
    except KeyboardInterrupt:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        os.kill(os.getpid(), signal.SIGINT)
    return FAILED


def call(arguments: argparse.Namespace) -> int:
    if not arguments.debug:
        return int(arguments.function(arguments))
    import traceback

    from vmsnap.journal.sender import Journal

    Journal.debug = decided = []
    given = {name: value for name, value in vars(arguments).items() if not callable(value)}
    del given["parser"]
    complain(f"debug: vmsnap {__version__}, Python {sys.version.split()[0]}: {given}")
    try:
        return int(arguments.function(arguments))
    except Exception:
        decided.extend(traceback.format_exc().splitlines())
        raise
    finally:
        for line in decided:
            complain(f"debug: {line}")


def split_at_dashes(words: list[str]) -> tuple[list[str], list[str] | None]:
    if "--" not in words:
        return words, None
    index = words.index("--")
    return words[:index], words[index + 1 :]


def join_since(words: list[str]) -> list[str]:
    """`--since -1h` is good for journalctl, but argparse takes -1h for an option."""
    joined: list[str] = []
    for word in words:
        if joined and joined[-1] == "--since" and word.startswith("-"):
            joined[-1] = f"--since={word}"
        else:
            joined.append(word)
    return joined


def refuse(arguments: argparse.Namespace, kind: Kind, message: str, code: int) -> int:
    """Report an error for which no session was begun."""
    from vmsnap.result import refused

    if arguments.json and arguments.command_name in ("run", "freeze", "thaw"):
        print_json(refused(Problem(kind, message, "check")).to_json())
    complain(
        f"vmsnap {arguments.command_name}: {kind.label} ({kind.code}): {message}\n{kind.action}"
    )
    return code
