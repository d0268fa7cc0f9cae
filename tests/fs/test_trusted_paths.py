# SPDX-License-Identifier: Apache-2.0
"""What only root can have changed, where a program can answer for a filesystem."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from . import strange
from .fuse import INIT, serving
from .lab import Lab

LIE = "found a FUSE filesystem, expected one of the kernel's own"


@pytest.fixture
def lies(lab: Lab) -> Path:
    """Where a user's FUSE is mounted: the directories above are root's."""
    lab.filesystem()
    path = lab.directory / "lies"
    path.mkdir()
    return path


def script_on(lab: Lab, mount: Path) -> None:
    lab.app(post=lab.say("post"), preScriptLocation=str(mount / "file"))


def test_a_script_that_a_fuse_server_calls_roots_does_not_run(lab: Lab, lies: Path) -> None:
    script_on(lab, lies)
    with serving(lies, f"#!/bin/sh\n{lab.say('the user is root')}\n".encode()):
        outcome = lab.run("exit 0")
    assert outcome.verdict == ("success", "filesystem", 0)
    assert outcome.subjects == [("InsufficientPermissionforPre-Script", "db")]
    assert f"{lies}: {LIE}" in outcome.result["errors"][0]["message"]
    assert lab.events.heard == []


def test_an_app_that_a_fuse_server_calls_roots_is_not_read(lab: Lab, lies: Path) -> None:
    (lab.etc / "vmsnap/apps.d/db.json").symlink_to(lies / "file")
    script = lab.program("any", lab.say("ran"))
    document = {"pluginName": "ScriptRunner", "preScriptLocation": str(script)}
    with serving(lies, json.dumps(document).encode()):
        outcome = lab.run("exit 0")
    assert outcome.errors == ["IncorrectJSONConfigFile"]
    assert f"{lies}: {LIE}" in outcome.result["errors"][0]["message"]
    assert lab.events.heard == []


def test_azures_list_of_apps_may_name_one_on_fuse(lab: Lab, lies: Path) -> None:
    (lab.etc / "azure").mkdir(mode=0o700)
    host = (
        "[pre_post]\ntimeoutInSeconds=60\nnumberOfPlugins=1\npluginName0=ScriptRunner\n"
        f"pluginPath0=/usr/lib/x\npluginConfigPath0={lies / 'file'}\n"
    )
    lab.write(lab.etc / "azure/VMSnapshotPluginHost.conf", host, 0o600)
    with serving(lies, silent=True) as server:
        outcome = lab.vmsnap("check", "--json", *(f"--only={mount}" for mount in lab.mounts))
        assert server.stop() == [str(INIT)]
    assert LIE in outcome.out.decode()


def test_a_server_that_never_answers_is_not_asked(lab: Lab, lies: Path) -> None:
    script_on(lab, lies)
    with serving(lies, silent=True) as server:
        checked = lab.vmsnap("check", "--json", *(f"--only={mount}" for mount in lab.mounts))
        ran = lab.run("exit 0")
        assert server.stop() == [str(INIT)]
    assert checked.code == 1
    assert LIE in checked.out.decode()
    assert ran.subjects == [("InsufficientPermissionforPre-Script", "db")]


# --- automounts ----------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["direct", "indirect"])
@pytest.mark.parametrize("what", ["script", "interpreter"])
def test_an_automounter_that_does_not_answer_holds_nobody_and_is_named(
    lab: Lab, kind: str, what: str
) -> None:
    """It may be as dead as the server behind it."""
    automount = strange.Automount(lab, kind=kind)
    path = automount.mount / "host/pre"
    script = path if what == "script" else lab.program("pre", "exit 0", shebang=f"#!{path}")
    lab.app(preScriptLocation=str(script))
    lab.filesystem()
    outcome = lab.begin("check", f"--only={lab.mounts[0]}").finish(15.0)
    assert outcome.code == 1
    assert str(automount.mount) in outcome.out.decode()


@pytest.mark.parametrize("kind", ["direct", "indirect"])
def test_what_an_automounter_has_mounted_is_looked_at(lab: Lab, kind: str) -> None:
    automount = strange.Automount(lab, kind=kind)
    mount = automount.mount if kind == "direct" else automount.mount / "host name"
    mount.mkdir(exist_ok=True)
    lab.mount("-t", "tmpfs", "-o", "mode=0755", "tmpfs", mount)
    script = lab.write(mount / "pre", "#!/bin/sh\nexit 0\n", 0o700)
    lab.app(preScriptLocation=str(script))
    lab.filesystem()
    outcome = lab.begin("check", f"--only={lab.mounts[0]}").finish(15.0)
    assert outcome.code == 0, outcome
