# SPDX-License-Identifier: Apache-2.0
"""The Debian package as a file: what is in it, what it depends on, what lintian says of it.

Its maintainer scripts are run in test_maintainer_scripts.py.
"""

from __future__ import annotations

import ast
import re
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from . import contents, elsewhere, made
from .made import NEW, ROOT

CLEAN = "/etc/cloud/clean.d/50-vmsnap"
CONFIGURATION = "/etc/vmsnap/vmsnap.conf"
NEEDRESTART = "/etc/needrestart/conf.d/vmsnap.conf"
PRIVATE = {
    "/etc/vmsnap": 0o700,
    "/etc/vmsnap/apps.d": 0o700,
    "/etc/vmsnap/scripts": 0o700,
    "/etc/vmsnap/vmsnap.conf.d": 0o700,
    CONFIGURATION: 0o600,
    "/var/lib/vmsnap": 0o700,
    **contents.QUIESCERS,
}


def field(name: str) -> str:
    return contents.call("dpkg-deb", "--field", made.package(), name).decode().strip()


def control(name: str) -> str:
    return contents.call("dpkg-deb", "--info", made.package(), name).decode()


def test_somebody_else_builds_the_same_bytes() -> None:
    with elsewhere.built("deb") as directory:
        again = (directory / made.package().name).read_bytes()
    assert again == made.package().read_bytes()


