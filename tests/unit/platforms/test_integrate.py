# SPDX-License-Identifier: Apache-2.0
"""`vmsnap integrate` below a root of its own: what is written, and that all of it is undone."""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vmsnap.config.checks import Inspection
from vmsnap.platforms import diagnose, integrate
from vmsnap.platforms.additions import with_addition, without
from vmsnap.platforms.integrate import IntegrationError, connect, disconnect, recorded
from vmsnap.platforms.registry import agents
from vmsnap.system import files

AGENTS = sorted(agents())
WRITING = sorted(set(AGENTS) - {"aws"})


class Machine:
    def __init__(self, directory: Path) -> None:
        self.root, self.state = directory / "root", directory / "state"
        for name in ("etc/default", "etc/vmware-tools", "etc/vmsnap", "usr/local/sbin"):
            (self.root / name).mkdir(parents=True)

    def write(self, name: str, text: str, mode: int = 0o644) -> Path:
        path = self.root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(text.encode())
        path.chmod(mode)
        return path

    def tree(self) -> dict[str, tuple[int, bytes]]:
        """All there is: mode, and content of files."""
        return {
            str(path.relative_to(self.root)): (
                path.lstat().st_mode,
                b"" if path.is_dir() else path.read_bytes(),
            )
            for path in sorted(self.root.rglob("*"))
        }

    def problems(self) -> list[str]:
        found = Inspection()
        diagnose.inspect(found, self.state, self.root, running=False)
        return [problem.message for problem in found.problems]


@pytest.fixture
def machine(trusted_dir: Path) -> Machine:
    return Machine(trusted_dir)


# --- lines in files of others --------------------------------------------------------------------

TEXTS = st.text(st.sampled_from("a#=[]\n\r\té\ufeff`: "), max_size=60)
LINES = st.sampled_from(["x=1\n", "[general]\na=b\n"])


@given(TEXTS, LINES)
def test_what_was_added_is_taken_away_again_to_the_byte(text: str, lines: str) -> None:
    changed = with_addition(text, lines)
    assert lines in changed
    assert without(changed) == text


@given(TEXTS, LINES, LINES)
def test_adding_again_replaces_what_was_added(text: str, first: str, second: str) -> None:
    assert with_addition(with_addition(text, first), second) == with_addition(text, second)


@given(TEXTS, LINES, TEXTS)
def test_what_somebody_has_written_after_it_stays(text: str, lines: str, more: str) -> None:
    ended = "\n" if text and not text.endswith("\n") and more else ""
    assert without(with_addition(text, lines) + more) == text + ended + more


# --- connecting and disconnecting ----------------------------------------------------------------


@pytest.mark.parametrize("agent", AGENTS)
def test_a_removal_leaves_the_machine_as_it_was(machine: Machine, agent: str) -> None:
    machine.write("etc/default/instance_configs.cfg", "[Daemons]\nclock = true", 0o640)
    machine.write("etc/qemu/qemu-ga.conf", "[general]\nverbose=false", 0o600)
    before = machine.tree()
    connect(agent, machine.state, root=machine.root)
    assert machine.tree() != before or agent == "aws"
    assert list(recorded(machine.state)) == [agent]
    disconnect(agent, machine.state, root=machine.root)
    assert machine.tree() == before
    assert recorded(machine.state) == {}


@pytest.mark.parametrize("agent", WRITING)
def test_directories_that_were_made_are_removed_unless_something_is_in_them(
    machine: Machine, agent: str
) -> None:
    before = set(machine.tree())
    connect(agent, machine.state, root=machine.root)
    path = agents()[agent].connection(machine.root).files[0].path.with_name("theirs")
    theirs = str(path.relative_to(machine.root))
    machine.write(theirs, "")
    disconnect(agent, machine.state, root=machine.root)
    assert set(machine.tree()) - before - {str(parent) for parent in Path(theirs).parents} == {
        theirs
    }


