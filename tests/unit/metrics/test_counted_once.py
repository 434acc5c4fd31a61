"""Tests of counting shared memory once: compared with plain sets of (file, page) and (address space, page)."""

from __future__ import annotations

import mmap
import os
import tempfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from redirty.collector.bpf import abi
from redirty.collector.linux.maps import Mapping, Mappings, MapsFile
from redirty.collector.metrics.counted_once import CountedOnce, OnceCounter, counted
from redirty.collector.metrics.mapped_files import MappedFiles, Shown
from redirty.collector.metrics.write_curves import WindowCurves, inside
from redirty.collector.pageset import PAGE_SIZE, PageSet, page_numbers
from redirty.collector.tracking.rounds import Round, SpaceRound

from tests.support.factories import pages
from tests.tiers import require_root

PAGE = PAGE_SIZE
SHARED, OTHER, PRIVATE = "/memfd:a", "/srv/b", ""
FILES = {SHARED: 0, OTHER: 1}
CLASSES = {0: "anon_shared", 1: "file_shared"}
# By address space: (first page, pages, path, page of the file). The first maps one file twice, with an overlap,
# not at a multiple of 64 pages, and two neighbours of it at other places of the file.
LAYOUT = {
    1: [
        (0x10, 20, PRIVATE, 0),
        (0x40, 30, SHARED, 0),
        (0x5E, 30, SHARED, 90),
        (0x203, 30, SHARED, 7),
    ],
    2: [(0x10, 20, PRIVATE, 0), (0x40, 30, SHARED, 0), (0x90, 9, OTHER, 0)],
    3: [(0x11, 30, SHARED, 5), (0x3FE, 9, OTHER, 3), (0x500, 20, PRIVATE, 0)],
}


def mappings_of(space: int) -> Mappings:
    found = []
    for first, count, path, offset in LAYOUT[space]:
        shared = path != PRIVATE
        found.append(
            Mapping(
                first * PAGE, (first + count) * PAGE, "rw-s" if shared else "rw-p", path,
                offset * PAGE, "00:01", 5 if shared else 0,
            )
        )  # fmt: skip
    return Mappings.of(tuple(found))


MAPPED = {space: mappings_of(space) for space in LAYOUT}
SHOWN = {
    space: Shown.of((m, FILES[m.path]) for m in mappings.items if m.shared)
    for space, mappings in MAPPED.items()
}
ALL_PAGES = {
    space: [page for first, count, _, _ in rows for page in range(first, first + count)]
    for space, rows in LAYOUT.items()
}


def owner(space: int, page: int) -> tuple[str, int, int]:
    """Return what a page is, and so who has it: ("file", file, page of it) or ("own", space, page)."""
    for first, count, path, offset in LAYOUT[space]:
        if path != PRIVATE and first <= page < first + count:
            return "file", FILES[path], page - first + offset
    return "own", space, page


def a_round(
    number: int,
    written: dict[int, set[int]],
    present: dict[int, set[int]],
    unowned: dict[int, set[int]] | None = None,
) -> Round:
    spaces = []
    for space, dirty in written.items():
        there = pages(*present.get(space, set()))
        spaces.append(
            SpaceRound(
                pid=100 + space, space=space, mappings=MAPPED[space], present=there, log=pages(*dirty),
                missed=pages(), dirty=pages(*dirty), redirtied=pages(*dirty) & there,
                scanned_pages=len(dirty), stats=np.zeros(1, abi.STATS),
                unowned=pages(*(unowned or {}).get(space, set())),
            )
        )  # fmt: skip
    return Round(number, float(number), 1.0, 0.0, tuple(spaces), np.zeros(2, abi.STATS))


def count(
    result: Round, before: dict[int, int], after: dict[int, int], gone: set[int] | None = None
) -> CountedOnce:
    there = {s.space for s in result.spaces} - (gone or set())
    return counted(result, SHOWN.__getitem__, CLASSES, before, after, there)


