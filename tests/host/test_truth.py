"""Recorded sets of pages equal what a workload says it wrote, page for page, in every phase."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from redirty.collector.bitmap import page_numbers

from tests.host.recording import (
    NONE,
    assert_same,
    kernel_state,
    wait_idle,
    within,
)
from tests.host.walk import Start, Walk, every_kind, span
from tests.workloads.driver import DEFAULT_AREAS

pytestmark = pytest.mark.usefixtures("tracing")


@every_kind("kind")
def test_patterns(start: Start, kind: str) -> None:
    """First touches are new, rewritten pages re-dirtied, by one thread, by two, by two at once."""
    walk = start(a=(kind, 4))
    write = walk.phases.write
    first = write("a", "range:0", count=200).pages
    walk.end(first, again=NONE, missed=NONE)
    some = write("a", "stride:3", seed=2, count=60).pages
    walk.end(some, again=some, missed=NONE)
    random = write("a", "random", seed=7, count=300, threads=2).pages
    assert 0 < len(np.intersect1d(random, first)) < 300  # both kinds of pages are in it
    walk.end(random, again=np.intersect1d(random, first), missed=NONE)
    known = np.union1d(first, random)
    both = write("a", "collide:range:150", count=100, threads=2).pages
    walk.end(both, again=np.intersect1d(both, known), missed=NONE)
    known = np.union1d(known, both)
    everything = write("a", "all", threads=2).pages
    assert len(everything) == 1024
    walk.end(everything, again=known, missed=NONE)
    odd = write("a", "stride:2", seed=1, threads=2).pages
    walk.end(odd, again=odd, missed=NONE)
    walk.end(NONE, again=NONE, missed=NONE)
    everything = write("a", "all").pages
    walk.end(everything, again=everything, missed=NONE)
    one_each = walk.phases.transient("a", 500, 8).pages
    walk.end(one_each, again=one_each, missed=NONE)
    twice = write("a", "random", seed=3, count=50)
    write("a", "random", seed=3, count=50, threads=2)
    walk.end(twice.pages, again=twice.pages, missed=NONE)


@every_kind("kind")
def test_reads_are_no_writes(start: Start, kind: str) -> None:
    """A page that was only read is not dirty, and dirty from its first write on."""
    walk = start(a=(kind, 4))
    walk.phases.read("a", "range:0", count=100)
    walk.end(NONE, missed=NONE)
    some = walk.phases.write("a", "stride:2", count=40).pages
    walk.end(some, again=some, missed=NONE)
    walk.phases.read("a", "all", threads=2)
    walk.end(NONE, missed=NONE)
    everything = walk.phases.write("a", "all", threads=2).pages
    walk.end(everything, again=everything, missed=NONE)
    # read and written in one round: present pages of it only by the read
    walk.phases.dontneed("a")
    walk.end(NONE, missed=NONE)
    walk.phases.read("a", "range:10", count=20)
    late = walk.phases.write("a", "range:10", count=10).pages
    walk.end(late, again=NONE, missed=NONE, read_first=True)


@every_kind("kind")
def test_dropped_and_protected(start: Start, kind: str) -> None:
    """MADV_DONTNEED, mprotect both ways, write-back: none is a write, none hides the next one."""
    walk = start(a=(kind, 4))
    phases, area = walk.phases, walk.phases.areas["a"]
    everything = phases.write("a", "all").pages
    phases.mprotect("a", False, 0, 64)
    walk.end(everything, again=NONE, missed=NONE)
    phases.mprotect("a", False, 64, 64)
    walk.end(NONE, missed=NONE)
    phases.mprotect("a", True, 0, 128)
    walk.end(NONE, missed=NONE)
    opened = phases.write("a", "range:32", count=64).pages
    walk.end(opened, again=opened, missed=NONE)
    phases.mprotect("a", False, 0, 64)
    phases.mprotect("a", True, 0, 64)
    opened = phases.write("a", "range:60", count=8).pages
    walk.end(opened, again=opened, missed=NONE)
    phases.dontneed("a", 100, 50)
    walk.end(NONE, missed=NONE)
    back = phases.write("a", "range:90", count=40).pages
    walk.end(back, again=span(area, 90, 10), missed=NONE)
    back = phases.write("a", "range:200", count=10).pages
    phases.msync("a")
    phases.write("a", "range:205", count=5)
    walk.end(back, again=back, missed=NONE)
    phases.msync("a")
    walk.end(NONE, missed=NONE)
    back = phases.write("a", "range:195", count=20, threads=2).pages
    walk.end(back, again=back, missed=NONE)


def test_private_file_is_left_alone(start: Start) -> None:
    """Writes to a private mapping of a file are its pages' and not the file's."""
    walk = start(a=("file_private", 2))
    file = Path(walk.phases.areas["a"].path)
    before = file.read_bytes()
    truth = walk.phases.write("a", "all").pages
    walk.end(truth, again=NONE, missed=NONE)
    assert file.read_bytes() == before


def test_all_classes_in_one_round(start: Start) -> None:
    """Areas of all classes at once, and each page under the right mapping class."""
    walk = start(**DEFAULT_AREAS)
    for seed in (1, 2, 3):
        touched = [
            walk.phases.write(name, "random", seed=seed * 10 + i, count=150, threads=2)
            for i, name in enumerate(walk.phases.areas)
        ]
        space = walk.end(np.sort(np.concatenate([t.pages for t in touched])), missed=NONE)
        for t in touched:
            classes = {
                m.mapping_class
                for m in space.mappings.items
                if m.start < t.area.end and t.area.start < m.end
            }
            assert classes == {t.area.mapping_class}


# ---- mappings that change ----


@every_kind("kind")
def test_mapped_unmapped_and_again(start: Start, kind: str) -> None:
    """A mapping made after the arm is tracked from its first write; what follows at the same
    address inherits nothing."""
    walk = start(keep=("anon_private", 2))
    phases, live = walk.phases, walk.live
    area = phases.mapnew("new", kind, 2)
    truth = phases.write("new", "stride:2", seed=0).pages
    wait_idle(phases.pid)
    state = kernel_state(phases.pid, area)
    space = live.round_of(phases.pid)
    # One fault may map a large folio of a file, writable as a whole: then only the page tables
    # know of the rest, and cannot tell which of it was written.
    assert_same(np.setdiff1d(truth, state.present), NONE, "written and not there")
    assert_same(within(space.dirty, area), state.present, "dirty")
    assert_same(np.setdiff1d(within(space.log, area), truth), NONE, "logged and not written")
    assert_same(within(space.redirtied, area), NONE, "re-dirtied")
    if kind != "file_shared":
        assert_same(within(space.log, area), truth, "log")
        assert_same(state.present, truth, "there")
    walk = Walk(phases, live)
    again = phases.write("new", "range:0", count=20).pages
    walk.end(again, again=np.intersect1d(again, state.present), missed=NONE)
    phases.unmap("new")
    phases.mapnew("second", kind, 2, area.start)
    first = phases.write("second", "range:200", count=30).pages
    wait_idle(phases.pid)
    state = kernel_state(phases.pid, area)
    space = live.round_of(phases.pid)
    assert_same(np.setdiff1d(first, state.present), NONE, "written and not there")
    assert_same(within(space.dirty, area), state.present, "dirty")
    walk = Walk(phases, live)
    truth = phases.write("second", "all").pages
    walk.end(truth, again=state.present, missed=NONE)
    truth = phases.write("second", "range:90", count=20).pages
    walk.end(truth, again=truth, missed=NONE)
    phases.unmap("second")
    walk.end(NONE, missed=NONE)


@pytest.mark.parametrize("kind", ["anon_private", "file_private"])
def test_mapped_and_read(start: Start, kind: str) -> None:
    """Pages of a private mapping made after the arm and only read are the page of zeros, or the
    file's: nobody wrote them."""
    walk = start(keep=("anon_private", 2))
    walk.phases.mapnew("new", kind, 2)
    walk.phases.read("new", "range:0", count=300)
    walk.end(NONE, missed=NONE)
    walk.phases.mapnew("third", kind, 2)
    walk.phases.read("third", "all")
    some = walk.phases.write("new", "range:290", count=10).pages
    also = walk.phases.write("third", "stride:5").pages
    walk.end(np.union1d(some, also), again=some, missed=NONE, read_first=True)


