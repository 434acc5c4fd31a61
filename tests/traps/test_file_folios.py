"""Trap 19 in the page cache: where a file system keeps a file in large folios, one fault may map a
whole folio writable, and only the page tables show the rest.
"""

from __future__ import annotations

import numpy as np
import pytest

from tests.support.phase_walk import Start
from tests.support.stepped_rounds import NONE, assert_same, kernel_state, within
from tests.support.waiting import wait_idle

pytestmark = pytest.mark.usefixtures("tracing")


@pytest.mark.every_way
def test_19_large_folios_of_a_shared_file(start: Start) -> None:
    """The written pages are dirty, with those that the kernel mapped along with them and no others; missed is
    exactly what was mapped so; in the next round each page is tracked separately.
    """
    walk = start(keep=("anon_private", 1))
    phases, live = walk.phases, walk.live
    area = phases.mapnew("a", "file_folios", 1)
    wait_idle(phases.pid)
    live.end_round()
    known = NONE
    for first, count in ((5, 1), (5, 1), (0, 40), (30, 100), (30, 100)):
        truth = phases.write("a", f"range:{first}", 1, count).pages
        wait_idle(phases.pid)
        state = kernel_state(phases.pid, area)
        space = live.round_of(phases.pid)
        dirty, log = within(space.dirty, area), within(space.log, area)
        what = f"{first} to {first + count}"
        assert_same(np.setdiff1d(truth, dirty), NONE, f"{what}: written and not found")
        assert_same(dirty, state.written, f"{what}: as the page tables say")
        assert_same(np.setdiff1d(log, truth), NONE, f"{what}: logged and not written")
        assert len(log), f"{what}: nothing was logged"
        assert_same(within(space.missed, area), np.setdiff1d(dirty, log), f"{what}: missed")
        # Pages that are present already, and armed, fault one by one.
        seen = np.intersect1d(truth, known)
        assert_same(np.intersect1d(log, seen), seen, f"{what}: armed and not logged")
        known = np.union1d(known, state.present)
