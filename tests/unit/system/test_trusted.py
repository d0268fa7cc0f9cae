# SPDX-License-Identifier: Apache-2.0
"""Files that only root can have changed, and reading that never hangs or runs away."""

from __future__ import annotations

import errno
import os
import socket
import stat
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from vmsnap.system.trusted import (
    MAX_BYTES,
    InsecurePathError,
    UnreadableFileError,
    open_trusted,
    read_text,
)

from ..worlds import NOBODY, make_directory


@pytest.fixture
def file(trusted_dir: Path) -> Path:
    """A file two directories down that everybody may trust."""
    path = trusted_dir / "outer/inner/file"
    make_directory(path.parent)
    path.write_text("content")
    path.chmod(0o600)
    return path


def untrusted(path: Path, step: Path) -> str:
    """Make sure that `path` is refused because of `step`; what was found and expected."""
    with pytest.raises(InsecurePathError) as caught:
        read_text(path)
    assert caught.value.step == str(step)
    return str(caught.value)


# --- who owns it, who can change it --------------------------------------------------------------


@pytest.mark.parametrize("mode", [0o600, 0o400, 0o200, 0o000])
def test_a_file_of_root_with_mode_0600_or_stricter_is_read(file: Path, mode: int) -> None:
    file.chmod(mode)
    assert read_text(file) == "content"


@pytest.mark.parametrize("bit", [0o100, 0o040, 0o020, 0o010, 0o004, 0o002, 0o001])
def test_any_permission_beyond_0600_is_refused_with_mode_found_and_expected(
    file: Path, bit: int
) -> None:
    file.chmod(0o600 | bit)
    message = untrusted(file, file)
    assert f"found mode {0o600 | bit:04o}" in message
    assert "expected mode 0600" in message


def test_a_file_of_somebody_else_is_refused_with_the_uid(file: Path) -> None:
    os.chown(file, NOBODY, 0)
    message = untrusted(file, file)
    assert f"uid {NOBODY}" in message
    assert "root" in message


def test_a_file_of_another_group_is_fine(file: Path) -> None:
    os.chown(file, 0, NOBODY)
    assert read_text(file) == "content"


@pytest.mark.parametrize("level", [1, 2])
@pytest.mark.parametrize("mode", [0o775, 0o757, 0o777, 0o1777, 0o720, 0o702])
def test_a_directory_that_others_can_write_to_is_refused_sticky_or_not(
    file: Path, level: int, mode: int
) -> None:
    directory = list(file.parents)[level - 1]
    directory.chmod(mode)
    assert f"found mode {mode:04o}" in untrusted(file, directory)


@pytest.mark.parametrize("level", [1, 2])
def test_a_directory_of_somebody_else_is_refused(file: Path, level: int) -> None:
    directory = list(file.parents)[level - 1]
    os.chown(directory, NOBODY, 0)
    assert f"uid {NOBODY}" in untrusted(file, directory)


def test_a_file_below_tmp_is_refused(tmp_path: Path) -> None:
    if not stat.S_IMODE(Path("/tmp").stat().st_mode) & 0o022:
        pytest.fail("needs a /tmp that everybody can write to")
    path = tmp_path / "file"
    path.write_text("content")
    path.chmod(0o600)
    if path.is_relative_to("/tmp"):
        untrusted(path, Path("/tmp"))


# --- symbolic links ----------------------------------------------------------------------------


@pytest.mark.parametrize("relative", [False, True])
def test_a_link_of_root_to_a_trusted_file_is_followed(
    trusted_dir: Path, file: Path, relative: bool
) -> None:
    link = trusted_dir / "link"
    link.symlink_to(file.relative_to(trusted_dir) if relative else file)
    assert read_text(link) == "content"


def test_a_link_to_a_directory_and_back_up_is_followed(trusted_dir: Path, file: Path) -> None:
    (trusted_dir / "link").symlink_to(file.parent)
    assert read_text(trusted_dir / "link/../inner/./file") == "content"


