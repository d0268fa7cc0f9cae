# SPDX-License-Identifier: Apache-2.0
"""A FUSE server that lies, stops answering, or never does: what any user's program can be.

It is a program of its own, on the standard library alone, since whoever asks it something waits for
it. In its root directory it has `file`, whose data the test gives or which is
another file, and `dir`, which is empty. It claims that root owns all of it and that nobody else can
open it, and prints the number of every request. The protocol: linux/fuse.h.
"""

from __future__ import annotations

import contextlib
import errno
import os
import signal
import stat
import struct
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

LOOKUP, FORGET, GETATTR, SETATTR, OPEN, READ, WRITE = 1, 2, 3, 4, 14, 15, 16
STATFS, RELEASE, FSYNC, FLUSH, INIT = 17, 18, 20, 25, 26
OPENDIR, RELEASEDIR, INTERRUPT, BATCH_FORGET = 27, 29, 36, 42
UNANSWERED = (FORGET, INTERRUPT, BATCH_FORGET)
IN_HEADER, OUT_HEADER = struct.Struct("<IIQQIIII"), struct.Struct("<IiQ")
INIT_OUT = struct.Struct("<IIIIHHIIHHI28x")
ATTR = struct.Struct("<6Q10I")
ROOT, FILE, DIRECTORY = 1, 2, 3  # nodes
NOBODY = 65534


class Server:
    """The server of one mount, seen from the test."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self.process = process

    def hang(self) -> None:
        """From now on it answers nothing, and nothing that it was asked is forgotten."""
        self.process.send_signal(signal.SIGSTOP)

    def go_on(self) -> None:
        self.process.send_signal(signal.SIGCONT)

    def stop(self) -> list[str]:
        """End it, so that whoever waits for it is let go of; return what it was asked."""
        self.process.kill()
        assert self.process.stdout
        return self.process.stdout.read().split()


@contextlib.contextmanager
def serving(
    mount: Path, data: bytes = b"", silent: bool = False, backing: Path | None = None
) -> Iterator[Server]:
    """Mount what an ordinary user's server serves, one that everybody may look into (allow_other);
    `data` is in its file, or what is in the file `backing`. A `silent` one answers nothing."""
    fd = os.open("/dev/fuse", os.O_RDWR)
    try:
        options = f"fd={fd},rootmode=40000,user_id={NOBODY},group_id={NOBODY},allow_other"
        # mount(8) would look for a helper of the type; -i has it call mount(2) itself.
        command = ["mount", "-i", "-t", "fuse", "-o", options, "liar", str(mount)]
        subprocess.run(command, pass_fds=[fd], check=True)
        server = subprocess.Popen(
            [
                *(sys.executable, "-ISB", __file__, str(fd)),
                *(["silent"] if silent else ["backed", str(backing)] if backing else []),
            ],
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
        # Lazily, with what is mounted below it: there is no way to that any more.
        subprocess.run(["umount", "--lazy", str(mount)], check=True)


# --- the server --------------------------------------------------------------------------------


def attributes(node: int, file: File) -> bytes:
    mode = file.mode if node == FILE else stat.S_IFDIR | 0o700
    return ATTR.pack(node, file.size, 1, 0, 0, 0, 0, 0, 0, mode, 1, 0, 0, 0, 4096, 0)


class File:
    """What is in the file: bytes, or another file."""

    def __init__(self, data: bytes, backing: str = "") -> None:
        self.fd = os.open(backing, os.O_RDWR) if backing else os.memfd_create("data")
        os.write(self.fd, data)
        self.mode = stat.S_IFREG | (os.fstat(self.fd).st_mode & 0o700 if backing else 0o700)

    @property
    def size(self) -> int:
        return os.fstat(self.fd).st_size


def answer(opcode: int, node: int, body: bytes, file: File) -> bytes | int:
    """What to answer, or an errno."""
    if opcode in (GETATTR, SETATTR):
        return struct.pack("<QII", 0, 0, 0) + attributes(node, file)
    if opcode == LOOKUP and body in (b"file\0", b"dir\0"):
        found = FILE if body == b"file\0" else DIRECTORY
        return struct.pack("<QQQQII", found, 0, 0, 0, 0, 0) + attributes(found, file)
    if opcode == LOOKUP:
        return errno.ENOENT
    if opcode in (OPEN, OPENDIR):
        return struct.pack("<QII", 0, 0, 0)
    if opcode == READ:
        _, offset, size = struct.unpack_from("<QQI", body)
        return os.pread(file.fd, size, offset)
    if opcode == WRITE:
        _, offset, size = struct.unpack_from("<QQI", body)
        return struct.pack("<II", os.pwrite(file.fd, body[40 : 40 + size], offset), 0)
    if opcode == STATFS:
        return struct.pack("<5Q3I28x", 0, 0, 0, 0, 0, 4096, 255, 4096)
    if opcode == FSYNC:
        os.fsync(file.fd)
    return b"" if opcode in (RELEASE, RELEASEDIR, FLUSH, FSYNC) else errno.ENOSYS


def serve(fd: int, file: File, silent: bool) -> None:
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
            found = answer(opcode, node, request[IN_HEADER.size :], file)
        error, payload = (-found, b"") if isinstance(found, int) else (0, found)
        os.write(fd, OUT_HEADER.pack(OUT_HEADER.size + len(payload), error, unique) + payload)


if __name__ == "__main__":
    number, *mode = sys.argv[1:]
    content = File(sys.stdin.buffer.read(), mode[1] if mode[:1] == ["backed"] else "")
    serve(int(number), content, mode == ["silent"])
