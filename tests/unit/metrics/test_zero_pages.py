"""Tests of counting zero pages, and of predictions that use their positions."""

from __future__ import annotations

import ctypes
import mmap
import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from redirty.collector.analyze import load, observations
from redirty.collector.folders import Folder
from redirty.collector.linux.maps import Mapping, Mappings
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
    return ZeroRange(7, mapping, start, mapping.start + last * PAGE, present, zero)


def test_runs() -> None:
    assert runs(np.array([False, True, True, False, True])) == [(1, 3), (4, 5)]
    assert runs(np.array([True])) == [(0, 1)]
    assert runs(np.array([], np.bool_)) == []


def test_zero_pages() -> None:
    last = bytearray(PAGE)
    last[-1] = 1
    assert zero_pages(bytes(PAGE) + b"x" * PAGE + bytes(PAGE) + bytes(last)) == 2
    assert zero_pages(b"") == 0
    assert zero_pages(bytes(PAGE) + bytes(100)) == 1, "a part of a page does not count"


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
    return SimpleNamespace(pid=os.getpid(), mappings=Mappings.of((mapping,)), gone=gone)


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
