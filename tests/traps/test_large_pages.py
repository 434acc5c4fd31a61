"""Pages larger than 4 KiB other than transparent huge pages: large folios (19), hugetlb pages (20)."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from redirty.collector.arming.soft_dirty import SoftDirtyArmed
from redirty.collector.linux.maps import MapsFile
from redirty.collector.tracking.rounds import SpaceRound

from tests.support import pagemap_oracle
from tests.support.phase_walk import Start, Walk, span
from tests.support.stepped_rounds import NONE, assert_same, kernel_state, within
from tests.support.tested_methods import arm_method
from tests.support.waiting import wait_idle
from tests.traps.common import not_applicable
from tests.traps.settings import current, setting
from tests.workloads.driver import Phases, WorkloadError
from tests.workloads.pages import Area, Pages

pytestmark = pytest.mark.usefixtures("tracing")

FOLIOS = Path("/sys/kernel/mm/transparent_hugepage/hugepages-64kB")
RESERVED = Path("/proc/sys/vm/nr_hugepages")
HUGE_PAGES = 512


# ---- 19: one fault maps many pages ----


@pytest.fixture(params=["thp", "anon_shared"])
def folios(request: pytest.FixtureRequest) -> Iterator[str]:
    """Yield the kind of an area that gets folios of 64 KiB. It must be smaller than a huge page."""
    kind: str = request.param
    file, value = ("enabled", "madvise") if kind == "thp" else ("shmem_enabled", "advise")
    if not (FOLIOS / file).exists():
        since = "6.8" if kind == "thp" else "6.11"
        not_applicable(f"no large folios in {kind} memory (Linux {since} has)")
    with setting(FOLIOS / file, value):
        yield kind


def by_page_tables(walk: Walk, area: Area, touched: Pages) -> SpaceRound:
    """End a round in which one write may have made many pages writable, the touched ones among them.

    All of those are dirty, and `missed` has those that the log did not see.
    """
    wait_idle(walk.pid)
    state = kernel_state(walk.pid, area)
    assert_same(np.setdiff1d(touched, state.written), NONE, "touched, and not written")
    space = walk.live.round_of(walk.pid)
    assert_same(within(space.dirty, area), state.written, "dirty")
    log = within(space.log, area)
    # Of two pages of a folio that was made writable as a whole only the first one written faults.
    assert_same(np.setdiff1d(log, touched), NONE, "logged and not touched")
    assert bool(len(log)) == bool(len(touched)), "log"
    assert_same(within(space.missed, area), np.setdiff1d(state.written, log), "missed")
    return space


@pytest.mark.every_way
def test_19_one_fault_maps_many_pages(start: Start, folios: str) -> None:
    """All pages of a folio are writable after the first write to one: all are dirty, as the written one
    cannot be distinguished; from the next arm on they are tracked separately.
    """
    walk = start(keep=("anon_private", 2))
    phases = walk.phases
    area = phases.mapnew("a", folios, 1)
    phases.advise("a", "hugepage")
    touched = phases.write("a", "stride:40", seed=7).pages
    wait_idle(phases.pid)
    mapped = pagemap_oracle.present(phases.pid, area)
    if len(mapped) == len(touched):
        not_applicable(f"the kernel gave no large folio to {folios} memory")
    space = by_page_tables(walk, area, touched)
    assert_same(within(space.dirty, area), mapped, "dirty")
    assert_same(within(space.redirtied, area), NONE, "re-dirtied")
    walk = Walk(phases, walk.live)
    for pattern, count in (("range:0", 5), ("random", 30), ("range:3", 20)):
        truth = phases.write("a", pattern, count=count).pages
        by_page_tables(walk, area, truth)
    # dropped, and made again after the arm: alone or in a folio, as the kernel chooses
    phases.advise("a", "dontneed" if folios == "thp" else "remove", 0, 64)
    by_page_tables(walk, area, NONE)
    truth = phases.write("a", "range:20", count=3).pages
    by_page_tables(walk, area, truth)
    by_page_tables(walk, area, NONE)


def test_19_folios_after_a_fork(start: Start, folios: str) -> None:
    """Each page of a folio shared with a child becomes the parent's again by the parent's write."""
    walk = start(keep=("anon_private", 2))
    phases = walk.phases
    area = phases.mapnew("a", folios, 1)
    phases.advise("a", "hugepage")
    phases.write("a", "all")
    wait_idle(phases.pid)
    walk.live.end_round()
    phases.fork()
    by_page_tables(walk, area, NONE)
    phases.child_write("a", "range:0", count=40)
    by_page_tables(walk, area, NONE)
    truth = phases.write("a", "range:30", count=40).pages
    by_page_tables(walk, area, truth)
    phases.child_exit()
    by_page_tables(walk, area, NONE)


# ---- 20: hugetlb ----


@pytest.fixture
def reserved() -> Iterator[None]:
    """Reserve four huge pages more than there were."""
    if not RESERVED.exists():
        not_applicable("the kernel was built without CONFIG_HUGETLBFS")
    wanted = int(current(RESERVED)) + 4
    with setting(RESERVED, wanted):
        if int(current(RESERVED)) < wanted:
            not_applicable("the kernel finds no memory for four hugetlb pages")
        yield


def whole(area: Area, pages: Pages) -> Pages:
    """Return all pages of the huge pages that contain some pages."""
    numbers = np.unique((pages - np.uint64(area.first_page)) // np.uint64(HUGE_PAGES))
    parts = [span(area, int(n) * HUGE_PAGES, HUGE_PAGES) for n in numbers]
    return np.concatenate(parts) if parts else NONE


@pytest.mark.every_way
def test_20_hugetlb_pages_count_by_their_size(start: Start, reserved: None) -> None:
    """A write to one word of a hugetlb page makes 512 pages dirty. Soft-dirty bits do not cover hugetlb pages:
    armed by them, all that are present count in every round.
    """
    walk = start(keep=("anon_private", 2))
    phases = walk.phases
    area = Area("", "", "", 0, 0, -1, "")
    with contextlib.suppress(WorkloadError):
        area = phases.mapnew("h", "hugetlb", 8)
    if not area.end:
        not_applicable("the kernel gives no hugetlb pages to this process")
    there = NONE
    for patterns in (["range:7", "range:1027"], ["range:9"], [], ["range:513", "range:1500"], []):
        touched = [phases.write("h", pattern, count=3).pages for pattern in patterns]
        written = np.unique(np.concatenate([NONE, *touched]))
        wait_idle(phases.pid)
        before, there = there, pagemap_oracle.present(phases.pid, area)
        assert_same(np.setdiff1d(whole(area, written), there), NONE, "written and not there")
        space = walk.live.round_of(phases.pid)
        truth = there if arm_method() == "soft-dirty" else whole(area, written)
        assert_same(within(space.dirty, area), truth, f"{patterns}, dirty")
        assert_same(within(space.redirtied, area), np.intersect1d(truth, before), "re-dirtied")
        log = within(space.log, area)
        assert_same(np.setdiff1d(log, whole(area, written)), NONE, "logged and not written")
        assert_same(within(space.missed, area), np.setdiff1d(truth, log), "missed")
    assert len(there) == 3 * HUGE_PAGES


def test_20_soft_dirty_counts_them_all(reserved: None) -> None:
    """Whatever the kernel makes of clear_refs, hugetlb pages that are present are candidates of every arm, and
    no others of an area without writes are.
    """
    areas = {"keep": ("anon_private", 2), "h": ("hugetlb", 4)}
    with Phases(areas) as phases:
        keep, area = phases.areas["keep"], phases.areas["h"]
        phases.write("keep", "all")
        phases.write("h", "range:600", count=1)
        wait_idle(phases.pid)
        there = pagemap_oracle.present(phases.pid, area)
        assert_same(there, span(area, HUGE_PAGES, HUGE_PAGES), "there")
        maps, armed = MapsFile(phases.pid), SoftDirtyArmed(phases.pid)
        mappings = maps.read()
        assert mappings is not None
        armed.arm(mappings)
        for _ in range(2):
            candidates = armed.arm(mappings)
            written, present = armed.resolve(candidates, mappings)
            assert_same(within(written, area), there, "hugetlb, written")
            assert_same(within(present, area), there, "hugetlb, present")
            assert_same(within(written, keep), NONE, "next to it, written")
        armed.close()
        maps.close()