def subsets(space: int) -> st.SearchStrategy[set[int]]:
    return st.sets(st.sampled_from(ALL_PAGES[space]), max_size=40)


ROUND = st.fixed_dictionaries({space: subsets(space) for space in LAYOUT})


@given(ROUND, ROUND, ROUND, st.sets(st.sampled_from([1, 2])), st.integers(0, 30))
@settings(deadline=None)
def test_a_round_is_a_set_of_pages(
    written: dict[int, set[int]],
    present: dict[int, set[int]],
    unowned: dict[int, set[int]],
    gone: set[int],
    grown: int,
) -> None:
    before, after = {0: 40, 1: 9}, {0: 40 + grown, 1: 9}
    once = count(a_round(0, written, present, unowned), before, after, gone)
    truth = {
        owner(space, page): None
        for space, numbers in written.items()
        for page in numbers
        if owner(space, page)[0] == "file" or space not in gone
    }
    assert once.dirty_pages == len(truth)
    own_present = {
        owner(space, page)
        for space, numbers in present.items()
        if space not in gone
        for page in numbers - unowned[space]
        if owner(space, page)[0] == "own"
    }
    assert once.present_pages == len(own_present) + 49
    first_file = sum(1 for kind, file, _ in truth if (kind, file) == ("file", 0))
    new = min(grown, first_file)
    in_files = sum(1 for kind, *_ in truth if kind == "file")
    assert once.redirtied_pages == len(own_present & truth.keys()) + in_files - new
    by_class = once.by_class()
    assert sum(dirty for dirty, _ in by_class.values()) == once.dirty_pages
    assert sum(again for _, again in by_class.values()) == once.redirtied_pages
    assert by_class["anon_shared"] == (first_file, first_file - new)
    # how many of the processes wrote each page
    writers = Counter(
        len({s for s, numbers in written.items() if any(owner(s, p) == page for p in numbers)})
        for page in truth
    )
    found: Counter[int] = Counter()
    for (k, _), number in once.writers.items():
        found[k] += number
    assert found == writers


@given(st.lists(st.tuples(ROUND, st.sets(st.sampled_from([1, 2]))), min_size=2, max_size=6))
@settings(deadline=None, max_examples=40)
def test_windows_are_sets_of_pages(rounds: list[tuple[dict[int, set[int]], set[int]]]) -> None:
    """An address space that is gone at the end of a window has no pages of its own, but its shared writes count."""
    windows, found = WindowCurves(), {}
    gone: set[int] = set()
    left = []
    for number, (written, ended) in enumerate(rounds):
        alive = {space: numbers for space, numbers in written.items() if space not in gone}
        result = a_round(number, alive, {s: set(ALL_PAGES[s]) for s in alive})
        gone |= ended
        left.append((alive, set(gone)))
        for p in windows.add(result, count(result, {}, {}, ended)).points:
            if not p.mapping_class:
                found[p.round, p.rounds] = p
    for (first, length), point in found.items():
        at_end = left[first + length - 1][1]
        truth = {
            owner(space, page)
            for alive, _ in left[first : first + length]
            for space, numbers in alive.items()
            for page in numbers
            if owner(space, page)[0] == "file" or space not in at_end
        }
        assert point.dirty_once == point.redirtied_once == len(truth)


def test_many_mappings_are_translated_page_by_page() -> None:
    rng = np.random.default_rng(1)
    mappings = [
        (Mapping(i * 16 * PAGE, (i * 16 + 8) * PAGE, "rw-s", "", offset * PAGE, "00:01", 5), i % 3)
        for i, offset in enumerate(rng.permutation(500).tolist(), start=1)
    ]
    shown = Shown.of(mappings)
    written = {i * 16 + j for i in range(1, 501) for j in rng.integers(0, 8, 3).tolist()}
    truth = {
        (file, page - (m.start >> 12) + (m.offset >> 12))
        for m, file in mappings
        for page in written
        if m.start >> 12 <= page < m.end >> 12
    }
    space = a_round(0, {1: set()}, {}).spaces[0]
    dirty = pages(*written)
    result = Round(
        0, 0.0, 1.0, 0.0, (SpaceRound(**{**space.__dict__, "dirty": dirty}),), np.zeros(2, abi.STATS)
    )  # fmt: skip
    once = counted(result, lambda n: shown, dict.fromkeys(range(3), "anon_shared"), {}, {}, {1})
    assert {
        (f, p) for f, found in once.files.items() for p in page_numbers(found).tolist()
    } == truth
    assert once.dirty_pages == len(truth)


