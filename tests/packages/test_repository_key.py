# SPDX-License-Identifier: Apache-2.0
"""The key that signs the repositories: which one is taken, and who is asked for its passphrase."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from release import signing

from . import contents, publishing
from .publishing import everything, key_of, run


@pytest.fixture
def project(tmp_path: Path) -> Path:
    return publishing.project(tmp_path)


class Keyring:
    """One of its own. gpg-agent's socket wants a short path."""

    def __init__(self, home: str) -> None:
        self.home = home

    def gpg(self, *arguments: str) -> str:
        command = ["gpg", "--batch", "--yes", "--quiet", "--passphrase", "", *arguments]
        environment = {**os.environ, "GNUPGHOME": self.home}
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
        return done.stdout

    def add(self, name: str, kind: str, use: str = "sign") -> str:
        """Make a key; return its fingerprint."""
        self.gpg("--quick-generate-key", f"{name} <{name}@keys.example>", kind, use, "never")
        listed = self.gpg("--with-colons", "--list-keys", f"<{name}@keys.example>")
        return listed.partition("\nfpr:::::::::")[2].partition(":")[0]


@pytest.fixture(scope="module")
def keyring() -> Iterator[Keyring]:
    with tempfile.TemporaryDirectory(prefix="gpg-") as home:
        try:
            yield Keyring(home)
        finally:
            environment = {**os.environ, "GNUPGHOME": home}
            subprocess.run(["gpgconf", "--kill", "gpg-agent"], env=environment, check=True)


@pytest.fixture(scope="module")
def unfit(keyring: Keyring) -> dict[str, str]:
    """Names of keys that do not do, by what is wrong with them."""
    keyring.add("one", "rsa3072")
    public_only = keyring.add("two", "rsa3072")
    keyring.gpg("--delete-secret-keys", public_only)
    certifies = keyring.add("four", "rsa3072", "cert")
    keyring.gpg("--quick-add-key", certifies, "ed25519", "sign", "never")
    mixed = keyring.add("seven", "rsa3072")
    keyring.gpg("--quick-add-key", mixed, "ed25519", "sign", "never")
    weak_part = keyring.add("eight", "rsa3072")
    keyring.gpg("--quick-add-key", weak_part, "rsa2048", "sign", "never")
    return {
        "none given": "",
        "nobody's": "0" * 40,
        "an option": "--armor",
        "several": "keys.example",
        "its secret is elsewhere": public_only,
        "not RSA": keyring.add("five", "ed25519"),
        "a part that is not RSA signs": certifies,
        "a part that is not RSA signs as well": mixed,
        "short": keyring.add("nine", "rsa2048"),
        "a short part signs as well": weak_part,
        "signs nothing": keyring.add("six", "rsa3072", "cert"),
    }


def test_a_key_that_does_not_do_is_one_clear_error_and_changes_nothing(
    project: Path, keyring: Keyring, unfit: dict[str, str]
) -> None:
    before = everything(project / "dist")
    for reason, name in unfit.items():
        done = run(project, name, keyring.home)
        assert (done.returncode, done.stdout) == (1, ""), reason
        assert re.fullmatch(
            r"release: found .*, expected the fingerprint .* KEY=.*--list-secret-keys`\n",
            done.stderr,
        ), (reason, done.stderr)
        assert everything(project / "dist") == before, reason


def test_a_name_that_a_strangers_public_key_bears_as_well_publishes_only_ours(
    project: Path, keyring: Keyring
) -> None:
    shutil.rmtree(project / "dist/repo")
    stranger = keyring.add("not-mine", "rsa3072")
    keyring.gpg("--delete-secret-keys", stranger)
    ours = keyring.add("mine", "rsa3072")
    done = run(project, "mine", keyring.home)
    assert done.returncode == 0, done.stderr
    asc = key_of(project / "dist/repo")
    listed = contents.call("gpg", "--show-keys", "--with-colons", stdin=asc).decode()
    fields = [line.split(":") for line in listed.splitlines()]
    assert [field[9] for field in fields if field[0] == "fpr"] == [ours]
    assert [field[0] for field in fields].count("pub") == 1


PINENTRY = """#!/bin/sh
# gpg-agent's stand-in for who types: pinentry's protocol, and what the agent tells of the terminal.
echo "OK ready"
while read -r line; do
    echo "$line" >>{told}
    case $line in
    GETPIN) echo "D secret"; echo OK ;;
    BYE) echo OK; exit ;;
    *) echo OK ;;
    esac
done
"""


@pytest.fixture
def locked(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A GNUPGHOME whose only key has a passphrase. Someone types it in: a log of the dialogue."""
    with tempfile.TemporaryDirectory(prefix="gpg-") as home:
        told, pinentry = Path(home, "told"), Path(home, "pinentry")
        pinentry.write_text(PINENTRY.format(told=told), encoding="utf-8")
        pinentry.chmod(0o755)
        agent = Path(home, "gpg-agent.conf")
        agent.write_text(f"pinentry-program {pinentry}\n", encoding="utf-8")
        monkeypatch.setenv("GNUPGHOME", home)
        command = ["gpg", "--batch", "--quiet", "--pinentry-mode=loopback", "--passphrase=secret"]
        command += ["--quick-generate-key", "locked", "rsa3072", "sign", "never"]
        try:
            subprocess.run(command, capture_output=True, check=True)
            subprocess.run(["gpgconf", "--kill", "gpg-agent"], check=True)  # it remembers
            yield told
        finally:
            subprocess.run(["gpgconf", "--kill", "gpg-agent"], check=True)


def test_whoever_has_a_passphrase_is_asked_for_it_on_his_terminal(
    locked: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GPG_TTY", "/dev/pts/4711")
    monkeypatch.setenv("TERM", "vt100")
    path = tmp_path / "file"
    path.write_bytes(b"to sign")
    signature = tmp_path / "file.asc"
    signature.write_bytes(signing.detached(path, signing.fingerprint("locked")))
    contents.call("gpg", "--batch", "--verify", signature, path)
    told = locked.read_text(encoding="utf-8").splitlines()
    assert {"OPTION ttyname=/dev/pts/4711", "OPTION ttytype=vt100", "GETPIN"} <= set(told)
