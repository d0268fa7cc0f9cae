# SPDX-License-Identifier: Apache-2.0
"""What rpm itself makes of the package in a root of its own, without the scriptlets.

With dnf, systemd and scriptlets it is installed in tests/system.
"""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from . import made
from .made import NEW, OLD


class Root:
    def __init__(self, path: Path) -> None:
        self.path = path
        path.mkdir()

    def rpm(self, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            ["rpm", f"--root={self.path}", *arguments], capture_output=True, text=True, check=False
        )

    def install(self, version: str) -> None:
        (package,) = [p for p in made.rpms(version=version) if p.name.startswith("vmsnap-")]
        done = self.rpm("-U", "--nodeps", "--noscripts", "--nosignature", package)
        assert done.returncode == 0, done.stderr

    def erase(self) -> list[str]:
        """What rpm warns of, such as a directory that is not empty."""
        done = self.rpm("-e", "--nodeps", "--noscripts", "vmsnap")
        assert done.returncode == 0, done.stderr
        return [line for line in done.stderr.splitlines() if "warning:" in line]

    def verify(self) -> str:
        return self.rpm("-V", "--nodeps", "--noscripts", "vmsnap").stdout

    def left(self) -> list[str]:
        """What is named after vmsnap, or lies below what is."""
        paths = [str(path.relative_to(self.path)) for path in self.path.rglob("*")]
        return sorted(path for path in paths if "vmsnap" in path)


@pytest.fixture
def root(tmp_path: Path) -> Root:
    made_root = Root(tmp_path / "root")
    made_root.install(NEW)
    return made_root


def use(root: Root) -> None:
    """What the scriptlet and a session leave."""
    modules = root.path / "usr/lib/python3/dist-packages/vmsnap"
    for path in modules.rglob("*.py"):
        cache = path.parent / "__pycache__"
        cache.mkdir(exist_ok=True)
        (cache / f"{path.stem}.cpython-311.pyc").write_bytes(b"compiled")
    result = root.path / "var/lib/vmsnap/last-result.json"
    result.write_text("{}", encoding="utf-8")
    result.chmod(0o600)


def test_rpm_finds_nothing_changed_after_the_installation_and_after_a_session(root: Root) -> None:
    assert root.verify() == ""
    use(root)
    assert root.verify() == ""


def test_rpm_finds_a_program_that_was_changed(root: Root) -> None:
    with (root.path / "usr/bin/vmsnap").open("a") as file:
        file.write("#")
    assert root.verify().split() == ["S.5....T.", "/usr/bin/vmsnap"]


def test_nothing_is_left_of_a_package_that_was_used_and_removed(root: Root) -> None:
    use(root)
    assert root.erase() == []
    assert root.left() == []


def test_an_edited_configuration_and_the_administrators_files_are_left(root: Root) -> None:
    configuration = root.path / "etc/vmsnap/vmsnap.conf"
    configuration.write_text("# mine\n", encoding="utf-8")
    (root.path / "etc/vmsnap/apps.d/mine.conf").write_text("{}", encoding="utf-8")
    root.erase()
    kept = root.path / "etc/vmsnap/vmsnap.conf.rpmsave"
    assert kept.read_text(encoding="utf-8") == "# mine\n"
    assert [path for path in root.left() if (root.path / path).is_file()] == [
        "etc/vmsnap/apps.d/mine.conf",
        "etc/vmsnap/vmsnap.conf.rpmsave",
    ]


def test_an_upgrade_replaces_every_file_and_keeps_an_edited_configuration(tmp_path: Path) -> None:
    root = Root(tmp_path / "root")
    root.install(OLD)
    configuration = root.path / "etc/vmsnap/vmsnap.conf"
    configuration.write_text("# mine\n", encoding="utf-8")
    root.install(NEW)
    assert configuration.read_text(encoding="utf-8") == "# mine\n"
    assert configuration.with_name("vmsnap.conf.rpmnew").exists()
    init = root.path / "usr/lib/python3/dist-packages/vmsnap/__init__.py"
    assert f'"{NEW}"' in init.read_text(encoding="utf-8")
    assert root.rpm("-q", "--qf", "%{VERSION}\n", "vmsnap").stdout == f"{NEW}\n"
