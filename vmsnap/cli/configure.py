# SPDX-License-Identifier: Apache-2.0
"""The commands that write the configuration: `init` and `provision`."""

from __future__ import annotations

import argparse
import contextlib
import io
import os
import signal
import sys
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from vmsnap.cli.arguments import FAILED, OK, Commands
from vmsnap.cli.terminal import (
    complain,
    is_journal,
    print_json,
    progress_line,
    whoever_reads,
)
from vmsnap.errors import CommandError
from vmsnap.provision.quiescers import QUIESCERS

if TYPE_CHECKING:
    from vmsnap.provision.status import Provisioning

TRIAL = "`vmsnap run --no-fsfreeze --require application -- true`"
SESSION_PATIENCE = 3600.0  # seconds: the longest that pre- and post-scripts may take
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


def register(commands: Commands) -> None:
    app = commands.add(
        "init",
        init_command,
        "write the config of an app and skeletons of its scripts",
        examples=INIT_EXAMPLES,
        usage="vmsnap init [options] [NAME]",
    )
    app.add_argument("name", nargs="?", metavar="NAME", help="a plain word: ledger")
    app.add_argument(
        "--quiesce",
        type=quiescer,
        metavar="SERVER",
        help=f"set up for a database: {', '.join(QUIESCERS)}",
    )
    document = commands.add(
        "provision",
        provision_command,
        "write the configuration that one document describes, as cloud-init does",
        examples=PROVISION_EXAMPLES,
        usage="vmsnap provision [options] (- | --file FILE)",
    )
    document.add_argument("stdin", nargs="?", metavar="-", help="read JSON from stdin")
    document.add_argument(
        "--file", type=Path, metavar="FILE", help="read FILE: YAML, or JSON if named *.json"
    )
    document.add_argument(
        "--dry-run",
        action="store_true",
        help="check the document and show what would be written (needs no root)",
    )


def quiescer(word: str) -> str:
    if word not in QUIESCERS:
        raise argparse.ArgumentTypeError(f"found {word!r}, expected {', '.join(QUIESCERS)}")
    return word


class LeftFrozenError(CommandError):
    """Nothing can be written."""


def init_command(arguments: argparse.Namespace) -> int:
    from vmsnap.config.checks import APP_NAME
    from vmsnap.config.formats import PLAIN_WORD
    from vmsnap.provision.init import init

    name = arguments.quiesce if arguments.name is None else arguments.name
    if name is None:
        arguments.parser.error("found neither NAME nor --quiesce, expected one of them")
    if not APP_NAME.fullmatch(name):
        arguments.parser.error(f"found the name {name!r}, expected {PLAIN_WORD}")
    quiescer = QUIESCERS.get(arguments.quiesce)
    written = init(arguments.etc, name, quiescer)
    paths = {key: str(path) for key, path in written.__dict__.items()}
    if arguments.json:
        print_json({**paths, "next": quiescer.login} if quiescer else paths)
    elif quiescer:
        print(f"wrote {written.config}\n{quiescer.login}")
        print("Next: run `vmsnap check`, then try it: " + TRIAL)
    else:
        print(f"wrote {written.config}\nwrote {written.pre}\nwrote {written.post}")
        print("Next: write the two scripts, then run `vmsnap check`.")
    return OK


@contextlib.contextmanager
def alone(arguments: argparse.Namespace, whose: str, seconds: float) -> Iterator[int]:
    """Keep sessions from beginning; wait until the one that is in progress has ended."""
    from vmsnap.session import lock

    show = progress_line()
    show("waiting for the session in progress to end")
    with contextlib.ExitStack() as stack:
        try:
            descriptor = stack.enter_context(lock.held(arguments.run, whose, seconds))
        finally:
            show("")
        yield descriptor


