# SPDX-License-Identifier: Apache-2.0
"""Completion in real shells: every shell offers what the parser takes, and nothing else."""

from __future__ import annotations

import contextlib
import os
import pty
import select
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from vmsnap.cli.arguments import LEVELS
from vmsnap.cli.completion import completion
from vmsnap.cli.main import parser
from vmsnap.platforms.registry import agents
from vmsnap.provision.quiescers import QUIESCERS

from .grammar import COMMANDS, commands, options

HERE = Path(__file__).parent
TEMPLATES = HERE.parents[1] / "completions"
BASH_COMPLETION = Path("/usr/share/bash-completion/bash_completion")
PACKAGES = {"bash": "bash", "zsh": "zsh", "fish": "fish", "unshare": "util-linux"}
RESCUE = 60  # seconds after which a shell that waits for something is killed
SHELLS = ("bash", "bash-completion", "zsh", "fish")
# A mount point that needs quotes, in a mount namespace that only the shell sees.
MOUNTED = 'mount -t tmpfs none "$1" && shift && exec "$@"'


def tool(name: str) -> str:
    path = shutil.which(name)
    if path is None:
        pytest.fail(f"{name} is not installed: apt-get install {PACKAGES[name]}")
    return path


@dataclass
class Shell:
    """A machine with a fake vmsnap in PATH, which writes down what it is called with."""

    home: Path
    completions: Path

    def __post_init__(self) -> None:
        (self.home / "bin").mkdir()
        fake = self.home / "bin/vmsnap"
        fake.write_text(f"#!/bin/sh\nprintf '%s\\n' \"$@\" >> {self.calls}\n")
        fake.chmod(0o755)
        self.mount.mkdir()
        (self.home / "functions").mkdir()
        (self.home / "functions/_vmsnap").symlink_to(self.completions / "vmsnap.zsh")

    @property
    def calls(self) -> Path:
        return self.home / "calls"

    @property
    def mount(self) -> Path:
        return self.home / "my disk"

    @property
    def environment(self) -> dict[str, str]:
        path = f"{self.home}/bin:{os.environ['PATH']}"
        return {"PATH": path, "HOME": str(self.home), "TERM": "dumb", "LC_ALL": "C.UTF-8"}

    def offers(self, shell: str, *words: str) -> set[str]:
        """What the shell offers for the last of the words."""
        found = {line.strip() for line in self.ask(shell, words).splitlines()}
        assert not self.calls.exists(), "vmsnap was run, which needs root and takes time"
        return found - {""}

    def ask(self, shell: str, words: tuple[str, ...]) -> str:
        line = " ".join(words)
        if shell == "fish":
            source = f"source {self.completions}/vmsnap.fish; complete -C $argv"
            text = self.run(tool("fish"), "--no-config", "-c", source, line)
            return "\n".join(offer.partition("\t")[0] for offer in text.splitlines())
        if shell == "zsh":
            functions = str(self.home / "functions")
            return self.run(tool("zsh"), "-f", f"{HERE}/capture.zsh", functions, line)
        if shell == "bash-completion" and not BASH_COMPLETION.exists():
            pytest.fail("bash-completion is not installed: apt-get install bash-completion")
        helpers = str(BASH_COMPLETION) if shell == "bash-completion" else ""
        broken = [part for word in words for part in split_as_bash_does(word)]
        argv = [f"{HERE}/complete.bash", f"{self.completions}/vmsnap.bash", helpers, *broken]
        return self.run(tool("bash"), "--norc", *argv)

    def run(self, *argv: str) -> str:
        where = [tool("unshare"), "--mount", "sh", "-c", MOUNTED, "sh", str(self.mount)]
        done = subprocess.run(
            [*where, *argv],
            env=self.environment,
            cwd=self.home,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=RESCUE,
            check=False,
        )
        assert done.stderr == ""
        return done.stdout


def split_as_bash_does(word: str) -> list[str]:
    """COMP_WORDBREAKS has a = in it, and what stands for the last word may be empty."""
    name, equals, value = word.partition("=")
    return [name, "=", *filter(None, [value])] if equals else [word]


