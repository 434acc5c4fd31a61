"""When pages were protected in an arm, by the moments at which it had come to an address."""

from __future__ import annotations

import time
from collections.abc import Iterator

import numpy as np
import pytest
from redirty.collector.arming.protection import Protection
from redirty.collector.bpf.arm_log import ArmWrites
from redirty.collector.pageset import PAGE_SHIFT, empty, from_pages
from redirty.collector.tracking.first_writes import first_writes

# Regions of 512 pages: 100 and 101 full, 200 with 10 pages at its begin
PRESENT = from_pages(
    np.concatenate((np.arange(512 * 100, 512 * 102), np.arange(512 * 200, 512 * 200 + 10))).astype(
        np.uint64
    )
)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    """Give the arm a clock of the test's: its one number."""
    now = [1000]
    monkeypatch.setattr(time, "monotonic_ns", lambda: now[0])
    yield now


def at(*pages: int) -> np.ndarray[tuple[int], np.dtype[np.uint64]]:
    return np.array(pages, np.uint64)


def test_the_pace_is_constant_in_present_pages(clock: list[int]) -> None:
    arm = Protection(PRESENT)
    clock[0] = 1000 + 1034
    arm.finished()
    found = arm.times_ns(at(0, 512 * 100, 512 * 101, 512 * 150, 512 * 200, 512 * 300))
    assert found.tolist() == [1000, 1000, 1512, 2024, 2024, 2034]
    assert arm.times_ns(at(512 * 200 + 256)).tolist() == [2029]
    assert arm.mean_ns(from_pages(at(512 * 100, 512 * 101 + 5))) == 1256
    assert arm.mean_ns(empty()) == 2034


def test_a_delay_lies_where_it_was(clock: list[int]) -> None:
    arm = Protection(PRESENT)
    clock[0] = 1100
    arm.passed(512 * 101 << PAGE_SHIFT)
    clock[0] = 9000
    arm.finished()
    early, late = arm.times_ns(at(512 * 101 - 1, 512 * 101 + 256)).tolist()
    assert 1090 < early <= 1100
    assert late == pytest.approx(1100 + 7900 * 256 / 522)


def test_an_arm_of_nothing(clock: list[int]) -> None:
    arm = Protection(empty())
    clock[0] = 1500
    arm.finished()
    assert arm.cuts(0, 1 << 40, 100) == [1 << 40]
    assert set(arm.times_ns(at(0, 5000)).tolist()) <= {1000, 1500}


@pytest.mark.parametrize("pages", [1, 100, 512, 700, 5000])
def test_cuts_are_whole_regions_and_end_at_the_end(pages: int) -> None:
    arm = Protection(PRESENT)
    for start, end in ((0, 512 * 300), (512 * 100, 512 * 101), (512 * 101, 512 * 200 + 5), (7, 8)):
        cuts = arm.cuts(start << PAGE_SHIFT, end << PAGE_SHIFT, pages)
        assert cuts[-1] == end << PAGE_SHIFT
        assert cuts == sorted(set(cuts)) and cuts[0] > start << PAGE_SHIFT
        assert all(cut % (512 << PAGE_SHIFT) == 0 for cut in cuts[:-1])
    whole = arm.cuts(0, 512 * 300 << PAGE_SHIFT, pages)
    assert len(whole) == {1: 3, 100: 3, 512: 3, 700: 2, 5000: 1}[pages]


def test_writes_before_and_after_the_protection_of_their_pages(clock: list[int]) -> None:
    arm = Protection(PRESENT)
    clock[0] = 1000 + 1034
    arm.finished()
    first, second, third = 512 * 100, 512 * 101, 512 * 101 + 256  # protected at 1000, 1512 and 1768
    writes = [
        (1100, first),  # 100 ns after its protection
        (1200, second),  # before: and again
        (1300, third),  # before, and not again
        (1612, second),
        (1900, first),  # again: it counts once
    ]
    ns, pages = zip(*writes, strict=True)
    log = ArmWrites(np.array(ns), at(*pages), np.ones(len(writes), np.int64))
    dirty = from_pages(at(first, second, third))
    found = first_writes(log, arm, 2034.0, dirty)
    assert found.elapsed_s.tolist() == pytest.approx([1e-7, 1e-7])
    assert found.raced == from_pages(at(third))
    assert found.lag_s * 1e9 == pytest.approx(2034 - (1000 + 2 * 1512) / 3, abs=256)


def test_writes_to_memory_that_is_not_armed() -> None:
    log = ArmWrites(np.array([900, 1500]), at(1, 2), np.ones(2, np.int64))
    found = first_writes(log, None, 1000.0, from_pages(at(1, 2)))
    assert found.elapsed_s.tolist() == pytest.approx([0.0, 5e-7])
    assert found.raced == empty() and found.lag_s == 0
