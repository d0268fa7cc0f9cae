# SPDX-License-Identifier: Apache-2.0
"""The kernel asks a loop device's backing file for its attributes: no plan waits for its server."""

from __future__ import annotations

import json

import pytest

from . import strange
from .lab import Lab

LIMIT = 10.0  # seconds


@pytest.mark.parametrize("command", ["plan", "check"])
def test_the_plan_is_made_and_has_it_first(lab: Lab, command: str) -> None:
    below = lab.filesystem(name="below", mib=160)
    mount = strange.point(lab, "mounted")
    lab.mount("-o", "loop", strange.image(lab, "a", directory=below.mount), mount)
    served, server = strange.hanging(lab, "served", backing=strange.image(lab, "b"))
    dead = lab.directory / "dead-loop"
    dead.mkdir()
    lab.mount("-o", "loop", served / "file", dead)
    lab.undo.callback(server.go_on)  # else it cannot be unmounted
    server.hang()
    only = [f"--only={path}" for path in (below.mount, mount, dead)]
    outcome = lab.begin(command, *only, "--json").finish(LIMIT)
    if command == "plan":
        found = {entry["mount"]: entry for entry in json.loads(outcome.out)}
        steps = [found[str(path)]["step"] for path in (dead, mount, below.mount)]
        assert steps == [1, 2, 3]
        assert found[str(dead)]["reason"].startswith("comes first")