@pytest.fixture(scope="module")
def completions(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The files as a package has them."""
    directory = tmp_path_factory.mktemp("completions")
    for name in ("bash", "zsh", "fish"):
        template = (TEMPLATES / f"vmsnap.{name}.in").read_text(encoding="utf-8")
        (directory / f"vmsnap.{name}").write_text(completion(template, name), encoding="utf-8")
    return directory


@pytest.fixture
def shell(tmp_path: Path, completions: Path) -> Iterator[Shell]:
    if os.geteuid() != 0:
        pytest.fail("these tests mount a filesystem: run them as root")
    yield Shell(tmp_path, completions)


@pytest.mark.parametrize("name", SHELLS)
def test_every_command_is_offered_and_no_internal_one(shell: Shell, name: str) -> None:
    assert {word for word in shell.offers(name, "vmsnap", "") if word[0] != "-"} == set(COMMANDS)


@pytest.mark.parametrize("name", SHELLS)
def test_a_command_is_completed(shell: Shell, name: str) -> None:
    assert shell.offers(name, "vmsnap", "fr") == {"freeze"}


@pytest.mark.parametrize("name", SHELLS)
def test_without_a_command_there_are_help_and_version(shell: Shell, name: str) -> None:
    assert shell.offers(name, "vmsnap", "--") == options(parser())


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize("name", SHELLS)
def test_a_command_offers_its_options_and_no_others(shell: Shell, name: str, command: str) -> None:
    assert shell.offers(name, "vmsnap", command, "--") == options(commands()[command])


@pytest.mark.parametrize("name", SHELLS)
def test_the_command_of_the_unit_has_nothing_to_offer(shell: Shell, name: str) -> None:
    assert shell.offers(name, "vmsnap", "session", "--") == set()


@pytest.mark.parametrize("name", SHELLS)
def test_the_levels_are_offered(shell: Shell, name: str) -> None:
    assert shell.offers(name, "vmsnap", "freeze", "--require", "") == set(LEVELS)


@pytest.mark.parametrize("name", SHELLS)
def test_the_quiescers_are_offered(shell: Shell, name: str) -> None:
    assert shell.offers(name, "vmsnap", "init", "--quiesce", "") == set(QUIESCERS)


@pytest.mark.parametrize("command", ["integrate", "hook"])
@pytest.mark.parametrize("name", SHELLS)
def test_the_agents_are_offered(shell: Shell, name: str, command: str) -> None:
    assert shell.offers(name, "vmsnap", command, "") - {"--help"} == set(agents())


@pytest.mark.parametrize("agent", ["aws", "vmware"])
@pytest.mark.parametrize("name", [name for name in SHELLS if name != "zsh"])
def test_the_events_of_an_agent_are_offered(shell: Shell, name: str, agent: str) -> None:
    assert shell.offers(name, "vmsnap", "hook", agent, "") == set(agents()[agent].events)


def test_zsh_offers_the_events_of_all_agents(shell: Shell) -> None:
    every = {event for agent in agents().values() for event in agent.events}
    assert shell.offers("zsh", "vmsnap", "hook", "aws", "") == every


@pytest.mark.parametrize("name", SHELLS)
def test_standard_input_is_offered_where_it_is_read(shell: Shell, name: str) -> None:
    assert "-" in shell.offers(name, "vmsnap", "provision", "-")


@pytest.mark.parametrize("option", ["--only", "--exclude"])
@pytest.mark.parametrize("name", SHELLS)
def test_mount_points_are_offered_as_they_are_called(shell: Shell, name: str, option: str) -> None:
    offers = shell.offers(name, "vmsnap", "plan", option, "/")
    assert {"/", "/proc", str(shell.mount)} <= {word.replace("\\ ", " ") for word in offers}


@pytest.mark.parametrize("name", SHELLS)
def test_a_value_after_an_equals_sign_is_completed(shell: Shell, name: str) -> None:
    offers = shell.offers(name, "vmsnap", "run", "--require=cr")
    assert {word.rpartition("=")[2] for word in offers} == {"crash"}


@pytest.mark.parametrize("option", ["--etc", "--run", "--state"])
@pytest.mark.parametrize("name", SHELLS)
def test_directories_are_offered_and_no_files(shell: Shell, name: str, option: str) -> None:
    (shell.home / "directory").mkdir()
    (shell.home / "directions").touch()
    offers = shell.offers(name, "vmsnap", "status", option, "dire")
    assert {word.rstrip("/") for word in offers} == {"directory"}


@pytest.mark.parametrize("name", SHELLS)
def test_the_command_of_a_session_is_completed(shell: Shell, name: str) -> None:
    assert "vmsnap" in shell.offers(name, "vmsnap", "run", "--json", "--", "vmsn")


@pytest.mark.parametrize("name", ["bash-completion", "zsh", "fish"])
def test_the_command_of_a_session_has_its_own_completion(shell: Shell, name: str) -> None:
    assert shell.offers(name, "vmsnap", "run", "--", "vmsnap", "thaw", "--fo") == {"--force"}


@pytest.mark.parametrize("name", SHELLS)
def test_only_run_has_a_command(shell: Shell, name: str) -> None:
    assert shell.offers(name, "vmsnap", "freeze", "--", "vmsn") == set()


@pytest.mark.parametrize("name", SHELLS)
def test_what_only_a_person_knows_is_left_to_the_person(shell: Shell, name: str) -> None:
    assert shell.offers(name, "vmsnap", "plot", "") == set()
    assert shell.offers(name, "vmsnap", "init", "") == set()
    assert shell.offers(name, "vmsnap", "history", "--since", "") == set()
    assert shell.offers(name, "vmsnap", "run", "--hold", "") == set()


@pytest.mark.parametrize("helpers", [False, True], ids=["bash", "bash-completion"])
@pytest.mark.parametrize(
    ("typed", "called"),
    [
        ("vmsnap fr\t", ["freeze"]),
        ("vmsnap run --req\tapp\t", ["run", "--require", "application"]),
        ("vmsnap plan --only {home}/my\t", ["plan", "--only", "{home}/my disk/"]),
        ("vmsnap plan --only={home}/my\t", ["plan", "--only={home}/my disk/"]),
        ('vmsnap plan --only "{home}/my\t', ["plan", "--only", "{home}/my disk/"]),
        ("vmsnap run -- ech\thello", ["run", "--", "echo", "hello"]),
        ("vmsnap run -- ls {home}/fun\t", ["run", "--", "ls", "{home}/functions/"]),
    ],
)
def test_a_key_completes_in_an_editor(
    shell: Shell, typed: str, called: list[str], helpers: bool
) -> None:
    type_into_bash(shell, typed.format(home=shell.home), helpers)
    assert shell.calls.read_text().splitlines() == [w.format(home=shell.home) for w in called]


def type_into_bash(shell: Shell, typed: str, helpers: bool) -> None:
    """Type one line into a bash on a terminal, and leave it."""
    ours, theirs = pty.openpty()
    sources = [*([str(BASH_COMPLETION)] if helpers else []), f"{shell.completions}/vmsnap.bash"]
    lines = [*(f"source {path}" for path in sources), typed, "exit"]
    where = [tool("unshare"), "--mount", "sh", "-c", MOUNTED, "sh", str(shell.mount)]
    with subprocess.Popen(
        [*where, tool("bash"), "--norc", "-i"],
        env=shell.environment,
        cwd=shell.home,
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        start_new_session=True,
    ) as bash:
        os.close(theirs)
        os.write(ours, "".join(f"{line}\n" for line in lines).encode())
        try:
            with contextlib.suppress(OSError):  # EIO once the terminal is closed
                while select.select([ours], [], [], RESCUE)[0]:
                    os.read(ours, 4096)
            bash.wait(RESCUE)
        finally:
            bash.kill()
            os.close(ours)
