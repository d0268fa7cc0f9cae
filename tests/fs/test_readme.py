# SPDX-License-Identifier: Apache-2.0
"""The samples in the README are what the program prints. Those of a held session are in
tests/system."""

from __future__ import annotations

import pytest

from ..readme import samples, shape
from .lab import Lab


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
