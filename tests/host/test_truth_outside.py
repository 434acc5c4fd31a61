"""Writes that no fault of the processor shows: found all the same, and the column that says what the
log missed tells the truth."""

from __future__ import annotations

import contextlib
from pathlib import Path

import numpy as np
import pytest
from redirty.collector.rounds import SpaceRound

from tests.host.recording import NONE, assert_same, kernel_state, wait_idle, within
from tests.host.walk import Start, Walk, span
from tests.tiers import require
from tests.workloads.driver import WorkloadError
from tests.workloads.pages import Area, Pages

pytestmark = pytest.mark.usefixtures("tracing")


# ---- huge pages ----


def huge_kib(pid: int, area: Area) -> int:
    """How much of an area is mapped with huge pages."""
    inside = False
    for line in Path(f"/proc/{pid}/smaps").read_bytes().decode(errors="replace").split("\n"):
        head = line.split() or [":"]
        if not head[0].endswith(":"):
            inside = int(head[0].split("-")[0], 16) == area.start
        elif inside and head[0] == "AnonHugePages:":
            return int(head[1])
    return 0


def check_missed(walk: Walk, space: SpaceRound, area: Area, truth: Pages) -> None:
    """Tracepoints tell the address of a fault and no more: only the first write to a huge page."""
    log = within(space.log, area)
    if walk.live.log_sees_all:
        assert_same(log, within(space.dirty, area), "log")
    else:
        assert len(log), "nothing was logged"
        assert_same(np.setdiff1d(log, truth), NONE, "logged and not written")
    missed = np.setdiff1d(within(space.dirty, area), log)
    assert_same(within(space.missed, area), missed, "missed")


def test_huge_pages(start: Start) -> None:
    """A huge page is written as a whole; what happens to it after an arm, the kernel says itself:
    it splits the page table under one way of arming and not under another."""
    walk = start(keep=("anon_private", 2))
    phases, live = walk.phases, walk.live
    area = phases.mapnew("a", "thp", 4)
    touched = phases.write("a", "range:700", count=3).pages
    wait_idle(phases.pid)
    require(huge_kib(phases.pid, area) == 2048, "needs transparent huge pages, and a free one")
    state = kernel_state(phases.pid, area)
    assert_same(state.present, span(area, 512, 512), "mapped by the kernel")
    space = live.round_of(phases.pid)
    assert_same(within(space.dirty, area), state.written, "first touch, dirty")
    assert_same(within(space.dirty, area), span(area, 512, 512), "first touch, dirty")
    assert_same(within(space.redirtied, area), NONE, "first touch, re-dirtied")
    check_missed(walk, space, area, touched)

    for pattern, count in (("range:600", 5), ("random", 40), ("range:0", 1)):
        truth = phases.write("a", pattern, count=count).pages
        wait_idle(phases.pid)
        state = kernel_state(phases.pid, area)
        assert_same(np.setdiff1d(truth, state.written), NONE, "written and not so for the kernel")
        space = live.round_of(phases.pid)
        assert_same(within(space.dirty, area), state.written, f"{pattern}, dirty")
        check_missed(walk, space, area, truth)

    # Joined into a huge page again, if the kernel will, after the arm: the next write is found.
    with contextlib.suppress(WorkloadError):
        phases.advise("a", "collapse", 512, 512)
    truth = phases.write("a", "range:512", count=100).pages
    wait_idle(phases.pid)
    state = kernel_state(phases.pid, area)
    space = live.round_of(phases.pid)
    assert_same(np.setdiff1d(truth, within(space.dirty, area)), NONE, "after a collapse, lost")
    assert_same(within(space.dirty, area), state.written, "after a collapse, dirty")
