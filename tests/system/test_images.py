# SPDX-License-Identifier: Apache-2.0
"""The systems that packages are installed on: they boot without vmsnap, and `/` can be frozen."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from .container import Container
from .image import (
    CLOUD12,
    CLOUD13,
    CLOUD_DNF,
    DEBIAN11,
    DEBIAN12,
    DEBIAN13,
    DNF,
    OURS,
    Recipe,
    archive_of,
)

QUIET = {"DEBIAN_FRONTEND": "noninteractive"}
VERSION = {
    **{DEBIAN11: "11", DEBIAN12: "12", DEBIAN13: "13", DNF: "12"},
    **{CLOUD12: "12", CLOUD13: "13", CLOUD_DNF: "12"},
}
# Of what vmsnap needs; cloud-init needs some of it as well.
PRESENT = {
    **dict.fromkeys((DNF, CLOUD_DNF), {"python3-distro", "python3-jsonschema"}),
    **dict.fromkeys((CLOUD12, CLOUD13), {"python3-jsonschema"}),
}


@pytest.mark.parametrize(
    "sources",
    [
        ["Debian http://deb.debian.org/debian/ main"],
        ["Debian-Security http://a/updates/ main", "Debian http://deb.debian.org/debian/ main"],
        [
            "Debian http://deb.debian.org/debian/ contrib",
            "Debian http://deb.debian.org/debian/ main",
        ],
        ["Docker CE http://docker/ main", "Debian http://deb.debian.org/debian/ main"],
        # Not yet known, and changed by the mirror.
        ["$(LABEL) http://a/debian-security/ main", "$(LABEL) http://deb.debian.org/debian/ main"],
        [". http://a/debian-security/ main", ". http://deb.debian.org/debian/ main", ". b main"],
    ],
)
def test_images_are_built_from_the_mirror_that_this_machine_uses(
    sources: list[str],
) -> None:
    here = "\n".join(sources).replace("deb.debian.org", "mirror.example:8080/pub")
    assert archive_of(here + "\n") == "http://mirror.example:8080/pub/debian"


@pytest.mark.parametrize("sources", ["", "Debian-Security http://a/debian-security/ main\n"])
def test_a_machine_without_a_mirror_is_told_what_is_missing(sources: str) -> None:
    with pytest.raises(RuntimeError, match=r"found no archive .* expected one such as"):
        archive_of(sources)


def nothing(root: Path) -> None:
    """Boot the system as it was built."""


@pytest.fixture(scope="module", params=VERSION, ids=lambda recipe: recipe.name)
def system(request: pytest.FixtureRequest) -> Iterator[tuple[Recipe, Container]]:
    container = Container(request.param, nothing)
    try:
        yield request.param, container
    finally:
        container.close()


def test_it_boots_what_it_is_named_after(system: tuple[Recipe, Container]) -> None:
    recipe, container = system
    release = container.read("/usr/lib/os-release")
    assert f'VERSION_ID="{VERSION[recipe]}"\n' in release
    assert container.systemctl("is-system-running").stdout == "running\n"
    assert list(container.path("/var/log/journal").iterdir())


def test_it_has_only_cgroup_v2_as_real_systems_do(system: tuple[Recipe, Container]) -> None:
    _, container = system
    shown = container.run("stat", "--file-system", "--format=%T", "/sys/fs/cgroup", check=True)
    assert shown.stdout == "cgroup2fs\n"


def test_its_root_can_be_frozen_from_inside(system: tuple[Recipe, Container]) -> None:
    _, container = system
    with container.guarded():
        container.run("fsfreeze", "--freeze", "/", check=True)
        assert container.frozen()
        container.run("logger", "said while frozen", timeout=10.0, check=True)
        container.systemctl("status", timeout=10.0, check=True)
        container.run("fsfreeze", "--unfreeze", "/", check=True)
        assert not container.frozen()
    assert [record["MESSAGE"] for record in container.journal("-t", "root")] == [
        "said while frozen"
    ]


def test_a_reboot_keeps_what_is_on_the_disk(system: tuple[Recipe, Container]) -> None:
    _, container = system
    boot = container.read("/proc/sys/kernel/random/boot_id")
    container.write("/root/kept", "text")
    container.write("/run/lost", "text")
    container.reboot()
    assert container.read("/proc/sys/kernel/random/boot_id") != boot
    assert container.read("/root/kept") == "text"
    assert not container.path("/run/lost").exists()
    with container.guarded():
        container.run("fsfreeze", "--freeze", "/", check=True)
        assert container.thaw()


def test_what_packages_are_to_bring_is_absent(system: tuple[Recipe, Container]) -> None:
    recipe, container = system
    shown = container.run("dpkg-query", "--show", "--showformat=${Package}\n", check=True).stdout
    installed = set(shown.splitlines())
    assert installed & set(OURS) == PRESENT.get(recipe, set())
    assert ("python3" in installed) is (recipe in PRESENT)
    assert not container.path("/usr/bin/vmsnap").exists()


@pytest.mark.parametrize("recipe", [DEBIAN11, DEBIAN12, DEBIAN13], ids=lambda recipe: recipe.name)
def test_apt_installs_from_the_mirror_that_debian_signed(recipe: Recipe) -> None:
    container = Container(recipe, nothing)
    try:
        container.run("apt-get", "update", "-qq", "-eany", check=True, timeout=60.0)
        container.run("apt-get", "install", "-qqy", *OURS, check=True, timeout=120.0, env=QUIET)
        container.run("python3", "-Ic", "import distro, jsonschema, sdnotify", check=True)
    finally:
        container.close()
