# SPDX-License-Identifier: Apache-2.0
"""The samples in the README are what the program prints: the same lines, but for times, names of
devices and identifiers."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from .lab import Lab

README = (Path(__file__).parents[2] / "README.md").read_text(encoding="utf-8")
UUID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")


def samples(command: str) -> list[list[str]]:
    """What the README shows below each prompt with this command, a line each."""
    blocks = re.findall(r"^```\n(.*?)^```", README, re.M | re.S)
    prompts = [part for block in blocks for part in re.split(r"^# ", block, flags=re.M)]
    return [part.splitlines()[1:] for part in prompts if part.startswith(command)]


def shape(lines: list[str]) -> list[str]:
    """The lines without what differs from run to run, and without bars and columns' widths."""
    found = []
    for line in lines:
        text = UUID.sub("UUID", line)
        text = re.sub(r"\d{4}-\d\d-\d\dT[0-9:.+]+", "DATE", text)
        text = re.sub(r"[0-9.]+ (ms|s)\b", "TIME", text)
        text = re.sub(r"/dev/(loop)?\w+", "DEVICE", text)
        text = re.sub(r"^(host: ).*", r"\1MACHINE", text)
        found.append(" ".join(re.sub(r"[▒█]+", " ", text).split()))
    return found


@pytest.fixture
def readme(lab: Lab) -> Lab:
    """The machine of the README: an app, and two filesystems below /srv."""
    lab.filesystem("ext4", "db")
    lab.filesystem("xfs", "wal")
    init = lab.vmsnap("init", "ledger")
    assert shape(printed(lab, init.out.decode())) == shape(samples("vmsnap init ledger")[0])
    for phase in ("pre", "post"):
        lab.write(lab.etc / f"vmsnap/scripts/ledger/{phase}", "#!/bin/sh\nexit 0\n", 0o700)
    return lab


def printed(lab: Lab, text: str) -> list[str]:
    """As on that machine."""
    return text.replace(str(lab.etc), "/etc").replace(str(lab.directory), "/srv").splitlines()


def only(lab: Lab) -> list[str]:
    return [f"--only={mount}" for mount in lab.mounts]


def test_check_prints_what_the_readme_shows(readme: Lab) -> None:
    good, bad = samples("vmsnap check --only")
    outcome = readme.vmsnap("check", *only(readme))
    assert shape(printed(readme, outcome.out.decode())) == shape(good)
    (readme.etc / "vmsnap/apps.d/ledger.json").chmod(0o644)
    outcome = readme.vmsnap("check", *only(readme))
    assert shape(printed(readme, outcome.out.decode())) == shape(bad)


def test_plan_prints_what_the_readme_shows(readme: Lab) -> None:
    """Of this machine's filesystems and those that are on no disk, only that they are there."""
    (sample,) = samples("vmsnap plan --only")
    outcome = readme.vmsnap("plan", *only(readme))
    lines = shape(printed(readme, outcome.out.decode()))
    assert lines[:3] == shape(sample)[:3]
    assert "not selected" in lines[3]
    assert "not selected" in sample[3]
    (note,) = [line for line in lines if line.startswith("skipped as well, being on no disk:")]
    assert shape(sample)[5].startswith(note[: len("skipped as well, being on no disk:")])


def test_run_prints_what_the_readme_shows(readme: Lab) -> None:
    (sample,) = samples("vmsnap run --only")
    command = readme.program("take-snapshot", 'echo "copied $VMSNAP_SESSION"')
    outcome = readme.run([command], json=False)
    told = outcome.err[outcome.err.index("Session", outcome.err.index(" ended: ")) :]
    lines = printed(readme, outcome.out.decode() + told)
    assert shape(lines) == shape(sample)
