# SPDX-License-Identifier: Apache-2.0
"""`vmsnap provision`: what it writes, what it leaves, and what is known of it afterwards."""

from __future__ import annotations

import errno
import io
import json
import os
import signal
import stat
import threading
from pathlib import Path
from typing import Any

import pytest

from vmsnap.cli.main import main
from vmsnap.provision import status
from vmsnap.provision.status import recorded
from vmsnap.session import lock

from ..worlds import Etc

Capture = pytest.CaptureFixture[str]
SH = "#!/bin/sh\nexit 0\n"
GOOD: dict[str, Any] = {
    "apps": {"db": {"config": {"timeoutInSeconds": 9}, "scripts": {"pre": SH, "post": SH}}},
    "conf": {"freeze": {"hold": 30}},
}
BAD: dict[str, Any] = {**GOOD, "confi": {}}
WRITTEN = {
    "vmsnap/apps.d/db.json": 0o600,
    "vmsnap/scripts/db/pre": 0o700,
    "vmsnap/scripts/db/post": 0o700,
    "vmsnap/vmsnap.conf.d/50-provision.conf": 0o600,
}


class Provisioning:
    """`vmsnap provision` on an instance of its own."""

    def __init__(self, etc: Etc, monkeypatch: pytest.MonkeyPatch, capsys: Capture) -> None:
        self.etc, self.directory = etc, etc.root.parent
        self.state, self.runtime = self.directory / "state", self.directory / "run"
        self.instance = self.directory / "instance-id"
        self.instance.write_text("i-1\n")
        self._monkeypatch, self._capsys = monkeypatch, capsys
        monkeypatch.setattr(status, "INSTANCE_IDS", (self.instance,))
        self.out = self.err = self.heard = ""

    def run(self, *words: str) -> int:
        where = {"--etc": self.etc.root, "--run": self.runtime, "--state": self.state}
        code = main([*words, *(str(word) for option in where.items() for word in option)])
        self.out, self.err = self._capsys.readouterr()
        self.heard += self.out
        return code

    def provision(self, document: object, *options: str) -> int:
        stdin = io.TextIOWrapper(io.BytesIO(json.dumps(document).encode()))
        self._monkeypatch.setattr("sys.stdin", stdin)
        return self.run("provision", "-", *options)

    def files(self) -> dict[str, int]:
        found = [path for path in self.etc.root.rglob("*") if not path.is_dir()]
        return {
            str(path.relative_to(self.etc.root)): stat.S_IMODE(path.lstat().st_mode)
            for path in found
        }

    def identities(self) -> set[tuple[str, int]]:
        """A file that is written anew has another inode."""
        return {(name, (self.etc.root / name).stat().st_ino) for name in self.files()}


@pytest.fixture
def provisioning(etc: Etc, monkeypatch: pytest.MonkeyPatch, capsys: Capture) -> Provisioning:
    etc.root.mkdir(exist_ok=True)
    return Provisioning(etc, monkeypatch, capsys)


# --- what is written -----------------------------------------------------------------------------


@pytest.mark.parametrize("umask", [0o000, 0o077])
def test_what_is_provisioned_passes_every_check(provisioning: Provisioning, umask: int) -> None:
    before = os.umask(umask)
    try:
        assert provisioning.provision(GOOD) == 0
    finally:
        os.umask(before)
    assert provisioning.files() == WRITTEN
    found = provisioning.etc.inspect()
    assert found.problems == []
    assert [app.name for app in found.runnable] == ["db"]
    assert found.settings.hold == 30
    for name in ("vmsnap", "vmsnap/apps.d", "vmsnap/scripts/db", "vmsnap/vmsnap.conf.d"):
        assert stat.S_IMODE((provisioning.etc.root / name).stat().st_mode) == 0o700


def test_the_second_time_nothing_is_touched(provisioning: Provisioning) -> None:
    provisioning.provision(GOOD)
    before = provisioning.identities()
    assert provisioning.provision(GOOD) == 0
    assert provisioning.identities() == before
    assert provisioning.out.count("unchanged: ") == len(WRITTEN)


@pytest.mark.parametrize("spoil", ["text", "mode", "owner", "link"])
def test_what_somebody_changed_is_put_right(provisioning: Provisioning, spoil: str) -> None:
    provisioning.provision(GOOD)
    script = provisioning.etc.root / "vmsnap/scripts/db/pre"
    if spoil == "text":
        script.write_text("#!/bin/sh\nexit 1\n")
    elif spoil == "mode":
        script.chmod(0o777)
    elif spoil == "owner":
        os.chown(script, 1000, 0)
    else:
        script.rename(script.with_name("elsewhere"))
        script.symlink_to("elsewhere")
    assert provisioning.provision(GOOD) == 0
    assert provisioning.out.count("wrote ") == 1
    assert (script.read_text(), script.is_symlink()) == (SH, False)
    assert (stat.S_IMODE(script.stat().st_mode), script.stat().st_uid) == (0o700, 0)


