# SPDX-License-Identifier: Apache-2.0
"""What is said of a script before it is started is what the kernel, env(1) and /bin/sh then do."""

from __future__ import annotations

import errno
import subprocess
from pathlib import Path

import pytest

from vmsnap.config.startable import PATH, why_not_startable

TRUE = Path("/bin/true")
SHEBANG = 255  # bytes of a first line that the kernel reads


def write(directory: Path, data: bytes, name: str = "script") -> Path:
    path = directory / name
    path.write_bytes(data)
    path.chmod(0o700)
    return path


def why_not(path: Path) -> str:
    with path.open("rb") as file:
        return why_not_startable(file.fileno(), str(path))


def ends_well(path: Path) -> bool:
    """As the runner starts it."""
    env = {"PATH": PATH}
    for argv in ([str(path)], ["/bin/sh", str(path)]):
        try:
            done = subprocess.run(argv, cwd="/", env=env, capture_output=True, check=False)
            return done.returncode == 0
        except OSError as e:
            if e.errno != errno.ENOEXEC:  # else a shell runs it
                return False
    return False


def padded(interpreter: str, length: int) -> bytes:
    """A first line of this length, with the interpreter behind blanks."""
    return b"#!" + interpreter.encode().rjust(length - 2)


@pytest.mark.parametrize(
    "text",
    [
        b"#!/bin/sh\nexit 0\n",
        b"#!/bin/sh\nexit 0\r\n"[:-2],
        b"#! /bin/sh\t-e  \nexit 0",
        b"#!\nexit 0\n",
        b"#!  \t\nexit 0\n",
        b"#!bin/sh\n",
        b"#!/bin/../bin/sh\n",
        b"#!//bin/./sh\n",
        b"#!/bin/sh\0 what follows is not read\n",
        b"#!/bin/sh/\nexit 0\n",
        b"#!/bin\nexit 0\n",
        b"#!/\nexit 0\n",
        b"#!/dev/null\nexit 0\n",
        b"#!/etc/passwd\nexit 0\n",
        b"#!/etc/passwd/sh\nexit 0\n",
        b"#!/bin/sh -\r\nexit 0\n",
        b"#!/bin/s\\h\nexit 0\n",
        b"#!/bin/\xff\nexit 0\n",
        padded("/bin/sh", SHEBANG) + b"\nexit 0\n",
        padded("/bin/sh", SHEBANG - 1) + b" \t\nexit 0\n",
        b"#!/usr/bin/env sh\nexit 0\n",
        b"#!/usr/bin/env   sh  \nexit 0\n",
        b"#!/usr/bin/env sh -e\nexit 0\n",
        b"#!/usr/bin/env -S sh -e\nexit 0\n",
        b"#!/usr/bin/env -Ssh -e\nexit 0\n",
        b"#!/usr/bin/env --split-string=sh -e\nexit 0\n",
        b"#!/usr/bin/env -vS sh -e\nexit 0\n",
        b"#!/usr/bin/env -iS sh -e\nexit 0\n",
        b"#!/usr/bin/env -S -u HOME -- A=b sh\nexit 0\n",
        b"#!/usr/bin/env -S 'sh' \"-e\"\nexit 0\n",
        b"#!/usr/bin/env -S 'sh\nexit 0\n",
        b"#!/usr/bin/env -S PATH=/nowhere sh\nexit 0\n",
        b"#!/usr/bin/env -S PATH=/nowhere /bin/sh\nexit 0\n",
        b"#!/usr/bin/env -S -u HOME missing\nexit 0\n",
        b"#!/usr/bin/env /bin/sh\nexit 0\n",
        b"#!/usr/bin/env /bin/missing\nexit 0\n",
        b"exit 0\n",
        b"\nexit 0\n",
        b"\xff\xfee\0x\0i\0t\0\n\0",
        b"\0\xff\xfe",
        b"true\r\nfalse\r\n",
        b"\x7fELF",
        TRUE.read_bytes(),
        TRUE.read_bytes()[:64],
        TRUE.read_bytes()[:2000],
    ],
    ids=lambda text: repr(text[:60]),
)
def test_what_is_said_is_what_happens(tmp_path: Path, text: bytes) -> None:
    path = write(tmp_path, text)
    assert (why_not(path) == "") == ends_well(path), why_not(path)


@pytest.mark.parametrize(
    "text",
    [
        b"#!/" + b"x" * 300 + b"\nexit 0\n",
        padded("/bin/sh", SHEBANG + 1) + b"\nexit 0\n",
        padded("/bin/sh", SHEBANG + 5) + b"\nexit 0\n",
        b":\0\n",
        b"exit 0\r\n",
    ],
    ids=["long name", "one byte too many", "more", "NUL", "CR"],
)
def test_what_a_shell_takes_and_nobody_can_mean_is_refused(tmp_path: Path, text: bytes) -> None:
    """Of another interpreter than its own, or word by word as it was not written."""
    path = write(tmp_path, text)
    assert why_not(path)
    assert ends_well(path)


@pytest.mark.parametrize("count", range(8))
def test_scripts_interpret_each_other_as_deep_as_the_kernel_allows(
    tmp_path: Path, count: int
) -> None:
    path = TRUE
    for number in range(count):
        path = write(tmp_path, f"#!{path}\n".encode(), f"{number}")
    assert (why_not(path) == "") == ends_well(path)


def test_env_begins_anew(tmp_path: Path) -> None:
    path = TRUE
    for number in range(8):
        path = write(tmp_path, f"#!/usr/bin/env {path}\n".encode(), f"{number}")
    assert (why_not(path), ends_well(path)) == ("", True)
