"""Trap 18: transparent huge pages, which the hardware tracks as a whole."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from redirty.collector.tracking.rounds import SpaceRound

from tests.support.phase_walk import Start, Walk, span
from tests.support.stepped_rounds import NONE, assert_same, kernel_state, within
from tests.support.tested_methods import arm_method
from tests.support.waiting import wait_idle, wait_until
from tests.tiers import require
from tests.traps.common import not_applicable, still_present
from tests.workloads.driver import Phases, WorkloadError
from tests.workloads.pages import Area, Pages

pytestmark = pytest.mark.usefixtures("tracing")

KHUGEPAGED = Path("/sys/kernel/mm/transparent_hugepage/khugepaged")
EAGER = {"scan_sleep_millisecs": "10", "alloc_sleep_millisecs": "10", "pages_to_scan": "65536"}


def huge_kib(pid: int, area: Area) -> int:
    """Return the KiB of an area that huge pages map, over all mappings in it."""
    inside, total = False, 0
    for line in Path(f"/proc/{pid}/smaps").read_bytes().decode(errors="replace").split("\n"):
        head = line.split() or [":"]
        if not head[0].endswith(":"):
            inside = area.start <= int(head[0].split("-")[0], 16) < area.end
        elif inside and head[0] == "AnonHugePages:":
            total += int(head[1])
    return total


def huge_area(walk: Walk) -> Area:
    """Map a new area "a" of 4 MiB whose second half is one huge page, written first in page 700."""
    area = walk.phases.mapnew("a", "thp", 4)
    walk.phases.write("a", "range:700", count=3)
    wait_idle(walk.phases.pid)
    require(huge_kib(walk.phases.pid, area) == 2048, "needs transparent huge pages, and a free one")
    return area


def end_round(walk: Walk, area: Area, truth: Pages, what: str, torn: bool = False) -> SpaceRound:
    """End the round and compare it.

    All of truth is dirty, and nothing but what the page tables report. The log has all of it, or, with
    tracepoints, which report the address of a fault and no more, some of truth; missed_pages is exactly the rest.

    torn: the kernel split a huge page in this round. Some kernels (6.12, 7.2) then give all its pages their
    soft-dirty bits, though they were not written: exactly those are missed.
    """
    wait_idle(walk.phases.pid)
    state = kernel_state(walk.phases.pid, area)
    space = walk.live.round_of(walk.phases.pid)
    dirty, log = within(space.dirty, area), within(space.log, area)
    assert_same(np.setdiff1d(truth, dirty), NONE, f"{what}: written and not found")
    if walk.skipped():
        return space  # with soft-dirty all pages count then, with uffd the log lacks some
    assert_same(np.setdiff1d(dirty, state.written), NONE, f"{what}: dirty, the kernel says not")
    if torn and arm_method() == "soft-dirty":
        assert_same(log, truth, f"{what}: log")
    elif walk.live.log_sees_all:
        assert_same(log, dirty, f"{what}: log")
    else:
        assert_same(np.setdiff1d(log, truth), NONE, f"{what}: logged and not written")
        assert len(log) or not len(truth), f"{what}: nothing was logged"
    assert_same(within(space.missed, area), np.setdiff1d(dirty, log), f"{what}: missed")
    return space


@pytest.mark.every_way
def test_18_first_touch_and_write_after_the_arm(start: Start) -> None:
    """The first touch dirties all 512 pages; after an arm it is 512 again, or, where the kernel splits
    the page-table entry, the page alone.
    """
    walk = start(keep=("anon_private", 1))
    area = huge_area(walk)
    second = span(area, 512, 512)
    space = end_round(walk, area, second, "first touch")
    assert_same(within(space.dirty, area), second, "first touch")
    assert_same(within(space.redirtied, area), NONE, "first touch, re-dirtied")
    for pattern, count in (("range:600", 5), ("random", 40), ("range:0", 1)):
        truth = walk.phases.write("a", pattern, count=count).pages
        space = end_round(walk, area, truth, pattern)
        if pattern == "range:600":
            expected = truth if arm_method() == "uffd" else second
            assert_same(within(space.dirty, area), expected, "written after the arm")
            assert_same(within(space.redirtied, area), expected, "re-dirtied after the arm")


@pytest.mark.every_way
def test_18_read_first(start: Start) -> None:
    """The huge zero page is not a write; what is written over it is found."""
    walk = start(keep=("anon_private", 1))
    phases = walk.phases
    area = phases.mapnew("a", "thp", 4)
    wait_idle(phases.pid)
    walk.live.end_round()
    phases.read("a", "range:700", count=20)
    wait_idle(phases.pid)
    space = walk.live.round_of(phases.pid)
    assert_same(within(space.dirty, area), NONE, "only read")
    truth = phases.write("a", "range:710", count=20).pages
    wait_idle(phases.pid)
    space = walk.live.round_of(phases.pid)
    dirty = within(space.dirty, area)
    assert_same(np.setdiff1d(truth, dirty), NONE, "written and not found")
    assert_same(np.setdiff1d(dirty, span(area, 512, 512)), NONE, "in another huge page")
    if walk.live.log_sees_all:
        assert_same(within(space.log, area), dirty, "log")


@pytest.mark.every_way
def test_18_split(start: Start) -> None:
    """A part dropped, a part made read-only, a child: splitting the huge page is not a write, and after
    it each page is tracked separately.
    """
    walk = start(keep=("anon_private", 1))
    phases = walk.phases
    area = huge_area(walk)
    end_round(walk, area, span(area, 512, 512), "first touch")
    phases.dontneed("a", 512, 64)
    wait_idle(phases.pid)
    assert huge_kib(phases.pid, area) == 0
    end_round(walk, area, NONE, "a part dropped", torn=True)
    walk = still_present(walk)
    truth = phases.write("a", "range:560", count=30).pages
    walk.end(truth, again=span(area, 576, 14), missed=NONE)

    phases.write("a", "range:0", count=1)
    end_round(walk, area, span(area, 0, 512), "the other half")
    phases.mprotect("a", False, 100, 100)
    phases.mprotect("a", True, 100, 100)
    end_round(walk, area, NONE, "a part made read-only", torn=True)
    walk = still_present(walk)
    truth = phases.write("a", "range:90", count=40).pages
    walk.end(truth, again=truth, missed=NONE)


@pytest.mark.every_way
def test_18_copy_on_write(start: Start) -> None:
    """The parent's writes to a huge page that a child shares are found, and the child's are not the parent's."""
    walk = start(keep=("anon_private", 1))
    phases = walk.phases
    area = huge_area(walk)
    end_round(walk, area, span(area, 512, 512), "first touch")
    phases.fork()
    phases.child_write("a", "range:520", 1, 8)
    space = end_round(walk, area, NONE, "the child's")
    assert_same(within(space.dirty, area), NONE, "the child's")
    truth = phases.write("a", "range:600", count=5).pages
    end_round(walk, area, truth, "the parent's", torn=True)
    phases.child_exit()
    truth = phases.write("a", "range:700", count=5).pages
    end_round(walk, area, truth, "after the child")


