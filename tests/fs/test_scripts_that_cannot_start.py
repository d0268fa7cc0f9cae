# SPDX-License-Identifier: Apache-2.0
"""A script that cannot start: `check` says so today, with the reason, and not the session at night
with "No such file or directory"."""

from __future__ import annotations

import json
import os
import shutil
import struct
from collections.abc import Callable
from pathlib import Path

import pytest

from . import strange
from .lab import Lab

LIMIT = 20.0  # seconds
Maker = Callable[[Lab], Path]
TRUE = Path("/bin/true")


def script(lab: Lab, data: bytes, mode: int = 0o700) -> Path:
    path = lab.programs / "script"
    path.write_bytes(data)
    path.chmod(mode)
    return path


# --- what cannot start, and a word of the reason -------------------------------------------------


def with_windows_line_ends(lab: Lab) -> Path:
    return script(lab, b"#!/bin/sh\r\nexit 0\r\n")


def with_windows_line_ends_and_an_option(lab: Lab) -> Path:
    """The shell is found, and takes the carriage return for an option."""
    return script(lab, b"#!/bin/sh -e\r\nexit 0\r\n")


def with_windows_line_ends_below_env(lab: Lab) -> Path:
    return script(lab, b"#!/usr/bin/env sh\r\nexit 0\r\n")


def without_its_interpreter(lab: Lab) -> Path:
    return script(lab, b"#!/usr/bin/python2\nprint 'quiesced'\n")


def without_its_interpreters_directory(lab: Lab) -> Path:
    return script(lab, b"#!/opt/rh/python27/bin/python -u\nprint 'quiesced'\n")


def with_a_dangling_link_as_interpreter(lab: Lab) -> Path:
    (lab.programs / "python").symlink_to("/usr/bin/python2.6")
    return script(lab, f"#!{lab.programs}/python\n".encode())


def with_env_that_finds_nothing(lab: Lab) -> Path:
    return script(lab, b"#!/usr/bin/env nothing-of-that-name\n")


def with_env_s_that_finds_nothing(lab: Lab) -> Path:
    return script(lab, b"#!/usr/bin/env -S nothing-of-that-name -u\n")


def with_a_directory_as_interpreter(lab: Lab) -> Path:
    return script(lab, b"#!/usr/bin\nexit 0\n")


def with_an_interpreter_that_nobody_may_run(lab: Lab) -> Path:
    interpreter = lab.programs / "interpreter"
    shutil.copy("/bin/sh", interpreter)
    interpreter.chmod(0o600)
    return script(lab, f"#!{interpreter}\nexit 0\n".encode())


def with_an_interpreter_that_is_too_long(lab: Lab) -> Path:
    return script(lab, b"#!/" + b"x" * 300 + b"/sh\nexit 0\n")


def that_interprets_itself(lab: Lab) -> Path:
    return script(lab, f"#!{lab.programs}/script\n".encode())


def that_is_empty(lab: Lab) -> Path:
    return script(lab, b"")


def that_holds_only_white_space(lab: Lab) -> Path:
    return script(lab, b"\n  \n\t\n")


def that_is_full_of_nothing(lab: Lab) -> Path:
    """What a power failure leaves of a file."""
    return script(lab, b"\0" * 4096)


def that_is_encrypted(lab: Lab) -> Path:
    return script(lab, b"$ANSIBLE_VAULT;1.1;AES256\n61623\n\0\xff\xfe\x01" + bytes(range(256)))


def in_utf_16(lab: Lab) -> Path:
    return script(lab, "#!/bin/sh\nexit 0\n".encode("utf-16"))


def of_another_machine(lab: Lab) -> Path:
    """An ELF for arm64, or for amd64 where that is ours."""
    data = bytearray(TRUE.read_bytes())
    ours = struct.unpack_from("<H", data, 18)[0]
    struct.pack_into("<H", data, 18, 62 if ours == 183 else 183)
    return script(lab, bytes(data))


def without_its_loader(lab: Lab) -> Path:
    """Built for another libc: the kernel says that the program is not there."""
    data = TRUE.read_bytes()
    start = data.index(b"/lib", 64)
    end = data.index(b"\0", start)
    return script(lab, data[:start] + b"/lib/x".ljust(end - start, b"x") + data[end:])


def cut_off_in_the_middle(lab: Lab) -> Path:
    return script(lab, TRUE.read_bytes()[:100])


def interpreted_by_a_program_of_another_machine(lab: Lab) -> Path:
    interpreter = lab.programs / "interpreter"
    of_another_machine(lab).rename(interpreter)
    return script(lab, f"#!{interpreter}\nexit 0\n".encode())


def on_a_mount_that_runs_nothing(lab: Lab) -> Path:
    mount = strange.point(lab, "noexec")
    lab.mount("-t", "tmpfs", "-o", "noexec,mode=0700", "tmpfs", mount)
    return lab.write(mount / "script", "#!/bin/sh\nexit 0\n", 0o700)


