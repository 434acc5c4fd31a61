"""Where contents belong: files and holes, pages of a file seen through mappings, own pages that hide a file's."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path

import numpy as np
from redirty.collector.linux.process_memory import PAGE
from redirty.collector.mirror.image.commit import PlacedMapping, PlacedProcess, commit
from redirty.collector.mirror.image.core_notes import OWN_NAME, OWN_PAGES, _note
from redirty.collector.mirror.image.core_reader import CoreFile
from redirty.collector.mirror.image.image import FILE, SPACE, Image
from redirty.collector.mirror.sources.files import Files, FileSource
from redirty.collector.mirror.sources.spaces import SpaceSource
from redirty.collector.mirror.sources.vmas import Vma, key_of
from redirty.collector.pageset import PageSet, from_pages, page_numbers

U = np.uint64


def pages(*numbers: int) -> PageSet:
    return from_pages(np.array(numbers, U))


def numbers(found: PageSet) -> list[int]:
    return [int(p) for p in page_numbers(found)]


def vma(first: int, last: int, perms: str = "rw-s", offset: int = 0, inode: int = 7) -> Vma:
    return Vma(first * PAGE, last * PAGE, perms, offset * PAGE, "08:01", inode, "/x")


def space() -> SpaceSource:
    return SpaceSource(1, os.getpid(), scan=False)


def test_a_file_is_wanted_where_it_is_mapped_and_not_where_it_is_a_hole() -> None:
    fd = os.memfd_create("file")
    os.ftruncate(fd, 10 * PAGE + 100)
    os.pwrite(fd, b"x" * PAGE, 3 * PAGE)
    seen_by = space()
    file = FileSource(2, ("00:01", 7, 0), fd, "/x")
    file.shown_by = [(seen_by, vma(100, 104)), (seen_by, vma(200, 220, "r--p", offset=2))]
    wanted = file.wanted()
    assert numbers(wanted) == list(range(11)), "up to the file's end, with the page it lies in"
    assert 3 not in numbers(file.holes(wanted)) and 8 in numbers(file.holes(wanted))
    buffer = memoryview(bytearray(b"z" * 3 * PAGE))
    assert file.read(np.array([2, 3, 10], U), buffer).all()
    assert bytes(buffer) == bytes(PAGE) + b"x" * PAGE + bytes(PAGE)
    file.close()
    seen_by.close()


def test_a_file_that_was_written_is_not_settled() -> None:
    fd = os.memfd_create("file")
    os.ftruncate(fd, PAGE)
    file = FileSource(2, ("00:01", 7, 0), fd, "/x")
    assert file.changed_outside(), "nobody knows yet"
    file.settle()
    assert file.changed_outside(), "its times are too young to tell"
    time.sleep(0.06)
    file.settle()
    assert not file.changed_outside()
    os.pwrite(fd, b"y", 0)
    assert file.changed_outside()
    file.close()


def test_dirty_pages_are_found_in_the_files_that_were_there_then_or_are_now() -> None:
    writer = space()
    writer.before = (vma(100, 110, offset=5),)
    writer.vmas = (vma(100, 105, "rw-p"), vma(105, 110, offset=50, inode=8), vma(300, 301, inode=8))
    files = Files()
    found, unknown = files.dirtied(writer, np.array([101, 107, 300], U))
    old, new = key_of(writer.before[0], 0), key_of(writer.vmas[1], 0)
    assert {key: numbers(p) for key, p in found.items()} == {old: [6, 12], new: [0, 52]}
    assert not unknown
    assert files.dirtied(writer, np.array([101, 999], U))[1], "in no mapping that was ever seen"
    writer.close()


def test_own_pages_hide_the_files_also_where_they_are_zero(tmp_path: Path) -> None:
    image = Image.create(tmp_path / "m", "s" * 16)
    image.declare(1, SPACE)
    image.declare(2, FILE)
    image.write(2, np.array([4], U), np.array([4], U), memoryview(b"f" * (4 * PAGE)))
    image.write(1, np.array([101], U), np.array([1], U), memoryview(b"o" * PAGE))
    mapping = PlacedMapping(100, 104, "rw-p", "/x", 2, 4)
    zero_run = ((102, 1),)
    own = np.array([[101, 2]], U)
    notes = _note(OWN_NAME, OWN_PAGES, own.tobytes())
    huge = PlacedMapping(1 << 30, 1 << 34, "---p", "")  # reserved, 64 TiB of nothing
    commit(image, [PlacedProcess(9, 1, (mapping, huge), notes, zero_run)], 62, {"bytes": 1})
    core = CoreFile(tmp_path / "m" / "memory.core")
    assert core.read(100, 4) == b"f" * PAGE + b"o" * PAGE + bytes(PAGE) + b"f" * PAGE
    assert core.read(1 << 31, 1) == bytes(PAGE)
    assert core.own.tolist() == [[101, 2]]
    core.close()
    names = {p.name for p in (tmp_path / "m").iterdir()}
    assert names == {"memory.core", "mirror.json"}
    assert json.loads((tmp_path / "m" / "mirror.json").read_text())["bytes"] == 1
    assert (tmp_path / "m" / "memory.core").stat().st_blocks * 512 < 1 << 20
