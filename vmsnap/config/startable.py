# SPDX-License-Identifier: Apache-2.0
"""Whether a script can start, by the rules of the kernel (fs/binfmt_script.c), of env(1), and of
/bin/sh, which runs what has no #!. `check`, `provision` and every session ask here.

Nothing is executed. Whether others than root can change the script is not judged here; of its
interpreter it is, which is only a doubt.
"""

from __future__ import annotations

import os
import re
import shlex
from pathlib import PurePath
from typing import NamedTuple

from vmsnap.system.program import (
    ELF,
    HEAD_BYTES,
    NotExecutableError,
    NotJudgedError,
    check_elf,
    check_mount,
    from_root,
    is_registered,
    open_program,
)
from vmsnap.system.trusted import (
    InsecurePathError,
    MayWaitError,
    UnreadableFileError,
    open_trusted,
)

PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"  # of every script
PATH_OF_NONE = "/bin:/usr/bin"  # execvp(3), after env -i
SHELL = "/bin/sh"
UNWRITTEN = "has not been written yet"  # the script, as `vmsnap init` leaves it
DEEPEST = 5  # fs/exec.c: a script, four scripts that interpret each other, and a program
LOOKED_AT = 1 << 16  # bytes, for what is empty
BLANK = b" \t"  # fs/binfmt_script.c
MARKS = ((b"\xff\xfe", "UTF-16"), (b"\xfe\xff", "UTF-16"), (b"\xef\xbb\xbf", "a byte order mark"))
CR = (
    r"found the line ends of Windows, expected those of Unix; "
    r"`sed -i 's/\r$//'` mends it"
)


class Line(NamedTuple):
    """The first line of a script."""

    interpreter: str
    argument: str


def why_not_startable(fd: int, path: str) -> str:
    """What keeps a script from being run as it is meant, and what to do; "" if nothing does."""
    try:
        judge_script(fd, path)
    except NotExecutableError as e:
        return str(e)
    except NotJudgedError:
        pass
    return ""


def judge_script(fd: int, path: str) -> None:
    """Raises NotExecutableError and NotJudgedError, as all that follow."""
    text = os.pread(fd, LOOKED_AT, 0)
    if not text:
        raise NotExecutableError("found an empty file, expected a script")
    if not text.strip(b"\0 \t\r\n\v\f"):
        nothing = "NUL bytes, as a crash leaves them" if b"\0" in text else "white space"
        raise NotExecutableError(f"found an empty script, nothing but {nothing}; write it anew")
    judge(fd, path, 0, ())
    if is_skeleton(text):
        raise NotExecutableError(
            "found the script as `vmsnap init` has written it, which only fails; expected one that "
            "somebody has edited"
        )


def is_skeleton(text: bytes) -> bool:
    """Whether what `init` wrote is still the first thing that is done."""
    lines = (line for line in text.splitlines() if line.strip() and not line.startswith(b"#"))
    return re.match(rb'echo "the .* ' + UNWRITTEN.encode(), next(lines, b"")) is not None


def judge(fd: int, path: str, depth: int, scripts: tuple[tuple[int, int], ...]) -> None:
    """Whether the kernel can load a file. It has got here through so many interpreters since the
    last execve(2), and through these `scripts` (device and inode) in all."""
    status = os.fstat(fd)
    if depth > DEEPEST or (status.st_dev, status.st_ino) in scripts:
        raise NotExecutableError(
            "found interpreters that are scripts, too many or in a circle; expected a program"
        )
    check_mount(fd)
    head = os.pread(fd, HEAD_BYTES, 0)
    try:
        if head.startswith(ELF):
            loader = check_elf(fd, head)
            if loader:
                judge_loader(loader)
            return
        line = first_line(head)
        if line:
            judge_line(line, depth, (*scripts, (status.st_dev, status.st_ino)))
        elif depth:
            raise NotExecutableError("found a text without #!, expected a program")
        else:
            judge_text(head)
    except NotExecutableError:
        if not is_registered(head, path):
            raise


def first_line(head: bytes) -> Line | None:
    """What the kernel reads in it; None if it would not look for an interpreter."""
    if not head.startswith(b"#!"):
        return None
    line = re.split(rb"[\n\0]", head[2:], maxsplit=1)[0]
    words = line.strip(BLANK)
    if b"\r" in words:
        raise NotExecutableError(CR)
    name, argument = (*re.split(rb"[ \t]+", words, maxsplit=1), b"")[:2]
    cut_off = len(head) == HEAD_BYTES and len(line) == HEAD_BYTES - 2
    if cut_off and len(line.lstrip(BLANK)) == len(name):
        raise NotExecutableError(
            f"found an interpreter whose name the kernel cuts off after {HEAD_BYTES - 3} bytes, "
            "expected a shorter one"
        )
    return Line(os.fsdecode(name), os.fsdecode(argument)) if name else None


