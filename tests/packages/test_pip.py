# SPDX-License-Identifier: Apache-2.0
"""`pip install .` of the released sources gives the program, and nothing of the system's."""

from __future__ import annotations

import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from . import contents, made
from .made import NEW, ROOT


@pytest.fixture(scope="module")
def environment() -> Iterator[Path]:
    """A fresh virtual environment with vmsnap in it; what vmsnap needs is the system's."""
    with tempfile.TemporaryDirectory(prefix="vmsnap-pip-") as name:
        Path(name).chmod(0o755)  # everybody's to run
        yield installed(Path(name))


def installed(work: Path) -> Path:
    tree = contents.unpack(made.archive(), work)
    contents.call("/usr/bin/python3", "-m", "venv", "--system-site-packages", work / "venv")
    done = subprocess.run(
        [str(work / "venv/bin/pip"), "install", "--no-index", "--no-deps", "--no-build-isolation"]
        + ["--disable-pip-version-check", "."],
        cwd=tree,
        env={"PATH": "/usr/bin:/bin", "HOME": str(work)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return work / "venv"


def run(environment: Path, *arguments: str, user: int = 0) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [str(environment / "bin/vmsnap"), *arguments],
        cwd="/",
        env={"PATH": "/usr/bin:/bin"},
        user=user,
        capture_output=True,
        text=True,
        check=False,
    )


def test_the_program_runs_and_is_this_version(environment: Path) -> None:
    done = run(environment, "--version")
    assert (done.returncode, done.stdout, done.stderr) == (0, f"vmsnap {NEW}\n", "")


def test_the_program_is_that_of_the_environment_and_not_of_the_machine(environment: Path) -> None:
    ask = "import vmsnap; print(vmsnap.__file__)"
    path = contents.call(environment / "bin/python", "-Ic", ask).decode().strip()
    assert Path(path).is_relative_to(environment)


def test_the_help_names_the_commands(environment: Path) -> None:
    done = run(environment, "--help")
    assert (done.returncode, done.stderr) == (0, "")
    for command in ("run", "check", "freeze", "thaw", "status"):
        assert f" {command} " in done.stdout


def test_whoever_is_not_root_is_told_so(environment: Path) -> None:
    done = run(environment, "check", user=65534)
    assert (done.returncode, done.stdout) == (77, "")
    assert done.stderr == "vmsnap check: found uid 65534, expected root; use sudo\n"


def test_the_schema_of_the_apps_comes_with_the_modules(environment: Path) -> None:
    (schema,) = environment.rglob("vmsnap/config/app.schema.json")
    assert schema.read_bytes() == (ROOT / "vmsnap/config/app.schema.json").read_bytes()


def test_no_units_configuration_or_manuals_are_installed(environment: Path) -> None:
    names = {path.name for path in environment.rglob("*") if "vmsnap" in path.name}
    names -= {f"vmsnap-{NEW}.dist-info"}
    assert names == {"vmsnap"}


def test_the_program_writes_no_bytecode(environment: Path) -> None:
    """pip drops the options of its first line, and a frozen filesystem must not be written to."""
    for package in environment.rglob("vmsnap/freeze"):
        for cache in package.parent.rglob("__pycache__"):
            shutil.rmtree(cache)
    assert run(environment, "--help").returncode == 0
    assert [path for path in environment.rglob("__pycache__") if "vmsnap" in path.parts] == []