def test_a_link_that_somebody_else_owns_is_refused(trusted_dir: Path, file: Path) -> None:
    link = trusted_dir / "link"
    link.symlink_to(file)
    os.chown(link, NOBODY, 0, follow_symlinks=False)
    assert f"uid {NOBODY}" in untrusted(link, link)


def test_a_link_through_an_untrusted_directory_is_refused(trusted_dir: Path, file: Path) -> None:
    open_house = trusted_dir / "open"
    open_house.mkdir()
    (open_house / "way").symlink_to(file.parent)
    open_house.chmod(0o777)
    link = trusted_dir / "link"
    link.symlink_to("open/way/file")
    untrusted(link, open_house)


def test_a_link_out_of_an_untrusted_directory_and_back_is_refused(
    trusted_dir: Path, file: Path
) -> None:
    """Whoever can write there could exchange what `..` follows."""
    open_house = trusted_dir / "open"
    open_house.mkdir()
    open_house.chmod(0o777)
    untrusted(open_house / ".." / file.relative_to(trusted_dir), open_house)


def test_a_link_to_a_file_with_a_wider_mode_is_refused(trusted_dir: Path, file: Path) -> None:
    file.chmod(0o644)
    (trusted_dir / "link").symlink_to(file)
    untrusted(trusted_dir / "link", file)


def test_a_loop_of_links_ends_with_an_error(trusted_dir: Path) -> None:
    (trusted_dir / "a").symlink_to("b")
    (trusted_dir / "b").symlink_to("a")
    with pytest.raises(OSError) as caught:
        read_text(trusted_dir / "a")
    assert caught.value.errno == errno.ELOOP


def test_a_link_that_grows_with_every_step_ends_with_an_error(trusted_dir: Path) -> None:
    (trusted_dir / "a").symlink_to("a/a/a/a")
    with pytest.raises(OSError) as caught:
        read_text(trusted_dir / "a")
    assert caught.value.errno == errno.ELOOP


def test_a_link_into_nothing_is_a_missing_file(trusted_dir: Path) -> None:
    (trusted_dir / "link").symlink_to("nothing")
    with pytest.raises(FileNotFoundError):
        read_text(trusted_dir / "link")


# --- what is no file ---------------------------------------------------------------------------


def make_socket(path: Path) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as server:
        server.bind(str(path))


NO_FILES: list[tuple[str, Callable[[Path], None]]] = [
    ("FIFO", lambda path: os.mkfifo(path, 0o600)),
    ("socket", make_socket),
    ("directory", lambda path: path.mkdir(0o700)),
    ("character device", lambda path: os.mknod(path, stat.S_IFCHR | 0o600, os.makedev(1, 5))),
    ("block device", lambda path: os.mknod(path, stat.S_IFBLK | 0o600, os.makedev(900, 1))),
]


@pytest.mark.usefixtures("never_hangs")
@pytest.mark.parametrize("linked", [False, True])
@pytest.mark.parametrize(("word", "make"), NO_FILES)
def test_what_is_no_regular_file_is_refused_by_name_and_never_opened(
    trusted_dir: Path, word: str, make: Callable[[Path], None], linked: bool
) -> None:
    path = trusted_dir / "thing"
    make(path)
    (trusted_dir / "link").symlink_to(path)
    with pytest.raises(UnreadableFileError, match=f"found a {word}, expected a regular file"):
        read_text(trusted_dir / "link" if linked else path)


@pytest.mark.parametrize("path", ["", "/", "//", "/.", "relative", "./relative"])
def test_a_path_that_names_no_file_is_refused(path: str) -> None:
    with pytest.raises(UnreadableFileError, match="absolute path"):
        open_trusted(path)


def test_a_path_with_a_nul_byte_is_refused() -> None:
    with pytest.raises(UnreadableFileError, match="NUL|no file can have"):
        open_trusted("/etc/host\0name")


