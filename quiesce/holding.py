# SPDX-License-Identifier: Apache-2.0
"""What the quiescers share: a client's session with the server, the holder, and the position.

A lock dies with the session that asked for it. So a pre-script leaves a process behind, the holder,
which keeps the session until the post-script calls on a socket in VMSNAP_SCRIPT_DIR, or until its
own deadline. It touches no disk meanwhile, for that may be frozen. Should it be killed, the client
reads end of file and leaves, and the server releases all.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import pwd
import select
import signal
import socket
import stat
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

HOLD = 90.0  # seconds: vmsnap's defaults for the freeze (30) and the hold (60) together
SOCKET, ENDED = "holder", "ended"  # in VMSNAP_SCRIPT_DIR
MARK = "-vmsnap-"  # what the client prints when it has done what it was asked


class QuiesceError(Exception):
    """What was found, what was expected and what to do, in one line."""


def main(pre: Callable[[], None], post: Callable[[], None]) -> int:
    """Run the phase that vmsnap asks for; return the exit code."""
    phase = {"pre": pre, "post": post}.get(os.environ.get("VMSNAP_PHASE", ""))
    if phase is None or "VMSNAP_SCRIPT_DIR" not in os.environ:
        print("a pre- and post-script of vmsnap: name it in an app's file", file=sys.stderr)
        return 2
    try:
        os.chdir(os.environ["VMSNAP_SCRIPT_DIR"])
        phase()
    except (QuiesceError, OSError) as e:
        print(f"<3>{e}", file=sys.stderr)  # sd-daemon(3): an error
        return 1
    return 0


def options(description: str) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=description, allow_abbrev=False)
    parser.add_argument(
        "--hold",
        metavar="SECONDS",
        type=float,
        default=HOLD,
        help="let go by then at the latest (%(default)g)",
    )
    app = os.environ.get("VMSNAP_APP", "APP")
    parser.add_argument(
        "--position",
        metavar="DIR",
        type=Path,
        default=Path("/var/lib/vmsnap/quiesce", app),
        help="where to write the position, on a disk that is in the snapshot (%(default)s)",
    )
    return parser


def budget() -> float:
    """Seconds for this script."""
    return float(os.environ.get("VMSNAP_TIMEOUT", "30"))


# --- a client's session ---------------------------------------------------------------------------


class Session:
    """A client program that is connected to the server and is asked one thing after another.

    It ends at the first error; `hints` say what to do, by a part of the error's text.
    """

    def __init__(
        self,
        argv: Sequence[str],
        mark: str,
        hints: Mapping[str, str],
        user: str = "root",
        env: Mapping[str, str] | None = None,
    ) -> None:
        self._mark, self._hints = mark, hints
        self._errors = os.memfd_create("errors")
        try:
            account = pwd.getpwnam(user)
        except KeyError:
            raise QuiesceError(
                f"found no system user {user!r}, expected the one to log in as"
            ) from None
        try:
            self._client = subprocess.Popen(
                argv,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=self._errors,
                text=True,
                errors="replace",
                cwd="/",
                env={
                    "PATH": os.environ.get("PATH", os.defpath),
                    "LANG": "C.UTF-8",
                    "HOME": account.pw_dir,
                    **(env or {}),
                },
                user=account.pw_uid,
                group=account.pw_gid,
                extra_groups=os.getgrouplist(user, account.pw_gid),
            )
        except FileNotFoundError:
            raise QuiesceError(
                f"found no program {argv[0]}, expected the server's client"
            ) from None
        self._pidfd = os.pidfd_open(self._client.pid)

    def fileno(self) -> int:
        """Readable, when it was asked nothing, if the client has ended."""
        assert self._client.stdout
        return self._client.stdout.fileno()

    def ask(self, statement: str) -> list[list[str]]:
        """Return the rows of the answer."""
        assert self._client.stdin
        assert self._client.stdout
        with contextlib.suppress(BrokenPipeError):  # then there is no answer either
            self._client.stdin.write(f"{statement};\n{self._mark}\n")
            self._client.stdin.flush()
        rows: list[list[str]] = []
        for line in self._client.stdout:
            if line == f"{MARK}\n":
                return rows
            rows.append(line.rstrip("\n").split("\t"))
        raise QuiesceError(self.last_words)

    @property
    def last_words(self) -> str:
        """What the client said when it ended, and what to do."""
        words = " ".join(os.pread(self._errors, 4096, 0).decode(errors="replace").split())
        words = words or "the client ended without a word: it was killed"
        return "; ".join([words, *(hint for part, hint in self._hints.items() if part in words)])

    def close(self) -> None:
        """Let the client leave, and wait until it has."""
        assert self._client.stdin
        assert self._client.stdout
        with contextlib.suppress(BrokenPipeError):
            self._client.stdin.close()
        self._client.stdout.read()

    def kill(self) -> None:
        """Not by its number, which may be another's by now: the holder is not its parent."""
        with contextlib.suppress(ProcessLookupError):
            signal.pidfd_send_signal(self._pidfd, signal.SIGKILL)


