# SPDX-License-Identifier: Apache-2.0
"""Both packages and `make install` bring the same: the same files, modes and contents.

Where a distribution has a directory of its own for something, that directory is read as Debian's.
What else may differ is listed here, and why.
"""

from __future__ import annotations

import os
import re
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest

from release import source
from release.rpm import TARGETS, Target

from . import contents, made
from .contents import Entries
from .made import NEW

PLACES = {
    r"/usr/lib/python3\.\d+/site-packages/": "/usr/lib/python3/dist-packages/",
    r"/lib/systemd/system/": "/usr/lib/systemd/system/",  # /lib is a link to it
    r"/usr/share/zsh/site-functions/": "/usr/share/zsh/vendor-completions/",
    r"/usr/share/doc/packages/": "/usr/share/doc/",  # of openSUSE
}
MODULES = "/usr/lib/python3/dist-packages"
COMPILED = rf"{MODULES}/vmsnap/(\w+/)?__pycache__(/|$)"
DOCUMENTS = "/usr/share/doc/vmsnap"
ONLY_DEBIAN = {
    rf"{MODULES}/vmsnap-{re.escape(NEW)}\.dist-info(/|$)": "pybuild installs a wheel",
    rf"{DOCUMENTS}/(copyright|changelog)$": "Debian's policy; of RPM both are in the header",
    r"/usr/share/lintian/overrides/vmsnap$": "lintian is Debian's",
    r"/etc/needrestart/conf\.d/vmsnap\.conf$": "no RPM distribution has needrestart",
}
ONLY_RPM = {
    r"/usr/lib/systemd/system-preset/50-vmsnap\.preset$": "Debian enables in its postinst",
    r"/usr/share/licenses/vmsnap(/|$)": "Debian's is named in its copyright",
    COMPILED: "Debian's py3clean knows what py3compile made",
    r"/var/lib/vmsnap/(last-result|provision)\.json$": "Debian's postrm removes them",
}
ONLY_PACKAGES = {rf"{DOCUMENTS}(/|$)": "`make install` is run in a checkout that has them"}
ONLY_MAKE = {COMPILED: "the packages compile when they are installed"}


def ours(entries: Entries) -> Entries:
    """What is named after vmsnap or below it, as Debian names it and without owners."""
    found = {}
    for name, entry in contents.uncompressed(entries).items():
        placed = name
        for pattern, place in PLACES.items():
            placed = re.sub("^" + pattern, place, placed)
        if "vmsnap" in placed:
            found[placed] = replace(entry, owner="", flags="")
    return found


def without(entries: Entries, exceptions: dict[str, str]) -> Entries:
    """Each exception must be one."""
    matched = {n: [p for p in exceptions if re.match(p, n)] for n in entries}
    assert {p for patterns in matched.values() for p in patterns} == set(exceptions)
    return {name: entry for name, entry in entries.items() if not matched[name]}


def differences(one: Entries, other: Entries) -> list[str]:
    found = []
    for name in sorted({*one, *other}):
        first, second = one.get(name), other.get(name)
        if first is None or second is None:
            found.append(f"{name}: only in the {'second' if first is None else 'first'}")
        elif first != second:
            kinds = f"{first.kind} {first.mode:o}", f"{second.kind} {second.mode:o}"
            found.append(f"{name}: {kinds}, same contents: {first.data == second.data}")
    return found


def of_debian() -> Entries:
    return ours(contents.of_deb(made.package()))


@pytest.mark.parametrize("target", (*TARGETS, made.ON_DEBIAN), ids=lambda target: target.name)
def test_debian_and_rpm_packages_bring_the_same_files(target: Target) -> None:
    (package,) = [path for path in made.rpms(target) if path.name.startswith("vmsnap-")]
    rpms = without(ours(contents.of_rpm(package)), ONLY_RPM)
    debians = without(of_debian(), ONLY_DEBIAN)
    assert len(debians) > 70
    assert differences(debians, rpms) == []


@pytest.fixture(scope="module", params=["022", "077"])
def installed(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Entries:
    """What `make install` installs, with a umask, from an unpacked source archive."""
    work = tmp_path_factory.mktemp("install")
    tree = contents.unpack(made.archive(), work)
    done = subprocess.run(
        ["sh", "-ec", f'umask {request.param}; exec make --silent install DESTDIR="$1"', "sh"]
        + [str(work / "root")],
        cwd=tree,
        env={"PATH": "/usr/sbin:/usr/bin:/sbin:/bin"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    return contents.of_tree(work / "root")


def test_make_install_brings_what_the_package_does(installed: Entries) -> None:
    debians = without(of_debian(), {**ONLY_DEBIAN, **ONLY_PACKAGES})
    assert differences(debians, without(ours(installed), ONLY_MAKE)) == []


def test_everybody_can_read_what_make_install_compiled(installed: Entries) -> None:
    compiled = {n: e for n, e in installed.items() if "__pycache__" in n}
    modules = {name for name in installed if name.endswith(".py")} - contents.APART
    directories = {Path(name).parent for name in modules}
    assert len(compiled) == len(modules) + len(directories)
    assert {entry.mode for entry in compiled.values()} == {0o755, 0o644}


def test_make_install_leaves_no_trace_of_the_directory_it_was_told_to_use(
    installed: Entries, tmp_path: Path
) -> None:
    base = os.fsencode(tmp_path.parent)  # of all temporary directories of the run
    assert [name for name, entry in installed.items() if base in entry.data] == []


def test_every_module_unit_page_example_and_quiescer_of_the_sources_is_packaged() -> None:
    packed = {Path(name).name for name in of_debian()}
    directories = {"vmsnap", "systemd", "man", "examples", "cloud-init", "quiesce"}
    wanted = [path for path in source.tracked(made.ROOT) if path.parts[0] in directories]
    assert {path.parts[0] for path in wanted} == directories
    assert [path for path in wanted if path.name.removesuffix(".rst") not in packed] == []
