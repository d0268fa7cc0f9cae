# SPDX-License-Identifier: Apache-2.0
"""Building again as somebody else would: another user, directory, umask, language and time zone."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from release import rpm

from . import made

NOBODY = "65534"
STRANGE = {
    "PATH": "/nowhere:/usr/bin:/bin",
    "LANG": "tr_TR.UTF-8",
    "LC_ALL": "C",
    "TZ": "Asia/Kathmandu",
    "MAKEFLAGS": "--environment-overrides",
    "DESTDIR": "/nowhere",
    "PYTHONDIR": "/nowhere",
    "DEB_BUILD_OPTIONS": "noopt nostrip",
    "SOURCE_DATE_EPOCH": "1",
    "RPM_BUILD_ROOT": "/nowhere",
}
RPMS = [target for target in rpm.TARGETS if target.name in {"el9", "fc44"}]
BUILD = """\
import os, sys
from pathlib import Path
from release import deb, rpm
os.umask(0o077)
archive, into = Path(sys.argv[1]), Path(sys.argv[2])
if sys.argv[3] == "deb":
    deb.build(archive, into)
else:
    for target in rpm.TARGETS:
        if target.name in sys.argv[4:]:
            rpm.build(archive, target, into)
"""


@contextmanager
def built(kind: str) -> Iterator[Path]:
    """The directory of what nobody(5) builds of our archive. `kind` is "deb" or "rpm"."""
    with tempfile.TemporaryDirectory(prefix="nobodys-place-") as name:
        home = Path(name)
        archive = shutil.copy(made.archive(), home)
        (home / "tmp").mkdir()
        (home / ".rpmmacros").write_text("%python3_version 2.7\n%dist .mine\n", encoding="utf-8")
        for path in (home, *home.rglob("*")):
            os.chown(path, int(NOBODY), int(NOBODY))
        subprocess.run(
            ["setpriv", f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups"]
            + [sys.executable, "-B", "-c", BUILD, archive, str(home / "built"), kind]
            + [target.name for target in RPMS],
            cwd=made.ROOT,
            env={**STRANGE, "HOME": name, "TMPDIR": str(home / "tmp")},
            check=True,
        )
        assert list((home / "tmp").iterdir()) == [], "the build left something"
        yield home / "built"
