# SPDX-License-Identifier: Apache-2.0
"""The manual as man(1) shows it."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from vmsnap import __version__

ROOT = Path(__file__).parents[2]
NAMES = sorted(source.stem for source in (ROOT / "man").iterdir())


@pytest.fixture(scope="module", params=NAMES)
def page(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A page as it is built for a package."""
    name = str(request.param)
    done = subprocess.run(
        [sys.executable, "-B", "-m", "vmsnap.cli.manual", f"man/{name}.rst"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode != 0:
        pytest.fail(f"is python3-docutils installed? {done.stderr}")
    built = tmp_path_factory.mktemp("man") / name
    built.write_text(done.stdout, encoding="utf-8")
    return built


def man(*arguments: str) -> subprocess.CompletedProcess[str]:
    for name, package in (("man", "man-db"), ("groff", "groff-base")):
        if shutil.which(name) is None:
            pytest.fail(f"{name} is not installed: apt-get install {package}")
    return subprocess.run(
        ["man", *arguments],
        env={"PATH": os.environ["PATH"], "MANWIDTH": "80", "LC_ALL": "C.UTF-8"},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=True,
    )


def test_there_are_the_pages_that_the_units_and_the_catalogue_name() -> None:
    assert NAMES == [
        "vmsnap-app.5",
        "vmsnap-provision.5",
        "vmsnap-session.service.8",
        "vmsnap.1",
        "vmsnap.conf.5",
    ]


def test_a_page_is_formatted_without_a_warning(page: Path) -> None:
    done = man("--warnings", "-E", "UTF-8", "-l", "-Tutf8", "-Z", str(page))
    assert done.stderr == ""


def test_a_page_says_what_it_is_and_no_line_is_wider_than_a_terminal(page: Path) -> None:
    lines = man("-l", str(page)).stdout.splitlines()
    assert len(lines) > 50
    assert lines[0].split()[0] == f"{page.stem.upper()}({page.suffix[1:]})"
    assert lines[-1].startswith(f"vmsnap {__version__}  ")
    assert [line for line in lines if len(line) > 80] == []


def test_a_page_has_a_name_that_apropos_finds(page: Path) -> None:
    if shutil.which("lexgrog") is None:
        pytest.fail("lexgrog is not installed: apt-get install man-db")
    done = subprocess.run(["lexgrog", str(page)], capture_output=True, text=True, check=True)
    assert f'"{page.stem} - ' in done.stdout
