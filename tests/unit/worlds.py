# SPDX-License-Identifier: Apache-2.0
"""Worlds for the tests to look at: an /etc with apps in it, and a machine's /proc and /sys.

Both are real files in a directory of the test's own; nothing is mocked.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from vmsnap.config import checks
from vmsnap.errors import Kind
from vmsnap.freeze.plan import Plan, make_plan
from vmsnap.provision import quiescers

NOBODY = 65534
AZURE_APP = "azure/VMSnapshotScriptPluginConfig.json"
PLUGIN_HOST = "azure/VMSnapshotPluginHost.conf"
QUIESCE = Path(__file__).parents[2] / "quiesce"


def make_directory(path: Path) -> None:
    """As `mkdir -p`, with every new directory 0755 whatever the umask."""
    if not path.exists():
        make_directory(path.parent)
        path.mkdir()
        path.chmod(0o755)


def installed_quiescers(parent: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Install the quiescers in a directory below `parent`, for all that looks for them."""
    directory = parent / "quiesce"
    make_directory(directory)
    for source in QUIESCE.iterdir():
        if source.is_file():
            (directory / source.name).write_bytes(source.read_bytes())
            (directory / source.name).chmod(0o644 if source.suffix else 0o700)
    monkeypatch.setattr(quiescers, "DIRECTORY", directory)
    return directory


class Etc:
    """A configuration directory, with scripts beside it."""

    def __init__(self, root: Path) -> None:
        self.root = root
        make_directory(root)

    def write(self, relative: str, content: str | bytes, mode: int = 0o600) -> Path:
        path = self.root / relative
        make_directory(path.parent)
        path.write_bytes(content.encode() if isinstance(content, str) else content)
        path.chmod(mode)
        return path

    def script(self, name: str = "script", mode: int = 0o700) -> Path:
        return self.write(f"scripts/{name}", "#!/bin/sh\n", mode)

    def app(self, relative: str = "vmsnap/apps.d/web.json", **keys: object) -> Path:
        """An app whose pre-script is in order, unless `keys` say otherwise."""
        document = {"pluginName": "ScriptRunner", "preScriptLocation": str(self.script("default"))}
        return self.write(relative, json.dumps({**document, **keys}))

    def plugin_host(self, *configs: Path, **keys: object) -> Path:
        lines = {"timeoutInSeconds": "1800", "numberOfPlugins": str(len(configs))}
        for index, config in enumerate(configs):
            lines[f"pluginName{index}"] = "ScriptRunner"
            lines[f"pluginPath{index}"] = "/usr/lib/azure/ScriptRunner"
            lines[f"pluginConfigPath{index}"] = str(config)
        lines.update({key: str(value) for key, value in keys.items()})
        text = "".join(f"{key}={value}\n" for key, value in lines.items())
        return self.write(PLUGIN_HOST, f"[pre_post]\n{text}")

    def inspect(self) -> checks.Inspection:
        return checks.inspect(self.root)


def kinds(found: checks.Inspection) -> list[Kind]:
    return [problem.kind for problem in found.errors]


def warnings(found: checks.Inspection) -> list[str]:
    return [p.message for p in found.problems if p not in found.errors]


def escape(name: str) -> str:
    """As the kernel writes it: mangle() in fs/proc_namespace.c."""
    return "".join(f"\\{ord(c):03o}" if c in " \t\n\\#" else c for c in name)


def line(
    point: str,
    device: str,
    fstype: str = "ext4",
    source: str = "/dev/none",
    options: str = "rw",
    root: str = "/",
    number: int = 100,
    optional: str = "",
    flags: str = "rw,relatime",
) -> str:
    """One line of a mount table, as proc(5) describes it."""
    left = f"{number} 1 {device} {escape(root)} {escape(point)} {flags} {optional}"
    return f"{left}- {fstype} {escape(source)} {options}\n"


def owner(namespace: Path) -> int | None:
    """As mountinfo.owner, of a process that Machine has made; none for a real one."""
    try:
        return int((namespace.parent / "owner").read_text())
    except FileNotFoundError:
        return None


class Machine:
    """A /proc with mount tables and a /sys with block devices. Majors from 900 on do not exist."""

    def __init__(self, directory: Path) -> None:
        self.proc, self.sys = directory / "proc", directory / "sys"
        self.udev = directory / "udev"
        (self.sys / "dev/block").mkdir(parents=True)
        (self.sys / "block").mkdir()
        self.process("self", "mnt:[1]")
        self.mounts = 100

    def process(self, pid: str, namespace: str, root: str = "/", owner: int = 1) -> None:
        """`owner` is the user namespace that owns the mount namespace; 1 is ours."""
        (self.proc / pid / "ns").mkdir(parents=True)
        (self.proc / pid / "ns/owner").write_text(f"{owner}")
        (self.proc / pid / "root").symlink_to(root)
        (self.proc / pid / "ns/mnt").symlink_to(namespace)
        (self.proc / pid / "mountinfo").write_text("")

    def mount(
        self,
        point: str,
        device: str,
        fstype: str = "ext4",
        source: str = "/dev/none",
        options: str = "rw",
        root: str = "/",
        pid: str = "self",
        flags: str = "rw,relatime",
    ) -> None:
        """`options` are the superblock's, `flags` those of this mount."""
        self.mounts += 1
        with open(self.proc / pid / "mountinfo", "ab") as file:
            text = line(point, device, fstype, source, options, root, self.mounts, "", flags)
            file.write(text.encode("utf-8", "surrogateescape"))

    def block(self, device: str, name: str, below: Path | None = None) -> Path:
        """A block device in sysfs; a partition if it lies in the directory of its disk."""
        path = (below or self.sys / "devices") / name
        path.mkdir(parents=True)
        (path / "dev").write_text(f"{device}\n")
        if below:
            (path / "partition").write_text("1\n")
        (self.sys / "dev/block" / device).symlink_to(path)
        return path

    def loop(self, device: str, name: str, file: str) -> Path:
        path = self.block(device, name)
        (path / "loop").mkdir()
        (path / "loop/backing_file").write_text(f"{file}\n")
        return path

    def stacked(self, device: str, name: str, *slaves: Path) -> Path:
        """What device-mapper, md and bcache look like."""
        path = self.block(device, name)
        (path / "slaves").mkdir()
        for slave in slaves:
            (path / "slaves" / slave.name).symlink_to(slave)
        return path

    def disk(self, name: str, sectors: int) -> Path:
        path = self.sys / "block" / name
        path.mkdir()
        (path / "size").write_text(f"{sectors}\n")
        return path

    def label(self, device: Path, number: str, label: str) -> None:
        """As udev has found it on a disk or partition, "" for none."""
        (device / "dev").write_text(f"{number}\n")
        self.udev.mkdir(exist_ok=True)
        properties = f"E:ID_FS_LABEL={label}\nE:ID_FS_USAGE=filesystem\n" if label else ""
        (self.udev / f"b{number}").write_text(f"S:disk/by-path/x\nI:1234\n{properties}G:systemd\n")

    def plan(self, only: tuple[str, ...] = (), exclude: tuple[str, ...] = ()) -> Plan:
        return make_plan(only, exclude, self.proc, self.sys)


def shape(plan: Plan) -> dict[str, tuple[str, int | None]]:
    """What is done with each mount point, and in which step."""
    return {entry.mount: (entry.action.value, entry.step) for entry in plan.entries}
