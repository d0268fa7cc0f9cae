# SPDX-License-Identifier: Apache-2.0
"""What an administrator does with a package manager, and what can be asked about the outcome.

test_package_manager_*.py say what each of them must keep. What differs between them is in debian.py
(apt) and distribution.py (dnf).
"""

from __future__ import annotations

import json
import subprocess
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from tests.fs.processes import is_stuck
from tests.packages import made

from .apps import DIRECTORY, Running, Scene, until
from .container import ENVIRONMENT, Container, status
from .image import Recipe

CHECK, PATH, TIMER = "vmsnap-check.service", "vmsnap-check.path", "vmsnap-backup.timer"
BACKUP = "vmsnap-backup.service"
CONFIGURATION = "/etc/vmsnap/vmsnap.conf"
EDIT = "textfile = /run/vmsnap-test/vmsnap.prom\n"  # in its last section
DOCUMENTS = "/usr/share/doc/vmsnap"
MODULES = "/usr/lib/python3/dist-packages"
SERVED = "srv/vmsnap"  # made.URL
DATA = "/srv/data"
PATIENCE = 120.0  # seconds for a package manager on a busy machine
CALM = 60.0  # seconds until the rescue, where one is at work meanwhile
COMPLAINTS = ("scriptlet", "failed", "error", "cannot", "traceback", "ignoring", "not been booted")