def below_a_bind_mount_that_runs_nothing(lab: Lab) -> Path:
    """Not the filesystem is mounted so, but this mount of it."""
    lab.program("script", "exit 0")
    lab.mount("--bind", lab.programs, lab.programs)
    lab.mount("-o", "remount,bind,noexec", lab.programs)
    return lab.programs / "script"


def interpreted_by_one_on_a_mount_that_runs_nothing(lab: Lab) -> Path:
    mount = strange.point(lab, "noexec")
    lab.mount("-t", "tmpfs", "-o", "noexec,mode=0700", "tmpfs", mount)
    shutil.copy("/bin/sh", mount / "sh")
    return script(lab, f"#!{mount}/sh\nexit 0\n".encode())


CANNOT: list[tuple[Maker, str]] = [
    (with_windows_line_ends, "line end"),
    (with_windows_line_ends_and_an_option, "line end"),
    (with_windows_line_ends_below_env, "line end"),
    (without_its_interpreter, "/usr/bin/python2"),
    (without_its_interpreters_directory, "/opt/rh/python27/bin/python"),
    (with_a_dangling_link_as_interpreter, "programs/python"),
    (with_env_that_finds_nothing, "nothing-of-that-name"),
    (with_env_s_that_finds_nothing, "nothing-of-that-name"),
    (with_a_directory_as_interpreter, "directory"),
    (with_an_interpreter_that_nobody_may_run, "programs/interpreter"),
    (with_an_interpreter_that_is_too_long, "interpreter"),
    (that_interprets_itself, "interpreter"),
    (that_is_empty, "empty"),
    (that_holds_only_white_space, "empty"),
    (that_is_full_of_nothing, "NUL"),
    (that_is_encrypted, "text"),
    (in_utf_16, "UTF-16"),
    (of_another_machine, "machine"),
    (without_its_loader, "/lib/x"),
    (cut_off_in_the_middle, "ELF"),
    (interpreted_by_a_program_of_another_machine, "machine"),
    (on_a_mount_that_runs_nothing, "noexec"),
    (below_a_bind_mount_that_runs_nothing, "noexec"),
    (interpreted_by_one_on_a_mount_that_runs_nothing, "noexec"),
]


@pytest.mark.parametrize("phase", ["pre", "post"])
@pytest.mark.parametrize(("make", "word"), CANNOT)
def test_check_says_why(lab: Lab, make: Maker, word: str, phase: str) -> None:
    lab.filesystem()
    path = make(lab)
    lab.app(**{f"{phase}ScriptLocation": str(path)})
    only = (f"--only={mount}" for mount in lab.mounts)
    outcome = lab.begin("check", "--json", *only).finish(LIMIT)
    assert outcome.code == 1
    (problem,) = [p for p in outcome.result["problems"] if p["severity"] == "error"]
    assert problem["name"].startswith(phase.title()) or f"for{phase.title()}" in problem["name"]
    assert problem["path"] == str(path)
    assert word in problem["message"], problem["message"]


@pytest.mark.parametrize(("make", "word"), CANNOT)
def test_a_session_says_the_same_and_starts_none_of_the_apps_scripts(
    lab: Lab, make: Maker, word: str
) -> None:
    """As for a script that is not there: an app that cannot be resumed is not quiesced."""
    lab.filesystem()
    path = make(lab)
    lab.app(pre=lab.say("quiesced"), postScriptLocation=str(path))
    outcome = lab.start("exit 0").finish(LIMIT)
    assert outcome.verdict == ("success", "filesystem", 0)
    assert word in outcome.result["errors"][0]["message"]
    assert lab.events.heard == []


NO_PROGRAM = "names no program"  # which one is not told: it may be a secret in the wrong place
IN_A_DOCUMENT = [  # in which there is only text, and no empty one
    (with_windows_line_ends, "line ends of Windows"),
    (with_windows_line_ends_and_an_option, "line ends of Windows"),
    (without_its_interpreter, NO_PROGRAM),
    (with_env_that_finds_nothing, NO_PROGRAM),
    (with_a_directory_as_interpreter, NO_PROGRAM),
    (that_holds_only_white_space, "empty"),
]


@pytest.mark.parametrize(("make", "word"), IN_A_DOCUMENT)
def test_provision_refuses_it_and_says_why(lab: Lab, make: Maker, word: str) -> None:
    text = make(lab).read_bytes().decode()
    document = {"apps": {"db": {"scripts": {"pre": text, "post": "#!/bin/sh\nexit 0\n"}}}}
    path = lab.write(lab.directory / "document.json", json.dumps(document), 0o600)
    outcome = lab.begin("provision", "--file", path).finish(LIMIT)
    assert outcome.code == 1
    assert word in outcome.out.decode() + outcome.err
    assert not (lab.etc / "vmsnap/apps.d/db.json").exists()


