# SPDX-License-Identifier: Apache-2.0
"""One function for each command that writes the configuration."""

from __future__ import annotations

import argparse
import contextlib
import io
import os
import signal
import sys
from collections.abc import Iterator, Mapping
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from vmsnap.cli.arguments import FAILED, OK
from vmsnap.cli.terminal import (
    colourful,
    complain,
    is_journal,
    print_json,
    show_phase,
    whoever_reads,
)
from vmsnap.errors import Impossible

if TYPE_CHECKING:
    from vmsnap.config.checks import Inspection
    from vmsnap.platforms.integrate import Changes
    from vmsnap.provision.status import Provisioning

TRIAL = "`vmsnap run --no-fsfreeze --require application -- true`"
SESSION_PATIENCE = 3600.0  # seconds: the longest that pre- and post-scripts may take
REMOVAL_PATIENCE = 90.0  # the package manager may be waiting


class LeftFrozen(Impossible):
    """Nothing can be written."""


def init_command(arguments: argparse.Namespace) -> int:
    from vmsnap.config.checks import APP_NAME
    from vmsnap.config.formats import PLAIN_WORD
    from vmsnap.provision.init import init
    from vmsnap.provision.quiescers import QUIESCERS

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


def integrate_command(arguments: argparse.Namespace) -> int:
    from vmsnap.platforms import agent_service, integrate
    from vmsnap.report import text as report
    from vmsnap.report.tables import problem_list
    from vmsnap.session import lock

    if arguments.etc != Path("/etc"):
        arguments.parser.error(f"found --etc {arguments.etc}, expected /etc: agents know no other")
    done: dict[str, Changes] = {}
    wrong: list[str] = []
    change = integrate.disconnect if arguments.remove else integrate.connect
    agents = agents_meant(arguments)
    with contextlib.ExitStack() as stack:
        if agents and not arguments.dry_run:
            signal.signal(signal.SIGTERM, signal.default_int_handler)  # both undo what is half-done
            descriptor = None
            if arguments.remove:
                # One that goes on for longer has its own reasons, and needs no agent's files.
                with contextlib.suppress(lock.InProgress):
                    waiting = alone(arguments, "vmsnap integrate", REMOVAL_PATIENCE)
                    descriptor = stack.enter_context(waiting)
            else:
                lock.prepare(arguments.run)
                descriptor = lock.acquire(arguments.run, "vmsnap integrate")
                stack.callback(os.close, descriptor)
            if descriptor is not None:
                end_killed_session(arguments, descriptor)
        for agent in agents:
            try:
                done[agent] = change(agent, arguments.state, dry_run=arguments.dry_run)
            except integrate.NotPossible as e:
                still = f" ({agent} is still connected)" if arguments.remove else ""
                wrong.append(f"{e}{still}")
    if done and not arguments.dry_run:
        agent_service.have_it_checked()
    found = unsound(arguments, agents)
    with whoever_reads():
        if arguments.json:
            told = {agent: asdict(changes) for agent, changes in done.items()}
            problems = [problem.to_json() for problem in found.problems]
            ok = not (wrong or found.errors)
            print_json({"ok": ok, "agents": told, "refused": wrong, "problems": problems})
        else:
            if not agents:
                print("nothing is connected")
            show_integration(arguments, done)
            if found.problems:
                complain(problem_list(found.problems, report.Paint(colourful(sys.stderr))))
        for words in wrong:
            complain(f"vmsnap integrate: {words}")
    return FAILED if wrong or found.errors else OK


@contextlib.contextmanager
def alone(arguments: argparse.Namespace, whose: str, seconds: float) -> Iterator[int]:
    """Keep sessions from beginning; wait until the one that is in progress has ended."""
    from vmsnap.session import lock

    show = show_phase()
    show("wait")
    with contextlib.ExitStack() as stack:
        try:
            descriptor = stack.enter_context(lock.held(arguments.run, whose, seconds))
        finally:
            show("")
        yield descriptor


def agents_meant(arguments: argparse.Namespace) -> list[str]:
    from vmsnap.platforms import integrate

    if arguments.agent:
        return [arguments.agent]
    if arguments.remove:
        return integrate.traces(arguments.state)
    return [integrate.this_platforms_agent()]


def unsound(arguments: argparse.Namespace, agents: list[str]) -> Inspection:
    """What is wrong with these connections now that this has been done."""
    from vmsnap.config import checks
    from vmsnap.platforms import diagnose

    found = checks.inspect(arguments.etc)
    found.problems.clear()
    if not arguments.dry_run and not arguments.remove:
        diagnose.inspect(found, arguments.state, only=agents)
    return found


def show_integration(arguments: argparse.Namespace, done: Mapping[str, Changes]) -> None:
    from vmsnap.platforms.registry import agents

    wrote, removed = ("would write", "would remove") if arguments.dry_run else ("wrote", "removed")
    for agent, changes in done.items():
        print(f"agent: {agent}")
        lines = [f"{wrote} {path}" for path in changes.written]
        lines += [f"{removed} {path}" for path in changes.removed]
        lines += [f"unchanged: {path}" for path in changes.unchanged]
        lines += [f"left, for vmsnap has not written it: {path}" for path in changes.left]
        lines += [f"restarted {changes.restarted}"] if changes.restarted else []
        print("\n".join(lines or ["nothing to do in this machine"]))
        if not arguments.remove:
            print(f"to take a snapshot: {agents()[agent].connection(Path('/')).host}")


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
    from vmsnap.system.trusted import read_text, text_of

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
        except (lock.InProgress, lock.RunDirectoryUnusable) as e:
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
    status.tell(done)
    return done


def failure(arguments: argparse.Namespace, words: str) -> Provisioning:
    from vmsnap.provision.status import Provisioning
    from vmsnap.provision.validation import Mistake

    return Provisioning(arguments.source, problems=(Mistake("", words),))


def end_killed_session(arguments: argparse.Namespace, lock: int) -> None:
    """As everybody does who gets the lock; and before the thaw nothing can be written."""
    from vmsnap import progress
    from vmsnap.freeze.frozen_list import FROZEN_LIST
    from vmsnap.session.recovery import conclude
    from vmsnap.system.waiter import Waiter

    if (arguments.run / FROZEN_LIST).exists() or progress.read(arguments.run):
        conclude(arguments.run, arguments.state, lock, Waiter(()))
    if (arguments.run / FROZEN_LIST).exists():
        raise LeftFrozen("a killed session has left filesystems frozen: see `vmsnap thaw --force`")


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
