# SPDX-License-Identifier: Apache-2.0
"""Whether a script can start. What can be asked of the kernel is in tests/fs/test_startable.py."""

from __future__ import annotations

import os
import struct
import sys
from pathlib import Path

import pytest

from vmsnap.config.startable import why_not_startable
from vmsnap.system.program import matches

TRUE = Path("/bin/true")


def write(directory: Path, data: bytes, name: str = "script") -> Path:
    path = directory / name
    path.write_bytes(data)
    path.chmod(0o700)
    return path


def why_not(path: Path) -> str:
    with path.open("rb") as file:
        return why_not_startable(file.fileno(), str(path))


@pytest.mark.parametrize("line", ["{0}/a", "/usr/bin/env {0}/a", "/usr/bin/env", "/usr/bin/env -i"])
def test_what_would_run_itself_without_end_is_found(tmp_path: Path, line: str) -> None:
    path = write(tmp_path, f"#!{line}\n".format(tmp_path).encode(), "a")
    assert why_not(path)


@pytest.mark.parametrize("text", [b"", b"\n \t\r\n", b"\0" * 100, b"\n\0\n", b"\0" * (1 << 21)])
def test_what_does_nothing_counts_for_nothing(tmp_path: Path, text: bytes) -> None:
    """/bin/sh would succeed at it."""
    assert why_not(write(tmp_path, text)).startswith("found an empty")


@pytest.mark.parametrize("end", ["exit 0\n", "#!/bin/bash\nexit 0\n"])
def test_a_byte_order_mark_hides_the_first_line(tmp_path: Path, end: str) -> None:
    assert "byte order mark" in why_not(write(tmp_path, end.encode("utf-8-sig")))


def elf(offset: int, form: str, value: int) -> bytes:
    data = bytearray(TRUE.read_bytes())
    struct.pack_into(form, data, offset, value)
    return bytes(data)


@pytest.mark.parametrize(
    ("data", "word"),
    [
        (elf(16, "<H", 1), "no program"),
        (elf(16, "<H", 4), "no program"),
        (elf(18, "<H", 20), "another machine"),
        (elf(5, "<B", 2 if sys.byteorder == "little" else 1), "another machine"),
        (elf(54, "<H", 1), "damaged"),
        (elf(56, "<H", 0), "damaged"),
        (elf(32, "<Q", 1 << 40), "damaged"),
        (TRUE.read_bytes()[:-8000], "cut off"),
    ],
)
def test_an_elf_that_the_kernel_does_not_load(tmp_path: Path, data: bytes, word: str) -> None:
    path = write(tmp_path, data)
    assert word in why_not(path)
    assert "its interpreter" in why_not(write(tmp_path, f"#!{path}\n".encode(), "above"))


@pytest.mark.parametrize("part", [b"-S PASSWORD=secret", b"bash secret", b"-S bash 'secret"])
def test_no_more_of_the_first_line_is_shown_than_a_program(tmp_path: Path, part: bytes) -> None:
    """In a document for provision it may be the whole script."""
    assert "secret" not in why_not(write(tmp_path, b"#!/usr/bin/env " + part + b"\n"))


def test_a_link_to_the_interpreter_may_be_anybodys(tmp_path: Path) -> None:
    link = tmp_path / "sh"
    link.symlink_to("/bin/sh")
    if os.geteuid() == 0:
        os.chown(link, 65534, 0, follow_symlinks=False)
    assert why_not(write(tmp_path, f"#!{link}\nexit 0\n".encode())) == ""


ENTRY = "enabled\ninterpreter /usr/bin/qemu\nflags: F\noffset {}\nmagic {}\n"


@pytest.mark.parametrize(
    ("entry", "head", "expected"),
    [
        (ENTRY.format(0, "7f45"), b"\x7fE", True),
        (ENTRY.format(0, "7f45"), b"\x7fF", False),
        (ENTRY.format(0, "7f45"), b"\x7f", False),
        (ENTRY.format(2, "45"), b"ABE", True),
        (ENTRY.format(0, "7f45") + "mask ff00\n", b"\x7fF", True),
        (ENTRY.format(0, "7f45").replace("enabled", "disabled"), b"\x7fE", False),
        ("enabled\ninterpreter /usr/bin/jexec\nflags: \nextension .jar\n", b"PK", True),
        ("enabled\ninterpreter /usr/bin/jexec\nflags: \nextension .py\n", b"PK", False),
    ],
)
def test_what_is_registered_with_binfmt_misc(entry: str, head: bytes, expected: bool) -> None:
    assert matches(entry, head, "/opt/tool.jar") is expected
