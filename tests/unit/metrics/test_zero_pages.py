"""Tests of counting zero pages, and of predictions that use their positions."""

from __future__ import annotations

import ctypes
import mmap
import os
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from redirty.collector.analyze import load, observations
from redirty.collector.folders import Folder
from redirty.collector.linux.maps import Mapping, Mappings
from redirty.collector.metrics.mapped_files import Shown
from redirty.collector.metrics.seen_pages import SeenPages
from redirty.collector.metrics.zero_pages import ZeroPages, ZeroRange, joined, runs, zero_pages
from redirty.collector.model.hypervisors import Qemu
from redirty.collector.model.memory import Memory
from redirty.collector.model.policy import Fixed, Goal
from redirty.collector.model.simulation import simulate
from redirty.collector.pageset import PAGE_SIZE
from redirty.collector.recording.zeros import write_zeros

PAGE = PAGE_SIZE
RAM = Mapping(0x40000000, 0x40000000 + 2000 * PAGE, "rw-p", "")
ROM = Mapping(0x10000000, 0x10000000 + 10 * PAGE, "rw-p", "")
FILE = Mapping(0x20000000, 0x20000000 + 10 * PAGE, "rw-p", "/x")


def zero_range(mapping: Mapping, first: int, last: int, present: int, zero: int) -> ZeroRange:
    start = mapping.start + first * PAGE
    end = mapping.start + last * PAGE
    return ZeroRange(7, mapping, start, end, present, zero, 0, last - first, present, zero)


def test_runs() -> None:
    assert runs(np.array([False, True, True, False, True])) == [(1, 3), (4, 5)]
    assert runs(np.array([True])) == [(0, 1)]
    assert runs(np.array([], np.bool_)) == []


def test_zero_pages() -> None:
    last = bytearray(PAGE)
    last[-1] = 1
    assert zero_pages(bytes(PAGE) + b"x" * PAGE + bytes(PAGE) + bytes(last)).sum() == 2
    assert len(zero_pages(b"")) == 0
    assert zero_pages(bytes(PAGE) + bytes(100)).tolist() == [True], (
        "a part of a page does not count"
    )


def test_neighbours_that_are_alike_are_joined() -> None:
    found = [
        zero_range(RAM, 0, 512, 0, 0),
        zero_range(RAM, 512, 1024, 0, 0),
        zero_range(RAM, 1024, 1536, 512, 0),
        zero_range(RAM, 1536, 2000, 464, 0),
    ]
    assert list(joined(found)) == [
        zero_range(RAM, 0, 1024, 0, 0),
        zero_range(RAM, 1024, 2000, 976, 0),
    ]
    mixed = [zero_range(RAM, 0, 512, 512, 3), zero_range(RAM, 512, 1024, 512, 3)]
    assert list(joined(mixed)) == mixed
    apart = [zero_range(ROM, 0, 10, 0, 0), zero_range(FILE, 0, 10, 0, 0)]
    assert list(joined(apart)) == apart


def test_a_recording_keeps_zero_pages(tmp_path: Path) -> None:
    write_zeros(
        Folder.hold(tmp_path),
        [
            zero_range(ROM, 0, 10, 10, 0),
            zero_range(FILE, 0, 10, 4, 1),
            zero_range(RAM, 0, 512, 512, 100),
            zero_range(RAM, 512, 2000, 0, 0),
        ],
    )
    frame = load.load_zeros(tmp_path)
    assert (tmp_path / "zeros.csv").stat().st_mode & 0o777 == 0o600
    assert frame["start"].tolist() == [ROM.start, FILE.start, RAM.start, RAM.start + 512 * PAGE]
    assert frame["zero_pages"].tolist() == [0, 1, 100, 0]
    layout = observations.layout_of(frame)
    assert layout is not None
    # The largest mapping comes first. Untouched pages are zero pages in anonymous memory; those of a file
    # are not copied.
    assert layout.pages.tolist() == [512, 1488, 10, 4]
    assert layout.zero.tolist() == [100, 1488, 0, 1]
    assert observations.layout_of(load.load_zeros(tmp_path / "other")) is None


def own_space(area: mmap.mmap, *, gone: bool = False) -> Any:
    """Return an address space of this process that consists of one area."""
    start = ctypes.addressof(ctypes.c_char.from_buffer(area))
    mapping = Mapping(start, start + len(area), "rw-p", "")
    return SimpleNamespace(pid=os.getpid(), number=1, mappings=Mappings.of((mapping,)), gone=gone)


