# SPDX-License-Identifier: Apache-2.0
"""google-guest-agent on Google Compute Engine. It freezes nothing; vmsnap does, between its `pre`
and `post` scripts (google_guest_agent/snapshot_listener)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from vmsnap.errors import Problem
from vmsnap.platforms.additions import text_of
from vmsnap.platforms.agent import (
    Act,
    Addition,
    Agent,
    Connection,
    Detection,
    error,
    ini,
    program,
)
from vmsnap.system.files import File

TRUE = ("true", "1", "t", "yes", "y", "on")  # go-ini
SECONDS = 60  # timeout_in_seconds, of each of the two scripts; AGENT.patience is some less


def connection(root: Path) -> Connection:
    """Of a section that is there twice, both count, and of a key the later one."""
    why = "google-guest-agent calls this {} a snapshot with guest flush; it freezes nothing."
    return Connection(
        programs=("usr/bin/google_guest_agent", "usr/bin/google_guest_agent_manager"),
        units=("google-guest-agent.service", "google-guest-agent-manager.service"),
        package="google-guest-agent",
        host="gcloud compute disks snapshot DISK --guest-flush",
        files=tuple(
            File(
                root / f"etc/google/snapshots/{event}.sh",
                program("google", f'{event} "$@"', why.format(when)),
                0o700,
            )
            for event, when in (("pre", "before"), ("post", "after"))
        ),
        additions=(
            Addition(root / "etc/default/instance_configs.cfg", "[Snapshots]\nenabled = true\n"),
        ),
        restart=True,
    )


def checks(connected: Connection, _: Sequence[str], __: Path) -> Iterator[Problem]:
    """Which of the three files wins depends on the agent's version."""
    for suffix in ("", ".distro", ".template"):
        path = Path(f"{connected.additions[0].path}{suffix}")
        settings = ini(text_of(path))
        enabled = settings.get("snapshots", "enabled", fallback="true") or ""
        seconds = settings.get("snapshots", "timeout_in_seconds", fallback="60") or ""
        if enabled.lower() not in TRUE:
            yield error(path, f"{path}: found [Snapshots] enabled = {enabled}, expected true")
        if not seconds.isdecimal() or int(seconds) < SECONDS:
            yield error(
                path,
                f"{path}: found [Snapshots] timeout_in_seconds = {seconds}, expected at least "
                f"{SECONDS}: vmsnap would take too long",
            )


AGENT = Agent(
    name="google",
    events={"pre": Act.BEGIN, "post": Act.END},
    freezes=False,
    patience=55,
    connection=connection,
    detection=Detection(vendors=("Google",), clouds=("gce",), hypervisors=("google",)),
    checks=checks,
)
