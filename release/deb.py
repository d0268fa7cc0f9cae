# SPDX-License-Identifier: Apache-2.0
"""The Debian package, built from the source archive in a directory that is removed afterwards."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

from release.command import call


def build(archive: Path, directory: Path) -> Path:
    """Build the packages, source and binary, into a directory; return the path of the .deb."""
    directory.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="vmsnap-deb-") as work:
        call("tar", "-xzf", archive, "-C", work)
        (tree,) = Path(work).iterdir()
        call("dpkg-buildpackage", "--no-sign", cwd=tree)
        built = [path for path in Path(work).iterdir() if path.is_file()]
        for path in built:
            shutil.copy(path, directory / path.name)
    (package,) = [path for path in built if path.suffix == ".deb"]
    return directory / package.name