def test_nobody_has_edited_what_init_has_written(lab: Lab) -> None:
    lab.filesystem()
    assert lab.begin("init", "db").finish(LIMIT).code == 0
    outcome = lab.begin("check", "--json", f"--only={lab.mounts[0]}").finish(LIMIT)
    messages = [p["message"] for p in outcome.result["problems"]]
    assert outcome.code == 1
    assert len([m for m in messages if "init" in m and "scripts/db" in m]) == 2, messages


@pytest.mark.parametrize("name", ["pre", "post"])
def test_a_skeleton_whose_last_lines_were_replaced_is_in_order(lab: Lab, name: str) -> None:
    lab.filesystem()
    lab.begin("init", "db").finish(LIMIT)
    for path in (lab.etc / "vmsnap/scripts/db").iterdir():
        lines = path.read_text().splitlines()
        path.write_text("\n".join([*lines[:-2], "exit 0", ""]))
    outcome = lab.begin("check", f"--only={lab.mounts[0]}").finish(LIMIT)
    assert outcome.code == 0, outcome


# --- what can, and must not be refused -----------------------------------------------------------


def by_env(lab: Lab) -> Path:
    return script(lab, b"#!/usr/bin/env python3\nimport sys\n")


def by_env_with_options(lab: Lab) -> Path:
    return script(lab, b"#!/usr/bin/env -S LC_ALL=C python3 -u\nimport sys\n")


def by_env_with_a_variable_alone(lab: Lab) -> Path:
    return script(lab, b"#!/usr/bin/env -S -i PATH=/usr/bin:/bin sh -e\nexit 0\n")


def with_white_space_behind_the_mark(lab: Lab) -> Path:
    return script(lab, b"#! \t/bin/sh  -e \t\nexit 0\n")


def without_a_line_end(lab: Lab) -> Path:
    return script(lab, b"#!/bin/true")


def without_an_interpreter(lab: Lab) -> Path:
    return script(lab, b"# quiesce it\nexit 0\n")


def an_elf(lab: Lab) -> Path:
    return script(lab, TRUE.read_bytes())


def by_a_link_to_an_interpreter(lab: Lab) -> Path:
    (lab.programs / "sh").symlink_to("/bin/sh")
    return script(lab, f"#!{lab.programs}/sh\nexit 0\n".encode())


def by_another_script(lab: Lab) -> Path:
    interpreter = lab.program("interpreter", "exit 0")
    return script(lab, f"#!{interpreter}\nanything\n".encode())


def with_windows_line_ends_in_a_text_that_the_interpreter_takes(lab: Lab) -> Path:
    """Only the first line must not have one."""
    return script(lab, b"#!/usr/bin/python3\nimport sys\r\nsys.exit(0)\r\n")


def with_binary_data_behind_the_script(lab: Lab) -> Path:
    """A self-extracting archive."""
    return script(lab, b"#!/bin/sh\nexit 0\n\0\x01\x02\xff" * 3)


def in_latin_1(lab: Lab) -> Path:
    return script(lab, b"#!/bin/sh\n# f\xfcr Oracle\nexit 0\n")


CAN: list[Maker] = [
    by_env,
    by_env_with_options,
    by_env_with_a_variable_alone,
    with_white_space_behind_the_mark,
    without_a_line_end,
    without_an_interpreter,
    an_elf,
    by_a_link_to_an_interpreter,
    by_another_script,
    with_windows_line_ends_in_a_text_that_the_interpreter_takes,
    with_binary_data_behind_the_script,
    in_latin_1,
]


@pytest.mark.parametrize("make", CAN)
def test_what_the_kernel_starts_is_in_order(lab: Lab, make: Maker) -> None:
    lab.filesystem()
    lab.app(preScriptLocation=str(make(lab)))
    checked = lab.begin("check", "--json", f"--only={lab.mounts[0]}").finish(LIMIT)
    assert checked.result["problems"] == []
    assert lab.start("exit 0").finish(LIMIT).verdict == ("success", "application", 0)


def test_one_that_reads_from_its_working_directory_is_judged_as_it_will_be_run(lab: Lab) -> None:
    """A relative interpreter is looked up from `/`, where scripts are started."""
    lab.filesystem()
    lab.app(preScriptLocation=str(script(lab, b"#!bin/sh\nexit 0\n")))
    assert Path.cwd() != Path("/")
    checked = lab.begin("check", f"--only={lab.mounts[0]}").finish(LIMIT)
    ran = lab.start("exit 0").finish(LIMIT)
    assert (checked.code == 0) == (ran.result["consistency"] == "application")


def test_the_path_of_a_session_finds_the_program_of_env_and_not_that_of_the_caller(
    lab: Lab,
) -> None:
    lab.filesystem()
    lab.program("only-here", "exit 0")
    lab.app(preScriptLocation=str(script(lab, b"#!/usr/bin/env only-here\n")))
    path = {"PATH": f"{lab.programs}:{os.environ['PATH']}"}
    checked = lab.begin("check", f"--only={lab.mounts[0]}", env=path).finish(LIMIT)
    assert checked.code == 1
    assert "only-here" in checked.out.decode()
