# SPDX-License-Identifier: Apache-2.0
"""The images that containers start from: a Debian each, in a sparse ext4 file, built once.

    python -m tests.system.image [containers|machines]

builds those that are missing, two at a time. The filesystem's label is the fingerprint of the
recipe that made it, so there is no second file that could disagree with it, and a changed recipe
builds anew.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

DIRECTORY = Path(__file__).parents[2] / "build/images"
TOOLS = ("mmdebstrap", "mkfs.ext4")
LABEL_AT = 1024 + 0x78  # ext4(5): s_volume_name, 16 bytes of the superblock
# Reads the directory as it is made, and leaves nothing for the kernel to initialize later:
# a background writer would be at work in every container.
MKFS = ("mkfs.ext4", "-q", "-F", "-E", "lazy_itable_init=0,lazy_journal_init=0,nodiscard")

SYSTEM = (
    *("systemd", "systemd-sysv", "dbus", "kmod", "procps", "util-linux", "mount", "e2fsprogs"),
    *("man-db", "bash"),
)
OURS = ("python3-distro", "python3-sdnotify", "python3-jsonschema")  # what vmsnap imports
# Slow, or without a meaning in a container.
MASKED = (
    *("apt-daily.timer", "apt-daily-upgrade.timer", "dpkg-db-backup.timer", "e2scrub_all.timer"),
    *("e2scrub_reap.service", "fstrim.timer", "man-db.timer", "systemd-timesyncd.service"),
    *("console-getty.service", "getty.target", "systemd-networkd-wait-online.service"),
    *("systemd-firstboot.service", "systemd-pcrphase.service", "systemd-logind.service"),
)


@dataclass(frozen=True)
class Recipe:
    """What an image is made of; all of it goes into the fingerprint."""

    name: str
    suite: str
    packages: tuple[str, ...]
    # Lie in apt's cache with all that they need, for there is no network inside: `apt-get update`
    # and `apt-get install` find them.
    downloaded: tuple[str, ...] = ()
    masked: tuple[str, ...] = MASKED
    mib: int = 3072

    @property
    def path(self) -> Path:
        return DIRECTORY / f"{self.name}.img"

    @property
    def commands(self) -> tuple[str, ...]:
        """What is run when the packages are installed; $1 is the root."""
        return (
            *(self.mirroring if self.downloaded else ()),
            f'systemctl --root="$1" mask --quiet {" ".join(self.masked)}',
            'ln -sf /lib/systemd/system/multi-user.target "$1/etc/systemd/system/default.target"',
            'mkdir -p "$1/var/log/journal"',
            'echo vmsnap-test >"$1/etc/hostname"',
            'printf "127.0.0.1 localhost vmsnap-test\\n" >"$1/etc/hosts"',
            ': >"$1/etc/fstab"',
            'rm -f "$1/etc/resolv.conf"',
        )

    @property
    def mirroring(self) -> tuple[str, ...]:
        """Make a mirror, as Debian signed it, of what apt's cache holds: apt works offline."""
        mirror = f'"$1/srv/debian/dists/{self.suite}"'
        binary = f"{mirror}/main/binary-$(dpkg --print-architecture)"
        return (
            'chroot "$1" apt-get clean',  # of what is installed already
            f'chroot "$1" apt-get -qy install --download-only {" ".join(self.downloaded)}',
            f"mkdir -p {binary}",
            f'mv "$1"/var/lib/apt/lists/*_InRelease {mirror}/InRelease',
            f'mv "$1"/var/lib/apt/lists/*_Packages {binary}/Packages',
            # Not file: - with it, apt before 3.0 takes Packages for Packages.xz and finds it wrong.
            f'echo "deb copy:/srv/debian {self.suite} main" >"$1/etc/apt/sources.list"',
        )

    @property
    def mmdebstrap(self) -> tuple[str, ...]:
        return (
            *("mmdebstrap", "--quiet", "--mode=root", "--format=directory", "--variant=minbase"),
            # The mirror may be a snapshot of an old day.
            '--aptopt=Acquire::Check-Valid-Until "false"',
            '--aptopt=Acquire::Check-Date "false"',
            '--aptopt=Acquire::Languages "none"',
            '--aptopt=APT::Install-Recommends "false"',
            "--dpkgopt=force-unsafe-io",
            f"--include={','.join(self.packages)}",
            *(["--skip=cleanup/apt/cache"] if self.downloaded else []),
            *(f"--customize-hook={command}" for command in self.commands),
            self.suite,
        )

    @property
    def fingerprint(self) -> str:
        recipe = repr((self.mmdebstrap, MKFS, self.mib))
        return hashlib.sha256(recipe.encode()).hexdigest()[:16]


