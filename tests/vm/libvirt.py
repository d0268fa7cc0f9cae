# SPDX-License-Identifier: Apache-2.0
"""A hypervisor's host: Debian's libvirt, in namespaces of its own.

Whatever it writes lies in a directory of ours or on a tmpfs, nobody else's libvirt is disturbed,
and it ends with the thread that has started it, its machines included.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
from pathlib import Path

from tests.fs.lab import call
from tests.fs.processes import children

TOOLS = ("libvirtd", "virsh", "qemu-img", "setpriv", "unshare")
NAMESPACES = (
    *("setpriv", "--pdeathsig", "KILL", "--"),
    *("unshare", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc"),
)
# The first process waits for all that lose their parent: libvirt takes a zombie for alive.
DAEMON = """
mount --bind "$1/run" /run
mount --bind "$1/etc" /etc/libvirt
for each in passwd group; do mount --bind "$1/$each" /etc/$each; done
for each in cache log; do mount -t tmpfs -o mode=0755 tmpfs /var/$each; done
# The checkout may lie there.
mount -t overlay -o "lowerdir=/var/lib,upperdir=$1/lib,workdir=$1/work" overlay /var/lib
mkdir /var/log/libvirt
libvirtd --daemon
echo ready
exec /usr/bin/python3 -Ic 'import os
while os.wait(): pass'
"""
# There is no systemd that could make cgroups, and root is as good as anybody in here.
CONFIGURATION = """\
user = "root"
group = "root"
dynamic_ownership = 0
remember_owner = 0
security_driver = "none"
cgroup_controllers = [ ]
namespaces = [ ]
stdio_handler = "file"
"""
# It must exist, whoever is configured; another package of libvirt's would make it.
USER = {
    "passwd": "libvirt-qemu:x:64055:64055::/:/usr/sbin/nologin\n",
    "group": "libvirt-qemu:x:64055:\n",
}


class Host:
    """libvirt's daemon, and virsh."""

    def __init__(self, directory: Path) -> None:
        """The directory must not be below /var/lib, nor its path long: it is for sockets."""
        self.directory = directory
        for name in ("run", "etc", "lib", "work"):
            (directory / name).mkdir()
        (directory / "etc/qemu.conf").write_text(CONFIGURATION)
        (directory / "etc/libvirtd.conf").write_text('auth_unix_rw = "none"\n')
        for name, line in USER.items():
            (directory / name).write_text(Path("/etc", name).read_text() + line)
        self.process = subprocess.Popen(
            [*NAMESPACES, "sh", "-ec", DAEMON, "sh", str(directory)],
            cwd="/",
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        assert self.process.stdout
        said = self.process.stdout.readline()
        if said != "ready\n":
            self.close()
            raise AssertionError(f"libvirt did not start: {said}")

    def virsh(self, *words: str) -> str:
        socket = f"{self.directory}/run/libvirt/libvirt-sock"
        return call("virsh", "--connect", f"qemu:///system?socket={socket}", *words)

    def close(self) -> None:
        """End it as if the power had failed."""
        for first in children(self.process.pid):
            os.kill(first.pid, signal.SIGKILL)  # it is dead when all others are
        self.process.wait()
        if self.process.stdout:
            self.process.stdout.close()


def missing_tools() -> list[str]:
    return [tool for tool in TOOLS if shutil.which(tool) is None]
