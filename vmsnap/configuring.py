# SPDX-License-Identifier: Apache-2.0
"""One function for each command that writes the configuration."""

from __future__ import annotations

import argparse
import contextlib
import io
import os
import signal
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from vmsnap.arguments import FAILED, OK
from vmsnap.errors import Impossible
from vmsnap.terminal import complain, is_journal, print_json, show_phase, whoever_reads

if TYPE_CHECKING:
    from vmsnap.provisioned import Provisioning

SESSION_PATIENCE = 3600.0  # seconds: the longest that pre- and post-scripts may take


class LeftFrozen(Impossible):
    """Nothing can be written."""


def init_command(arguments: argparse.Namespace) -> int:
    from vmsnap.checks import APP_NAME
    from vmsnap.config import PLAIN_WORD
    from vmsnap.provision import init

    if not APP_NAME.fullmatch(arguments.name):
        arguments.parser.error(f"found the name {arguments.name!r}, expected {PLAIN_WORD}")
    written = init(arguments.etc, arguments.name)
    if arguments.json:
        print_json({key: str(path) for key, path in written.__dict__.items()})
        return OK
    print(f"wrote {written.config}\nwrote {written.pre}\nwrote {written.post}")
    print("Next: write the two scripts, then run `vmsnap check`.")
    return OK


def provision_command(arguments: argparse.Namespace) -> int:
    from vmsnap.provision import provision
    from vmsnap.trusted import MAX_BYTES

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
        done = provision(arguments.source, load, arguments.etc, dry_run=True)
    else:
        done = provision_in_earnest(arguments)
    with contextlib.nullcontext() if arguments.dry_run else whoever_reads():
        if arguments.json:
            print_json(done.to_json())
        else:
            show_provisioning(done, "would write" if arguments.dry_run else "wrote")
    return OK if done.ok else FAILED


def load_document(arguments: argparse.Namespace) -> object:
    from vmsnap.document import load
    from vmsnap.trusted import read_text, text_of

    source = arguments.source
    if source == "-":
        return load(text_of(arguments.given, "stdin"), yaml=False)
    if arguments.dry_run:  # by anybody, of anybody's file
        with open(source, "rb") as file:
            text = text_of(file, source)
    else:
        text = read_text(source, forbidden=0o022)
    return load(text, yaml=not source.endswith(".json"))


def provision_in_earnest(arguments: argparse.Namespace) -> Provisioning:
    from vmsnap import lock, provisioned
    from vmsnap.mistakes import Mistake
    from vmsnap.provision import provision

    signal.signal(signal.SIGTERM, signal.default_int_handler)  # both undo what is half-done
    show = show_phase()
    keep = partial(provisioned.record, state=arguments.state)
    with contextlib.ExitStack() as stack:
        stack.callback(show, "")
        show("wait")
        # The scripts of a session must stay as they were checked.
        holding = lock.held(arguments.run, provisioned.HOLDER, SESSION_PATIENCE)
        try:
            descriptor = stack.enter_context(holding)
        except (lock.InProgress, lock.RunDirectoryUnusable) as e:
            keep(failure(arguments, str(e)))
            raise
        show("")
        end_killed_session(arguments, descriptor)
        keep(failure(arguments, "it was interrupted"))  # should we not live to know better
        done = provision(arguments.source, partial(load_document, arguments), arguments.etc)
        try:
            keep(done)
        except OSError as e:  # then it stays with the interruption
            unkept = Mistake("", f"the outcome could not be kept: {e.filename}: {e.strerror}")
            done = replace(done, problems=(*done.problems, unkept))
    provisioned.tell(done)
    return done


def failure(arguments: argparse.Namespace, words: str) -> Provisioning:
    from vmsnap.mistakes import Mistake
    from vmsnap.provisioned import Provisioning

    return Provisioning(arguments.source, problems=(Mistake("", words),))


def end_killed_session(arguments: argparse.Namespace, lock: int) -> None:
    """As everybody does who gets the lock; and before the thaw nothing can be written."""
    from vmsnap import progress
    from vmsnap.aftermath import conclude
    from vmsnap.events import Waiter
    from vmsnap.thaw import FROZEN_LIST

    if (arguments.run / FROZEN_LIST).exists() or progress.read(arguments.run):
        conclude(arguments.run, arguments.state, lock, Waiter(()))
    if (arguments.run / FROZEN_LIST).exists():
        raise LeftFrozen("a killed session has left filesystems frozen: see `vmsnap thaw --force`")


def show_provisioning(done: Provisioning, wrote: str) -> None:
    lines = [f"{wrote} {path}" for path in done.written]
    lines += [f"unchanged: {path}" for path in done.unchanged]
    if done.timer is not None and done.ok:
        lines.append(f"vmsnap-backup.timer: {'enabled' if done.timer else 'disabled'}")
    if lines:
        print("\n".join(lines))
    if not is_journal(2):
        for mistake in done.problems:
            complain(f"vmsnap provision: {mistake}")