def provision_command(arguments: argparse.Namespace) -> int:
    from vmsnap.provision.apply import provision
    from vmsnap.system.trusted import MAX_BYTES

    if (arguments.stdin or "-") != "-" or bool(arguments.stdin) == bool(arguments.file):
        arguments.parser.error("expected either --file FILE or -")
    elsewhere = arguments.etc != Path("/etc") and arguments.state == Path("/var/lib/vmsnap")
    if elsewhere and not arguments.dry_run:
        arguments.parser.error(
            f"found --etc {arguments.etc} without --state, expected both: the outcome is not this "
            "machine's"
        )
    if arguments.stdin:
        arguments.source = "-"
        arguments.given = io.BytesIO(sys.stdin.buffer.read(MAX_BYTES + 1))
    else:
        arguments.source = str(Path.cwd() / arguments.file)
        os.lstat(arguments.source)  # a typing error is no outcome to keep
    if arguments.dry_run:
        load = partial(load_document, arguments)
        done = provision(arguments.source, load, arguments.etc, arguments.state, dry_run=True)
    else:
        done = provision_in_earnest(arguments)
    with contextlib.nullcontext() if arguments.dry_run else whoever_reads():
        if arguments.json:
            print_json(done.to_json())
        else:
            show_provisioning(done, arguments.dry_run)
    return OK if done.ok else FAILED


def load_document(arguments: argparse.Namespace) -> object:
    from vmsnap.provision.document import load
    from vmsnap.system.bounded import bounded
    from vmsnap.system.trusted import read_text, text_of

    source = arguments.source
    if source == "-":
        return load(text_of(arguments.given, "stdin"), yaml=False)
    if arguments.dry_run:  # by anybody, of anybody's file
        with open(source, "rb") as file:
            text = text_of(file, source)
    else:
        text = bounded(lambda: read_text(source, forbidden=0o022))
    return load(text, yaml=not source.endswith(".json"))


def provision_in_earnest(arguments: argparse.Namespace) -> Provisioning:
    from vmsnap.provision import status
    from vmsnap.provision.apply import provision
    from vmsnap.provision.validation import Mistake
    from vmsnap.session import lock

    signal.signal(signal.SIGTERM, signal.default_int_handler)  # both undo what is half-done
    keep = partial(status.record, state=arguments.state)
    with contextlib.ExitStack() as stack:
        # The scripts of a session must stay as they were checked.
        try:
            waiting = alone(arguments, status.HOLDER, SESSION_PATIENCE)
            descriptor = stack.enter_context(waiting)
        except (lock.SessionInProgressError, lock.RunDirectoryError) as e:
            keep(failure(arguments, str(e)))
            raise
        end_killed_session(arguments, descriptor)
        keep(failure(arguments, "it was interrupted"))  # should we not live to know better
        load = partial(load_document, arguments)
        done = provision(arguments.source, load, arguments.etc, arguments.state)
        try:
            keep(done)
        except OSError as e:  # then it stays with the interruption
            unkept = Mistake("", f"the outcome could not be kept: {e.filename}: {e.strerror}")
            done = replace(done, problems=(*done.problems, unkept))
    status.send_outcome(done)
    return done


def failure(arguments: argparse.Namespace, message: str) -> Provisioning:
    from vmsnap.provision.status import Provisioning
    from vmsnap.provision.validation import Mistake

    return Provisioning(arguments.source, problems=(Mistake("", message),))


def end_killed_session(arguments: argparse.Namespace, lock: int) -> None:
    """As everybody does who gets the lock; and before the thaw nothing can be written."""
    from vmsnap.freeze.frozen_list import FROZEN_LIST
    from vmsnap.session.recovery import conclude
    from vmsnap.system.waiter import Waiter

    conclude(arguments.etc, arguments.run, arguments.state, lock, Waiter(()))
    if (arguments.run / FROZEN_LIST).exists():
        raise LeftFrozenError(
            "a killed session has left filesystems frozen: see `vmsnap thaw --force`"
        )


def show_provisioning(done: Provisioning, dry_run: bool) -> None:
    wrote, removed = ("would write", "would remove") if dry_run else ("wrote", "removed")
    lines = [f"{wrote} {path}" for path in done.written]
    lines += [f"{removed} {path}" for path in done.removed]
    lines += [f"unchanged: {path}" for path in done.unchanged]
    if done.timer is not None and done.ok:
        lines.append(f"vmsnap-backup.timer: {'enabled' if done.timer else 'disabled'}")
    if lines:
        print("\n".join(lines))
    if not is_journal(2):
        for mistake in done.problems:
            complain(f"vmsnap provision: {mistake}")