# Everything that vmsnap and its tests need, for `make install`.
BOOKWORM = Recipe(
    name="bookworm",
    suite="bookworm",
    packages=(*SYSTEM, "xfsprogs", "python3", *OURS, "bash-completion", "zsh", "fish"),
)
# Without Python, for packages that bring what they need.
DEBIAN11, DEBIAN12, DEBIAN13 = (
    Recipe(name=f"debian{number}", suite=suite, packages=SYSTEM, downloaded=(*OURS, *more))
    for number, suite, more in (
        (11, "bullseye", ()),
        (12, "bookworm", ("needrestart",)),
        (13, "trixie", ()),
    )
)
# Without sdnotify, which comes as an RPM of ours: no distribution of RPMs has it everywhere.
DNF = Recipe(
    name="dnf",
    suite="bookworm",
    packages=(*SYSTEM, "dnf", "rpm", "python3", "python3-distro", "python3-jsonschema"),
)
# The agents of every platform for which Debian has one; a test starts them by itself.
AGENTS = replace(
    BOOKWORM,
    name="agents",
    packages=(
        *BOOKWORM.packages,
        *("qemu-guest-agent", "open-vm-tools", "google-guest-agent", "waagent"),
    ),
    masked=(
        *MASKED,
        *("google-guest-agent.service", "google-startup-scripts.service"),
        *("google-shutdown-scripts.service", "walinuxagent.service", "open-vm-tools.service"),
    ),
)
# The servers are installed; a test makes data directories for them and starts them by itself.
DATABASES = replace(
    BOOKWORM,
    name="databases",
    packages=(*BOOKWORM.packages, "postgresql", "mariadb-server", "redis-server"),
    masked=(*MASKED, "postgresql.service", "mariadb.service", "redis-server.service"),
)
# As in the image of a cloud, whose first boot is yet to come.
CLOUD = ("cloud-init", "iproute2")
CLOUD12, CLOUD13 = (
    Recipe(name=f"cloud{number}", suite=suite, packages=(*SYSTEM, *CLOUD), downloaded=OURS)
    for number, suite in ((12, "bookworm"), (13, "trixie"))
)
CLOUD_DNF = replace(DNF, name="clouddnf", packages=(*DNF.packages, *CLOUD))
# For a machine with a kernel of its own (tests/vm).
VM = replace(CLOUD12, name="vm", packages=(*CLOUD12.packages, "udev", "linux-image-cloud-amd64"))
# The same with a database server, and with the agent through which the host freezes it.
VM_DATABASE = replace(
    BOOKWORM,
    name="vmdatabase",
    packages=(
        *BOOKWORM.packages,
        *("qemu-guest-agent", "postgresql", "udev", "linux-image-cloud-amd64"),
    ),
    masked=(*MASKED, "postgresql.service"),
)
RECIPES = {
    "containers": (
        *(BOOKWORM, DEBIAN11, DEBIAN12, DEBIAN13, DNF, CLOUD12, CLOUD13, CLOUD_DNF),
        *(AGENTS, DATABASES),
    ),
    "machines": (VM, VM_DATABASE),
}


