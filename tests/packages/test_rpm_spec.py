# SPDX-License-Identifier: Apache-2.0
"""The spec built as a distribution builds it, with macros of its own, and with none at all."""

from __future__ import annotations

import functools
import re
import subprocess
import tempfile
from pathlib import Path

from . import contents, made

# As in Fedora's systemd-rpm-macros (macros.systemd of systemd 256), written down from memory and
# without the check of its arguments; python's directories as in its python3-rpm-macros, but this
# machine's Python. The last one stands for brp-python-bytecompile.
FEDORA = r"""
%fedora 44
%dist .fc44
%__python3 /usr/bin/python3
%python3_version 3.11
%python3_sitelib /usr/lib/python3.11/site-packages
%_unitdir /usr/lib/systemd/system
%_presetdir /usr/lib/systemd/system-preset
%_journalcatalogdir /usr/lib/systemd/catalog
%systemd_post() \
if [ $1 -eq 1 ] && [ -x "/usr/lib/systemd/systemd-update-helper" ]; then \
    # Initial installation \
    /usr/lib/systemd/systemd-update-helper install-system-units %{?*} || : \
fi \
%{nil}
%systemd_preun() \
if [ $1 -eq 0 ] && [ -x "/usr/lib/systemd/systemd-update-helper" ]; then \
    # Package removal, not upgrade \
    /usr/lib/systemd/systemd-update-helper remove-system-units %{?*} || : \
fi \
%{nil}
%systemd_postun_with_restart() \
if [ $1 -ge 1 ] && [ -x "/usr/lib/systemd/systemd-update-helper" ]; then \
    # Package upgrade, not uninstall \
    /usr/lib/systemd/systemd-update-helper mark-restart-system-units %{?*} || : \
fi \
%{nil}
%__os_install_post %{__python3} -m compileall -q -s %{buildroot} %{buildroot}%{python3_sitelib}
"""
UNITS = "vmsnap-check.path vmsnap-check.service vmsnap-backup.timer vmsnap-provision.service"
HELPER = "/usr/lib/systemd/systemd-update-helper"
SITE_PACKAGES = "/usr/lib/python3.11/site-packages"


def build(macros: str, *options: str) -> tuple[str, contents.Entries]:
    """Build with these macros; return the scriptlets and what is in the package."""
    with tempfile.TemporaryDirectory(prefix="vmsnap-spec-") as name:
        work = Path(name)
        spec = contents.unpack(made.archive(), work) / "rpm/vmsnap.spec"
        (work / "macros").write_text(macros, encoding="utf-8")
        done = subprocess.run(
            ["rpmbuild", "--quiet", "-bb", "--load", str(work / "macros"), *options]
            + [f"--define=_topdir {work}", f"--define=_sourcedir {made.archive().parent}"]
            + [str(spec)],
            env={"PATH": "/usr/bin:/bin", "HOME": name, "LANG": "C.UTF-8"},
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        (package,) = work.glob("RPMS/*/*.rpm")
        form = "%{POSTIN}\n%{PREUN}\n%{POSTUN}"
        return contents.query(package, form), contents.of_rpm(package)


@functools.cache
def on_fedora() -> tuple[str, contents.Entries]:
    # What it names as needed for the build is not in the empty database of this machine.
    return build(FEDORA, "--nodeps")


def calls(script: str, program: str) -> list[str]:
    """What it is called with, where systemd runs."""
    booted = re.escape("[ ! -d /run/systemd/system ] || ")
    found = re.findall(rf"^ *(?:{booted})?({re.escape(program)} [^|#&\n]*)", script, re.M)
    return [" ".join(call.split()) for call in found]


def test_a_distributions_own_macros_are_used_and_not_ours() -> None:
    script, _ = on_fedora()
    assert calls(script, HELPER) == [
        f"{HELPER} install-system-units {UNITS}",
        f"{HELPER} remove-system-units {UNITS}",
        f"{HELPER} mark-restart-system-units vmsnap-check.path vmsnap-check.service",
    ]
    assert re.findall(r"systemctl .*(?:preset|try-restart|disable)", script) == []


def test_what_a_distribution_compiled_is_carried_and_not_compiled_again() -> None:
    script, found = on_fedora()
    assert "compileall" not in script
    modules = [name for name in found if name.startswith(SITE_PACKAGES) and name.endswith(".py")]
    caches = {name: Path(name).parent / "__pycache__" for name in modules}
    compiled = {f"{cache}/{Path(name).stem}.cpython-311.pyc" for name, cache in caches.items()}
    carried = {n for n, e in found.items() if n.startswith(SITE_PACKAGES) and n.endswith(".pyc")}
    assert len(modules) > 30
    assert carried == compiled
    assert all(found[name].data for name in compiled)
    assert all("g" not in found[str(cache)].flags for cache in caches.values())


def test_a_distribution_must_have_what_the_build_needs(tmp_path: Path) -> None:
    spec = contents.unpack(made.archive(), tmp_path) / "rpm/vmsnap.spec"
    macros = tmp_path / "macros"
    macros.write_text(FEDORA, encoding="utf-8")
    query = ["rpmspec", "-q", "--buildrequires", "--load", str(macros), str(spec)]
    named = contents.call(*query).decode().split()
    assert {"make", "python3-devel", "python3-docutils", "systemd-rpm-macros"} <= set(named)


def test_without_any_macros_the_scriptlets_say_what_to_do_themselves() -> None:
    script, found = build("")
    assert "%" not in script
    assert calls(script, "systemctl --no-reload") == [
        f"systemctl --no-reload preset {UNITS}",
        f"systemctl --no-reload disable {UNITS}",
    ]
    assert calls(script, "systemctl try-restart") == [
        "systemctl try-restart vmsnap-check.path vmsnap-check.service"
    ]
    assert calls(script, "/usr/bin/python3 -m compileall") != []
    # The Python that is there, in the place that python.org gives it.
    version = contents.call("/usr/bin/python3", "-Ic", "import sys; print(*sys.version_info[:2])")
    number = ".".join(version.decode().split())
    assert f"/usr/lib/python{number}/site-packages/vmsnap/cli/main.py" in found


def test_both_ways_of_building_carry_the_same_files() -> None:
    """But what is compiled, and where the modules are is the same on both here."""
    _, bare = build("%dist .fc44\n")
    _, fedoras = on_fedora()
    both = [{n: e for n, e in found.items() if "__pycache__" not in n} for found in (bare, fedoras)]
    assert both[0] == both[1]


def test_rpmbuild_builds_the_source_archive_as_it_is(tmp_path: Path) -> None:
    done = subprocess.run(
        ["rpmbuild", "-tb", f"--define=_topdir {tmp_path}", str(made.archive())],
        env={"PATH": "/usr/bin:/bin", "HOME": str(tmp_path), "LANG": "C.UTF-8"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    (package,) = tmp_path.glob("RPMS/*/*.rpm")
    assert contents.query(package, "%{NAME} %{VERSION}") == f"vmsnap {made.NEW}"