# ---- the curve inside a round ----


def once_of(writers: dict[tuple[int, int], int]) -> CountedOnce:
    return CountedOnce({}, {}, {}, {}, {}, Counter(writers))


@pytest.mark.parametrize("writers", [{(1, 1): 50}, {(1, 1): 50, (1, 8): 9, (3, 8): 7, (8, 8): 4}])
def test_the_union_grows_from_nothing_to_all(writers: dict[tuple[int, int], int]) -> None:
    shares = np.linspace(0, 1, 30)
    found = once_of(writers).union_of(shares)
    assert found[0] == 0
    assert found[-1] == pytest.approx(sum(writers.values()))
    assert (np.diff(found) > 0).all()
    assert (found >= shares * found[-1] * (1 - 1e-9)).all(), "a union grows fastest at first"


def test_what_one_process_writes_keeps_its_curve() -> None:
    shares = np.linspace(0, 1, 7) ** 2
    assert once_of({(1, 1): 1000}).union_of(shares) == pytest.approx(shares * 1000)
    assert once_of({}).union_of(shares).tolist() == [0.0] * 7


@pytest.mark.parametrize("processes", [2, 11, 60])
@pytest.mark.parametrize("hot", [0.0, 0.2])
def test_the_union_of_random_writers(processes: int, hot: float) -> None:
    """Processes that write random pages of one area, a fifth of the writes to a tenth of it: the union is known."""
    rng = np.random.default_rng(processes)
    area, writes = 4000, 3000
    first = np.full((processes, area), np.inf)
    for row in first:
        page = rng.integers(0, area, writes)
        page = np.where(rng.random(writes) < hot, page // 10, page)
        np.minimum.at(row, page, np.sort(rng.random(writes)))
    there = np.isfinite(first)
    times = np.array([0.02, 0.05, 0.1, 0.2, 0.5, 0.8])
    sums = (first[:, :, None] <= times).sum(axis=(0, 1)) / there.sum()
    union = (first.min(axis=0)[:, None] <= times).sum(axis=0)
    by_count = np.bincount(there.sum(axis=0)).tolist()
    once = once_of({(k, processes): n for k, n in enumerate(by_count) if k})
    assert once.union_of(sums) == pytest.approx(union, rel=0.04)


def test_points_inside_a_round_have_both_counts() -> None:
    result = a_round(0, {1: set(range(0x40, 0x50)), 2: set(range(0x40, 0x50))}, {})
    result.stats["hist"][1, 100:120] = 1
    once = count(result, {0: 30}, {0: 30})
    points = list(inside(result, once))
    assert points
    for point in points:
        assert point.dirty_once is not None
        assert point.dirty / 2 <= point.dirty_once <= min(point.dirty, 16)
    assert [p.dirty_once for p in inside(result)] == [None] * len(points)


# ---- the files of a real process ----


@pytest.fixture
def memory() -> Iterator[int]:
    fd = os.memfd_create("once")
    os.ftruncate(fd, 100 * PAGE)
    yield fd
    os.close(fd)


def mapped(areas: list[mmap.mmap]) -> Mappings:
    """Return the mappings of this process that are these areas."""
    maps = MapsFile(os.getpid())
    whole = maps.read()
    maps.close()
    assert whole is not None
    starts = {np.frombuffer(area, np.uint8).ctypes.data for area in areas}
    return Mappings.of(tuple(m for m in whole.items if m.start in starts))


def update(files: MappedFiles, mappings: Mappings, space: int = 1) -> list[int]:
    files.update([(space, os.getpid(), mappings)])
    return [file.pages for file in files.files.values()]


def test_memory_that_is_mapped_twice_is_one_file(memory: int) -> None:
    require_root()  # the kernel shows the files behind mappings only to it
    one, two = mmap.mmap(memory, 60 * PAGE), mmap.mmap(memory, 50 * PAGE, offset=50 * PAGE)
    mappings, files = mapped([one, two]), MappedFiles()
    assert update(files, mappings) == [0], "nothing was touched yet"
    one[55 * PAGE] = two[5 * PAGE] = two[9 * PAGE] = 1  # pages 55, 55, 59
    two[49 * PAGE] = 1  # page 99
    assert update(files, mappings) == [3]
    assert files.files[0].mapping_class == "anon_shared"
    shown = files.shown(1)
    assert sorted(shown.distance.tolist()) == sorted(
        (m.offset - m.start) >> 12 for m in mappings.items
    )
    os.ftruncate(memory, 58 * PAGE)
    assert update(files, mappings) == [1]
    files.update([])
    assert files.files[0].pages == 0
    assert len(files.shown(1).starts), "what it wrote before it ended is still counted"
    files.update([])
    assert not len(files.shown(1).starts)
    assert not files.files, "what nobody maps any more is forgotten"


def test_files_count_as_far_as_they_are_mapped(tmp_path: Any) -> None:
    require_root()  # the kernel shows the files behind mappings only to it
    with tempfile.TemporaryFile(dir=tmp_path) as file:
        file.write(os.urandom(10 * PAGE + 1))
        file.flush()
        area = mmap.mmap(file.fileno(), 0, flags=mmap.MAP_PRIVATE)
        shared = mmap.mmap(file.fileno(), 4 * PAGE)
        files = MappedFiles()
        assert update(files, mapped([area])) == [11]
        assert files.files[0].mapping_class == "file_private"
        assert update(files, mapped([shared])) == [4]
        assert update(files, mapped([area, shared]))[0] == 11
        assert files.files[0].mapping_class == "file_shared"


def test_devices_are_no_memory() -> None:
    require_root()  # the kernel shows the files behind mappings only to it
    with Path("/dev/zero").open("r+b") as device:
        area = mmap.mmap(device.fileno(), 5 * PAGE, flags=mmap.MAP_PRIVATE)
        files = MappedFiles()
        assert update(files, mapped([area])) == [0]
        assert not files.files[0].memory
    result = a_round(0, {2: {0x10, 0x40, 0x90}}, {})
    once = counted(result, SHOWN.__getitem__, {1: "file_shared"}, {}, {1: 9}, {2})
    assert once.dirty_pages == 2, "file 0 is no memory"


def test_the_last_round_of_a_target_counts_what_it_wrote() -> None:
    """When no address space is left the recording ends; else those that ended have nothing to copy."""
    counter = OnceCounter()
    spaces: dict[int, Any] = {}
    counter.start(spaces)
    written = {1: {0x10, 0x11}, 2: {0x10}}
    assert counter.count(a_round(0, written, {}), spaces).dirty_pages == 3
    spaces[2] = SimpleNamespace(gone=False)
    assert counter.count(a_round(1, written, {}), spaces).dirty_pages == 1
    assert isinstance(counter.last, CountedOnce)


def test_sets_are_not_changed() -> None:
    """Pages of a set that is shared with other figures stay as they are."""
    result = a_round(0, {1: set(range(0x40, 0x70)), 2: set(range(0x40, 0x50))}, {})
    before = [PageSet(s.dirty.keys.copy(), s.dirty.words.copy()) for s in result.spaces]
    once = count(result, {}, {})
    once.joined(once)
    assert [s.dirty for s in result.spaces] == before