FIELDS = "$(LABEL) $(REPO_URI) $(COMPONENT)"  # apt-get(8), indextargets


def mirror() -> str:
    """The archive that this machine's apt uses for Debian itself, so that images can be built
    behind any mirror. Raises RuntimeError."""
    argv = ["apt-get", "indextargets", "--format", FIELDS, "Created-By: Packages"]
    done = subprocess.run(argv, capture_output=True, text=True, check=False)
    return archive_of(done.stdout)


def archive_of(targets: str) -> str:
    """The first archive whose label is Debian's: neither that of security updates nor that of
    somebody else has it. A label is known after `apt-get update`, and some mirrors change it: then
    it is the first that has a component of that name and is not that of security updates."""
    lines = [line.rsplit(" ", 2) for line in targets.splitlines()]
    archives = [(label, uri.rstrip("/")) for label, uri, component in lines if component == "main"]
    for label, uri in archives:
        if label == "Debian":
            return uri
    for _, uri in archives:
        if "security" not in uri:
            return uri
    raise RuntimeError(
        "found no archive of Debian among the sources of apt, expected one such as "
        "`deb http://MIRROR/debian bookworm main` in /etc/apt/sources.list"
    )


def label(image: Path) -> str:
    """The ext4 label of an image; empty if there is none."""
    if not image.exists():
        return ""
    with image.open("rb") as file:
        file.seek(LABEL_AT)
        return file.read(16).rstrip(b"\0").decode("ascii", "replace")


def ensure(recipe: Recipe) -> Path:
    """Build the image unless it is there; return its path."""
    if label(recipe.path) != recipe.fingerprint:
        DIRECTORY.mkdir(parents=True, exist_ok=True)
        with alone(recipe.path.with_suffix(".lock")):
            if label(recipe.path) != recipe.fingerprint:
                build(recipe)
    return recipe.path


@contextmanager
def alone(lock: Path) -> Iterator[None]:
    """Two test runs may want the same image."""
    with lock.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def build(recipe: Recipe) -> None:
    began = time.monotonic()
    print(f"building {recipe.path}, about a minute ...", file=sys.stderr, flush=True)
    for left in DIRECTORY.glob(f".{recipe.name}.*"):  # of a build that was killed
        shutil.rmtree(left)
    work = Path(tempfile.mkdtemp(prefix=f".{recipe.name}.", dir=DIRECTORY))
    try:
        root, image = work / "root", work / "image"
        call(*recipe.mmdebstrap, root, mirror())
        with image.open("wb") as file:
            file.truncate(recipe.mib << 20)
        call(*MKFS, "-L", recipe.fingerprint, "-d", root, image)
        image.replace(recipe.path)
    finally:
        shutil.rmtree(work)
    print(f"built {recipe.path} in {time.monotonic() - began:.0f} s", file=sys.stderr, flush=True)


def proxies() -> dict[str, str]:
    """Those of this machine's apt, for that of the image."""
    found = {}
    for scheme in ("http", "https"):
        argv = ["apt-config", "dump", "--format", "%v", f"Acquire::{scheme}::Proxy"]
        done = subprocess.run(argv, capture_output=True, text=True, check=False)
        if done.stdout:
            found[f"{scheme}_proxy"] = done.stdout
    return found


def call(*argv: str | Path) -> None:
    done = subprocess.run(
        list(map(str, argv)), stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False,
        env={**os.environ, **proxies()},
    )  # fmt: skip
    if done.returncode:
        raise RuntimeError(f"{argv[0]} failed: {(done.stderr + done.stdout)[-4000:]}")


if __name__ == "__main__":
    with ThreadPoolExecutor(2) as pool:
        wanted = [recipe for kind in sys.argv[1:] or RECIPES for recipe in RECIPES[kind]]
        for made in pool.map(ensure, wanted):
            print(made)
