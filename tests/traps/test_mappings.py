"""Traps 11 to 17: mappings that change between and within rounds."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from redirty.collector.pageset import page_numbers
from redirty.collector.tracking.rounds import SpaceRound

from tests.support.phase_walk import Start, span
from tests.support.stepped_rounds import NONE, assert_same, kernel_state, within
from tests.support.tested_methods import arm_method
from tests.support.waiting import wait_idle
from tests.traps.common import (
    EVERY_KIND,
    SHARED_KINDS,
    assert_between,
    each,
    not_applicable,
    read_bytes,
    still_present,
)
from tests.workloads.driver import Phases
from tests.workloads.pages import Area, Pages, union

Areas = dict[str, tuple[str, int]]

pytestmark = pytest.mark.usefixtures("tracing")

HIDDEN = (
    "mprotect makes dirty pages of a shared file writable without a soft-dirty bit and without a "
    "fault (mended in Linux 6.0)"
)
SHARED_FILE = {"file_shared": EVERY_KIND["file_shared"]}
OTHER_KINDS = {kind: size for kind, size in EVERY_KIND.items() if kind != "file_shared"}


@pytest.fixture(params=[OTHER_KINDS, SHARED_FILE], ids=["memory", "shared_file"])
def areas(request: pytest.FixtureRequest, tracing: None) -> Areas:
    """Yield the areas of a test that makes pages read-only and writable again.

    A file system with page_mkwrite has them in a test of its own, as not every kernel keeps soft-dirty bits for it.
    """
    wanted: Areas = request.param
    if wanted is SHARED_FILE and arm_method() == "soft-dirty" and mprotect_hides_writes():
        not_applicable(HIDDEN)
    return wanted


def mprotect_hides_writes() -> bool:
    """Return whether this kernel has neither fault nor soft-dirty bit for such a write, tried without redirty: a
    page of a shared file written, its bit cleared, made read-only and writable, and written.
    """
    with Phases(SHARED_FILE) as phases:
        area = phases.areas["file_shared"]
        phases.write("file_shared", "range:0", 1, 4)
        Path(f"/proc/{phases.pid}/clear_refs").write_text("4")
        assert_same(kernel_state(phases.pid, area).written, NONE, "cleared")
        phases.mprotect("file_shared", False)
        phases.mprotect("file_shared", True)
        before = read_bytes(phases.pid, span(area, 0, 4))
        truth = phases.write("file_shared", "range:0", 2, 4).pages
        assert all(data != before[p] for p, data in read_bytes(phases.pid, truth).items())
        return len(kernel_state(phases.pid, area).written) == 0


@pytest.mark.every_way
def test_11_made_read_only_after_a_write(start: Start, areas: Areas) -> None:
    """The write stays counted, in the round it was made in and in no other."""
    walk = start(**areas)
    phases = walk.phases
    everything = each(walk, lambda a: phases.write(a, "all").pages)
    each(walk, lambda a: phases.mprotect(a, False, 0, 64))
    walk.end(everything, again=NONE, missed=NONE)
    some = each(walk, lambda a: phases.write(a, "range:100", 2, 30).pages)
    each(walk, lambda a: phases.mprotect(a, False, 90, 60))
    each(walk, lambda a: phases.mprotect(a, True, 90, 60))
    walk.end(some, again=some, missed=NONE)
    each(walk, lambda a: phases.mprotect(a, True, 0, 64))
    walk.end(NONE, missed=NONE)


@pytest.mark.every_way
def test_12_made_writable_then_written(start: Start, areas: Areas) -> None:
    """Writes to pages that were read-only when they were armed are found."""
    walk = start(**areas)
    phases = walk.phases
    everything = each(walk, lambda a: phases.write(a, "all").pages)
    each(walk, lambda a: phases.mprotect(a, False, 0, 128))
    walk.end(everything, again=NONE, missed=NONE)
    walk.end(NONE, missed=NONE)
    each(walk, lambda a: phases.mprotect(a, True, 0, 128))
    opened = each(walk, lambda a: phases.write(a, "range:32", 3, 64).pages)
    walk.end(opened, again=opened, missed=NONE)
    each(walk, lambda a: phases.mprotect(a, False, 0, 32))
    each(walk, lambda a: phases.mprotect(a, True, 0, 32))
    opened = each(walk, lambda a: phases.write(a, "range:28", 4, 8).pages)
    walk.end(opened, again=opened, missed=NONE)


@pytest.mark.every_way
def test_12_opened_unseen(start: Start) -> None:
    """Where mprotect makes armed pages of a shared file writable without a fault, all that it opened
    counts as written: no page is lost, and none outside is added.
    """
    walk = start(a=("file_shared", 1))
    phases, area, live = walk.phases, walk.phases.areas["a"], walk.live
    if not live.log_sees_all and arm_method() == "soft-dirty" and mprotect_hides_writes():
        not_applicable(f"{HIDDEN}: only kprobes tell of it")
    walk.end(phases.write("a", "all").pages, again=NONE, missed=NONE)
    for first in (20, 0):
        phases.mprotect("a", False, 10, 100)
        phases.mprotect("a", True, 10, 100)
        truth = phases.write("a", f"range:{first}", 2, 40).pages
        wait_idle(phases.pid)
        space = live.round_of(phases.pid)
        most = union([truth, span(area, 10, 100)])
        assert_between(space.dirty, area, truth, most, "dirty")
        assert_between(space.log, area, truth, most, "log")
        assert_same(within(space.missed, area), NONE, "missed")
    # made writable in the round after it was made read-only
    phases.mprotect("a", False, 200, 20)
    walk = still_present(walk)
    walk.end(NONE, missed=NONE)
    phases.mprotect("a", True, 200, 20)
    truth = phases.write("a", "range:205", 3, 5).pages
    wait_idle(phases.pid)
    space = live.round_of(phases.pid)
    assert_between(space.dirty, area, truth, span(area, 200, 20), "in the next round")
    walk = still_present(walk)
    walk.end(NONE, missed=NONE)


def as_the_kernel_says(
    walk_pid: int, dirty: Pages, log: Pages, area: Area, truth: Pages, kind: str
) -> Pages:
    """Check the first round of a mapping made after the arm; return the pages that are present after it.

    One fault may map a large folio of a file, writable as a whole: then only the page tables show the rest, and
    cannot tell which of it was written.
    """
    present = kernel_state(walk_pid, area).present
    assert_same(np.setdiff1d(truth, dirty), NONE, "written and not dirty")
    assert_same(np.setdiff1d(dirty, present), NONE, "dirty and not there")
    assert_same(np.setdiff1d(log, truth), NONE, "logged and not written")
    if kind != "file_shared":
        assert_same(dirty, truth, "dirty")
        assert_same(log, truth, "log")
    return present


@pytest.mark.every_way
def test_13_mapped_after_the_arm(start: Start) -> None:
    """A mapping made after the arm is tracked from its first write."""
    walk = start(keep=("anon_private", 1))
    phases, live = walk.phases, walk.live
    areas = {kind: phases.mapnew(kind, kind, 1) for kind in EVERY_KIND}
    truth = {kind: phases.write(kind, "stride:2", seed=0).pages for kind in EVERY_KIND}
    wait_idle(phases.pid)
    space = live.round_of(phases.pid)
    there = []
    for kind, area in areas.items():
        dirty, log = within(space.dirty, area), within(space.log, area)
        there.append(as_the_kernel_says(phases.pid, dirty, log, area, truth[kind], kind))
        assert_same(within(space.redirtied, area), NONE, "re-dirtied")
    walk = still_present(walk)
    again = each(walk, lambda a: phases.write(a, "range:0", 2, 20).pages, *EVERY_KIND)
    walk.end(again, again=np.intersect1d(again, union(there)), missed=NONE)


@pytest.mark.every_way
@pytest.mark.parametrize("what", ["heap", "stack"])
def test_13_growth(start: Start, what: str) -> None:
    """Pages by which the heap or the stack grows are found, and are new."""
    walk = start(keep=("anon_private", 1))
    pid = walk.phases.pid
    wait_idle(pid)
    walk.live.end_round()
    grown = walk.phases.grow(what, 300)
    wait_idle(pid)
    space = walk.live.round_of(pid)
    assert_same(within(space.dirty, grown), grown, "dirty")
    assert_same(within(space.log, grown), grown, "log")
    # The last pages of the stack may have been in use before.
    new = np.setdiff1d(grown, page_numbers(space.present))
    assert len(new) >= 290
    assert_same(within(space.redirtied, new), NONE, "re-dirtied")


@pytest.mark.every_way
def test_14_mapped_again_at_the_same_place(start: Start) -> None:
    """A new mapping at the same address inherits nothing."""
    walk = start(keep=("anon_private", 1), **EVERY_KIND)
    phases, live = walk.phases, walk.live
    each(walk, lambda a: phases.write(a, "all").pages)
    wait_idle(phases.pid)
    live.end_round()
    areas = {}
    for kind in EVERY_KIND:
        gone = phases.unmap(kind)
        areas[kind] = phases.mapnew(kind, kind, 1, gone.start)
        assert areas[kind].start == gone.start
    truth = {kind: phases.write(kind, "range:100", count=30).pages for kind in EVERY_KIND}
    wait_idle(phases.pid)
    space = live.round_of(phases.pid)
    there = []
    for kind, area in areas.items():
        dirty, log = within(space.dirty, area), within(space.log, area)
        there.append(as_the_kernel_says(phases.pid, dirty, log, area, truth[kind], kind))
    walk = still_present(walk)
    everything = each(walk, lambda a: phases.write(a, "all").pages, *EVERY_KIND)
    walk.end(everything, again=union(there), missed=NONE)
    for kind in EVERY_KIND:
        phases.unmap(kind)
    walk.end(NONE, missed=NONE)


@pytest.mark.every_way
@pytest.mark.parametrize("skew", [0, 3])
def test_15_moved_and_grown(start: Start, skew: int) -> None:
    """After mremap to another place every present page counts as written until the next arm, as a mirror does
    not have it under this address; from then on everything is exact.
    """
    walk = start(keep=("anon_private", 1), **EVERY_KIND)
    phases, live = walk.phases, walk.live
    each(walk, lambda a: phases.write(a, "stride:2").pages)
    wait_idle(phases.pid)
    live.end_round()
    expected, areas = [], []
    for kind in EVERY_KIND:
        before = phases.write(kind, "range:0", count=10)
        area = phases.remap(kind, 0 if kind == "anon_shared" else 2, skew)
        after = phases.write(kind, "range:5", count=30).pages
        moved = before.pages - np.uint64(before.area.first_page) + np.uint64(area.first_page)
        expected += [moved, after]
        areas.append(area)
    other = phases.write("keep", "range:0", count=7).pages
    wait_idle(phases.pid)
    present = kernel_state(phases.pid, areas).present
    space = live.round_of(phases.pid)
    dirty = within(space.dirty, areas)
    assert_same(np.setdiff1d(union(expected), dirty), NONE, "written but not found")
    assert_same(np.setdiff1d(dirty, present), NONE, "dirty but not there")
    assert_same(within(space.dirty, phases.areas["keep"]), other, "the other area")
    settled = still_present(walk)
    truth = each(settled, lambda a: phases.write(a, "range:20", 5, 60, 2).pages, *EVERY_KIND)
    settled.end(truth, missed=NONE)
    truth = each(settled, lambda a: phases.write(a, "all").pages, *EVERY_KIND)
    settled.end(truth, missed=NONE)


@pytest.mark.every_way
def test_16_split_and_merged(start: Start, areas: Areas) -> None:
    """Splitting a mapping into three and merging it, before and after writes, loses no page and counts none twice;
    the list of mappings is kept current.
    """
    walk = start(**areas)
    phases = walk.phases

    def parts(space: SpaceRound) -> set[int]:
        return {
            sum(m.start < area.end and area.start < m.end for m in space.mappings.items)
            for area in phases.areas.values()
        }

    everything = each(walk, lambda a: phases.write(a, "all").pages)
    walk.end(everything, again=NONE, missed=NONE)
    # split, then written on both sides of both cuts, in the part that may be
    each(walk, lambda a: phases.mprotect(a, False, 100, 50))
    sides = each(
        walk,
        lambda a: union(
            [phases.write(a, "range:95", 1, 5).pages, phases.write(a, "range:150", 1, 5).pages]
        ),
    )
    assert parts(walk.end(sides, again=sides, missed=NONE)) == {3}
    # merged, then written across what were the cuts
    each(walk, lambda a: phases.mprotect(a, True, 100, 50))
    across = each(walk, lambda a: phases.write(a, "range:90", 2, 70).pages)
    walk.end(across, again=across, missed=NONE)
    # written, split, written, merged, written: all in one round
    first = each(walk, lambda a: phases.write(a, "range:0", 3, 60).pages)
    each(walk, lambda a: phases.mprotect(a, False, 30, 100))
    second = each(walk, lambda a: phases.write(a, "range:200", 4, 30).pages)
    each(walk, lambda a: phases.mprotect(a, True, 30, 100))
    third = each(walk, lambda a: phases.write(a, "range:50", 5, 50).pages)
    all_of_it = union([first, second, third])
    walk.end(all_of_it, again=all_of_it, missed=NONE)
    walk.end(NONE, missed=NONE)


@pytest.mark.every_way
def test_17_dropped_by_madv_dontneed(start: Start) -> None:
    """Pages that are dropped are not dirty; touched again they are, and private ones are new."""
    walk = start(**EVERY_KIND)
    phases = walk.phases
    everything = each(walk, lambda a: phases.write(a, "all").pages)
    walk.end(everything, again=NONE, missed=NONE)
    each(walk, lambda a: phases.dontneed(a, 100, 50))
    walk.end(NONE, missed=NONE)
    back = each(walk, lambda a: phases.write(a, "range:90", 2, 40).pages)
    kept = union(span(area, 90, 10) for area in phases.areas.values())
    walk.end(back, again=kept, missed=NONE)
    # written and dropped in one round: it was written
    gone = each(walk, lambda a: phases.write(a, "range:200", 3, 20).pages)
    each(walk, lambda a: phases.dontneed(a, 200, 10))
    walk.end(gone, again=gone, missed=NONE)


@pytest.mark.every_way
def test_17_freed_by_madv_free(start: Start) -> None:
    """Pages that the kernel may take until they are written again are found when they are."""
    walk = start(a=("anon_private", 1))
    phases = walk.phases
    everything = phases.write("a", "all").pages
    walk.end(everything, again=NONE, missed=NONE)
    phases.advise("a", "free", 0, 128)
    walk.end(NONE, missed=NONE)
    back = phases.write("a", "range:100", 2, 60).pages
    walk.end(back, missed=NONE)
    # written, freed and written again in one round, then in the next
    twice = phases.write("a", "range:0", 3, 30).pages
    phases.advise("a", "free", 0, 30)
    phases.write("a", "range:10", 4, 10)
    walk.end(twice, missed=NONE)
    again = phases.write("a", "range:0", 5, 30).pages
    walk.end(again, missed=NONE)


@pytest.mark.every_way
def test_17_removed_by_madv_remove(start: Start) -> None:
    """Pages of a hole in a shared mapping's file come back empty, and are new when written."""
    walk = start(**{kind: (kind, 1) for kind in SHARED_KINDS})
    phases = walk.phases
    everything = each(walk, lambda a: phases.write(a, "all").pages)
    walk.end(everything, again=NONE, missed=NONE)
    each(walk, lambda a: phases.advise(a, "remove", 100, 50))
    walk.end(NONE, missed=NONE)
    back = each(walk, lambda a: phases.write(a, "range:90", 2, 40).pages)
    # Of the pages before the hole the kernel may have unmapped some with it, and in it one fault
    # may map several, writable: a large folio.
    wait_idle(phases.pid)
    areas = list(phases.areas.values())
    state = kernel_state(phases.pid, areas)
    space = walk.live.round_of(phases.pid)
    dirty, log = within(space.dirty, areas), within(space.log, areas)
    assert_same(np.setdiff1d(back, dirty), NONE, "written and not found")
    assert_same(dirty, state.written, "as the page tables say")
    assert_same(np.setdiff1d(log, back), NONE, "logged and not written")
    assert_same(within(space.missed, areas), np.setdiff1d(dirty, log), "missed")
    memory = [area for area in areas if area.kind != "file_shared"]
    assert_same(within(space.log, memory), within(space.dirty, memory), "memory, log")
    hole = union(span(area, 100, 50) for area in phases.areas.values())
    assert_same(within(space.redirtied, hole), NONE, "re-dirtied in the hole")