@pytest.mark.parametrize("agent", AGENTS)
def test_to_connect_again_writes_nothing(machine: Machine, agent: str) -> None:
    first = connect(agent, machine.state, root=machine.root)
    inodes = {name: (machine.root / name).stat().st_ino for name in machine.tree()}
    again = connect(agent, machine.state, root=machine.root)
    assert (again.written, again.unchanged) == ((), first.written)
    assert {name: (machine.root / name).stat().st_ino for name in machine.tree()} == inodes
    disconnect(agent, machine.state, root=machine.root)
    assert not set(map(str, first.written)) & {str(machine.root / name) for name in machine.tree()}


@pytest.mark.parametrize("agent", AGENTS)
def test_a_dry_run_says_what_would_be_written_and_does_nothing(
    machine: Machine, agent: str
) -> None:
    before = machine.tree()
    told = connect(agent, machine.state, root=machine.root, dry_run=True)
    assert (machine.tree(), machine.state.exists()) == (before, False)
    assert connect(agent, machine.state, root=machine.root) == told


@pytest.mark.parametrize("agent", WRITING)
def test_what_somebody_else_has_put_there_is_in_the_way(machine: Machine, agent: str) -> None:
    path = agents()[agent].connection(machine.root).files[-1].path
    machine.write(str(path.relative_to(machine.root)), "#!/bin/sh\nmine\n", 0o700)
    before = machine.tree()
    with pytest.raises(IntegrationError, match=str(path)):
        connect(agent, machine.state, root=machine.root)
    assert (machine.tree(), recorded(machine.state)) == (before, {})


@pytest.mark.parametrize("agent", WRITING)
def test_what_somebody_has_replaced_is_left_by_a_removal(machine: Machine, agent: str) -> None:
    connect(agent, machine.state, root=machine.root)
    path = agents()[agent].connection(machine.root).files[0].path
    path.write_text("mine\n")
    assert machine.problems()
    changes = disconnect(agent, machine.state, root=machine.root)
    assert changes.left == (str(path),)
    assert path.read_text() == "mine\n"


@pytest.mark.parametrize("agent", WRITING)
def test_a_full_disk_leaves_nothing(
    machine: Machine, monkeypatch: pytest.MonkeyPatch, agent: str
) -> None:
    before = machine.tree()
    stage = files.stage

    def full(temporary: Path, file: files.File) -> None:
        if machine.state not in temporary.parents:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        stage(temporary, file)

    monkeypatch.setattr(files, "stage", full)
    with pytest.raises(OSError, match="No space left"):
        connect(agent, machine.state, root=machine.root)
    assert (machine.tree(), recorded(machine.state)) == (before, {})


