"""Pages that the kernel takes away and gives back: swap (21), merging of equal pages (22), migration within and
between nodes (32). None of it is a write, and none of it hides one.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from tests.support import pagemap_oracle
from tests.support.phase_walk import Start, Walk, span
from tests.support.stepped_rounds import NONE, assert_same, kernel_state, within
from tests.support.tested_methods import arm_method
from tests.support.waiting import wait_idle, wait_until
from tests.traps.common import not_applicable
from tests.traps.foreign_writes import write_into
from tests.traps.settings import current, setting, swap
from tests.workloads.driver import Pages, Phases

pytestmark = pytest.mark.usefixtures("tracing")

KSM = Path("/sys/kernel/mm/ksm")
PATIENCE_S = 120


# ---- 21: swap ----


@pytest.fixture
def swapping(tracing: None, tmp_path: Path) -> Iterator[None]:
    """Provide a swap area."""
    with swap(tmp_path):
        yield


def page_out(phases: Phases, first: int, count: int) -> None:
    """Have pages of the area `a` swapped out; retry, as a page that is in use for a moment is skipped."""
    area = phases.areas["a"]
    wanted = span(area, first, count)
    there = np.intersect1d(wanted, pagemap_oracle.present(phases.pid, area))
    deadline = time.monotonic() + PATIENCE_S
    while len(np.intersect1d(there, pagemap_oracle.present(phases.pid, area))):
        phases.advise("a", "pageout", first, count)
        assert time.monotonic() < deadline, "the kernel does not swap these pages out"
    if area.kind == "anon_private":
        assert_same(
            np.intersect1d(wanted, pagemap_oracle.swapped(phases.pid, area)), wanted, "swapped"
        )


@pytest.mark.every_way
@pytest.mark.parametrize("kind", ["anon_private", "anon_shared"])
def test_21_swapped_out_and_in(start: Start, swapping: None, kind: str) -> None:
    """A write counts though its page is swapped out before the round ends; coming back by a read is not a
    write; coming back by a write is one, and is logged.
    """
    walk = start(a=(kind, 2))
    phases, area = walk.phases, walk.phases.areas["a"]
    private = kind == "anon_private"  # pages of shared memory leave the page tables altogether

    def end(truth: Pages, what: str, read: Pages = NONE) -> None:
        wait_idle(phases.pid)
        out = pagemap_oracle.swapped(phases.pid, area)
        space = walk.live.round_of(phases.pid)
        # The protection marker went with the page-table entry: the page may count again.
        again = NONE if private else np.intersect1d(within(space.missed, area), read)
        assert_same(within(space.log, area), truth, f"{what}, log")
        assert_same(within(space.missed, area), again, f"{what}, missed")
        assert_same(within(space.dirty, area), np.union1d(truth, again), f"{what}, dirty")
        if private:
            known = np.intersect1d(truth, ever)
            assert_same(within(space.redirtied, area), known, f"{what}, re-dirtied")
            gone = np.setdiff1d(np.intersect1d(out, ever), within(space.present, area))
            assert_same(gone, NONE, f"{what}, swapped out and not counted as present")

    ever = NONE
    truth = phases.write("a", "range:0", count=100).pages
    page_out(phases, 0, 50)
    end(truth, "written, then swapped out")
    ever = truth
    read = phases.read("a", "range:0", count=25).pages
    end(NONE, "swapped in by a read", read)
    truth = phases.write("a", "range:10", count=50).pages
    end(truth, "swapped in by a write")
    truth = phases.write("a", "range:0", count=20).pages
    page_out(phases, 0, 40)
    read = phases.read("a", "range:0", count=30).pages
    end(truth, "written, out, and in again by a read", read)
    page_out(phases, 0, 100)
    end(NONE, "swapped out")
    end(NONE, "all the time swapped out")
    read = phases.read("a", "range:50", count=50).pages
    truth = phases.write("a", "random", seed=5, count=60).pages
    end(truth, "some of it written from swap", read)
    ever = np.union1d(ever, truth)
    truth = phases.write("a", "all", threads=2).pages
    end(truth, "all")


# ---- 22: KSM ----


@pytest.fixture
def merging(tracing: None) -> Iterator[None]:
    """Run the kernel's daemon that merges equal pages."""
    if not (KSM / "run").exists():
        not_applicable("the kernel was built without CONFIG_KSM")
    if current(KSM / "run") != "0":
        not_applicable("KSM is at work for somebody else on this machine")
    with (
        setting(KSM / "pages_to_scan", 2000),
        setting(KSM / "sleep_millisecs", 5),
        setting(KSM / "run", 1),
    ):
        yield
        (KSM / "run").write_text("2\n")  # unmerges what was merged for this test


