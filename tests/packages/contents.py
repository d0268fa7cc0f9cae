# SPDX-License-Identifier: Apache-2.0
"""What is in an archive, a .deb or an .rpm: paths from the root on, modes, owners, contents."""

from __future__ import annotations

import functools
import gzip
import io
import stat
import subprocess
import tarfile
from dataclasses import dataclass, replace
from pathlib import Path

# For cloud-init's Python, and for the quiescers: not beside the other modules, and not compiled.
QUIESCE = "/usr/lib/vmsnap/quiesce"
APART = {"/usr/share/vmsnap/cloud-init/cc_vmsnap.py", f"{QUIESCE}/holding.py"}
# vmsnap runs scripts of this mode only.
QUIESCERS = dict.fromkeys(
    (f"{QUIESCE}/{name}" for name in ("mariadb", "postgresql", "redis")), 0o700
)


@dataclass(frozen=True)
class Entry:
    kind: str  # "file", "directory" or "link"
    mode: int
    owner: str
    data: bytes = b""  # or where a link points to
    flags: str = ""  # of RPM: c(onfig), n(oreplace), d(ocumentation), g(host), l(icense)


Entries = dict[str, Entry]


def call(*argv: str | Path, stdin: bytes | None = None) -> bytes:
    return subprocess.run(argv, input=stdin, capture_output=True, check=True).stdout


def unpack(archive: Path, directory: Path) -> Path:
    """Unpack a source archive; return the path of its one directory."""
    directory.mkdir(parents=True, exist_ok=True)
    call("tar", "-xzf", archive, "-C", directory)
    (tree,) = [path for path in directory.iterdir() if path.name.startswith("vmsnap-")]
    return tree


@functools.cache
def of_deb(package: Path) -> Entries:
    return of_tar(call("dpkg-deb", "--fsys-tarfile", package))


@functools.cache
def of_rpm(package: Path) -> Entries:
    """With what it owns but does not carry (%ghost)."""
    carried = of_tar(call("rpm2archive", "-n", "-", stdin=package.read_bytes()))
    form = r"[%{FILENAMES}\t%{FILEMODES}\t%{FILEUSERNAME}:%{FILEGROUPNAME}\t%{FILEFLAGS:fflags}\n]"
    found = {}
    for line in query(package, form).splitlines():
        name, mode, owner, flags = line.split("\t")
        kind = "directory" if stat.S_ISDIR(int(mode)) else "file"
        entry = carried.get(name, Entry(kind, 0, ""))
        assert entry.kind == kind
        found[name] = replace(entry, mode=stat.S_IMODE(int(mode)), owner=owner, flags=flags)
    assert set(carried) <= set(found)
    return found


def query(package: Path, form: str) -> str:
    return call("rpm", "-qp", "--nosignature", "--qf", form, package).decode()


def of_tar(data: bytes) -> Entries:
    found = {}
    with tarfile.open(fileobj=io.BytesIO(data)) as archive:
        for member in archive:
            name = "/" + member.name.removeprefix(".").strip("/")
            owner = f"{member.uname or member.uid}:{member.gname or member.gid}"
            file = archive.extractfile(member) if member.isfile() else None
            kinds = {tarfile.DIRTYPE: "directory", tarfile.SYMTYPE: "link"}
            data = file.read() if file else member.linkname.encode()
            kind = kinds.get(member.type, "file")
            found[name] = Entry(kind, stat.S_IMODE(member.mode), owner, data)
    return found


def of_tree(root: Path) -> Entries:
    """What is below a directory. The owners do not matter there."""
    found = {}
    for path in sorted(root.rglob("*")):
        mode = path.lstat().st_mode
        if stat.S_ISDIR(mode):
            entry = Entry("directory", stat.S_IMODE(mode), "")
        elif stat.S_ISLNK(mode):
            entry = Entry("link", stat.S_IMODE(mode), "", bytes(path.readlink()))
        else:
            entry = Entry("file", stat.S_IMODE(mode), "", path.read_bytes())
        found[f"/{path.relative_to(root)}"] = entry
    return found


def uncompressed(entries: Entries) -> Entries:
    """With plain manuals and documents: some distributions compress them and some do not."""
    return {
        name.removesuffix(".gz"): replace(entry, data=gzip.decompress(entry.data))
        if name.endswith(".gz")
        else entry
        for name, entry in entries.items()
    }
