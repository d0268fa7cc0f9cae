# SPDX-License-Identifier: Apache-2.0
"""The commands about the guest agents of platforms: `integrate` connects vmsnap to one, which then
calls `hook`."""

from __future__ import annotations

import argparse
import contextlib
import os
import signal
import sys
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from vmsnap.cli.arguments import FAILED, OK, Commands, seconds
from vmsnap.cli.configure import alone, end_killed_session
from vmsnap.cli.take import insist_on_run_directory
from vmsnap.cli.terminal import colourful, complain, print_json, print_report, whoever_reads

if TYPE_CHECKING:
    from vmsnap.config.checks import Inspection
    from vmsnap.platforms.integrate import Changes

REMOVAL_PATIENCE = 90.0  # the package manager may be waiting
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


def register(commands: Commands) -> None:
    integrate = commands.add(
        "integrate",
        integrate_command,
        "connect to the agent of the platform, which then calls vmsnap at every snapshot",
        examples=INTEGRATE_EXAMPLES,
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
        "--dry-run", action="store_true", help="show what would be done, and do nothing"
    )
    hook = commands.add(
        "hook",
        hook_command,
        "begin or end a session for the agent of a platform, which calls this",
        examples=HOOK_EXAMPLES,
        usage="vmsnap hook [options] AGENT EVENT [ARGUMENT...]",
    )
    hook.add_argument("agent", metavar="AGENT", choices=AgentNames(), help="%(choices)s")
    hook.add_argument("event", metavar="EVENT", help="one of the agent's events")
    hook.add_argument(
        "--within", type=seconds, metavar="SECONDS", help="how long the agent waits for an answer"
    )
    hook.add_argument("rest", metavar="ARGUMENT...", nargs="*", help="more from the agent")


class AgentNames:
    """The known agents, looked up when argparse asks for them: most commands start without them."""

    def __iter__(self) -> Iterator[str]:
        from vmsnap.platforms.registry import agents

        return iter(agents())

    def __contains__(self, name: object) -> bool:
        return name in tuple(self)


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
                with contextlib.suppress(lock.SessionInProgressError):
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
            except integrate.IntegrationError as e:
                still = f" ({agent} is still connected)" if arguments.remove else ""
                wrong.append(f"{e}{still}")
    if done and not arguments.dry_run:
        agent_service.recheck()
    found = diagnosis(arguments, agents)
    with whoever_reads():
        if arguments.json:
            changed = {agent: asdict(changes) for agent, changes in done.items()}
            problems = [problem.to_json() for problem in found.problems]
            ok = not (wrong or found.errors)
            print_json({"ok": ok, "agents": changed, "refused": wrong, "problems": problems})
        else:
            if not agents:
                print("nothing is connected")
            show_integration(arguments, done)
            if found.problems:
                print_report(problem_list(found.problems, report.Paint(colourful(sys.stderr))))
        for message in wrong:
            complain(f"vmsnap integrate: {message}")
    return FAILED if wrong or found.errors else OK


def agents_meant(arguments: argparse.Namespace) -> list[str]:
    from vmsnap.platforms import integrate

    if arguments.agent:
        return [arguments.agent]
    if arguments.remove:
        return integrate.traces(arguments.state)
    return [integrate.this_platforms_agent()]


def diagnosis(arguments: argparse.Namespace, agents: list[str]) -> Inspection:
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
        lines += [f"left, not written by vmsnap: {path}" for path in changes.left]
        lines += [f"restarted {changes.restarted}"] if changes.restarted else []
        print("\n".join(lines or ["nothing to do in this machine"]))
        if not arguments.remove:
            print(f"to take a snapshot: {agents()[agent].connection(Path('/')).host}")


def hook_command(arguments: argparse.Namespace) -> int:
    from vmsnap.journal.sender import Event, Journal, Priority
    from vmsnap.platforms import hook
    from vmsnap.platforms.agent import HookOutcome
    from vmsnap.platforms.registry import agents
    from vmsnap.report import text as report
    from vmsnap.report.summary import summary
    from vmsnap.session.options import Options

    agent = agents()[arguments.agent]
    if arguments.event not in agent.events:
        known = ", ".join(agent.events)
        arguments.parser.error(f"found the event {arguments.event!r}, expected one of {known}")
    insist_on_run_directory(arguments)
    ending, result = hook.call(
        arguments.agent,
        arguments.event,
        tuple(arguments.rest),
        Options(etc=arguments.etc, run_dir=arguments.run, state=arguments.state),
        arguments.within,
    )
    done = ending is HookOutcome.DONE
    message = f"hook {arguments.agent} {arguments.event}: {ending.value}"
    priority = Priority.INFO if done else Priority.WARNING
    Journal().send(message, Event.NOTE.value, priority)  # few agents keep what we print
    with whoever_reads():
        if arguments.json:
            print_json({"ending": ending.name, "result": result.to_json() if result else None})
        else:
            text = "" if result is None else summary(result, report.Paint(False))
            complain(f"{message}\n{text}".rstrip())
    return agent.codes.get(ending, OK if done else FAILED)
