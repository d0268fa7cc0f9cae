# SPDX-License-Identifier: Apache-2.0
"""`python -m release {source,deb,rpm,repo,renew}`, which `make` calls: see docs/release.md."""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

from release import deb, repository, rpm, source
from release.changelog import InconsistentError
from release.command import ToolError

ROOT = Path(__file__).parents[1]
DIST = ROOT / "dist"


def archive() -> Path:
    return source.pack(ROOT, source.tracked(ROOT), source.committed(ROOT), DIST)


def build_deb() -> list[Path]:
    show("building the Debian package")
    return [deb.build(archive(), DIST / "deb")]


def build_rpm() -> list[Path]:
    packed, built = archive(), []
    for target in rpm.TARGETS:
        show(f"building the packages of {target.name}")
        built += rpm.build(packed, target, DIST / "rpm")
    return built


def show(step: str) -> None:
    """Tell a person who waits what is being done."""
    if sys.stderr.isatty():
        print(f"{step} ...", file=sys.stderr)


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(prog="python -m release", description=__doc__)
    commands = made.add_subparsers(dest="command", required=True, metavar="COMMAND")
    commands.add_parser("source", help="the archive that packages are built from")
    commands.add_parser("deb", help="the Debian package")
    commands.add_parser("rpm", help="the RPM packages of each distribution")
    repo = commands.add_parser("repo", help="signed apt and dnf repositories of what is in dist/")
    renew = commands.add_parser("renew", help="sign apt's index in dist/repo for another month")
    for signed in (repo, renew):
        signed.add_argument(
            "--key", required=True, help="the fingerprint of a secret RSA key of gpg's"
        )
    repo.add_argument(
        "--url", default=repository.URL, help="where they will be found (%(default)s)"
    )
    return made


def main() -> int:
    arguments = parser().parse_args()
    os.umask(0o022)
    try:
        if arguments.command == "source":
            made = [archive()]
        elif arguments.command == "deb":
            made = build_deb()
        elif arguments.command == "rpm":
            made = build_rpm()
        elif arguments.command == "renew":
            made = [repository.renew(DIST, arguments.key)]
        else:
            made = [repository.make(DIST, arguments.key, arguments.url)]
    except (ToolError, InconsistentError, OSError) as e:
        print(f"release: {e}", file=sys.stderr)
        return 1
    print("\n".join(str(path.relative_to(ROOT)) for path in made))
    return 0


if __name__ == "__main__":
    sys.exit(main())
