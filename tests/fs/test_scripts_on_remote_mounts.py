# SPDX-License-Identifier: Apache-2.0
"""What an administrator has put on a remote filesystem or below an automount works as long as that
answers, and is named when it does not; all others run."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from . import strange
from .fuse import serving
from .lab import Lab
from .running import Outcome

LIMIT = 15.0  # seconds
# Neither NFS nor CIFS can be had here, so FUSE passes for one.
REMOTE = """
import sys
from vmsnap.cli import main
from vmsnap.system import trusted
trusted.REMOTE.add("fuse")
trusted.is_fuse = lambda fstype: False
sys.exit(main.main())
"""
PROGRAM = (sys.executable, "-IBc", REMOTE)
SH = Path("/bin/sh")


def name_on(lab: Lab, what: str, mount: Path) -> bytes:
    """Have `what` be the file on this mount; return what is in that."""
    file = mount / "file"
    if what == "script":
        lab.app("there", post="exit 0", preScriptLocation=str(file))
        return f"#!/bin/sh\n{lab.say('there')}\n".encode()
    if what == "script behind a link":
        (lab.programs / "link").symlink_to(mount)
        lab.app("there", preScriptLocation=f"{lab.programs}/link/file", post="exit 0")
        return f"#!/bin/sh\n{lab.say('there')}\n".encode()
    if what == "interpreter":
        script = lab.program("script", lab.say("there"), shebang=f"#!{file}")
        lab.app("there", preScriptLocation=str(script), post="exit 0")
        return SH.read_bytes()
    script = lab.program("script", lab.say("there"))
    document = {"pluginName": "ScriptRunner", "preScriptLocation": str(script)}
    if what == "app file":
        (lab.etc / "vmsnap/apps.d/there.json").symlink_to(file)
        return json.dumps(document).encode()
    raise AssertionError(what)


WHAT = ["script", "script behind a link", "interpreter", "app file"]


def made(path: Path, what: str, data: bytes) -> Path:
    path.write_bytes(data)
    path.chmod(0o600 if what == "app file" else 0o700)
    return path


def begin(lab: Lab, command: str) -> Outcome:
    if command == "run":
        return lab.start("exit 0", program=PROGRAM).finish(LIMIT)
    only = (f"--only={mount}" for mount in lab.mounts)
    return lab.begin("check", *only, "--json", program=PROGRAM).finish(LIMIT)


@pytest.mark.parametrize("what", WHAT)
def test_what_lies_on_one_that_answers_works(lab: Lab, what: str) -> None:
    lab.filesystem()
    mount = strange.point(lab, "remote")
    data = name_on(lab, what, mount)
    with serving(mount, backing=made(lab.programs / "backing", what, data)):
        checked, ran = begin(lab, "check"), begin(lab, "run")
    assert checked.result["problems"] == []
    assert ran.verdict == ("success", "application", 0)
    assert lab.events.heard == ["there"]


@pytest.mark.parametrize("silent", [True, False], ids=["cannot be killed", "can be killed"])
@pytest.mark.parametrize("what", WHAT)
def test_one_that_does_not_answer_is_named_and_all_others_run(
    lab: Lab, what: str, silent: bool
) -> None:
    lab.filesystem()
    mount = strange.point(lab, "remote")
    name_on(lab, what, mount)
    lab.app("other", pre=lab.say("other"), post="exit 0")
    with serving(mount, silent=silent) as server:
        if not silent:
            server.hang()
        checked, ran = begin(lab, "check"), begin(lab, "run")
    (problem,) = checked.result["problems"]
    assert str(mount) in problem["message"]
    assert "answer" in problem["message"]
    assert ran.verdict == ("success", "filesystem", 0)
    (error,) = ran.result["errors"]
    assert str(mount) in error["message"]
    assert lab.events.heard == ["other"]


def test_many_scripts_on_one_that_does_not_answer_wait_for_it_once(lab: Lab) -> None:
    lab.filesystem()
    mount = strange.point(lab, "remote")
    for number in range(20):
        lab.app(f"app{number}", pre="exit 0", postScriptLocation=str(mount / "file"))
    with serving(mount, silent=True):
        assert len(begin(lab, "check").result["problems"]) == 20


def test_one_that_answers_nonsense_costs_its_app_and_no_other(lab: Lab) -> None:
    """The server knows no such file, or an error instead of it."""
    lab.filesystem()
    mount = strange.point(lab, "remote")
    lab.app("there", pre="exit 0", postScriptLocation=str(mount / "nothing"))
    lab.app("other", pre=lab.say("other"))
    with serving(mount):
        ran = begin(lab, "run")
    assert ran.subjects == [("Post-ScriptNotFound", "there")]
    assert lab.events.heard == ["other"]


def below(lab: Lab, kind: str = "direct") -> tuple[strange.Automount, Path]:
    """An automount, and a directory that could be mounted there."""
    source = strange.point(lab, "source")
    return strange.Automount(lab, kind=kind), source


@pytest.mark.parametrize("what", WHAT)
def test_what_lies_below_an_automount_is_mounted_and_works(lab: Lab, what: str) -> None:
    lab.filesystem()
    automount, source = below(lab)
    data = name_on(lab, what, automount.mount)
    made(source / "file", what, data)
    automount.live(source)
    ran = lab.start("exit 0").finish(LIMIT)
    assert ran.verdict == ("success", "application", 0)
    assert lab.events.heard == ["there"]


@pytest.mark.parametrize("what", WHAT)
def test_an_automounter_that_is_gone_is_named_and_all_others_run(lab: Lab, what: str) -> None:
    lab.filesystem()
    automount, _ = below(lab)
    name_on(lab, what, automount.mount)
    lab.app("other", pre=lab.say("other"), post="exit 0")
    ran = lab.start("exit 0").finish(LIMIT)
    assert ran.verdict == ("success", "filesystem", 0)
    (error,) = ran.result["errors"]
    assert str(automount.mount) in error["message"]
    assert lab.events.heard == ["other"]
