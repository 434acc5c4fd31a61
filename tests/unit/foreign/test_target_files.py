"""Files of a target are opened only if they are regular files, and without waiting for anything."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable
from pathlib import Path

import pytest
from redirty.collector.foreign.readers.target_files import open_below


def _socket(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as made:
        made.bind(str(path))


def _link_to_fifo(path: Path) -> None:
    os.mkfifo(path.with_name("fifo"))
    path.symlink_to("fifo")


def _link_to_file(path: Path) -> None:
    path.with_name("file").write_bytes(b"content")
    path.symlink_to("file")


REFUSED: dict[str, Callable[[Path], object]] = {
    "FIFO": os.mkfifo,
    "link to a FIFO": _link_to_fifo,
    "link to a device": lambda path: path.symlink_to("/dev/zero"),
    "link to itself": lambda path: path.symlink_to(path.name),
    "link to a file": _link_to_file,
    "directory": Path.mkdir,
    "socket": _socket,
    "nothing": lambda path: None,
}


@pytest.mark.parametrize("kind", REFUSED)
def test_other_than_regular_files_are_refused(kind: str, tmp_path: Path) -> None:
    REFUSED[kind](tmp_path / "name")
    with pytest.raises(OSError):
        open_below(str(tmp_path), "name")


def test_a_regular_file_is_read_and_identified(tmp_path: Path) -> None:
    (tmp_path / "name").write_bytes(b"0123456789")
    file = open_below(str(tmp_path), "name")
    again = open_below(str(tmp_path), "name")
    assert (file.size, file.owner) == (10, os.getuid())
    assert file.identity == again.identity
    assert (file.read(0, 100), file.read(4, 3), file.read(10, 5)) == (b"0123456789", b"456", b"")
    (tmp_path / "name").write_bytes(b"other")
    changed = open_below(str(tmp_path), "name")
    assert changed.identity != file.identity
    for one in (file, again, changed):
        one.close()


def test_no_link_of_a_directory_leaves_the_root(tmp_path: Path) -> None:
    """An absolute link of a container leads into the container, not to the host's directory."""
    root = tmp_path / "root"
    (root / "etc").mkdir(parents=True)
    (root / "etc/passwd").write_bytes(b"its own")
    (root / "tmp").symlink_to("/etc")
    (root / "up").symlink_to("../../..")
    for path in ("tmp/passwd", "up/etc/passwd"):
        file = open_below(str(root), path)
        assert file.read(0, 100) == b"its own", path
        file.close()