def test_memory_is_read_page_by_page() -> None:
    area = mmap.mmap(-1, 2000 * PAGE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    area.madvise(mmap.MADV_NOHUGEPAGE)
    for page in range(100, 300):
        area[page * PAGE] = page % 2
    zeros = ZeroPages([own_space(area), own_space(area, gone=True)])
    reported: list[int] = []
    found = list(zeros.count(on_pages=reported.append))
    assert zeros.pages == sum(reported) == sum(s.pages for s in found) == 2000
    assert sum(s.present for s in found) == 200
    assert sum(s.zero for s in found) == 100
    assert list(zeros.count(stop=lambda: True)) == []
    zeros.close()
    assert zeros.pages == 0


def never(_t: float) -> float:
    return 0.0


def test_qemu_ends_its_first_pass_by_the_last_pages() -> None:
    """The position of zero pages decides how early QEMU's first pass ends.

    Of 100,000 pages half are zero. With the zeros last, all pages that cost anything are sent before what is
    pending fits the limit; with the zeros first, the last of them are not.
    """
    page = PAGE + 8
    bandwidth, limit = 100 * page * 10, 0.3  # 100 pages in 100 ms, 1,000 a second
    halves = np.array([50_000.0, 50_000.0])
    last = Memory(100_000, 50_000, PAGE, (halves, np.array([0.0, 50_000.0])))
    first = Memory(100_000, 50_000, PAGE, (halves, np.array([50_000.0, 0.0])))
    even = Memory(100_000, 50_000, PAGE)
    policy = Qemu(limit)
    sizes = [m.first_pass_bytes(policy) for m in (last, first, even)]
    assert sizes[0] == sizes[1] == sizes[2] == 50_000 * page + 50_000 * 9
    sent = {name: simulate(m, never, policy, bandwidth).passes[0] for name, m in
            (("last", last), ("first", first), ("even", even))}  # fmt: skip
    # 300 pages fit the limit, and some bytes of headers.
    assert sent["first"].bytes == pytest.approx(49_700 * page, rel=0.01)
    assert sent["last"].bytes == pytest.approx(50_000 * page, rel=0.01)
    assert sent["first"].bytes < sent["even"].bytes < sent["last"].bytes
    # What the first pass leaves is still sent once.
    for memory in (last, first, even):
        whole = simulate(memory, never, policy, bandwidth)
        assert whole.transferred_bytes == pytest.approx(memory.first_pass_bytes(policy), rel=1e-9)


def test_other_policies_ignore_the_positions_of_zero_pages() -> None:
    layout = (np.array([500.0, 500.0]), np.array([0.0, 500.0]))
    for policy in (Goal(0.3), Fixed(3)):
        placed = simulate(Memory(1000, 500, PAGE, layout), never, policy, 1e6)
        assert placed == simulate(Memory(1000, 500, PAGE), never, policy, 1e6)


@given(
    st.lists(
        st.tuples(
            st.integers(0, 1), st.integers(0, 1500), st.sets(st.integers(0, 599), max_size=60)
        ),
        max_size=12,
    )
)
def test_pages_of_files_are_seen_once(reads: list[tuple[int, int, set[int]]]) -> None:
    truth: set[tuple[int, int]] = set()
    seen = SeenPages()
    for file, first, offsets in reads:
        assert seen.first(file) == (file not in {f for f, _ in truth})
        truth.add((file, -1))
        here = np.zeros(600, np.bool_)
        here[list(offsets)] = True
        new = {o for o in offsets if (file, first + o) not in truth}
        assert set(np.flatnonzero(seen.of_file(file, first, here)).tolist()) == new
        truth |= {(file, first + o) for o in offsets}


def test_shared_memory_is_counted_once() -> None:
    """An area that is mapped twice: by every mapping, and once."""
    memory = os.memfd_create("zeros")
    os.ftruncate(memory, 700 * PAGE)
    areas = [mmap.mmap(memory, 700 * PAGE), mmap.mmap(memory, 600 * PAGE, offset=100 * PAGE)]
    os.close(memory)
    for page in range(90, 200):
        areas[0][page * PAGE] = page % 2
    for page in range(150, 220):
        areas[1][(page - 100) * PAGE] = 1
    spaces = [own_space(area) for area in areas]
    for number, space in enumerate(spaces):
        (mapping,) = space.mappings.items
        mapping = mapping._replace(perms="rw-s", offset=100 * number * PAGE)
        space.mappings, space.number = Mappings.of((mapping,)), number
    shown = [Shown.of([(space.mappings.items[0], 5)]) for space in spaces]
    zeros = ZeroPages(spaces, shown.__getitem__)
    found = list(zeros.count())
    zeros.close()
    assert sum(z.present for z in found) == 110 + 70
    assert sum(z.present_once for z in found) == 130, "pages 90 to 219"
    assert sum(z.zero_once for z in found) == 30, "the even ones below 150"
    # What nobody touched belongs to the first mapping.
    assert sum(z.once for z in found) == 700 + 20


def test_the_rest_of_a_memory_is_in_files(tmp_path: Path) -> None:
    """Pages that no page table shows are copied from files: they come last, and count as not zero."""
    first = replace(zero_range(RAM, 0, 512, 512, 100), once=512, present_once=500, zero_once=90)
    again = replace(zero_range(RAM, 0, 512, 512, 100), once=0, present_once=0, zero_once=0)
    write_zeros(Folder.hold(tmp_path), [first, again])
    frame = load.load_zeros(tmp_path)
    last = {"present_once_pages": 800.0, "dirty_once_pages": 100.0, "redirtied_once_pages": 60.0}
    layout = observations.layout_of(frame, pd.DataFrame([last]))
    assert layout is not None
    assert layout.pages.tolist() == [512, 0, 340]
    assert layout.zero.tolist() == [102, 0, 0]
    unknown = pd.DataFrame([dict.fromkeys(last, np.nan)])
    for rounds in (unknown, None):
        layout = observations.layout_of(frame, rounds)
        assert layout is not None
        assert layout.pages.tolist() == [512, 0]
