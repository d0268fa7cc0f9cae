# SPDX-License-Identifier: Apache-2.0
"""The RPM packages as files, for every distribution that they are made for; and their sources.

What rpm does with one is in test_rpm_installed.py; the spec with a distribution's own macros, in
test_rpm_spec.py.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from release import rpm
from release.command import ToolError
from release.rpm import TARGETS, Target

from . import contents, elsewhere, made
from .made import NEW, ROOT

MODULES = sorted(path.relative_to(ROOT / "vmsnap") for path in (ROOT / "vmsnap").rglob("*.py"))
CONFIGURATION = "/etc/vmsnap/vmsnap.conf"
RESULT, OUTCOME = "/var/lib/vmsnap/last-result.json", "/var/lib/vmsnap/provision.json"
# What makes the packages different, written down again: from the distributions, not from the code.
PYTHONS = {"el9": "3.9", "el10": "3.12", "amzn2023": "3.9", "fc44": "3.14", "opensuse16": "3.13"}
SUFFIXES = {
    "el9": ".el9",
    "el10": ".el10",
    "amzn2023": ".amzn2023",
    "fc44": ".fc44",
    "opensuse16": ".suse160",
}
WITHOUT_SDNOTIFY = {"el9", "el10", "amzn2023", "opensuse16"}
TOLERATED = {
    # What rpmlint calls an error, and why it is none here.
    r"no-signature$": "`make repo` signs",
    r"no-(packager|group)-tag$": "Fedora forbids both",
    r"non-standard-dir-perm /(etc|var/lib)/vmsnap(/(apps\.d|scripts|vmsnap\.conf\.d))? 700$": (
        "they name scripts and mounts: root's alone"
    ),
    rf"non-readable ({CONFIGURATION}|{RESULT}|{OUTCOME}) 600$": "likewise",
    r"non-(readable|standard-executable-perm) /usr/lib/vmsnap/quiesce/[a-z]+ 700$": (
        "vmsnap runs no script of another mode"
    ),
    r"bad-manual-page-folder \S*/man(5/vmsnap\.conf\.5|8/vmsnap-session\.service\.8) ": (
        "it takes what follows the first dot for the section"
    ),
}

every_target = pytest.mark.parametrize("target", TARGETS, ids=lambda target: target.name)


def package(target: Target) -> Path:
    (found,) = [path for path in made.rpms(target) if path.name.startswith("vmsnap-")]
    return found


def site_packages(target: Target) -> str:
    return f"/usr/lib/python{PYTHONS[target.name]}/site-packages"


def test_there_is_a_package_for_each_distribution_that_is_promised() -> None:
    assert [target.name for target in TARGETS] == list(PYTHONS)


@every_target
def test_it_runs_on_every_architecture_and_is_named_after_its_distribution(target: Target) -> None:
    named = contents.query(package(target), "%{NAME} %{VERSION} %{RELEASE} %{ARCH}")
    assert named == f"vmsnap {NEW} 1{SUFFIXES[target.name]} noarch"
    assert package(target).name == f"vmsnap-{NEW}-1{SUFFIXES[target.name]}.noarch.rpm"


@every_target
def test_it_requires_the_distributions_python_and_modules_and_nothing_else(target: Target) -> None:
    form = "[%{REQUIRENAME} %{REQUIREFLAGS:depflags} %{REQUIREVERSION}\n]"
    lines = {" ".join(x.split()) for x in contents.query(package(target), form).splitlines()}
    of_rpm_itself = {x for x in lines if x.startswith(("rpmlib(", "config(vmsnap) = "))}
    assert lines - of_rpm_itself == {
        "/bin/sh",  # the scriptlets
        "/usr/bin/python3",
        f"python(abi) = {PYTHONS[target.name]}",
        "python3-distro",
        "python3-jsonschema",
        "python3-sdnotify",
        "systemd",
        "util-linux",  # flock, which the scriptlets call
    }
    assert contents.query(package(target), "[%{RECOMMENDS}%{CONFLICTS}%{OBSOLETES}]") == ""


@every_target
def test_the_modules_are_where_the_distributions_python_looks_and_nowhere_else(
    target: Target,
) -> None:
    found = contents.of_rpm(package(target))
    modules = {name for name in found if name.endswith(".py")} - contents.APART
    assert modules == {f"{site_packages(target)}/vmsnap/{name}" for name in MODULES}
    pythons = {m[1] for m in (re.match(r"/usr/lib/(python[^/]*)", name) for name in found) if m}
    assert pythons == {f"python{PYTHONS[target.name]}"}


@every_target
def test_what_its_python_compiles_at_installation_belongs_to_the_package(target: Target) -> None:
    tag = "cpython-" + PYTHONS[target.name].replace(".", "")
    package_directory = Path(site_packages(target)) / "vmsnap"
    caches = {path: package_directory / path.parent / "__pycache__" for path in MODULES}
    ghosts = {n for n, e in contents.of_rpm(package(target)).items() if "g" in e.flags}
    compiled = {cache / f"{path.stem}.{tag}.pyc" for path, cache in caches.items()}
    assert ghosts == {*map(str, caches.values()), *map(str, compiled), RESULT, OUTCOME}


@every_target
def test_it_has_the_format_that_the_oldest_distribution_reads(target: Target) -> None:
    # RPM 6 gives its own format 4 in the lead, where all before have 3: rpm's format_lead.md.
    assert package(target).read_bytes()[:6] == b"\xed\xab\xee\xdb\x03\x00"
    assert "_rpmformat 4" in " ".join(target.defines)  # what this machine's rpm may not know of
    # EL 9 and Amazon Linux read zstd; nothing newer is used.
    assert contents.query(package(target), "%{PAYLOADCOMPRESSOR}") in {"gzip", "xz", "zstd"}


@every_target
def test_an_edited_configuration_is_kept_and_nothing_else_is_configuration(target: Target) -> None:
    found = contents.of_rpm(package(target))
    assert {n: e.flags for n, e in found.items() if "c" in e.flags} == {CONFIGURATION: "cn"}


@every_target
def test_configuration_and_results_are_for_root_alone_and_the_rest_for_everybody(
    target: Target,
) -> None:
    found = contents.of_rpm(package(target))
    assert {entry.owner for entry in found.values()} == {"root:root"}
    private = {name: entry.mode for name, entry in found.items() if not entry.mode & 0o077}
    assert private == {
        "/etc/vmsnap": 0o700,
        "/etc/vmsnap/apps.d": 0o700,
        "/etc/vmsnap/scripts": 0o700,
        "/etc/vmsnap/vmsnap.conf.d": 0o700,
        CONFIGURATION: 0o600,
        "/var/lib/vmsnap": 0o700,
        RESULT: 0o600,
        OUTCOME: 0o600,
        **contents.QUIESCERS,
    }
    others = {entry.mode for name, entry in found.items() if name not in private}
    assert others == {0o755, 0o644}


@every_target
def test_every_unit_of_the_sources_is_where_systemd_looks(target: Target) -> None:
    found = contents.of_rpm(package(target))
    place = "/usr/lib/systemd/system/"
    packed = {n[len(place) :]: e.data for n, e in found.items() if n.startswith(place)}
    assert packed == {path.name: path.read_bytes() for path in (ROOT / "systemd").iterdir()}


@every_target
@pytest.mark.parametrize("tag", ["POSTIN", "PREUN", "POSTUN"])
def test_the_scriptlets_are_shell_in_which_every_macro_was_replaced(
    target: Target, tag: str
) -> None:
    script = contents.query(package(target), f"%{{{tag}}}")
    assert "systemctl" in script
    assert re.findall(r"%\w+|%\{|%\(", script) == []
    done = subprocess.run(
        # $1 is a number of rpm's and need not be quoted.
        ["shellcheck", "--shell=sh", "--exclude=SC2086", "-"],
        input=script,
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout) == (0, "")


@every_target
def test_there_are_no_other_scriptlets(target: Target) -> None:
    tags = ("PREIN", "PRETRANS", "POSTTRANS", "VERIFYSCRIPT", "TRIGGERSCRIPTS")
    said = contents.query(package(target), "|".join(f"%{{{tag}}}" for tag in tags))
    assert set(said.split("|")) == {"(none)"}


@every_target
def test_sdnotify_comes_along_where_the_distribution_has_none(target: Target) -> None:
    others = [path for path in made.rpms(target) if path != package(target)]
    assert bool(others) == (target.name in WITHOUT_SDNOTIFY)
    for other in others:
        form = "%{NAME} %{RELEASE} %{ARCH} %{LICENSE}"
        assert contents.query(other, form) == (
            f"python3-sdnotify 1{SUFFIXES[target.name]} noarch MIT"
        )
        names = [n for n, e in contents.of_rpm(other).items() if e.kind == "file"]
        module = f"{site_packages(target)}/sdnotify/__init__.py"
        assert [name for name in names if "license" not in name.lower()] == [module]
        assert any("license" in name.lower() for name in names)
        requires = contents.query(other, "[%{REQUIRENAME} %{REQUIREVERSION}\n]").splitlines()
        assert f"python(abi) {PYTHONS[target.name]}" in requires
        # Not what would say that its metadata is there as well.
        assert contents.query(other, "[%{PROVIDES} ]") == "python3-sdnotify "


def test_rpmlint_finds_no_error_but_the_explained_and_all_of_those() -> None:
    paths = [str(path) for target in TARGETS for path in made.rpms(target)]
    done = subprocess.run(["rpmlint", *paths], capture_output=True, text=True, check=False)
    assert f" {len(paths)} packages and 0 specfiles checked" in done.stdout
    errors = [line for line in done.stdout.splitlines() if " E: " in line]
    found = {line: [p for p in TOLERATED if re.search(p, line.strip())] for line in errors}
    assert [line for line, reasons in found.items() if not reasons] == []
    assert {pattern for patterns in found.values() for pattern in patterns} == set(TOLERATED)


@pytest.fixture(scope="module")
def by_nobody() -> Iterator[Path]:
    with elsewhere.built("rpm") as directory:
        yield directory


# One with sdnotify and one without.
@pytest.mark.parametrize("target", elsewhere.RPMS, ids=lambda target: target.name)
def test_somebody_else_builds_the_same_bytes(target: Target, by_nobody: Path) -> None:
    again = {path.name: path.read_bytes() for path in (by_nobody / target.name).iterdir()}
    assert again == {path.name: path.read_bytes() for path in made.rpms(target)}


def test_a_package_that_cannot_be_built_is_an_error_and_leaves_no_other(tmp_path: Path) -> None:
    broken = tmp_path / made.archive().name
    broken.write_bytes(made.archive().read_bytes()[:1000])
    with pytest.raises(ToolError):
        rpm.build(broken, TARGETS[0], tmp_path / "rpm")
    assert list((tmp_path / "rpm").rglob("*.rpm")) == []


def test_a_checkout_may_lie_in_a_directory_with_a_space(tmp_path: Path) -> None:
    target = elsewhere.RPMS[0]  # one that needs sdnotify, from below the checkout
    checkout = tmp_path / "a check out"
    for name in ("release", "rpm", "build/sources"):
        shutil.copytree(ROOT / name, checkout / name)
    (checkout / "dist").mkdir()
    archive = shutil.copy(made.archive(), checkout / "dist")
    done = subprocess.run(
        [sys.executable, "-B", "-c", elsewhere.BUILD, archive, str(checkout / "dist/rpm"), "rpm"]
        + [target.name],
        cwd=checkout,
        env={"PATH": "/usr/bin:/bin"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    built = {p.name: p.read_bytes() for p in (checkout / "dist/rpm" / target.name).iterdir()}
    assert built == {path.name: path.read_bytes() for path in made.rpms(target)}