# --- the holder -----------------------------------------------------------------------------------


def hold(session: Session, release: Callable[[], str], seconds: float) -> None:
    """Leave a process behind that keeps the session. `release` ends what is held and returns words
    for the journal."""
    for name in (SOCKET, ENDED):  # of an attempt before this one
        Path(name).unlink(missing_ok=True)
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(SOCKET)  # relative, as a path of more than 107 bytes is refused
    listener.listen()
    sys.stdout.flush()
    if os.fork() == 0:
        try:
            keep(session, listener, release, seconds)
        finally:
            os._exit(0)


def keep(
    session: Session, listener: socket.socket, release: Callable[[], str], seconds: float
) -> None:
    os.setsid()
    null = os.open(os.devnull, os.O_RDWR)
    for fd in range(3):  # vmsnap waits for the end of what the pre-script prints
        os.dup2(null, fd)
    ready = select.select([listener, session], [], [], seconds)[0]
    if listener in ready:
        signal.signal(signal.SIGALRM, overdue)
        signal.alarm(max(1, int(budget() * 2 / 3)))  # of the post-script, who is to be told
        caller = listener.accept()[0]
        try:
            answer = f"released\n{release()}"
            session.close()
        except QuiesceError as e:
            answer = f"lost\n{e}"
            session.kill()
        caller.sendall(answer.encode())
        return
    gave_up = f"it let go at its deadline, after {seconds:g} s; raise --hold, or be done sooner"
    reason = session.last_words if session in ready else gave_up
    Path(ENDED).write_text(reason)
    session.close()


def overdue(*_: object) -> None:
    raise QuiesceError("the server does not answer")


def let_go(what: str) -> None:
    """Have the holder release what it holds, and wait for its end."""
    with socket.socket(socket.AF_UNIX) as caller:
        try:
            caller.connect(SOCKET)
            answer = caller.makefile().read()  # to the end of file: the holder has ended
        except FileNotFoundError:
            print(f"{what} was not held: the pre-script did not succeed")
            return
        except ConnectionError:  # no reader any more
            answer = ""
    status, _, words = answer.partition("\n")
    if status != "released":
        ended = Path(ENDED)
        words = words or (ended.read_text() if ended.exists() else "the holder was killed")
        raise QuiesceError(
            f"{what} was not held until now, so the snapshot is not what it claims: {words}"
        )
    print(words)


# --- the position ---------------------------------------------------------------------------------


def forget(directory: Path, *names: str) -> None:
    """A snapshot is to carry the position of its own session or none."""
    if directory.exists():
        with opened(directory) as fd:
            for name in ("position.json", *names):
                unlink(name, fd)


def write_position(directory: Path, **position: object) -> None:
    about = {
        "session": os.environ.get("VMSNAP_SESSION", ""),
        "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    }
    write(directory, "position.json", json.dumps({**about, **position}, indent=4) + "\n")


def write(directory: Path, name: str, text: str) -> None:
    """On the disk when this returns, whole or not at all."""
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    beside = f".{name}"
    with opened(directory) as fd:
        unlink(beside, fd)  # of a pre-script that was killed
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW
        with open(os.open(beside, flags, 0o600, dir_fd=fd), "w") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.rename(beside, name, src_dir_fd=fd, dst_dir_fd=fd)  # noqa: PTH104 - by descriptor
        os.fsync(fd)


@contextlib.contextmanager
def opened(directory: Path) -> Iterator[int]:
    """The parent may belong to the server's user, who must not lead root's hand elsewhere."""
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    try:
        found = os.fstat(fd)
        if found.st_uid != 0 or found.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
            raise QuiesceError(
                f"{directory}: others can write there, expected a directory of root's own"
            )
        yield fd
    finally:
        os.close(fd)


def unlink(name: str, directory: int) -> None:
    with contextlib.suppress(FileNotFoundError):
        os.unlink(name, dir_fd=directory)  # noqa: PTH108 - by descriptor
