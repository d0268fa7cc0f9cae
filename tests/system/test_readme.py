# SPDX-License-Identifier: Apache-2.0
"""The samples of a held session in the README are what vmsnap and systemctl print."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from ..readme import samples, shape
from .apps import UNIT, Scene, scene_of
from .container import Container


@pytest.fixture
def scene(container: Container) -> Iterator[Scene]:
    with scene_of(container) as made:
        yield made


def test_a_held_session_is_as_the_readme_shows_it(scene: Scene) -> None:
    """A session in two halves; and, with one that fails after it, the history."""
    scene.container.add_filesystem("/srv/db")
    scene.container.add_filesystem("/srv/wal", "xfs")
    scene.app("ledger", pre=":", post=":")
    printed = scene.vmsnap("freeze", "--hold", "30").out.decode().splitlines()
    assert shape(printed) == shape(samples("vmsnap freeze --hold 30")[0])
    status = scene.container.systemctl("status", UNIT).stdout.splitlines()
    (sample,) = samples("systemctl status vmsnap-session")
    for line in shape(sample):
        assert line in shape(status)
    printed = scene.vmsnap("thaw").out.decode().splitlines()
    assert shape(printed) == shape(samples("vmsnap thaw")[0])
    scene.app("ledger", pre="exit 1", post=":")
    scene.vmsnap("freeze", "--require=application")
    scene.container.run("journalctl", "--sync", check=True)
    printed = scene.vmsnap("history").out.decode().splitlines()
    (sample,) = samples("vmsnap history")
    assert shape(printed)[:3] == shape(sample)