@pytest.fixture(scope="module")
def lintian() -> list[str]:
    """What lintian says, without its explanations, of the source and of the package."""
    made.package()
    (changes,) = made.package().parent.glob(f"vmsnap_{NEW}_*.changes")
    done = subprocess.run(
        ["lintian", "--allow-root", "--show-overrides", "--display-info", str(changes)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stderr == ""
    found = [line for line in done.stdout.splitlines() if not line.startswith("N:")]
    assert all(re.match(r"[EWIPXOMC]: vmsnap", line) for line in found), found
    return found


def test_lintian_finds_no_error_and_nothing_to_warn_of(lintian: list[str]) -> None:
    assert [line for line in lintian if line.startswith(("E:", "W:"))] == []


def test_every_override_of_lintian_is_needed_and_gives_a_reason(lintian: list[str]) -> None:
    assert [line for line in lintian if "override" in line.split(" ")[2]] == []
    lines = (ROOT / "debian/vmsnap.lintian-overrides").read_text(encoding="utf-8").splitlines()
    tags = {line.split()[1] for line in lines if not line.startswith("#")}
    assert {line.split(" ")[2] for line in lintian if line.startswith("O:")} == tags
    assert lines[0].startswith("# ")


def test_dpkg_asks_before_it_replaces_a_configuration_and_nothing_else() -> None:
    assert sorted(control("conffiles").split()) == [CLEAN, NEEDRESTART, CONFIGURATION]


def test_everything_belongs_to_root() -> None:
    assert {entry.owner for entry in contents.of_deb(made.package()).values()} == {"root:root"}


def test_configuration_and_results_are_for_root_alone_and_the_rest_for_everybody() -> None:
    packed = contents.of_deb(made.package())
    private = {name: entry.mode for name, entry in packed.items() if not entry.mode & 0o077}
    assert private == PRIVATE
    programs = {n for n, e in packed.items() if e.kind == "file" and e.mode & 0o111}
    ours = {"/usr/bin/vmsnap", CLEAN, "/usr/libexec/vmsnap/cloud-init-hook"}
    assert programs == {*ours, *contents.QUIESCERS}
    others = {entry.mode for name, entry in packed.items() if name not in private}
    assert others == {0o755, 0o644}


def test_nothing_in_it_was_compiled_by_the_machine_that_built_it() -> None:
    names = list(contents.of_deb(made.package()))
    assert [name for name in names if name.endswith(".pyc") or "__pycache__" in name] == []


def test_every_unit_of_the_sources_is_where_systemd_of_this_debian_looks() -> None:
    packed = contents.of_deb(made.package())
    places = [name for name in packed if re.search(r"/systemd/system/.", name)]
    units = {path.name: path.read_bytes() for path in (ROOT / "systemd").iterdir()}
    assert {Path(name).name: packed[name].data for name in places} == units
    assert {str(Path(name).parent) for name in places} <= {
        "/lib/systemd/system",
        "/usr/lib/systemd/system",
    }


def test_needrestart_restarts_no_unit_that_freezes_and_any_other_one(tmp_path: Path) -> None:
    """As it reads the file, and asks what was read: it is perl."""
    path = tmp_path / "vmsnap.conf"
    path.write_bytes(contents.of_deb(made.package())[NEEDRESTART].data)
    ask = r"""
        use strict; use warnings FATAL => "all";
        our %nrconf = (override_rc => {});
        eval do { local (@ARGV, $/) = $ARGV[0]; <> }; die $@ if $@;
        my $asked = $nrconf{override_rc};
        for my $unit (@ARGV[1 .. $#ARGV]) {
            print "$unit\n" if grep { $unit =~ /$_/ && !$asked->{$_} } keys %$asked;
        }
    """
    units = [unit.name for unit in (ROOT / "systemd").iterdir()]
    done = contents.call("perl", "-e", ask, path, *units, "my-vmsnap-session.service")
    assert sorted(done.decode().split()) == ["vmsnap-backup.service", "vmsnap-session.service"]


def imported() -> set[str]:
    """What the modules of vmsnap import from outside the standard library, wherever they do."""
    found = set()
    for path in (ROOT / "vmsnap").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                found |= {alias.name for alias in node.names}
            elif isinstance(node, ast.ImportFrom):
                found.add(str(node.module))
    listed = contents.call("/usr/bin/python3", "-Ic", "import sys; print(*sys.stdlib_module_names)")
    return {name.split(".")[0] for name in found} - set(listed.decode().split()) - {"vmsnap"}


def test_it_depends_on_what_is_imported_and_on_nothing_else() -> None:
    find = "import importlib.util as u, sys; print(u.find_spec(sys.argv[1]).origin)"
    packages = set()
    for module in imported():
        path = contents.call("/usr/bin/python3", "-Ic", find, module).decode().strip()
        packages.add(contents.call("dpkg", "-S", path).decode().partition(":")[0])
    assert len(packages) == 5
    packages.remove("python3-docutils")  # for the build
    assert " python3-docutils,\n" in (ROOT / "debian/control").read_text(encoding="utf-8")
    packages.remove("python3-yaml")  # which cloud-init brings
    assert "python3-yaml" in field("Suggests")
    names = {re.sub(r"[ :(].*", "", part.strip()) for part in field("Depends").split(",")}
    assert names == {"python3", *packages}
    assert field("Recommends") == ""


def test_it_is_for_every_architecture_and_for_the_oldest_python_that_vmsnap_runs_on() -> None:
    assert (field("Architecture"), field("Version")) == ("all", NEW)
    assert "python3 (>= 3.9)" in field("Depends")


def test_the_change_log_in_it_begins_with_this_version(tmp_path: Path) -> None:
    packed = contents.uncompressed(contents.of_deb(made.package()))
    path = tmp_path / "changelog"
    path.write_bytes(packed["/usr/share/doc/vmsnap/changelog"].data)
    done = contents.call("dpkg-parsechangelog", "-l", path, "-S", "Version")
    assert done.decode().strip() == NEW


@pytest.fixture
def usr() -> Iterator[Path]:
    """The package's /usr, unpacked, for an overlay."""
    with tempfile.TemporaryDirectory(prefix="vmsnap-installed-") as name:
        Path(name).chmod(0o755)
        contents.call("dpkg-deb", "-x", made.package(), name)
        yield Path(name, "usr")


INSTALLED = 'mount -t overlay -o "lowerdir=$1:/usr" vmsnap /usr; shift; exec "$@"'


def with_package(usr: Path, *command: str) -> subprocess.CompletedProcess[str]:
    """Run a command where the package's /usr lies over the machine's, in mounts of its own."""
    return subprocess.run(
        ["unshare", "--mount", "sh", "-ec", INSTALLED, "sh", str(usr), *command],
        env={"PATH": "/usr/sbin:/usr/bin:/sbin:/bin"},
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )


def test_the_packaged_program_runs(usr: Path) -> None:
    done = with_package(usr, "vmsnap", "--version")
    assert (done.returncode, done.stdout, done.stderr) == (0, f"vmsnap {NEW}\n", "")


def test_the_test_of_the_package_passes_with_the_package(usr: Path) -> None:
    done = with_package(usr, str(ROOT / "debian/tests/freeze-loop"))
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "application-consistent, and thawed"
    assert list(Path("/run").glob("vmsnap-autopkgtest.*")) == []


def test_autopkgtest_is_told_that_the_test_of_the_package_writes_to_stderr(usr: Path) -> None:
    """Without `allow-stderr` it takes any word there for a failure."""
    done = with_package(usr, str(ROOT / "debian/tests/freeze-loop"))
    stanzas = (ROOT / "debian/tests/control").read_text(encoding="utf-8").split("\n\n")
    (ours,) = [stanza for stanza in stanzas if stanza.startswith("Tests: freeze-loop\n")]
    assert done.stderr == "" or "allow-stderr" in ours.partition("Restrictions:")[2]


def test_the_test_of_the_package_fails_when_no_script_of_the_app_is_run(usr: Path) -> None:
    """It can fail: here with a program that only takes the snapshot."""
    program = usr / "bin/vmsnap"
    program.write_text(
        '#!/bin/sh\n[ "$1" = run ] || exit 0\nwhile [ "$1" != -- ]; do shift; done\nshift\n"$@"\n',
        encoding="utf-8",
    )
    script = (ROOT / "debian/tests/freeze-loop").read_text(encoding="utf-8")
    with tempfile.NamedTemporaryFile("w", suffix=".sh", encoding="utf-8") as file:
        file.write(script.replace("vmsnap init demo", "mkdir -p $work/etc/vmsnap/scripts/demo #"))
        file.flush()
        done = with_package(usr, "sh", file.name)
    assert done.returncode == 1
    assert done.stderr == "found: taken; expected: pre\ntaken\npost\n"
    assert list(Path("/run").glob("vmsnap-autopkgtest.*")) == []


@pytest.mark.parametrize("script", ["vmsnap.prerm", "vmsnap.postrm", "tests/freeze-loop"])
def test_shellcheck_finds_nothing_in_the_scripts_of_the_sources(script: str) -> None:
    if shutil.which("shellcheck") is None:
        pytest.fail("shellcheck is not installed: make setup")
    path = ROOT / "debian" / script
    done = subprocess.run(
        ["shellcheck", "--shell=sh", str(path)], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


@pytest.mark.parametrize("name", ["postinst", "prerm", "postrm"])
def test_the_scripts_in_the_package_are_whole(name: str) -> None:
    script = control(name)
    assert "#DEBHELPER#" not in script
    done = subprocess.run(
        # What debhelper wrote is not ours to style; an error in it would be ours to see.
        ["shellcheck", "--shell=sh", "--severity=warning", "-"],
        input=script,
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout) == (0, "")
