# SPDX-License-Identifier: Apache-2.0
"""Running the tools that build and sign, the system's own, whatever else is on the caller's path.

Their output is shown when they fail.
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Mapping
from pathlib import Path

# For gpg-agent, which may ask for a passphrase, and for git, which asks whose the checkout is.
KEPT = ("HOME", "GNUPGHOME", "TMPDIR", "GPG_TTY", "TERM", "DISPLAY", "WAYLAND_DISPLAY", "SUDO_UID")
ENVIRONMENT = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "LANG": "C.UTF-8", "TZ": "UTC"}


class ToolError(Exception):
    """A tool did not do its work; what it said is the message."""


def call(
    *argv: str | Path,
    cwd: Path | None = None,
    env: Mapping[str, str] | None = None,
) -> bytes:
    """Run a tool to its end, with `env` added to a small environment; return what it printed.

    Raises ToolError.
    """
    kept = {name: os.environ[name] for name in KEPT if name in os.environ}
    environment = {**kept, **ENVIRONMENT, **(env or {})}
    try:
        done = subprocess.run(
            argv,
            cwd=cwd,
            env=environment,
            umask=0o022,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            check=False,
        )
    except FileNotFoundError as e:
        raise ToolError(f"not installed: {e.filename}; `make setup` installs it") from None
    if done.returncode:
        said = (done.stdout + done.stderr).decode("utf-8", "replace")
        raise ToolError(f"{' '.join(map(str, argv))}: exit code {done.returncode}\n{said}")
    return done.stdout