@pytest.mark.parametrize("path", ["/\ud800", "/etc/\udfff\ud800"])
def test_a_path_that_no_file_can_have_is_refused(path: str) -> None:
    """JSON can spell half a surrogate pair; the kernel's names are bytes and cannot."""
    with pytest.raises((UnreadableFileError, OSError)):
        open_trusted(path)


def test_a_name_that_is_too_long_is_an_error_of_the_system(trusted_dir: Path) -> None:
    with pytest.raises(OSError) as caught:
        open_trusted(trusted_dir / ("x" * 300))
    assert caught.value.errno == errno.ENAMETOOLONG


def test_a_file_in_the_place_of_a_directory_is_an_error(file: Path) -> None:
    with pytest.raises(NotADirectoryError):
        open_trusted(file / "below")


# --- what is no text ---------------------------------------------------------------------------


def content(file: Path, data: bytes) -> Path:
    file.write_bytes(data)
    return file


@pytest.mark.parametrize("size", [0, 1, MAX_BYTES])
def test_files_up_to_one_mebibyte_are_read(file: Path, size: int) -> None:
    assert read_text(content(file, b"x" * size)) == "x" * size


def test_a_file_of_one_byte_more_is_refused(file: Path) -> None:
    with pytest.raises(UnreadableFileError, match="1 MiB"):
        read_text(content(file, b"x" * (MAX_BYTES + 1)))


@pytest.mark.parametrize("size", [1 << 30, 1 << 42])
def test_a_file_larger_than_the_memory_is_refused_without_being_read(file: Path, size: int) -> None:
    os.truncate(file, size)
    with pytest.raises(UnreadableFileError, match="1 MiB"):
        read_text(file)


def test_a_byte_order_mark_is_no_part_of_the_text(file: Path) -> None:
    assert read_text(content(file, b"\xef\xbb\xbf{}")) == "{}"


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-16-be", "utf-32", "latin-1"])
def test_text_in_another_encoding_is_refused_as_not_utf_8(file: Path, encoding: str) -> None:
    with pytest.raises(UnreadableFileError) as caught:
        read_text(content(file, '{"größe": 1}'.encode(encoding)))
    assert str(file) in str(caught.value)
    assert "expected" in str(caught.value)


def test_a_wrong_byte_is_named_with_its_place(file: Path) -> None:
    with pytest.raises(UnreadableFileError, match="0xff at offset 3"):
        read_text(content(file, b"abc\xff"))


def test_a_nul_byte_is_refused(file: Path) -> None:
    with pytest.raises(UnreadableFileError, match="NUL"):
        read_text(content(file, b"a\0b"))


@given(data=st.binary(max_size=200))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_content_is_read_as_it_is_or_refused(file: Path, data: bytes) -> None:
    content(file, data)
    try:
        text = read_text(file)
    except UnreadableFileError:
        return
    assert text.encode() == data.removeprefix(b"\xef\xbb\xbf")


# --- no descriptor is left behind ----------------------------------------------------------------


def test_neither_success_nor_refusal_leaves_a_descriptor_open(
    trusted_dir: Path, file: Path
) -> None:
    before = set(os.listdir("/proc/self/fd"))
    os.close(open_trusted(file))
    file.chmod(0o666)
    (trusted_dir / "loop").symlink_to("loop")
    for path in (file, trusted_dir / "loop", trusted_dir, trusted_dir / "missing"):
        with pytest.raises((InsecurePathError, UnreadableFileError, OSError)):
            read_text(path)
    assert set(os.listdir("/proc/self/fd")) == before


def test_scripts_may_be_executable(file: Path) -> None:
    file.chmod(0o700)
    os.close(open_trusted(file, 0o077))
    file.chmod(0o750)
    with pytest.raises(InsecurePathError, match="expected mode 0700"):
        open_trusted(file, 0o077)