def test_what_a_document_does_not_mention_stays(provisioning: Provisioning) -> None:
    provisioning.provision(GOOD)
    provisioning.provision({"conf": {"freeze": {"hold": 9}}})
    assert provisioning.files() == WRITTEN
    assert provisioning.etc.inspect().settings.hold == 9


def test_a_directory_that_cloud_init_made_for_all_to_read_becomes_root_s(
    provisioning: Provisioning,
) -> None:
    (provisioning.etc.root / "vmsnap").mkdir(mode=0o755)
    provisioning.provision(GOOD)
    assert stat.S_IMODE((provisioning.etc.root / "vmsnap").stat().st_mode) == 0o700


# --- what goes wrong -----------------------------------------------------------------------------


def test_of_a_document_with_a_mistake_nothing_is_written(provisioning: Provisioning) -> None:
    assert provisioning.provision(BAD) == 1
    assert provisioning.files() == {}
    assert "confi: unknown key; did you mean" in provisioning.err


@pytest.mark.parametrize("fails", range(1, len(WRITTEN) + 1))
def test_a_rename_that_fails_is_the_last_and_those_before_it_are_undone(
    provisioning: Provisioning, monkeypatch: pytest.MonkeyPatch, fails: int
) -> None:
    """As for a file that is a mount point, or one that cannot be changed (chattr +i)."""
    provisioning.provision({"conf": {"freeze": {"hold": 9}}})
    before, directories = provisioning.identities(), sorted(provisioning.etc.root.rglob("*"))
    left, real = fails, Path.rename

    def sometimes(self: Path, target: Path) -> Path:
        nonlocal left
        left -= provisioning.etc.root in target.parents
        if left == 0:
            left = -1
            raise OSError(errno.EBUSY, os.strerror(errno.EBUSY), str(self), None, str(target))
        return real(self, target)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "rename", sometimes)
        assert provisioning.provision(GOOD, "--json") == 1
    assert json.loads(provisioning.out)["written"] == []
    (told,) = json.loads(provisioning.out)["problems"]
    assert told["message"].startswith(f"{provisioning.etc.root}/vmsnap/")
    assert "/." not in told["message"]
    assert provisioning.identities() == before
    assert sorted(provisioning.etc.root.rglob("*")) == directories


@pytest.mark.parametrize("survives", range(len(WRITTEN)))
def test_a_full_disk_leaves_everything_as_it_was(
    provisioning: Provisioning, monkeypatch: pytest.MonkeyPatch, survives: int
) -> None:
    provisioning.provision({"conf": {"freeze": {"hold": 9}}})
    before, directories = provisioning.identities(), sorted(provisioning.etc.root.rglob("*"))
    left, real = survives + 2, os.fsync  # two for the outcome: the file and its directory

    def sometimes(fd: int) -> None:
        nonlocal left
        left -= 1
        if left < 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        real(fd)

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", sometimes)
        assert provisioning.provision(GOOD) == 1
    assert f"{provisioning.etc.root}/vmsnap/" in provisioning.err
    assert ": No space left on device" in provisioning.err
    assert "/." not in provisioning.err
    assert provisioning.identities() == before
    assert sorted(provisioning.etc.root.rglob("*")) == directories
    assert provisioning.etc.inspect().settings.hold == 9


def test_a_directory_in_the_way_of_the_last_file_keeps_all_others_from_being_written(
    provisioning: Provisioning,
) -> None:
    (provisioning.etc.root / "vmsnap/vmsnap.conf.d/50-provision.conf").mkdir(parents=True)
    assert provisioning.provision(GOOD) == 1
    assert "50-provision.conf: Is a directory" in provisioning.err
    assert provisioning.files() == {}


def test_what_is_wrong_besides_the_document_is_a_failure_too(provisioning: Provisioning) -> None:
    """Or the creation of the machine would be told as a success, and its check be red."""
    provisioning.etc.write("vmsnap/apps.d/other.json", '{"secret": hunter2}', 0o600)
    assert provisioning.provision(GOOD) == 1
    assert "other.json: IncorrectJSONConfigFile" in provisioning.err
    assert "hunter2" not in provisioning.err


def test_an_app_of_azure_that_the_plugin_host_does_not_name_is_a_failure(
    provisioning: Provisioning,
) -> None:
    document = {"azure": True, "scripts": {"pre": SH}}
    assert provisioning.provision(document) == 0
    provisioning.etc.write(
        "azure/VMSnapshotPluginHost.conf", "[pre_post]\nnumberOfPlugins = 0\n", 0o600
    )
    assert provisioning.provision(document) == 1
    assert "azure: not an app that VMSnapshotPluginHost.conf names" in provisioning.err