class PackageManager(ABC):
    """What differs between package managers. A step is the word that they have in common: install,
    upgrade, downgrade, reinstall, remove, autoremove; or purge, which removes all that it can."""

    name: str
    systems: tuple[Recipe, ...]  # on which it installs
    system: Recipe  # on which all else is tried
    program: tuple[str, ...]
    env: Mapping[str, str] = {}
    repository: tuple[str, ...]  # docs/install.md: what a shell does to add it
    from_ours: frozenset[str] = frozenset()  # what vmsnap needs and the distribution does not have
    completions: str  # the directory of zsh's
    # Options to leave an edited configuration alone, as nobody is there to be asked.
    keep: tuple[str, ...] = ()
    beside: str  # where the new default is put then
    kept_told: str  # what is printed then
    saved: str  # where an edited configuration is after a removal
    # Whether a removal also removes what sessions left, and the default configuration.
    removal_purges: bool
    # What it writes down itself, and what other programs keep in their caches.
    traces: tuple[str, ...]

    def __str__(self) -> str:
        return self.name

    # --- what an administrator does ---

    @abstractmethod
    def prepare(self, root: Path) -> None:
        """Before the first boot, put our repositories where made.URL says."""

    @abstractmethod
    def prepare_needed(self, root: Path) -> None:
        """The same, and all that comes with vmsnap and does not go with it is installed."""

    @abstractmethod
    def words(self, step: str, version: str = "") -> tuple[str, ...]:
        """The arguments for a step, with the newest version unless one is named."""

    @abstractmethod
    def put_back(self, container: Container, wanted: str) -> None:
        """Have this version installed, in whatever way is fast."""

    @abstractmethod
    def erase(self, container: Container) -> None:
        """Have no version installed."""

    def argv(self, step: str, version: str = "") -> tuple[str, ...]:
        return (*self.program, *self.words(step, version))

    def add_repository(self, container: Container) -> None:
        for line in self.repository:
            container.run("sh", "-c", line, check=True, timeout=PATIENCE)

    def run(
        self, container: Container, step: str, version: str = "", options: tuple[str, ...] = ()
    ) -> str:
        """Run it as a script does; return what it printed. Raises AssertionError if it fails, or if
        anything complains."""
        argv = (*self.argv(step, version), *options)
        done = container.run(*argv, timeout=PATIENCE, env=self.env)
        said = done.stdout + done.stderr
        assert done.returncode == 0, said
        assert_no_complaint(said)
        return said

    @contextmanager
    def waiting(self, container: Container, step: str) -> Iterator[None]:
        """The same while `/` is frozen, for the thaw of which it waits from the beginning."""
        process = container.popen(
            *self.argv(step), env=self.env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
        )
        running = Running(process)
        until(lambda: any(is_stuck(pid) for pid in running.below))
        yield
        out, _ = process.communicate(timeout=PATIENCE)
        container.processes.remove(process)
        assert process.returncode == 0, out

    def prepare_with(self, root: Path, *steps: tuple[str, str]) -> dict[str, str]:
        """Take steps before the first boot, as the builders of images do, each with a version.
        Return what was printed, by the step."""
        self.prepare(root)
        for line in self.repository:
            inside(root, "sh", "-c", line)
        return {
            step: inside(root, *self.argv(step, version), env=self.env) for step, version in steps
        }

    # --- what came of it ---

    @abstractmethod
    def version(self, container: Container) -> str:
        """The version of vmsnap that is installed; empty if none is."""

    @abstractmethod
    def verify(self, container: Container) -> subprocess.CompletedProcess[str]:
        """Compare vmsnap, and what it needs of ours, with what was packed."""

    @abstractmethod
    def documents(self, container: Container) -> list[str]:
        """The files of the documentation."""

    @abstractmethod
    def origins(self, container: Container) -> dict[str, set[str]]:
        """The repositories that what vmsnap needs came from: distribution, vmsnap."""

    @abstractmethod
    def check(self, container: Container) -> None:
        """Raise AssertionError if it finds that something that is installed lacks another thing."""

    def assert_well(self, container: Container, installed: str) -> None:
        """This version is there, checked, and in order."""
        assert self.version(container) == installed
        assert container.run("vmsnap", "--version", check=True).stdout == f"vmsnap {installed}\n"
        until(lambda: state(container, CHECK)[1] == "active")  # it may be checking a file of dpkg's
        assert state(container, CHECK) == ("enabled", "active")
        assert state(container, PATH) == ("enabled", "active")
        assert container.systemctl("is-system-running").stdout == "running\n"
        assert stale_bytecode(container) == []
        self.check(container)

    def assert_no_unit(self, container: Container, purged: bool = False) -> None:
        """systemd knows no unit of vmsnap; at most the names of those that were enabled, until
        they are purged."""
        assert container.systemctl("list-unit-files", "--no-legend", "vmsnap*").stdout == ""
        argv = ("list-units", "--all", "--plain", "--no-legend", "vmsnap*")
        listed = container.systemctl(*argv, check=True).stdout.splitlines()
        for line in listed:
            assert line.split()[1:4] == ["not-found", "inactive", "dead"], line
        assert not (listed and (purged or self.removal_purges)), listed
        assert container.systemctl("is-system-running").stdout == "running\n"

    def assert_gone(self, container: Container, purged: bool = False, lock: bool = False) -> None:
        """Nothing of it is known or running any more; at most the `lock` of a session is left,
        where a removal does not remove that as well."""
        assert self.version(container) == ""
        assert not container.path("/usr/bin/vmsnap").exists()
        self.assert_no_unit(container, purged)
        if purged or self.removal_purges:
            assert container.path("/run/vmsnap").exists() == lock
        for pid in container.pids():
            with suppress(OSError):  # of one that has just ended
                assert not status(pid)["Name"].startswith("vmsnap")
        catalogue = container.run("journalctl", "--dump-catalog", check=True).stdout
        assert "vmsnap" not in catalogue

    def files(self, container: Container) -> set[str]:
        """All there is on the root filesystem: path, kind, mode, owner, target of a link. For what
        is in /etc also what it says."""
        form = "%p\\t%y %m %u:%g %l\\n"
        pruned = ["-path", "/dev"]
        pruned += [word for trace in self.traces for word in ("-o", "-path", f"{trace}/*")]
        argv = ("find", "/", "-xdev", "(", *pruned, ")", "-prune", "-o", "-printf", form)
        found = container.run(*argv, check=True).stdout.splitlines()
        sums = ("find", "/etc", "-type", "f", "-exec", "sha256sum", "{}", "+")
        said = [
            line.split(maxsplit=1) for line in container.run(*sums, check=True).stdout.splitlines()
        ]
        return {*found, *(f"{path}\t{digest}" for digest, path in said)}

    def changes(self, container: Container, before: set[str]) -> set[str]:
        """The paths that were not there before, or are there no more, or have changed."""
        return paths(self.files(container) ^ before)

    def forget(self, container: Container, before: set[str]) -> None:
        """Have the system as before, whatever a removal or a test that failed has left."""
        container.thaw()
        container.added.close()
        self.erase(container)
        container.systemctl("reset-failed")
        new = self.changes(container, before) - paths(before)
        container.run("rm", "-rf", "/run/vmsnap", *new)