def has_collapse(phases: Phases) -> str | None:
    """Return None when MADV_COLLAPSE works here, tried on memory that is not armed; else the reason."""
    phases.mapnew("try", "anon_private", 2)
    phases.write("try", "all")
    phases.advise("try", "hugepage")
    try:
        phases.advise("try", "collapse")
    except WorkloadError as e:
        return str(e).removeprefix("phases: madvise: ")
    finally:
        phases.unmap("try")
    return None


def small_pages(walk: Walk) -> Area:
    """Map an area "a" of 2 MiB of small pages, all written, armed, and eligible for a huge page from then on.

    khugepaged in the middle of joining pages that are armed just then counts as a write of all of them.
    """
    area = walk.phases.mapnew("a", "anon_private", 2)
    walk.phases.write("a", "all")
    end_round(walk, area, area.pages, "small pages")
    walk.phases.advise("a", "hugepage")
    return area


@pytest.mark.every_way
def test_18_collapsed_by_madvise_after_the_arm(start: Start) -> None:
    """After a write and MADV_COLLAPSE, a huge page is writable as a whole, and no fault reports more writes to
    it. Where the kernel refuses to collapse armed memory, each page faults.
    """
    walk = start(keep=("anon_private", 1))
    phases = walk.phases
    reason = has_collapse(phases)
    if reason is not None:
        not_applicable(f"MADV_COLLAPSE: {reason}")
    area = small_pages(walk)
    collapsed = False
    phases.write("a", "range:3", count=1)
    with contextlib.suppress(WorkloadError):
        phases.advise("a", "collapse")
        collapsed = True
    phases.write("a", "range:100", 2, 50)
    truth = np.union1d(span(area, 3, 1), span(area, 100, 50))
    space = end_round(walk, area, truth, "after the collapse")
    dirty = within(space.dirty, area)
    assert_same(dirty, area.pages if collapsed else truth, "after the collapse")
    truth = phases.write("a", "range:200", 3, 20).pages
    end_round(walk, area, truth, "in the next round")


@pytest.fixture
def khugepaged() -> Iterator[None]:
    """Make khugepaged scan at full speed; restore its settings at the end."""
    before = {name: (KHUGEPAGED / name).read_text() for name in EAGER}
    try:
        for name, value in EAGER.items():
            (KHUGEPAGED / name).write_text(value)
        yield
    finally:
        for name, text in before.items():
            (KHUGEPAGED / name).write_text(text)


def wait_for_khugepaged(phases: Phases, area: Area) -> bool:
    """Wait until khugepaged has made the area a huge page, or has scanned all memory three times; return
    whether it has.
    """
    scans = KHUGEPAGED / "full_scans"
    begin = int(scans.read_text())
    wait_until(
        lambda: huge_kib(phases.pid, area) or int(scans.read_text()) >= begin + 3,
        "khugepaged has been everywhere",
    )
    return huge_kib(phases.pid, area) > 0


@pytest.mark.every_way
@pytest.mark.usefixtures("khugepaged")
def test_18_collapsed_by_khugepaged_after_the_arm(start: Start) -> None:
    """Pages armed by soft-dirty bits are joined by khugepaged, and the log reports it; armed by userfaultfd
    they are left alone until all of them are written.
    """
    walk = start(keep=("anon_private", 1))
    phases = walk.phases
    area = small_pages(walk)
    phases.write("a", "range:3", count=1)
    collapsed = wait_for_khugepaged(phases, area)
    assert collapsed == (arm_method() == "soft-dirty")
    phases.write("a", "range:100", 2, 50)
    truth = np.union1d(span(area, 3, 1), span(area, 100, 50))
    space = end_round(walk, area, truth, "after the collapse")
    assert_same(within(space.dirty, area), area.pages if collapsed else truth, "dirty")
    truth = phases.write("a", "range:200", 3, 20).pages
    end_round(walk, area, truth, "in the next round")
    phases.write("a", "all")
    assert wait_for_khugepaged(phases, area)
    end_round(walk, area, area.pages, "all written")
    truth = phases.write("a", "range:300", 4, 20).pages
    end_round(walk, area, truth, "in the last round")