# --- a file --------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["document.yaml", "document.json", "document"])
def test_a_file_is_yaml_or_json_by_its_name(provisioning: Provisioning, name: str) -> None:
    path = provisioning.directory / name
    path.write_text(json.dumps(GOOD))
    assert provisioning.run("provision", "--file", str(path)) == 0
    assert provisioning.files() == WRITTEN


@pytest.mark.parametrize(("owner", "mode"), [(1000, 0o600), (0, 0o622), (0, 0o660)])
def test_a_file_that_others_could_have_written_is_refused(
    provisioning: Provisioning, owner: int, mode: int
) -> None:
    """What it says is run by root."""
    path = provisioning.directory / "document.json"
    path.write_text(json.dumps(GOOD))
    os.chown(path, owner, 0)
    path.chmod(mode)
    assert provisioning.run("provision", "--file", str(path)) == 1
    assert provisioning.files() == {}
    assert f"{path}: found " in provisioning.err
    assert provisioning.run("provision", "--dry-run", "--file", str(path)) == 0


def test_a_name_that_is_mistyped_changes_no_outcome(provisioning: Provisioning) -> None:
    provisioning.provision(GOOD)
    for options in ((), ("--dry-run",)):
        assert provisioning.run("provision", "--file", "/nonesuch/bar.yaml", *options) == 1
        assert "/nonesuch/bar.yaml: No such file" in provisioning.err
    assert provisioning.run("status") == 0


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"\xff\xfe{}", "UTF-16"),
        (b"\xe9", "expected UTF-8"),
        (b"[" + b" " * (1 << 20) + b"]", "at most 1 MiB"),
    ],
)
def test_a_file_that_cannot_be_read_is_one_clear_error(
    provisioning: Provisioning, content: bytes, words: str
) -> None:
    path = provisioning.directory / "document.yaml"
    path.write_bytes(content)
    for options in ((), ("--dry-run",)):
        assert provisioning.run("provision", *options, "--file", str(path)) == 1
        assert words in provisioning.err
        assert "Traceback" not in provisioning.err


def test_without_a_document_the_usage_is_told(provisioning: Provisioning) -> None:
    for words in ((), ("-", "--file", "x"), ("x",)):
        with pytest.raises(SystemExit) as caught:
            provisioning.run("provision", *words)
        assert caught.value.code == 2


# --- a dry run -----------------------------------------------------------------------------------