def judge_line(line: Line, depth: int, scripts: tuple[tuple[int, int], ...]) -> None:
    what = f"its interpreter {line.interpreter}"
    try:
        judge_program(line.interpreter, depth + 1, scripts, what)
    except FileNotFoundError:
        raise NotExecutableError(
            f"found no file {line.interpreter}, expected its interpreter there; install it or "
            "correct the first line"
        ) from None
    if PurePath(line.interpreter).name != "env":
        return
    name, directories = program_of_env(line.argument)
    if not name:
        raise NotExecutableError(
            f"found {line.interpreter} without a program, expected one: it would run the script "
            "again without end"
        )
    for directory in directories.split(":") if "/" not in name else [""]:
        try:
            judge_program(
                f"{directory}/{name}" if "/" not in name else name, 0, scripts, f"{name!r} of env"
            )
            return
        except FileNotFoundError:
            continue
    word, blank, _ = name.partition(" ")
    if blank:
        raise NotExecutableError(
            f"found {word!r} with arguments, which env takes for one name; expected -S before it"
        )
    where = "" if "/" in name else f" in {directories}"
    raise NotExecutableError(
        f"found no program {name!r}{where}, expected the one that its first line has env run"
    )


def judge_program(path: str, depth: int, scripts: tuple[tuple[int, int], ...], what: str) -> None:
    """Raises FileNotFoundError besides."""
    try:
        with open(open_program(path), "rb") as file:
            judge(file.fileno(), path, depth, scripts)
    except NotExecutableError as e:
        raise NotExecutableError(f"{what}: {e}") from None


def judge_loader(path: str) -> None:
    try:
        with open(open_program(path), "rb") as file:
            check_mount(file.fileno())
            check_elf(file.fileno(), os.pread(file.fileno(), HEAD_BYTES, 0))
    except FileNotFoundError:
        raise NotExecutableError(
            f"found no file {path}, expected the loader that this ELF program needs: it is made "
            "for another system"
        ) from None
    except NotExecutableError as e:
        raise NotExecutableError(f"the loader {path} that it needs: {e}") from None


def judge_text(head: bytes) -> None:
    """What /bin/sh is to run, since it has no interpreter of its own."""
    for mark, word in MARKS:
        if head.startswith(mark):
            raise NotExecutableError(f"found {word} at its beginning, expected plain UTF-8 text")
    if b"\0" in head:
        raise NotExecutableError("found binary data, expected text or a program (ELF)")
    if b"\r\n" in head:
        raise NotExecutableError(CR)
    try:
        judge_program(SHELL, 0, (), SHELL)
    except FileNotFoundError:
        raise NotExecutableError(f"found no #! and no {SHELL}, expected one of them") from None


def program_of_env(argument: str) -> tuple[str, str]:
    """What env(1) runs when it is an interpreter with this argument, "" for the script itself; and
    the directories in which it looks. Raises NotJudgedError for what is not known here."""
    split = re.fullmatch(r"(?:-([iv]*)S|--split-string=)(.*)", argument)
    words = [argument] if argument else []
    directories = PATH
    if split:
        if re.search(r"[\\$#]", split[2]):
            raise NotJudgedError
        try:
            words = [*(["-i"] if "i" in (split[1] or "") else []), *shlex.split(split[2])]
        except ValueError:
            raise NotExecutableError("found a quotation mark that is not closed") from None
    while words:
        word = words.pop(0)
        if word in ("-", "-i", "--ignore-environment"):
            directories = PATH_OF_NONE
        elif word in ("-u", "--unset"):
            words = words[1:]
        elif word in ("-v", "--debug", "--") or re.match(r"-u.|--unset=", word):
            continue
        elif word.startswith("-"):
            raise NotJudgedError
        elif "=" in word:
            name, _, value = word.partition("=")
            directories = value if name == "PATH" else directories
        else:
            return word, directories
    return "", directories


def interpreter_doubt(fd: int) -> str:
    """Why the program that a script's first line names is not to be relied on: others than root
    can exchange it. Of env(1), which looks along PATH, only env is looked at."""
    try:
        line = first_line(os.pread(fd, HEAD_BYTES, 0))
        if line:
            os.close(open_trusted(from_root(line.interpreter), 0o022))
    except MayWaitError:
        raise
    except InsecurePathError as e:
        return f"others can change its interpreter: {e}"
    except (NotExecutableError, UnreadableFileError, OSError):
        pass  # it cannot be run, which is said elsewhere, or is no file that root can read
    return ""