@every_kind("kind")
@pytest.mark.parametrize("skew", [0, 3])
def test_moved_and_grown(start: Start, kind: str, skew: int) -> None:
    """mremap to another place: every page that is there counts as written until the next arm,
    for a mirror has it nowhere under this address; from then on all is exact."""
    walk = start(a=(kind, 2), keep=("anon_private", 2))
    phases, live = walk.phases, walk.live
    phases.write("a", "stride:2")
    wait_idle(phases.pid)
    live.end_round()
    before = phases.write("a", "range:0", count=10)
    area = phases.remap("a", 0 if kind == "anon_shared" else 4, skew)
    after = phases.write("a", "range:5", count=30).pages
    other = phases.write("keep", "range:0", count=7).pages
    wait_idle(phases.pid)
    present = kernel_state(phases.pid, area).present
    space = live.round_of(phases.pid)
    moved = before.pages - np.uint64(before.area.first_page) + np.uint64(area.first_page)
    dirty = within(space.dirty, area)
    assert_same(np.setdiff1d(np.union1d(after, moved), dirty), NONE, "written but not found")
    assert_same(np.setdiff1d(dirty, present), NONE, "dirty but not there")
    assert_same(within(space.dirty, phases.areas["keep"]), other, "the other area")
    settled = Walk(phases, live)
    truth = phases.write("a", "range:20", count=60, threads=2).pages
    settled.end(truth, missed=NONE)
    truth = phases.write("a", "all").pages
    settled.end(truth, missed=NONE)