def paths(lines: set[str]) -> set[str]:
    return {line.partition("\t")[0] for line in lines}


def default(version: str) -> str:
    """The configuration that a version brings."""
    return (made.tree(version) / "etc/vmsnap.conf").read_text(encoding="utf-8")


def begin_scheduled(scene: Scene) -> None:
    """Start the unit of the timer; return when it holds, until the gate "release" is opened."""
    scene.database()
    words = f"{scene.say('held')}; {scene.stop_at('release')}"
    scene.container.write(DIRECTORY / "take", f"#!/bin/sh\n{words}\n", 0o700)
    settings = f"[freeze]\nonly = {DATA}\n[snapshot]\ncommand = {DIRECTORY}/take\n"
    scene.container.write(CONFIGURATION, settings)
    scene.container.systemctl("start", "--no-block", BACKUP, check=True)
    scene.events.wait("held")
    assert scene.container.frozen(DATA)


def last_result(container: Container) -> dict[str, Any]:
    """What the last session has come to."""
    document: dict[str, Any] = json.loads(container.read("/var/lib/vmsnap/last-result.json"))
    return document


def inside(root: Path, *argv: str, env: Mapping[str, str] | None = None) -> str:
    """Run a command below a root where nothing is booted; return what it printed."""
    done = subprocess.run(
        ["chroot", str(root), *argv],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
        env={**ENVIRONMENT, **(env or {})},
        umask=0o022,
    )
    said = done.stdout + done.stderr
    assert done.returncode == 0, f"{argv}: {said}"
    return said


@contextmanager
def booted(system: Recipe, prepare: Callable[[Path], object]) -> Iterator[Container]:
    container = Container(system, prepare)
    try:
        yield container
    finally:
        container.close()


def assert_no_complaint(said: str) -> None:
    for word in COMPLAINTS:
        found = [line for line in said.lower().splitlines() if word in line]
        assert not [line for line in found if "running scriptlet:" not in line], said


def state(container: Container, unit: str) -> tuple[str, str]:
    """Whether a unit is enabled, and whether it is active."""
    shown = container.show(unit, "UnitFileState", "ActiveState")
    return shown["UnitFileState"], shown["ActiveState"]


def stale_bytecode(container: Container) -> list[str]:
    """The modules of vmsnap that this Python would compile again, and bytecode without a module."""
    return container.run("python3", "-IBc", STALE, check=True).stdout.split()


# What importlib compares: the magic number, no flags, and the date and size of the source.
STALE = """
import importlib.util, pathlib, struct, vmsnap
directory = pathlib.Path(vmsnap.__file__).parent
wanted = {importlib.util.cache_from_source(str(path)): path for path in directory.rglob("*.py")}
for cached, path in wanted.items():
    if not pathlib.Path(cached).exists():
        print(path)
        continue
    seen = path.stat()
    header = importlib.util.MAGIC_NUMBER + struct.pack("<III", 0, int(seen.st_mtime), seen.st_size)
    if pathlib.Path(cached).read_bytes()[:16] != header:
        print(path)
for path in directory.rglob("__pycache__/*"):
    if str(path) not in wanted:
        print(path)
"""
