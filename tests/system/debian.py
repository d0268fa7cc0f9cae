# SPDX-License-Identifier: Apache-2.0
"""What an administrator of Debian does: add the repository, install vmsnap, upgrade, remove it."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tests.packages import made

from .apps import until
from .container import ENVIRONMENT, Container

CHECK, PATH, TIMER = "vmsnap-check.service", "vmsnap-check.path", "vmsnap-backup.timer"
CONFIGURATION = "/etc/vmsnap/vmsnap.conf"
SERVED = "srv/vmsnap"  # made.URL
PATIENCE = 120.0  # seconds for apt on a busy machine
QUIET = {"DEBIAN_FRONTEND": "noninteractive"}
# docs/install.md
KEY = (
    "install -D -m 644 /srv/vmsnap/vmsnap.asc /etc/apt/keyrings/vmsnap.asc",
    "cp /srv/vmsnap/vmsnap.sources /etc/apt/sources.list.d/",
)
KEEP = "--option=Dpkg::Options::=--force-confold"  # nobody is there to be asked
# What `dpkg` and `apt` write down, and what programs of Debian keep in their caches.
TRACES = (
    *("/var/lib/dpkg", "/var/lib/apt", "/var/cache/apt", "/var/cache/debconf", "/var/log"),
    *("/var/cache/man", "/var/cache/ldconfig", "/var/cache/private", "/tmp", "/var/tmp"),
)


def prepare(root: Path) -> None:
    """Put our repositories where made.URL says; the image has Debian's."""
    shutil.copytree(made.repositories(), root / SERVED, dirs_exist_ok=True)


def prepare_with(version: str, root: Path) -> str:
    """Install before the first boot, as the builders of images do. Return what apt printed."""
    prepare(root)
    policy = root / "usr/sbin/policy-rc.d"
    policy.write_text("#!/bin/sh\nexit 101\n")
    policy.chmod(0o755)
    said = ""
    for line in (*KEY, "apt-get -q update", f"apt-get -qy install vmsnap={version}"):
        done = subprocess.run(
            ["chroot", str(root), "sh", "-c", line],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
            env={**ENVIRONMENT, **QUIET},
        )
        said = done.stdout + done.stderr
        assert done.returncode == 0, f"{line}: {said}"
    policy.unlink()
    return said


def add_repository(container: Container) -> None:
    for line in KEY:
        container.run("sh", "-c", line, check=True)
    apt(container, "update")


def apt(container: Container, *words: str) -> str:
    """Run apt-get as a script does; return what it printed."""
    argv = ("apt-get", "-qy", *words)
    done = container.run(*argv, check=True, timeout=PATIENCE, env=QUIET)
    return done.stdout + done.stderr


def install(container: Container, version: str, *options: str) -> str:
    return apt(container, "install", "--allow-downgrades", *options, f"vmsnap={version}")


def put_back(container: Container, wanted: str) -> None:
    """Begin anew with this version, whatever a test has left."""
    if version(container) != wanted:
        package = f"/{SERVED}/apt/vmsnap_{wanted}_all.deb"
        options = ("--force-confnew", "--force-confmiss")
        container.run("dpkg", *options, "--install", package, check=True, timeout=PATIENCE)
    container.reset()


@contextmanager
def apt_meanwhile(container: Container, *words: str) -> Iterator[subprocess.Popen[str]]:
    """apt-get that runs while something else is done, and is to succeed at last."""
    streams: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
    process = container.popen("apt-get", "-qy", *words, env=QUIET, **streams)
    yield process
    out, _ = process.communicate(timeout=PATIENCE)
    container.processes.remove(process)
    assert process.returncode == 0, out


def waits_for_the_disk(container: Container) -> bool:
    """Whether an apt-get or dpkg is asleep in the kernel, unkillable (proc(5), status)."""
    pids = [*container.pids("apt-get"), *container.pids("dpkg")]
    states = [Path(f"/proc/{pid}/status").read_text().split("\nState:\t")[1] for pid in pids]
    return any(state.startswith("D") for state in states)


def version(container: Container) -> str:
    """The version that is installed; empty if none is."""
    form = "${db:Status-Status} ${Version}"
    shown = container.run("dpkg-query", "--show", f"--showformat={form}", "vmsnap").stdout
    return shown.removeprefix("installed ") if shown.startswith("installed ") else ""


def state(container: Container, unit: str) -> tuple[str, str]:
    """Whether a unit is enabled, and whether it is active."""
    shown = container.show(unit, "UnitFileState", "ActiveState")
    return shown["UnitFileState"], shown["ActiveState"]


def assert_well(container: Container, installed: str) -> None:
    """This version is there, checked, and in order."""
    assert version(container) == installed
    assert container.run("vmsnap", "--version", check=True).stdout == f"vmsnap {installed}\n"
    until(lambda: state(container, CHECK)[1] == "active")  # it may be checking a file of dpkg's
    assert state(container, CHECK) == ("enabled", "active")
    assert state(container, PATH) == ("enabled", "active")
    assert container.systemctl("is-system-running").stdout == "running\n"
    assert container.run("apt-get", "check", check=True)


def assert_no_unit(container: Container) -> None:
    """systemd knows no unit of vmsnap, but at most the names of those that were enabled."""
    assert container.systemctl("list-unit-files", "--no-legend", "vmsnap*").stdout == ""
    argv = ("list-units", "--all", "--plain", "--no-legend", "vmsnap*")
    for line in container.systemctl(*argv, check=True).stdout.splitlines():
        assert line.split()[1:4] == ["not-found", "inactive", "dead"], line
    assert container.systemctl("is-system-running").stdout == "running\n"


def files(container: Container) -> set[str]:
    """All there is on the root filesystem: kind, mode, owner, path, target of a link. For what is
    in /etc also what it says."""
    form = "%y %m %u:%g %p %l\\n"
    pruned = ["-path", "/dev", *(w for trace in TRACES for w in ("-o", "-path", f"{trace}/*"))]
    argv = ["find", "/", "-xdev", "(", *pruned, ")", "-prune", "-o", "-printf", form]
    found = container.run(*argv, check=True).stdout.splitlines()
    sums = container.run("find", "/etc", "-type", "f", "-exec", "sha256sum", "{}", "+", check=True)
    return {line.rstrip() for line in found} | {*sums.stdout.splitlines()}
