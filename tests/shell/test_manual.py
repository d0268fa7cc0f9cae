# SPDX-License-Identifier: Apache-2.0
"""The manual as man(1) shows it."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

PAGES = sorted((Path(__file__).parents[2] / "man").glob("*.[1-8]"))


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
    names = [page.name for page in PAGES]
    assert names == [
        "vmsnap-app.5",
        "vmsnap-provision.5",
        "vmsnap-session.service.8",
        "vmsnap.1",
        "vmsnap.conf.5",
    ]


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_a_page_is_formatted_without_a_warning(page: Path) -> None:
    done = man("--warnings", "-E", "UTF-8", "-l", "-Tutf8", "-Z", str(page))
    assert done.stderr == ""


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_no_line_of_a_page_is_wider_than_a_terminal(page: Path) -> None:
    lines = man("-l", str(page)).stdout.splitlines()
    assert len(lines) > 50
    assert [line for line in lines if len(line) > 80] == []


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_a_page_has_a_name_that_apropos_finds(page: Path) -> None:
    if shutil.which("lexgrog") is None:
        pytest.fail("lexgrog is not installed: apt-get install man-db")
    done = subprocess.run(["lexgrog", str(page)], capture_output=True, text=True, check=True)
    assert f'"{page.stem} - ' in done.stdout
