# SPDX-License-Identifier: Apache-2.0
"""The machine is shut down while a session holds."""

from __future__ import annotations

import json
import os

from tests.fs.processes import wait_for_end

from .container import Container


def test_a_shutdown_thaws_and_is_no_success() -> None:
    """It stops the unit, as `vmsnap thaw` does, but says nothing of a snapshot."""
    container = Container()
    try:
        with container.guarded(60.0):
            held = container.run("vmsnap", "freeze", "--json", "--hold", "300", check=True)
            (root,) = container.thawers.values()  # what is open outlasts the container
            container.systemctl("poweroff", "--no-block", check=True)
            assert wait_for_end(container.leader, 30.0)
        last = os.open("var/lib/vmsnap/last-result.json", os.O_RDONLY, dir_fd=root)
        with open(last, encoding="utf-8") as file:
            result = json.load(file)
    finally:
        container.close()
    assert result["session"] == json.loads(held.stdout)["session"]
    assert (result["outcome"], result["consistency"]) == ("failed", "none")
    assert [error["name"] for error in result["errors"]] == ["SnapshotFailed"]
    assert "shut down" in result["errors"][0]["message"]
