# SPDX-License-Identifier: Apache-2.0
"""What `vmsnap init` writes: right owner and mode, nothing overwritten, nothing half-done."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from vmsnap.provision.init import AppExistsError, NotInstalledError, init
from vmsnap.provision.quiescers import QUIESCERS

from ..worlds import QUIESCE, Etc, installed_quiescers


def files(directory: Path) -> set[str]:
    return {str(p.relative_to(directory)) for p in directory.rglob("*") if not p.is_dir()}


WRITTEN = {"vmsnap/apps.d/web.json", "vmsnap/scripts/web/pre", "vmsnap/scripts/web/post"}


def test_what_init_writes_is_an_app_whose_scripts_are_to_be_written(etc: Etc) -> None:
    written = init(etc.root, "web")
    found = etc.inspect()
    assert [problem.path for problem in found.errors] == [str(written.pre), str(written.post)]
    assert all("`vmsnap init`" in problem.message for problem in found.errors)
    for script in (written.pre, written.post):
        script.write_text("#!/bin/sh\nexit 0\n")
    found = etc.inspect()
    assert found.problems == []
    (app,) = found.runnable
    assert app.name == "web"
    assert app.pre
    assert app.post
    assert files(etc.root) == WRITTEN


@pytest.mark.parametrize("umask", [0o000, 0o022, 0o077, 0o777])
def test_owner_and_mode_are_right_whatever_the_umask(etc: Etc, umask: int) -> None:
    before = os.umask(umask)
    try:
        written = init(etc.root, "web")
    finally:
        os.umask(before)
    for path, mode in ((written.config, 0o600), (written.pre, 0o700), (written.post, 0o700)):
        status = path.stat()
        assert (status.st_uid, stat.S_IMODE(status.st_mode)) == (0, mode)
    for directory in (etc.root / "vmsnap", written.config.parent, written.pre.parent):
        assert stat.S_IMODE(directory.stat().st_mode) == 0o700


def test_the_skeletons_fail_until_somebody_writes_them(etc: Etc) -> None:
    """A script that does nothing and succeeds would promise a consistency that nobody ensured."""
    written = init(etc.root, "web")
    for script in (written.pre, written.post):
        text = script.read_text()
        assert text.startswith("#!/bin/sh\n")
        assert text.endswith("exit 1\n")


@pytest.mark.parametrize("existing", sorted(WRITTEN))
@pytest.mark.parametrize("dangling", [False, True])
def test_an_existing_file_is_never_touched_and_no_other_is_written(
    etc: Etc, existing: str, dangling: bool
) -> None:
    path = etc.write(existing, "mine")
    if dangling:
        path.unlink()
        path.symlink_to("nowhere")
    with pytest.raises(AppExistsError, match=str(path)):
        init(etc.root, "web")
    assert files(etc.root) == {existing}
    assert path.is_symlink() if dangling else path.read_text() == "mine"


def test_existing_directories_keep_their_mode(etc: Etc) -> None:
    other = etc.write("vmsnap/apps.d/other.json", "{}")
    init(etc.root, "web")
    assert stat.S_IMODE(other.parent.stat().st_mode) == 0o755


@pytest.mark.parametrize("survives", range(len(WRITTEN)))
def test_when_a_write_fails_nothing_is_left_of_those_before_it(
    etc: Etc, monkeypatch: pytest.MonkeyPatch, survives: int
) -> None:
    """Each file is synced twice: itself and its directory. The disk fails after some of them."""
    left = 2 * survives
    real = os.fsync

    def sometimes(fd: int) -> None:
        nonlocal left
        left -= 1
        if left < 0:
            raise OSError(28, "No space left on device")
        real(fd)

    monkeypatch.setattr(os, "fsync", sometimes)
    with pytest.raises(OSError):
        init(etc.root, "web")
    assert files(etc.root) == set()


def test_when_the_last_sync_fails_nothing_is_left_either(
    etc: Etc, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The file has its name already when its directory cannot be synced."""

    def not_directories(fd: int) -> None:
        if stat.S_ISDIR(os.fstat(fd).st_mode):
            raise OSError(5, "Input/output error")

    monkeypatch.setattr(os, "fsync", not_directories)
    with pytest.raises(OSError):
        init(etc.root, "web")
    assert files(etc.root) == set()


def test_after_a_failed_init_it_can_be_run_again(etc: Etc, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(_fd: int) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", fail)
        with pytest.raises(OSError):
            init(etc.root, "web")
    init(etc.root, "web")
    assert files(etc.root) == WRITTEN


# --- with a quiescer -----------------------------------------------------------------------------


@pytest.fixture
def installed(etc: Etc, monkeypatch: pytest.MonkeyPatch) -> Path:
    return installed_quiescers(etc.root.parent, monkeypatch)


@pytest.mark.parametrize("name", QUIESCERS)
def test_an_app_of_a_quiescer_passes_every_check_and_has_no_script_of_its_own(
    etc: Etc, installed: Path, name: str
) -> None:
    init(etc.root, name, QUIESCERS[name])
    found = etc.inspect()
    assert found.problems == []
    (app,) = found.runnable
    assert app.pre
    assert app.pre == app.post
    assert Path(app.pre.path).parent == installed
    assert files(etc.root) == {f"vmsnap/apps.d/{name}.json"}
    status = (etc.root / f"vmsnap/apps.d/{name}.json").stat()
    assert (status.st_uid, stat.S_IMODE(status.st_mode)) == (0, 0o600)


@pytest.mark.parametrize(
    ("settings", "hold"), [("", "90"), ("[freeze]\ntimeout = 10\nhold = 300\n", "310")]
)
def test_a_quiescer_holds_for_as_long_as_the_settings_let_a_session_hold(
    etc: Etc, installed: Path, settings: str, hold: str
) -> None:
    etc.write("vmsnap/vmsnap.conf", settings)
    init(etc.root, "db", QUIESCERS["mariadb"])
    (app,) = etc.inspect().runnable
    assert app.pre
    assert app.post
    assert app.pre.params == app.post.params == (f"--hold={hold}",)


@pytest.mark.usefixtures("installed")
def test_an_app_that_exists_is_not_touched_by_one_with_a_quiescer(etc: Etc) -> None:
    path = etc.write("vmsnap/apps.d/redis.json", "mine")
    with pytest.raises(AppExistsError, match=str(path)):
        init(etc.root, "redis", QUIESCERS["redis"])
    assert path.read_text() == "mine"


def test_a_quiescer_that_is_not_installed_is_told_and_nothing_is_written(
    etc: Etc, installed: Path
) -> None:
    (installed / "redis").unlink()
    with pytest.raises(NotInstalledError, match=f"{installed}/redis: found no file"):
        init(etc.root, "cache", QUIESCERS["valkey"])
    assert files(etc.root) == set()


def test_every_quiescer_of_the_sources_can_be_set_up() -> None:
    programs = {path.name for path in QUIESCE.iterdir() if path.is_file() and not path.suffix}
    assert {quiescer.name for quiescer in QUIESCERS.values()} == programs
