# SPDX-License-Identifier: Apache-2.0
"""Root for an ordinary user, within this process, as fakeroot(1) does it: the user's files are
shown as root's, new owners and device nodes are remembered instead of made, and no mode keeps
anybody from reading. Root itself gets the real thing.
"""

from __future__ import annotations

import contextlib
import os
import stat
import tempfile
from pathlib import Path
from typing import Any

import pytest


class Ownership:
    """Who owns what, as the code under test sees it."""

    def __init__(self) -> None:
        self.user, self.groups = os.getuid(), {os.getgid(), *os.getgroups()}
        self.given: dict[tuple[int, int], tuple[int, int]] = {}  # by device and inode
        self.nodes: dict[tuple[int, int], tuple[int, int]] = {}  # likewise: type and number
        self.stat, self.open = os.stat, os.open

    def shown(self, status: os.stat_result) -> os.stat_result:
        owner = 0 if status.st_uid == self.user else status.st_uid
        group = 0 if status.st_gid in self.groups else status.st_gid
        fields = list(status)
        identity = (status.st_dev, status.st_ino)
        kind, number = self.nodes.get(identity, (stat.S_IFMT(status.st_mode), status.st_rdev))
        fields[stat.ST_MODE] = stat.S_IMODE(status.st_mode) | kind
        fields[stat.ST_UID], fields[stat.ST_GID] = self.given.get(identity, (owner, group))
        more = {name: getattr(status, name) for name in dir(status) if name.startswith("st_")}
        return os.stat_result(fields, {**more, "st_rdev": number})

    def of_path(self, path: int | str | Path, **more: Any) -> os.stat_result:
        return self.shown(self.stat(path, **more))

    def of_link(self, path: int | str | Path, **more: Any) -> os.stat_result:
        return self.shown(self.stat(path, follow_symlinks=False, **more))

    def change(self, path: int | str | Path, owner: int, group: int, **more: Any) -> None:
        status = self.stat(path, **more)
        self.given[status.st_dev, status.st_ino] = (owner, group)

    def make_node(self, path: str | Path, mode: int, device: int = 0) -> None:
        os.close(self.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, stat.S_IMODE(mode)))
        status = self.stat(path)
        self.nodes[status.st_dev, status.st_ino] = (stat.S_IFMT(mode), device)

    def open_all(self, path: Any, flags: int, mode: int = 0o777, **more: Any) -> int:
        try:
            return self.open(path, flags, mode, **more)
        except PermissionError:
            status = self.stat(path, **more)
            if status.st_uid != self.user:
                raise
            pinned = self.open(path, os.O_PATH, **more)
            with contextlib.ExitStack() as undo:
                undo.callback(os.close, pinned)
                itself = f"/proc/self/fd/{pinned}"
                os.chmod(itself, 0o700)  # noqa: PTH101 - by descriptor
                undo.callback(os.chmod, itself, stat.S_IMODE(status.st_mode))
                return self.open(path, flags, mode, **more)

    def pretend(self, monkeypatch: pytest.MonkeyPatch) -> None:
        for name, replacement in (
            ("stat", self.of_path),
            ("lstat", self.of_link),
            ("fstat", self.of_path),
            ("chown", self.change),
            ("fchown", self.change),
            ("mknod", self.make_node),
            ("open", self.open_all),
            ("geteuid", lambda: 0),
        ):
            monkeypatch.setattr(os, name, replacement)


def only_ours(path: Path) -> bool:
    """Whether nobody but root and the user of the test run can change what is below."""
    return all(
        step.stat().st_uid in (0, os.getuid()) and not step.stat().st_mode & 0o022
        for step in (path, *path.parents)
    )


def trusted_directory() -> Path:
    """Make a directory that the code under test trusts. /tmp is not: everybody can write to it."""
    candidates = ["/run", os.environ.get("XDG_RUNTIME_DIR", ""), str(Path.home())]
    for parent in map(Path, filter(None, candidates)):
        if parent.is_dir() and os.access(parent, os.W_OK) and only_ours(parent):
            return Path(tempfile.mkdtemp(prefix="vmsnap-test-", dir=parent))
    pytest.fail(
        f"found none of {', '.join(filter(None, candidates))} that only you and root can write to; "
        "the unit tests need such a directory",
        pytrace=False,
    )
