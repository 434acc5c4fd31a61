"""Traps 9 and 10: memory that is mapped more than once."""

from __future__ import annotations

import numpy as np
import pytest
from redirty.collector.bpf.tracer import Tracer

from tests.support.phase_walk import Start
from tests.support.stepped_rounds import (
    NONE,
    LiveRounds,
    assert_same,
    kernel_state,
    within,
)
from tests.support.waiting import wait_idle
from tests.traps.common import SHARED_KINDS, each, end_round_of_both, read_bytes, still_present
from tests.workloads.driver import Phases
from tests.workloads.pages import union

pytestmark = pytest.mark.usefixtures("tracing")

SHARED = {kind: (kind, 1) for kind in SHARED_KINDS}


@pytest.mark.every_way
def test_09_written_by_another_target(tracer: Tracer) -> None:
    """Each page that two targets share is found under the one that wrote it, and together they are all that changed."""
    with Phases(SHARED) as phases:
        for name in SHARED:
            phases.write(name, "all")
        child = phases.fork()
        areas = list(phases.areas.values())
        everything = union(area.pages for area in areas)
        for name in SHARED:
            phases.child("read", name)
        with LiveRounds(phases.pid, child, tracer=tracer) as live:
            live.begin()
            for offsets in ((0, 30), (100, 80)):
                before = read_bytes(phases.pid, everything)
                both = end_round_of_both(live, phases, child, SHARED, offsets)
                after = read_bytes(phases.pid, everything)
                changed = [page for page in after if after[page] != before[page]]
                written = union(truth for _, truth in both)
                assert_same(written, np.array(changed, np.uint64), "changed")


@pytest.mark.every_way
def test_09_written_by_a_process_outside(tracer: Tracer) -> None:
    """A process that is not a target writes shared pages through its own page tables. The target's do not show
    it: redirty reports exactly what they show, no less and no more, and the target's own writes to the same
    pages are found.
    """
    with Phases(SHARED) as phases:
        for name in SHARED:
            phases.write(name, "all")
        child = phases.fork()
        areas = list(phases.areas.values())
        with LiveRounds(phases.pid, tracer=tracer) as live:
            live.begin()
            for seed in (3, 4):
                its = union(phases.child_write(n, "range:10", seed, 50).pages for n in SHARED)
                wait_idle(child)
                wait_idle(phases.pid)
                state = kernel_state(phases.pid, areas)
                space = live.round_of(phases.pid)
                assert_same(within(space.dirty, areas), state.written, "as its page tables say")
                assert_same(within(space.log, areas), NONE, "logged")
                # Now the target too, to pages the other has just written.
                mine = union(phases.write(n, "range:30", seed, 50).pages for n in SHARED)
                assert len(np.intersect1d(mine, its)) == 90
                wait_idle(phases.pid)
                space = live.round_of(phases.pid)
                assert_same(within(space.dirty, areas), mine, "dirty")
                assert_same(within(space.log, areas), mine, "log")


@pytest.mark.every_way
def test_10_two_mappings_of_one_page(start: Start) -> None:
    """A page mapped twice is dirty at the address it was written through."""
    walk = start(**SHARED)
    phases = walk.phases
    each(walk, lambda a: phases.write(a, "all").pages)
    for name in SHARED:
        phases.alias(f"{name}2", name)
        phases.read(f"{name}2", "all")
    wait_idle(phases.pid)
    walk.live.end_round()
    walk = still_present(walk)
    for end in ("", "2", ""):
        truth = union(phases.write(a + end, "random", 4, 60).pages for a in SHARED)
        walk.end(truth, again=truth, missed=NONE)
    # both addresses in one round: two pages of addresses, one page frame
    both = union(
        phases.write(name + end, "range:5", 1, 10).pages for name in SHARED for end in ("", "2")
    )
    assert len(both) == 60
    walk.end(both, again=both, missed=NONE)