@pytest.mark.every_way
def test_22_merged_pages(start: Start, merging: None) -> None:
    """Merging does not change pages: no write is logged, and a page may count as dirty once at most, as the merge
    takes its protection away. The next write to each is found.
    """
    walk = start(a=("anon_private", 2))
    phases, area = walk.phases, walk.phases.areas["a"]
    write_into(phases.pid, area.pages)
    wait_idle(phases.pid)
    walk.live.end_round()
    before = pagemap_oracle.contents(phases.pid, area)
    apart = len(np.unique(pagemap_oracle.frames(phases.pid, area)))
    assert apart == 512
    phases.advise("a", "mergeable")
    wait_until(
        lambda: len(np.unique(pagemap_oracle.frames(phases.pid, area))) < 8, "KSM merges pages"
    )
    wait_idle(phases.pid)
    state = kernel_state(phases.pid, area)
    space = walk.live.round_of(phases.pid)
    assert_same(within(space.log, area), NONE, "merged, log")
    assert_same(np.setdiff1d(within(space.dirty, area), state.written), NONE, "merged, dirty")
    assert np.array_equal(before, pagemap_oracle.contents(phases.pid, area))
    walk = Walk(phases, walk.live)
    written = NONE
    for pattern, count in (("range:10", 40), ("random", 60)):
        truth = phases.write("a", pattern, count=count).pages
        # what was written and is like another page again is merged again at any moment
        wait_idle(phases.pid)
        space = walk.live.round_of(phases.pid)
        assert_same(within(space.log, area), truth, f"{pattern}, log")
        assert_same(np.setdiff1d(truth, within(space.dirty, area)), NONE, f"{pattern}, lost")
        assert_same(within(space.dirty, area), truth, f"{pattern}, dirty")
        written = np.union1d(written, truth)
    after = pagemap_oracle.contents(phases.pid, area)
    assert_same(pagemap_oracle.changed(area, before, after), written, "bytes that changed")


# ---- 32: migration, NUMA balancing ----

_MIGRATE_FLAG_MOVE = 1 << 1  # MPOL_MF_MOVE, uapi/linux/mempolicy.h
_SYS_MOVE_PAGES = 279


def nodes() -> list[int]:
    """Return the memory nodes of this machine."""
    found = Path("/sys/devices/system/node").glob("node[0-9]*")
    return sorted(int(path.name.removeprefix("node")) for path in found)


def move(pid: int, pages: Pages, node: int) -> None:
    """Move pages of another process to a node by move_pages(2)."""
    libc = ctypes.CDLL(None, use_errno=True)
    count = len(pages)
    addresses = (ctypes.c_void_p * count)(*(int(p) << 12 for p in pages))
    wanted = (ctypes.c_int * count)(*([node] * count))
    status = (ctypes.c_int * count)()
    done = libc.syscall(
        _SYS_MOVE_PAGES, pid, ctypes.c_ulong(count), addresses, wanted, status, _MIGRATE_FLAG_MOVE
    )
    assert done >= 0, os.strerror(ctypes.get_errno())


def end_moved(walk: Walk, truth: Pages) -> None:
    """End a round in which pages were moved.

    It is exact, except that some kernels set the soft-dirty bit of a page that they move, which then counts once
    too often.
    """
    if arm_method() != "soft-dirty":
        walk.end(truth, missed=NONE)
        return
    wait_idle(walk.pid)
    area = walk.phases.areas["a"]
    state = kernel_state(walk.pid, area)
    space = walk.live.round_of(walk.pid)
    assert_same(within(space.log, area), truth, "log")
    assert_same(np.setdiff1d(truth, within(space.dirty, area)), NONE, "lost")
    assert_same(within(space.dirty, area), state.written, "dirty")