@pytest.mark.parametrize("kind", ["anon_shared", "memfd", "file_shared"])
def test_two_mappings_of_one_page(start: Start, kind: str) -> None:
    """A page mapped twice is dirty at the address it was written through."""
    walk = start(a=(kind, 2))
    walk.phases.write("a", "all")
    walk.phases.alias("b", "a")
    walk.phases.read("b", "all")
    wait_idle(walk.phases.pid)
    walk.live.end_round()
    walk = Walk(walk.phases, walk.live)
    for name in ("a", "b", "a"):
        truth = walk.phases.write(name, "random", seed=4, count=60).pages
        walk.end(truth, again=truth, missed=NONE)


@pytest.mark.parametrize("what", ["heap", "stack"])
def test_growth(start: Start, what: str) -> None:
    """Pages by which the heap or the stack grows are found, and are new."""
    walk = start(keep=("anon_private", 2))
    wait_idle(walk.phases.pid)
    walk.live.end_round()
    grown = walk.phases.grow(what, 300)
    wait_idle(walk.phases.pid)
    space = walk.live.round_of(walk.phases.pid)
    assert_same(within(space.dirty, grown), grown, "dirty")
    assert_same(within(space.log, grown), grown, "log")
    # The last pages of the stack may have been in use before.
    new = np.setdiff1d(grown, page_numbers(space.present))
    assert len(new) >= 290
    assert_same(within(space.redirtied, new), NONE, "re-dirtied")


@pytest.mark.parametrize("kind", ["anon_private", "file_private"])
def test_copy_on_write(start: Start, kind: str) -> None:
    """After a fork each side's page is dirty only where that side wrote, in either order."""
    walk = start(a=(kind, 2))
    phases = walk.phases
    everything = phases.write("a", "all").pages
    walk.end(everything, again=NONE, missed=NONE)
    phases.fork()
    walk.end(NONE, missed=NONE)
    phases.child_write("a", "range:0", count=50)
    walk.end(NONE, missed=NONE)
    reused = phases.write("a", "range:20", count=60).pages
    walk.end(reused, again=reused, missed=NONE)
    phases.child_write("a", "range:60", count=50)
    walk.end(NONE, missed=NONE)
    late = phases.write("a", "range:100", count=30).pages
    phases.child_exit()
    walk.end(late, again=late, missed=NONE)
    alone = phases.write("a", "random", count=200, threads=2).pages
    walk.end(alone, again=alone, missed=NONE)


def test_gone_memory_is_not_dirty(start: Start) -> None:
    """Pages written by nobody but the log are still the round's: written, then dropped in it."""
    walk = start(a=("anon_private", 2))
    truth = walk.phases.write("a", "range:0", count=64).pages
    walk.phases.dontneed("a", 0, 32)
    walk.end(truth, again=NONE, missed=NONE)
