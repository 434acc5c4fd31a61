"""Owners of contents: files with holes, file pages seen through mappings, own pages that hide those of a file."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path

import numpy as np
from redirty.collector.linux.shared_mappings import Identity
from redirty.collector.mirror.image.commit import commit
from redirty.collector.mirror.image.core_notes import OWN_NAME, OWN_PAGES, make_note
from redirty.collector.mirror.image.core_reader import CoreFile
from redirty.collector.mirror.image.image import FILE, SPACE, Image
from redirty.collector.mirror.image.process_image import PlacedMapping, PlacedProcess
from redirty.collector.mirror.sources.file_source import FileSource
from redirty.collector.mirror.sources.files import Files
from redirty.collector.mirror.sources.spaces import SpaceSource
from redirty.collector.mirror.sources.vmas import Vma
from redirty.collector.pageset import PAGE_SIZE, PageSet, from_pages, page_numbers

U = np.uint64


def pages(*numbers: int) -> PageSet:
    return from_pages(np.array(numbers, U))


def numbers(found: PageSet) -> list[int]:
    return [int(p) for p in page_numbers(found)]


def vma(first: int, last: int, perms: str = "rw-s", offset: int = 0, inode: int = 7) -> Vma:
    return Vma(first * PAGE_SIZE, last * PAGE_SIZE, perms, offset * PAGE_SIZE, "08:01", inode, "/x")


def space() -> SpaceSource:
    return SpaceSource(1, os.getpid(), scan=False)


def test_a_file_is_mirrored_where_it_is_mapped_and_not_where_it_has_holes() -> None:
    fd = os.memfd_create("file")
    os.ftruncate(fd, 10 * PAGE_SIZE + 100)
    os.pwrite(fd, b"x" * PAGE_SIZE, 3 * PAGE_SIZE)
    viewer = space()
    file = FileSource(2, Identity(1, 7, 0), fd, "/x")
    file.mapped_by = [(viewer, vma(100, 104)), (viewer, vma(200, 220, "r--p", offset=2))]
    assert numbers(file.current_pages()) == [3]
    assert file.end == 11, "up to the page that contains the end of the file"
    os.pwrite(fd, b"y", 10 * PAGE_SIZE)
    assert numbers(file.current_pages()) == [3, 10]
    os.ftruncate(fd, 5 * PAGE_SIZE)
    assert numbers(file.current_pages()) == [3]
    os.ftruncate(fd, 10 * PAGE_SIZE + 100)
    file.note_written(pages(8, 500))
    assert numbers(file.current_pages()) == [3, 8], "known to be written, if not to the file system"
    buffer = memoryview(bytearray(b"z" * 3 * PAGE_SIZE))
    assert file.read(np.array([2, 3, 10], U), buffer).all()
    assert bytes(buffer) == bytes(PAGE_SIZE) + b"x" * PAGE_SIZE + bytes(PAGE_SIZE)
    file.close()
    viewer.close()


def test_a_write_to_a_file_is_noticed() -> None:
    fd = os.memfd_create("file")
    os.ftruncate(fd, PAGE_SIZE)
    file = FileSource(2, Identity(1, 7, 0), fd, "/x")
    assert file.may_have_changed(), "its state is not known yet"
    file.remember_state()
    assert file.may_have_changed(), "its times are too recent to be conclusive"
    time.sleep(0.06)
    file.remember_state()
    assert not file.may_have_changed()
    os.pwrite(fd, b"y", 0)
    assert file.may_have_changed()
    file.close()


def test_dirty_pages_are_attributed_by_previous_and_current_mappings() -> None:
    writer = space()
    writer.previous_vmas = (vma(100, 110, offset=5),)
    writer.vmas = (vma(100, 105, "rw-p"), vma(105, 110, offset=50, inode=8), vma(300, 301, inode=8))
    old, new = Identity(1, 7, 0), Identity(1, 8, 0)
    writer.keys = {v: old if v.inode == 7 else new for v in writer.previous_vmas + writer.vmas}
    files = Files()
    found, unknown = files.dirty_pages(writer, np.array([101, 107, 300], U))
    assert {key: numbers(p) for key, p in found.items()} == {old: [6, 12], new: [0, 52]}
    assert not unknown
    assert files.dirty_pages(writer, np.array([101, 999], U))[1], "a page in no known mapping"
    del writer.keys[writer.vmas[1]]
    assert files.dirty_pages(writer, np.array([107], U))[1], "of a file that is not identified"
    writer.close()


def test_own_pages_hide_file_pages_even_if_they_are_zero(tmp_path: Path) -> None:
    image = Image.create(tmp_path / "m", "s" * 16)
    image.declare(1, SPACE)
    image.declare(2, FILE)
    image.write(2, np.array([4], U), np.array([4], U), memoryview(b"f" * (4 * PAGE_SIZE)))
    image.write(1, np.array([101], U), np.array([1], U), memoryview(b"o" * PAGE_SIZE))
    mapping = PlacedMapping(100, 104, "rw-p", "/x", 2, 4)
    zero_run = ((102, 1),)
    own = np.array([[101, 2]], U)
    notes = make_note(OWN_NAME, OWN_PAGES, own.tobytes())
    huge = PlacedMapping(1 << 30, 1 << 34, "---p", "")  # reserved, 64 TiB of nothing
    commit(image, [PlacedProcess(9, 1, (mapping, huge), notes, zero_run)], 62, {"bytes": 1})
    core = CoreFile(tmp_path / "m" / "memory.core")
    pages = b"f" * PAGE_SIZE + b"o" * PAGE_SIZE + bytes(PAGE_SIZE) + b"f" * PAGE_SIZE
    found = bytearray(4 * PAGE_SIZE)
    for page, data in core.data(100, 4):
        found[(page - 100) * PAGE_SIZE : (page - 100) * PAGE_SIZE + len(data)] = data
    assert found == pages
    assert list(core.data(1 << 30, (1 << 34) - (1 << 30))) == []
    assert core.own.tolist() == [[101, 2]]
    core.close()
    names = {p.name for p in (tmp_path / "m").iterdir()}
    assert names == {"memory.core", "mirror.json"}
    assert json.loads((tmp_path / "m" / "mirror.json").read_text())["bytes"] == 1
    assert (tmp_path / "m" / "memory.core").stat().st_blocks * 512 < 1 << 20