def test_a_dry_run_says_what_it_would_write_and_writes_and_records_nothing(
    provisioning: Provisioning, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    assert provisioning.provision(GOOD, "--dry-run") == 0
    assert provisioning.out.count("would write ") == len(WRITTEN)
    assert provisioning.files() == {}
    assert provisioning.provision(BAD, "--dry-run") == 1
    assert not provisioning.state.exists()


def test_others_than_root_cannot_provision(
    provisioning: Provisioning, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    assert provisioning.provision(GOOD) == 77


# --- the outcome ---------------------------------------------------------------------------------


def test_json_is_the_outcome_that_is_recorded(provisioning: Provisioning) -> None:
    for document, code in ((GOOD, 0), (BAD, 1)):
        assert provisioning.provision(document, "--json") == code
        told = json.loads(provisioning.out)
        record = provisioning.state / "provision.json"
        assert json.loads(record.read_text()) == told
        assert stat.S_IMODE(record.stat().st_mode) == 0o600
        assert (told["ok"], told["instance"], told["source"]) == (code == 0, "i-1", "-")
        assert bool(told["problems"]) == (code == 1)


def test_a_failure_is_seen_until_the_next_success(provisioning: Provisioning) -> None:
    provisioning.provision(BAD)
    assert provisioning.run("status") == 1
    assert "provisioning failed at" in provisioning.out
    assert "confi: unknown key" in provisioning.out
    assert provisioning.run("status", "--json") == 1
    assert json.loads(provisioning.out)["provisioning"]["ok"] is False
    provisioning.provision(GOOD)
    assert provisioning.run("status") == 0
    assert "provisioning" not in provisioning.out


def test_a_failure_of_another_instance_is_not_this_machine_s(provisioning: Provisioning) -> None:
    provisioning.provision(BAD)
    provisioning.instance.write_text("i-2\n")
    assert recorded(provisioning.state) is None
    assert provisioning.run("status") == 0
    provisioning.instance.write_text("i-1\n")
    assert recorded(provisioning.state) is not None


@pytest.mark.parametrize("text", ["", "{", "[]", '{"instance": "i-1"}', "null"])
def test_a_record_that_cannot_be_read_is_none(provisioning: Provisioning, text: str) -> None:
    provisioning.state.mkdir()
    (provisioning.state / "provision.json").write_text(text)
    assert recorded(provisioning.state) is None


def test_where_cloud_init_never_ran_a_failure_is_kept_as_well(
    provisioning: Provisioning, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(status, "INSTANCE_IDS", (Path("/nonexistent/instance-id"),))
    provisioning.provision(BAD)
    assert provisioning.run("status") == 1


def test_where_no_outcome_can_be_kept_nothing_is_written(
    provisioning: Provisioning, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Or an earlier success would stand for this one."""

    def full(_fd: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    assert provisioning.provision(GOOD, "--json") == 1
    assert provisioning.out == ""
    assert "No space left on device" in provisioning.err
    assert provisioning.files() == {}


def test_stdin_is_read_before_sessions_are_kept_from_beginning(
    provisioning: Provisioning, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody may ever write to it."""
    seen: list[str | None] = []

    class Stdin(io.BytesIO):
        def read(self, size: int | None = -1) -> bytes:
            seen.append(lock.holder(provisioning.runtime))
            return super().read(size)

    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(Stdin(json.dumps(GOOD).encode())))
    assert provisioning.run("provision", "-") == 0
    assert seen == [None]


def test_who_is_killed_has_failed(
    provisioning: Provisioning, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Killed(BaseException):
        pass

    def die(*_: object) -> None:
        raise Killed

    provisioning.provision(GOOD)
    with monkeypatch.context() as patch:
        patch.setattr("vmsnap.provision.apply.write", die)
        with pytest.raises(Killed):
            provisioning.provision({"conf": {"freeze": {"hold": 9}}})
    assert provisioning.run("status") == 1
    assert "it was interrupted" in provisioning.out


def test_a_provisioning_that_is_under_way_has_not_failed(
    provisioning: Provisioning, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[int] = []
    real = status.record

    def look(done: status.Provisioning, state: Path) -> None:
        real(done, state)
        seen.append(provisioning.run("status"))

    monkeypatch.setattr(status, "record", look)
    assert provisioning.provision(GOOD) == 0
    assert seen == [0, 0]
    assert "In progress: vmsnap provision of process" in provisioning.heard


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_who_is_interrupted_leaves_everything_as_it_was(
    provisioning: Provisioning, monkeypatch: pytest.MonkeyPatch, number: signal.Signals
) -> None:
    provisioning.provision({"conf": {"freeze": {"hold": 9}}})
    before, directories = provisioning.identities(), sorted(provisioning.etc.root.rglob("*"))
    renamed, real = [], Path.rename

    def interrupt(self: Path, target: Path) -> Path:
        done = real(self, target)
        renamed.append(target)
        if target.name == "post":
            signal.raise_signal(number)
        return done

    handlers = [(n, signal.getsignal(n)) for n in (signal.SIGINT, signal.SIGTERM)]
    signal.signal(signal.SIGINT, signal.default_int_handler)  # else ignored, in the background
    monkeypatch.setattr(os, "kill", lambda *_: None)  # cli/main.py ends itself as it was asked to
    try:
        with monkeypatch.context() as patch:
            patch.setattr(Path, "rename", interrupt)
            assert provisioning.provision(GOOD) == 1
    finally:
        for signalled, handler in handlers:
            signal.signal(signalled, handler)
    assert "pre" in [path.name for path in renamed]
    assert provisioning.identities() == before
    assert sorted(provisioning.etc.root.rglob("*")) == directories
    assert provisioning.run("status") == 1


def test_another_etc_is_not_recorded_as_this_machine_s(
    provisioning: Provisioning, capsys: Capture
) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["provision", "-", "--etc", str(provisioning.etc.root)])
    assert caught.value.code == 2
    assert "--state" in capsys.readouterr().err


def test_a_session_in_progress_is_waited_for(provisioning: Provisioning) -> None:
    """As in a first boot whose timer is faster."""
    lock.prepare(provisioning.runtime)
    descriptor = lock.acquire(provisioning.runtime, "somebody's")
    ending = threading.Timer(0.1, os.close, [descriptor])
    ending.start()
    assert provisioning.provision(GOOD) == 0
    ending.join()


def test_the_scripts_of_a_session_in_progress_stay(
    provisioning: Provisioning, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A post-script that is not the one that was checked is not run."""
    provisioning.provision(GOOD)
    before, succeeded = provisioning.identities(), recorded(provisioning.state)
    changed = {"apps": {"db": {"scripts": {"pre": SH + "#\n"}}}}
    monkeypatch.setattr("vmsnap.cli.configure.SESSION_PATIENCE", 0.1)
    descriptor = lock.acquire(provisioning.runtime, "somebody's")
    try:
        assert provisioning.provision(changed) == 75
        assert provisioning.identities() == before
        assert recorded(provisioning.state) not in (None, succeeded)
        assert provisioning.provision(changed, "--dry-run") == 0
    finally:
        os.close(descriptor)
    assert provisioning.provision(changed) == 0
