# SPDX-License-Identifier: Apache-2.0
"""The command line: one function for each command, which parses, calls and prints. No logic."""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import signal
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from vmsnap.arguments import parser

OK, FAILED, USAGE, IN_PROGRESS, NOT_ROOT = 0, 1, 2, 75, 77


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code."""
    ensure_stdio()
    try:
        return command_line(argv)
    finally:
        let_go_of_stdio()


def command_line(argv: Sequence[str] | None) -> int:
    """Parse, run, and translate what was raised into a message and an exit code: only here."""
    from vmsnap.lock import InProgress, RunDirectoryUnusable
    from vmsnap.provision import Exists

    words = list(sys.argv[1:] if argv is None else argv)
    words, rest = split_at_dashes(words)
    arguments = parser().parse_args(words)
    arguments.words = rest
    for name in ("etc", "run", "state"):
        path = os.path.abspath(getattr(arguments, name))  # noqa: PTH100 - Path keeps ".."
        setattr(arguments, name, Path(path))
    if rest is not None and arguments.command_name != "run":
        arguments.parser.error("found a COMMAND after --, expected one only for `vmsnap run`")
    if os.geteuid() != 0 and arguments.command_name != "plan":
        complain(
            f"vmsnap {arguments.command_name}: found uid {os.geteuid()}, expected root; use sudo"
        )
        return NOT_ROOT
    try:
        return COMMANDS[arguments.command_name](arguments)
    except BrokenPipeError:  # whoever read our output has seen enough
        return OK
    except InProgress as e:
        return refuse(arguments, "SESSION_IN_PROGRESS", str(e), IN_PROGRESS)
    except RunDirectoryUnusable as e:
        return refuse(arguments, "INCORRECT_SETTINGS", str(e), FAILED)
    except Exists as e:
        complain(f"vmsnap {arguments.command_name}: {e}")
    except OSError as e:
        where = f"{e.filename}: " if e.filename else ""
        complain(f"vmsnap {arguments.command_name}: {where}{e.strerror}")
    except KeyboardInterrupt:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        os.kill(os.getpid(), signal.SIGINT)
    return FAILED


def split_at_dashes(words: list[str]) -> tuple[list[str], list[str] | None]:
    if "--" not in words:
        return words, None
    index = words.index("--")
    return words[:index], words[index + 1 :]


# --- the commands ------------------------------------------------------------------------------


def run_command(arguments: argparse.Namespace) -> int:
    from vmsnap import lock, report
    from vmsnap.events import Waiter
    from vmsnap.result import new_session_id
    from vmsnap.session import Options, Session

    if not arguments.words:
        arguments.parser.error("found no COMMAND, expected one after --: vmsnap run -- COMMAND")
    options = Options(
        command=tuple(arguments.words),
        etc=arguments.etc,
        run=arguments.run,
        state=arguments.state,
        hold=arguments.hold,
        require=arguments.require,
        only=tuple(arguments.only),
        exclude=tuple(arguments.exclude),
        fsfreeze=not arguments.no_fsfreeze,
    )
    lock.prepare(options.run)
    session = new_session_id()
    descriptor = lock.acquire(options.run, session)
    waiter = Waiter((signal.SIGTERM, signal.SIGINT, signal.SIGHUP))
    taking = Session(options, descriptor, waiter, show_phase(), session)
    result = taking.take()
    with contextlib.suppress(OSError):  # whoever reads or not, the exit code is the session's
        if taking.command:
            taking.command.pass_on(to_stderr=arguments.json)
        if arguments.json:
            print_json(result.to_json())
            sys.stdout.flush()
        else:
            paint = report.Paint(colourful(sys.stderr))
            complain(f"{report.summary(result, paint)}\n\n{report.timeline(result)}")
    return OK if result.ok else FAILED


def check_command(arguments: argparse.Namespace) -> int:
    from vmsnap import checks, host, report
    from vmsnap.storage import make_plan

    found = checks.inspect(arguments.etc)
    settings = found.settings
    plan = make_plan(arguments.only or settings.only, (*arguments.exclude, *settings.exclude))
    if all(app.freeze for app in found.apps):
        checks.inspect_filesystems(found, plan, arguments.run)
    ok = not found.errors
    if arguments.json:
        print_json({"ok": ok, "problems": [problem.to_json() for problem in found.problems]})
        return OK if ok else FAILED
    paint = report.Paint(colourful(sys.stdout))
    if found.problems:
        print(report.problem_list(found.problems, paint))
    names = ", ".join(app.name for app in found.runnable) or "none"
    platform = f"{host.distribution()} on {host.hypervisor() or 'unknown hardware'}"
    print(f"host: {platform}")
    print(f"apps that would run: {names}")
    print(f"filesystems that would be frozen: {len(plan.acted_on)} (`vmsnap plan`)")
    print(paint("everything is in order", "success") if ok else paint("not in order", "failed"))
    return OK if ok else FAILED


def plan_command(arguments: argparse.Namespace) -> int:
    from vmsnap import checks, report
    from vmsnap.storage import make_plan

    only, exclude = arguments.only, arguments.exclude
    if os.geteuid() == 0:
        settings = checks.inspect(arguments.etc).settings
        only, exclude = only or settings.only, (*exclude, *settings.exclude)
    else:
        complain(
            "vmsnap plan: not root, so without the settings and without other mount namespaces"
        )
    plan = make_plan(only, exclude)
    if arguments.json:
        print_json([entry.to_json() for entry in plan.entries])
    else:
        print(report.plan_table(plan))
    return FAILED if plan.unmatched else OK


def init_command(arguments: argparse.Namespace) -> int:
    from vmsnap.checks import APP_NAME
    from vmsnap.provision import init

    if not APP_NAME.fullmatch(arguments.name):
        arguments.parser.error(
            f"found the name {arguments.name!r}, expected a plain word of letters, digits, "
            "'.', '_' and '-'"
        )
    written = init(arguments.etc, arguments.name)
    if arguments.json:
        print_json({key: str(path) for key, path in written.__dict__.items()})
        return OK
    print(f"wrote {written.config}\nwrote {written.pre}\nwrote {written.post}")
    print("Next: write the two scripts, then run `vmsnap check`.")
    return OK


def status_command(arguments: argparse.Namespace) -> int:
    from vmsnap import lock, report
    from vmsnap.result import LAST, from_json

    path = arguments.state / LAST
    holder = lock.holder(arguments.run)
    paint = report.Paint(colourful(sys.stdout))
    try:
        last = from_json(json.loads(path.read_text(encoding="utf-8")))
        text = f"{report.summary(last, paint)}\n\n{report.timeline(last)}"
    except FileNotFoundError:
        last, text = None, "No session yet."
    except (ValueError, KeyError, TypeError, RecursionError) as e:
        complain(f"vmsnap status: {path}: found no result that can be read: {e}")
        return FAILED
    if arguments.json:
        print_json({"in_progress": holder, "last": last.to_json() if last else None})
    else:
        if holder:
            print(f"In progress: session {holder}")
        if last or not holder:
            print(text)
    return FAILED if last and not last.ok and not holder else OK


def thaw_command(arguments: argparse.Namespace) -> int:
    from vmsnap import lock
    from vmsnap.thaw import ListUnreadable, thaw_listed

    told: list[str] = []
    try:
        good = thaw_listed(arguments.run, told.append, forget=not lock.holder(arguments.run))
    except FileNotFoundError:
        good = True
        told.append(f"nothing to thaw: {arguments.run} holds no list of frozen filesystems")
    except ListUnreadable as e:
        good = False
        told.append(str(e))
    if arguments.json:
        print_json({"ok": good, "messages": told})
    else:
        print("\n".join(told))
    return OK if good else FAILED


COMMANDS = {
    "run": run_command,
    "check": check_command,
    "plan": plan_command,
    "init": init_command,
    "status": status_command,
    "thaw": thaw_command,
}


# --- printing ----------------------------------------------------------------------------------


def refuse(arguments: argparse.Namespace, kind_name: str, message: str, code: int) -> int:
    """Report an error for which no session was begun."""
    from vmsnap.errors import Failure, Kind
    from vmsnap.result import refused

    kind = Kind[kind_name]
    if arguments.json and arguments.command_name == "run":
        print_json(refused(Failure(kind, "check", "", message)).to_json())
    complain(
        f"vmsnap {arguments.command_name}: {kind.label} ({kind.code}): {message}\n{kind.action}"
    )
    return code


def show_phase() -> Callable[[str], None]:
    """On a terminal, one line that says what a person waits for. Nothing is shown while frozen."""
    if not sys.stderr.isatty():
        return lambda _: None
    words = {
        "check": "checking",
        "pre": "running pre-scripts",
        "presync": "writing out what is dirty",
        "freeze": "frozen, taking the snapshot",
        "thaw": "thawed",
        "post": "running post-scripts",
    }

    def show(phase: str) -> None:
        sys.stderr.write(f"\r\033[K{words[phase]} ..." if phase in words else "\r\033[K")
        sys.stderr.flush()

    return show


def print_json(document: object) -> None:
    print(json.dumps(document, indent=2))


def complain(message: str) -> None:
    print(message, file=sys.stderr, flush=True)


def colourful(stream: object) -> bool:
    isatty: Callable[[], bool] = getattr(stream, "isatty", bool)
    return isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"


def let_go_of_stdio() -> None:
    """Whoever read may have gone, which is not for Python to complain of with an exit code."""
    for stream, fd in ((sys.stdout, 1), (sys.stderr, 2)):
        try:
            stream.flush()
        except OSError:
            os.dup2(os.open(os.devnull, os.O_WRONLY), fd)


def ensure_stdio() -> None:
    """A process started without one of its three standard descriptors would get it for a pipe."""
    while (fd := os.open(os.devnull, os.O_RDWR)) <= 2:
        pass
    os.close(fd)
    sys.stdout = sys.stdout or open(1, "w", closefd=False)  # noqa: SIM115 - stays open
    sys.stderr = sys.stderr or open(2, "w", closefd=False)  # noqa: SIM115 - stays open