def test_a_failure_is_told_and_undone_though_somebody_uses_a_directory_of_ours(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    stage = files.stage

    def full(temporary: Path, file: files.File) -> None:
        if machine.state not in temporary.parents:
            (temporary.parent / "theirs").write_text("")
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        stage(temporary, file)

    monkeypatch.setattr(files, "stage", full)
    with pytest.raises(OSError, match="No space left"):
        connect("vmware", machine.state, root=machine.root)
    assert recorded(machine.state) == {}


def test_the_agents_that_are_connected_are_undone_one_by_one(machine: Machine) -> None:
    connect("vmware", machine.state, root=machine.root)
    before = machine.tree()
    connect("nutanix", machine.state, root=machine.root)
    assert list(recorded(machine.state)) == ["vmware", "nutanix"]
    disconnect("nutanix", machine.state, root=machine.root)
    assert machine.tree() == before
    assert list(recorded(machine.state)) == ["vmware"]


def test_without_a_record_a_removal_finds_what_there_is(machine: Machine) -> None:
    before = set(machine.tree())
    connect("qemu", machine.state, root=machine.root)
    (machine.state / integrate.RECORD).write_text("{")
    assert recorded(machine.state) == {}
    disconnect("qemu", machine.state, root=machine.root)
    assert not [name for name in set(machine.tree()) - before if "vmsnap" in name]


def test_a_configuration_that_others_can_change_is_not_touched(machine: Machine) -> None:
    path = machine.write("etc/default/instance_configs.cfg", "[a]\n", 0o666)
    with pytest.raises(IntegrationError, match="mode 0666"):
        connect("google", machine.state, root=machine.root)
    assert path.read_text() == "[a]\n"


# --- Enterprise Linux ----------------------------------------------------------------------------


def test_where_the_unit_says_which_hook_a_drop_in_says_another(machine: Machine) -> None:
    """Its own file stays untouched, and what it named is called by ours."""
    text = "FSFREEZE_HOOK_PATHNAME=/etc/qemu-ga/fsfreeze-hook\n"
    sysconfig = machine.write("etc/sysconfig/qemu-ga", text)
    connect("qemu", machine.state, root=machine.root)
    hook = machine.root / "etc/qemu-ga/fsfreeze-hook.d/50-vmsnap"
    assert stat.S_IMODE(hook.stat().st_mode) == 0o755
    assert "other=/etc/qemu-ga/fsfreeze-hook\n" in hook.read_text()
    assert sysconfig.read_text() == text
    drop_in = machine.root / "etc/systemd/system/qemu-guest-agent.service.d/50-vmsnap.conf"
    assert "\nEnvironmentFile=/etc/qemu-ga/vmsnap.conf\n" in drop_in.read_text()
    environment = (machine.root / "etc/qemu-ga/vmsnap.conf").read_text().splitlines()
    assert environment[-1] == "FSFREEZE_HOOK_PATHNAME=/etc/qemu-ga/fsfreeze-hook.d/50-vmsnap"


@pytest.mark.parametrize("value", ["", "/dev/null"])
def test_a_hook_that_is_none_is_not_called(machine: Machine, value: str) -> None:
    machine.write("etc/sysconfig/qemu-ga", f"FSFREEZE_HOOK_PATHNAME={value}\n")
    connect("qemu", machine.state, root=machine.root)
    hook = (machine.root / "etc/qemu-ga/fsfreeze-hook.d/50-vmsnap").read_text()
    assert ("other=/etc/qemu-ga/fsfreeze-hook\n" in hook) == (value == "")
    assert "/dev/null" not in hook


def test_a_sysconfig_without_that_setting_is_no_enterprise_linux(machine: Machine) -> None:
    """openSUSE has such a file, and a unit without -F."""
    machine.write("etc/sysconfig/qemu-ga", "FILTER_RPC_ARGS=\n")
    connect("qemu", machine.state, root=machine.root)
    assert "fsfreeze-hook=" in (machine.root / "etc/qemu/qemu-ga.conf").read_text()


@pytest.fixture
def confined(machine: Machine) -> Machine:
    machine.write("etc/sysconfig/qemu-ga", "FSFREEZE_HOOK_PATHNAME=/etc/qemu-ga/fsfreeze-hook\n")
    machine.write("sys/fs/selinux/enforce", "1")
    machine.write("sys/fs/selinux/booleans/virt_qemu_ga_run_unconfined", "1 1")
    machine.write("usr/bin/qemu-ga", "")
    machine.write("dev/virtio-ports/org.qemu.guest_agent.0", "")
    connect("qemu", machine.state, root=machine.root)
    label(machine, "virt_qemu_ga_unconfined_exec_t")
    return machine


def label(machine: Machine, name: str) -> None:
    hook = machine.root / "etc/qemu-ga/fsfreeze-hook.d/50-vmsnap"
    os.setxattr(hook, "security.selinux", f"system_u:object_r:{name}:s0\0".encode())


def test_a_hook_with_the_right_label_is_sound(confined: Machine) -> None:
    assert confined.problems() == []


def test_a_hook_with_another_label_is_told_of(confined: Machine) -> None:
    label(confined, "etc_t")
    (told,) = confined.problems()
    assert "found the SELinux label system_u:object_r:etc_t:s0, expected the type virt_qemu" in told
    confined.write("sys/fs/selinux/enforce", "0")
    assert confined.problems() == []


def test_a_boolean_that_confines_hooks_is_told_of(confined: Machine) -> None:
    confined.write("sys/fs/selinux/booleans/virt_qemu_ga_run_unconfined", "0 0")
    (told,) = confined.problems()
    assert "setsebool -P virt_qemu_ga_run_unconfined on" in told


# --- what others do meanwhile --------------------------------------------------------------------


def test_what_begins_a_line_after_a_removal_began_it_before(machine: Machine) -> None:
    conf = machine.write("etc/qemu/qemu-ga.conf", "verbose=1")
    connect("qemu", machine.state, root=machine.root)
    conf.write_text(conf.read_text() + "daemon=0\n")
    disconnect("qemu", machine.state, root=machine.root)
    assert conf.read_text() == "verbose=1\ndaemon=0\n"


def test_another_distributions_way_takes_the_place_of_the_first(machine: Machine) -> None:
    """Connected before the agent was installed."""
    before = set(machine.tree())
    connect("qemu", machine.state, root=machine.root)
    machine.write("etc/sysconfig/qemu-ga", "FSFREEZE_HOOK_PATHNAME=\n")
    connect("qemu", machine.state, root=machine.root)
    assert not (machine.root / "etc/qemu").exists()
    disconnect("qemu", machine.state, root=machine.root)
    assert set(machine.tree()) - before == {"etc/sysconfig", "etc/sysconfig/qemu-ga"}


def test_a_file_keeps_its_group(machine: Machine) -> None:
    conf = machine.write("etc/qemu/qemu-ga.conf", "[general]\n", 0o640)
    os.chown(conf, 0, 4)
    for change in (connect, connect, disconnect):
        change("qemu", machine.state, root=machine.root)
        assert (conf.stat().st_gid, stat.S_IMODE(conf.stat().st_mode)) == (4, 0o640)


def test_a_directory_may_be_a_link(machine: Machine) -> None:
    (machine.root / "srv/qemu").mkdir(parents=True)
    (machine.root / "etc/qemu").symlink_to(machine.root / "srv/qemu")
    before = set(machine.tree())
    connect("qemu", machine.state, root=machine.root)
    disconnect("qemu", machine.state, root=machine.root)
    assert set(machine.tree()) == before


@pytest.mark.parametrize("agent", WRITING)
def test_directories_that_were_made_are_for_all_to_enter(machine: Machine, agent: str) -> None:
    before = set(machine.tree())
    connect(agent, machine.state, root=machine.root)
    for name in set(machine.tree()) - before:
        path = machine.root / name
        assert not path.is_dir() or stat.S_IMODE(path.stat().st_mode) == 0o755


@pytest.fixture
def qemu(machine: Machine) -> Machine:
    machine.write("usr/sbin/qemu-ga", "")
    machine.write("dev/virtio-ports/org.qemu.guest_agent.0", "")
    connect("qemu", machine.state, root=machine.root)
    assert machine.problems() == []
    return machine


@pytest.mark.parametrize(
    ("path", "old", "new", "told"),
    [
        ("fsfreeze-hook.d/50-vmsnap", "exec", "# exec", "not written by vmsnap"),
        ("qemu-ga.conf", "\nfsfreeze-hook=", "\n#fsfreeze-hook=", "fsfreeze-hook= is not"),
        ("qemu-ga.conf", "to here\n", "to here\nfsfreeze-hook=/srv/mine\n", "is not"),
        ("qemu-ga.conf", "from here", "", "nothing of vmsnap's"),
    ],
)
def test_what_keeps_the_agent_from_calling_us_is_told(
    qemu: Machine, path: str, old: str, new: str, told: str
) -> None:
    file = qemu.root / "etc/qemu" / path
    text = file.read_text()
    assert old in text
    file.write_text(text.replace(old, new))
    assert any(told in problem for problem in qemu.problems())


def test_a_channel_that_the_host_does_not_give_is_a_warning(qemu: Machine) -> None:
    (qemu.root / "dev/virtio-ports/org.qemu.guest_agent.0").unlink()
    found = Inspection()
    diagnose.inspect(found, qemu.state, qemu.root)
    (problem,) = found.problems
    assert "gives this machine no channel" in problem.message
    assert found.errors == []


def test_a_record_that_nobody_can_read_is_told_and_mended(qemu: Machine) -> None:
    (qemu.state / integrate.RECORD).write_text('{"agents": []}')
    assert "a record that cannot be read" in qemu.problems()[0]
    assert integrate.traces(qemu.state, qemu.root) == ["qemu"]
    connect("qemu", qemu.state, root=qemu.root)
    assert qemu.problems() == []


@pytest.mark.parametrize(
    ("name", "text", "told"),
    [
        ("", "[Snapshots]\nenabled = false\n", []),  # ours comes later
        ("", "x\nx=1\n[Snapshots]\ntimeout_in_seconds = 300\n", []),
        ("", "[snapshots]\ntimeout_in_seconds = 30\n", ["timeout_in_seconds = 30"]),
        ("", "[Snapshots]\ntimeout_in_seconds\n", ["timeout_in_seconds"]),
        (".template", "[Snapshots]\nenabled = false\n", ["enabled = false"]),
        (".distro", "a=1\n[Snapshots]\nenabled\n", ["enabled"]),
        (".distro", "[Snapshots]\nenabled = yes\n", []),
    ],
)
def test_settings_of_googles_agent_that_keep_it_from_calling_us_are_told(
    machine: Machine, name: str, text: str, told: list[str]
) -> None:
    machine.write("usr/bin/google_guest_agent", "")
    machine.write(f"etc/default/instance_configs.cfg{name}", text)
    connect("google", machine.state, root=machine.root)
    problems = machine.problems()
    assert len(problems) == len(told)
    assert all(words in problem for words, problem in zip(told, problems))


def test_azures_plugin_host_file_must_name_the_file_that_calls_us(machine: Machine) -> None:
    machine.write("usr/sbin/waagent", "")
    connect("azure", machine.state, root=machine.root)
    assert machine.problems() == []
    lines = "[pre_post]\ntimeoutInSeconds=1800\nnumberOfPlugins={}\npluginName0=ScriptRunner\n"
    lines += "pluginPath0=/etc/azure\npluginConfigPath0=/etc/azure/{}\n"
    machine.write("etc/azure/VMSnapshotPluginHost.conf", lines.format(1, "mine.json"))
    assert "found no pluginConfigPath /etc/azure/VMSnapshotScript" in machine.problems()[0]
    ours = lines.format(1, "VMSnapshotScriptPluginConfig.json")
    machine.write("etc/azure/VMSnapshotPluginHost.conf", ours)
    assert machine.problems() == []
    (machine.root / "etc/azure/VMSnapshotScriptPluginConfig.json").chmod(0o700)
    assert "mode 0700, expected root and 0600" in machine.problems()[0]


def test_a_file_that_others_can_change_is_told(qemu: Machine) -> None:
    (qemu.root / "etc/qemu/fsfreeze-hook.d").chmod(0o777)
    assert any("found mode 0777" in problem for problem in qemu.problems())
    (qemu.root / "etc/qemu/fsfreeze-hook.d").chmod(0o755)
    (qemu.root / "etc/qemu/qemu-ga.conf").chmod(0o666)
    assert any("found mode 0666" in problem for problem in qemu.problems())


@pytest.mark.parametrize("key", ["block-rpcs", "blacklist"])
def test_a_command_that_the_agent_refuses_is_told(qemu: Machine, key: str) -> None:
    conf = qemu.root / "etc/qemu/qemu-ga.conf"
    conf.write_text(f"[general]\n{key}=guest-exec,guest-fsfreeze-freeze\n{conf.read_text()}")
    assert any("among the blocked commands" in problem for problem in qemu.problems())


def test_a_hook_that_does_something_else_first_is_told(qemu: Machine) -> None:
    hook = qemu.root / "etc/qemu/fsfreeze-hook.d/50-vmsnap"
    hook.write_text(hook.read_text().replace("exec", "exit 0\nexec"))
    assert any("not what vmsnap would write now" in problem for problem in qemu.problems())
