# SPDX-License-Identifier: Apache-2.0
"""A FUSE server that lies, or never answers: what any user's program can be.

It is a program of its own, on the standard library alone, since whoever asks it something waits for
it. It has one file, `file` in its root directory, claims that root owns both and that nobody else
can open them, and prints the number of every request. The protocol: linux/fuse.h.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
import struct
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

LOOKUP, FORGET, GETATTR, OPEN, READ, RELEASE, FLUSH, INIT = 1, 2, 3, 14, 15, 18, 25, 26
OPENDIR, RELEASEDIR, INTERRUPT, BATCH_FORGET = 27, 29, 36, 42
UNANSWERED = (FORGET, INTERRUPT, BATCH_FORGET)
IN_HEADER, OUT_HEADER = struct.Struct("<IIQQIIII"), struct.Struct("<IiQ")
INIT_OUT = struct.Struct("<IIIIHHIIHHI28x")
ATTR = struct.Struct("<6Q10I")
ROOT, FILE = 1, 2  # nodes
NOBODY = 65534


class Server:
    """The server of one mount, seen from the test."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self.process = process

    def stop(self) -> list[str]:
        """End it, so that whoever waits for it is let go of; return what it was asked."""
        self.process.kill()
        assert self.process.stdout
        return self.process.stdout.read().split()


@contextlib.contextmanager
def serving(mount: Path, data: bytes = b"", silent: bool = False) -> Iterator[Server]:
    """Mount what an ordinary user's server serves, one that everybody may look into (allow_other);
    `data` is in its file. A `silent` one answers nothing."""
    fd = os.open("/dev/fuse", os.O_RDWR)
    try:
        options = f"fd={fd},rootmode=40000,user_id={NOBODY},group_id={NOBODY},allow_other"
        # mount(8) would look for a helper of the type; -i has it call mount(2) itself.
        command = ["mount", "-i", "-t", "fuse", "-o", options, "liar", str(mount)]
        subprocess.run(command, pass_fds=[fd], check=True)
        server = subprocess.Popen(
            [sys.executable, "-ISB", __file__, str(fd), *(["silent"] if silent else [])],
            pass_fds=[fd],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
    finally:
        os.close(fd)  # the server's is the last one, whose end is the end of the connection
    assert server.stdin
    with server.stdin as stdin:
        stdin.write(data.decode())
    server.stdin = None
    try:
        yield Server(server)
    finally:
        server.kill()
        server.communicate()
        subprocess.run(["umount", str(mount)], check=True)


# --- the server --------------------------------------------------------------------------------


def attributes(node: int, size: int) -> bytes:
    mode = stat.S_IFDIR | 0o700 if node == ROOT else stat.S_IFREG | 0o700
    return ATTR.pack(node, size, 1, 0, 0, 0, 0, 0, 0, mode, 1, 0, 0, 0, 4096, 0)


def answer(opcode: int, node: int, body: bytes, data: bytes) -> bytes | int:
    """What to answer, or an errno."""
    if opcode == GETATTR:
        return struct.pack("<QII", 0, 0, 0) + attributes(node, len(data))
    if opcode == LOOKUP and body == b"file\0":
        return struct.pack("<QQQQII", FILE, 0, 0, 0, 0, 0) + attributes(FILE, len(data))
    if opcode == LOOKUP:
        return errno.ENOENT
    if opcode in (OPEN, OPENDIR):
        return struct.pack("<QII", 0, 0, 0)
    if opcode == READ:
        _, offset, size = struct.unpack_from("<QQI", body)
        return data[offset : offset + size]
    return b"" if opcode in (RELEASE, RELEASEDIR, FLUSH) else errno.ENOSYS


def serve(fd: int, data: bytes, silent: bool) -> None:
    while True:
        request = os.read(fd, 1 << 20)
        _, opcode, unique, node, *_ = IN_HEADER.unpack_from(request)
        print(opcode, flush=True)
        found: bytes | int
        if opcode == INIT:
            found = INIT_OUT.pack(7, 31, 0, 0, 8, 6, 4096, 1, 1, 0, 0)
        elif opcode in UNANSWERED or silent:
            continue
        else:
            found = answer(opcode, node, request[IN_HEADER.size :], data)
        error, payload = (-found, b"") if isinstance(found, int) else (0, found)
        os.write(fd, OUT_HEADER.pack(OUT_HEADER.size + len(payload), error, unique) + payload)


if __name__ == "__main__":
    serve(int(sys.argv[1]), sys.stdin.buffer.read(), sys.argv[2:] == ["silent"])
