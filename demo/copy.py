# SPDX-License-Identifier: Apache-2.0
"""The snapshot: copies disk images block by block, holes left out.

Run by vmsnap while everything is frozen (`vmsnap run -- python -m demo.copy FROM TO …`), and once
more without vmsnap for contrast. It knows nothing of filesystems.
"""

from __future__ import annotations

import errno
import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path

BLOCK = 1 << 20


def copy(source: Path, target: Path) -> int:
    """The number of bytes copied; the rest of the image are holes."""
    copied = 0
    with source.open("rb") as image, target.open("wb") as out:
        size = os.fstat(image.fileno()).st_size
        out.truncate(size)
        for offset, length in blocks(image.fileno(), size):
            out.seek(offset)
            copied += out.write(os.pread(image.fileno(), length, offset))
    return copied


def blocks(image: int, size: int) -> Iterator[tuple[int, int]]:
    """Offset and length of each block that holds data."""
    end = 0
    while end < size:
        try:
            start = os.lseek(image, end, os.SEEK_DATA)
        except OSError as error:
            if error.errno == errno.ENXIO:  # only a hole is left
                return
            raise
        end = os.lseek(image, start, os.SEEK_HOLE)
        for offset in range(start, end, BLOCK):
            yield offset, min(BLOCK, end - offset)


def main(arguments: list[str]) -> None:
    pairs = list(zip(map(Path, arguments[::2]), map(Path, arguments[1::2])))
    level = os.environ.get("VMSNAP_CONSISTENCY")
    print("copying both disks" + (f", consistency so far: {level}" if level else ""))
    for source, target in pairs:
        since = time.monotonic()
        mib = copy(source, target) / (1 << 20)
        print(f"  {source.name}: {mib:.0f} MiB of data in {time.monotonic() - since:.2f} s")


if __name__ == "__main__":
    main(sys.argv[1:])
