# SPDX-License-Identifier: Apache-2.0
"""Signatures with the caller's key, which stays in gpg's keyring."""

from __future__ import annotations

import tempfile
from pathlib import Path

from release.command import ToolError, call

RSA, BITS = "1", 3072  # gpg's doc/DETAILS, field 4; every rpm reads RSA


def fingerprint(key: str) -> str:
    """Of the one secret key that `key` names. Raises ToolError unless that signs with RSA."""
    hint = "expected the fingerprint of one: make repo KEY=..., see `gpg --list-secret-keys`"
    if not key:
        raise ToolError(f"found no KEY, {hint}")
    try:
        listed = call("gpg", "--batch", "--with-colons", "--list-secret-keys", key).decode()
    except ToolError:
        raise ToolError(f"found no secret key {key!r} in gpg's keyring, {hint}") from None
    fields = [line.split(":") for line in listed.splitlines()]
    if sum(field[0] == "sec" for field in fields) != 1:
        raise ToolError(f"found several secret keys for {key!r}, {hint}")
    signing = [field for field in fields if field[0] in {"sec", "ssb"} and "s" in field[11]]
    if not signing or any(field[3] != RSA or int(field[2]) < BITS for field in signing):
        raise ToolError(f"found that {key!r} signs with less than RSA of {BITS} bits, {hint}")
    return next(field[9] for field in fields if field[0] == "fpr")


def public(key: str) -> bytes:
    """The public key, in ASCII armour."""
    return call("gpg", "--batch", "--armor", "--export", key)


def clearsign(path: Path, key: str) -> bytes:
    return call("gpg", "--batch", "--local-user", key, "--clearsign", "--output", "-", path)


def detached(path: Path, key: str) -> bytes:
    return call(
        *("gpg", "--batch", "--local-user", key, "--armor", "--detach-sign", "--output", "-", path)
    )


def sign_rpms(paths: list[Path], key: str) -> None:
    """Put a signature into each package. Raises ToolError, also when rpm says nothing of a
    failure."""
    # Debian's rpm 4.18 does not know where gpg is, and goes on without.
    macros = {"__gpg": "/usr/bin/gpg", "_gpg_name": key, "_gpg_digest_algo": "sha256"}
    call(
        "rpmsign",
        *(f"--define={name} {value}" for name, value in macros.items()),
        "--addsign",
        *paths,
    )
    with tempfile.TemporaryDirectory(prefix="vmsnap-rpmdb-") as database:
        imported = Path(database) / "key.asc"
        imported.write_bytes(public(key))
        place = f"--define=_dbpath {database}"
        call("rpmkeys", place, "--import", imported)
        for path in paths:
            if b"signatures OK" not in call("rpmkeys", place, "--checksig", path):
                raise ToolError(f"{path} has no signature that {key} made")