@pytest.mark.every_way
@pytest.mark.parametrize("kind", ["anon_private", "anon_shared", "file_shared"])
def test_32_moved_to_another_node(start: Start, kind: str) -> None:
    """Pages move to the other node and back in the middle of rounds: written ones count, others do not, and
    each next write is logged.
    """
    if len(nodes()) < 2:
        not_applicable("the machine has one memory node")
    walk = start(a=(kind, 2))
    phases, area = walk.phases, walk.phases.areas["a"]
    walk.end(phases.write("a", "all").pages, missed=NONE)
    moved = 0
    for number, node in enumerate((1, 0, 1)):
        truth = phases.write("a", "random", seed=number, count=60).pages
        before = pagemap_oracle.frames(phases.pid, area)
        move(phases.pid, span(area, 0, 300), nodes()[node])
        moved += int((before != pagemap_oracle.frames(phases.pid, area)).sum())
        late = phases.write("a", "range:250", count=80).pages
        phases.read("a", "all")
        end_moved(walk, np.union1d(truth, late))
        move(phases.pid, span(area, 100, 300), nodes()[1 - node])
        end_moved(walk, NONE)
    if not moved:
        not_applicable(f"the kernel moves no page of {kind} memory")


def test_32_compaction(start: Start) -> None:
    """Pages that the kernel moves within a node to make room for larger ones are tracked all the same."""
    compact = Path("/proc/sys/vm/compact_memory")
    if not compact.exists():
        not_applicable("the kernel was built without CONFIG_COMPACTION")
    walk = start(a=("anon_private", 8))
    phases, area = walk.phases, walk.phases.areas["a"]
    walk.end(phases.write("a", "all", threads=2).pages, missed=NONE)
    # Holes between the pages that stay, which compaction is there to close.
    phases.advise("a", "dontneed", 0, 1)
    end_moved(walk, NONE)
    before = pagemap_oracle.frames(phases.pid, area)
    truth = phases.write("a", "random", seed=3, count=300).pages
    compact.write_text("1\n")
    moved = int((before != pagemap_oracle.frames(phases.pid, area)).sum())
    late = phases.write("a", "range:1000", count=200).pages
    end_moved(walk, np.union1d(truth, late))
    end_moved(walk, NONE)
    if moved <= 1:
        not_applicable("compaction found nothing to move")


def hint_faults() -> int:
    """Return the faults that NUMA balancing has made on the whole machine."""
    for line in Path("/proc/vmstat").read_text().splitlines():
        if line.startswith("numa_hint_faults "):
            return int(line.split()[1])
    return 0


def test_32_numa_balancing(start: Start) -> None:
    """The kernel makes pages inaccessible for a while to see who uses them: reads that fault for that are not
    writes, and a page written after such a fault is found.
    """
    switch = Path("/proc/sys/kernel/numa_balancing")
    if not switch.exists():
        not_applicable("the kernel was built without CONFIG_NUMA_BALANCING")
    if len(nodes()) < 2:
        not_applicable("the machine has one memory node")
    with setting(switch, 1), contextlib.ExitStack() as stack:
        delay = Path("/sys/kernel/debug/sched/numa_balancing/scan_delay_ms")
        for file, value in ((delay, 10), (delay.with_name("scan_period_min_ms"), 20)):
            if file.exists():
                stack.enter_context(setting(file, value))
        walk = start(a=("anon_private", 8))
        phases = walk.phases
        walk.end(phases.write("a", "all").pages, missed=NONE)
        before_faults = hint_faults()
        deadline = time.monotonic() + 60
        number = 0
        while number < 4 or (hint_faults() == before_faults and time.monotonic() < deadline):
            for _ in range(100):
                phases.read("a", "all", threads=2)
            truth = phases.write("a", "random", seed=number, count=200).pages
            for _ in range(20):
                phases.read("a", "all", threads=2)
            end_moved(walk, truth)
            number += 1
        if hint_faults() == before_faults:
            not_applicable("NUMA balancing made no fault")
