# SPDX-License-Identifier: Apache-2.0
"""vmsnap, called as an administrator calls it, but with the demo's own directories and mounts."""

from __future__ import annotations

import json
import shlex
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from demo import story, survivors

APP = "ledger"
CHECKOUT = Path(__file__).resolve().parent.parent
VMSNAP = Path(sys.executable).with_name("vmsnap")
HOLD_S = 30
# The application's patience must outlast the hold, the freeze before it and the scripts around it.
PATIENCE_S = 60
SESSION_S = 75.0
ENDING_S = 20.0

PRE = """\
#!/bin/sh -eu
# The ledger ends its transaction, hands over what it holds in memory, and stands still.
# If nobody comes back within {patience} seconds, it goes on by itself.
cd {checkout}
answer=$({python} -B -m demo.control {socket} quiesce {patience})
echo "$answer" | tee {said}
"""
POST = """\
#!/bin/sh -eu
# Fails if the ledger had already gone on: then the snapshot is not what it claims.
cd {checkout}
{python} -B -m demo.control {socket} resume
"""


class DemoError(Exception):
    """The demo cannot go on, or a proof did not hold."""


@dataclass(frozen=True)
class Tool:
    home: Path
    run: Path  # on a tmpfs
    only: tuple[Path, ...]

    @property
    def etc(self) -> Path:
        return self.home / "etc"

    @property
    def state(self) -> Path:
        return self.home / "state"

    def init(self) -> None:
        self._pass_through("init", APP, "--etc", str(self.etc))

    def write_scripts(self, socket: Path, said: Path) -> tuple[Path, Path]:
        """Over the skeletons of `init`, whose owner and mode stay as they are."""
        scripts = self.etc / "vmsnap/scripts" / APP
        words = {
            "checkout": CHECKOUT,
            "python": sys.executable,
            "socket": socket,
            "said": said,
            "patience": PATIENCE_S,
        }
        quoted = {name: shlex.quote(str(word)) for name, word in words.items()}
        pre, post = scripts / "pre", scripts / "post"
        pre.write_text(PRE.format(**quoted))
        post.write_text(POST.format(**quoted))
        return pre, post

    def check(self) -> None:
        self._pass_through("check", *self._directories, *self._selection)

    def plan(self) -> None:
        self._pass_through("plan", *self._directories, *self._selection)

    def snapshot(self, command: tuple[str, ...]) -> None:
        options = ("--require", "application", "--hold", str(HOLD_S))
        arguments = (*self._directories, *self._selection, *options, "--", *command)
        self._pass_through("run", *arguments)

    def result(self) -> dict[str, Any]:
        """The result of the session just ended."""
        command = [str(VMSNAP), "status", *self._directories, "--json"]
        done = subprocess.run(command, stdout=subprocess.PIPE, check=False)
        try:
            last = json.loads(done.stdout)["last"]
        except (ValueError, KeyError) as error:
            raise DemoError(f"vmsnap status --json gave no last result: {error!r}") from error
        if not isinstance(last, dict):
            raise DemoError(f"vmsnap status --json gave as last result: {last!r}")
        return last

    @property
    def _directories(self) -> tuple[str, ...]:
        return ("--etc", str(self.etc), "--run", str(self.run), "--state", str(self.state))

    @property
    def _selection(self) -> tuple[str, ...]:
        return tuple(word for mount in self.only for word in ("--only", str(mount)))

    def _pass_through(self, *arguments: str) -> None:
        """vmsnap speaks for itself; DemoError unless it says success."""
        story.typed(("vmsnap", *arguments), {f"{self.home}/": "$D/", f"{CHECKOUT}/": ""})
        command = (str(VMSNAP), *arguments)
        with survivors.outlived(ENDING_S):
            process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stderr=sys.stdout)
            status = ended(process)
        if status != 0:
            how = f"was killed by signal {-status}" if status < 0 else f"exited with {status}"
            raise DemoError(f"vmsnap {arguments[0]} {how}")


def ended(process: subprocess.Popen[bytes]) -> int:
    """Its exit status. On any way out it is asked to end and waited for, since it has to thaw."""
    try:
        return process.wait(SESSION_S)
    except subprocess.TimeoutExpired as error:
        raise DemoError(f"vmsnap did not end within {SESSION_S:.0f} s") from error
    finally:
        if process.poll() is None:
            process.terminate()
            end(process)


def end(process: subprocess.Popen[bytes]) -> None:
    try:
        process.wait(ENDING_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
