"""Phases of a workload, each in a round of its own, each compared with the truth."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from redirty.collector.bpf import abi
from redirty.collector.tracking.rounds import SpaceRound

from tests.support.stepped_rounds import NONE, LiveRounds, assert_same, kernel_state, within
from tests.support.tested_methods import arm_method
from tests.support.waiting import wait_idle
from tests.workloads.driver import DEFAULT_AREAS, Phases
from tests.workloads.pages import Area, Pages


class Walk:
    """A workload under a recorder, on which begin() has been called.

    Attributes:
        phases: the workload.
        live: the recorder.
        pid: of the workload's process, where it is not the one that was started.
        rounds: the number of rounds that have ended.
    """

    def __init__(self, phases: Phases, live: LiveRounds, pid: int = 0) -> None:
        self.phases = phases
        self.live = live
        self.pid = pid or phases.pid
        self.rounds = 0
        self._skipped = live.tracer.skipped()
        self._present = kernel_state(self.pid, self._areas()).present

    def _areas(self) -> list[Area]:
        return list(self.phases.areas.values())

    def skipped(self) -> int:
        """Return how many runs of the log the kernel skipped since the last call (Tracer.skipped)."""
        before, self._skipped = self._skipped, self.live.tracer.skipped()
        return self._skipped - before

    def end(
        self,
        truth: Pages,
        *,
        again: Pages | None = None,
        missed: Pages,
        read_first: bool = False,
    ) -> SpaceRound:
        """End the round and compare it.

        Args:
            truth: exactly the pages written in the round.
            again: those of them that were present before; None: whatever the page tables reported.
            missed: those of them that the log did not see.
            read_first: new pages were read in the round before they were written.
        """
        wait_idle(self.pid)
        areas = self._areas()
        ahead = kernel_state(self.pid, areas).present
        space = self.live.round_of(self.pid)
        what = f"round {self.rounds}"
        skipped = self.skipped()
        if skipped:
            self._check_log_with_gaps(space, truth, skipped + len(missed), what)
            self._present = ahead
            self.rounds += 1
            return space
        assert_same(within(space.dirty, areas), truth, f"{what}, dirty")
        assert_same(within(space.missed, areas), missed, f"{what}, missed")
        assert_same(within(space.log, areas), np.setdiff1d(truth, missed), f"{what}, log")
        here = np.intersect1d(self._present, np.concatenate([a.pages for a in areas]))
        assert_same(within(space.present, areas), here, f"{what}, present")
        was_there = np.intersect1d(truth, here)
        expected = was_there if again is None else again
        assert_same(was_there, expected, f"{what}, present when it started")
        assert_same(within(space.redirtied, areas), expected, f"{what}, re-dirtied")
        logged, logged_again = np.setdiff1d(truth, missed), np.setdiff1d(expected, missed)
        protected = logged if read_first else logged_again
        self._check_counts(space, len(logged), len(protected))
        self._present = ahead
        self.rounds += 1
        return space

    def _check_log_with_gaps(self, space: SpaceRound, truth: Pages, gaps: int, what: str) -> None:
        """Check a round in which the kernel skipped runs of the log (Tracer.skipped).

        It may have more in missed_pages, and with soft-dirty any page that is present, but lacks no page.
        """
        dirty = within(space.dirty, self._areas())
        assert_same(np.setdiff1d(truth, dirty), NONE, f"{what}, skipped, not dirty")
        if arm_method() != "soft-dirty":
            assert_same(dirty, truth, f"{what}, skipped, dirty")
            missed = within(space.missed, self._areas())
            assert len(missed) <= gaps, f"{what}: {len(missed)} missed, {gaps} explained"

    def _check_counts(self, space: SpaceRound, logged: int, protected: int) -> None:
        """Check the round's counters against the number of pages known to have been logged, and of those
        among them that were present already.
        """
        stats = space.stats[0]
        kinds = stats["kinds"].tolist()
        features = self.live.tracer.hooks
        assert stats["lost"] == 0 and stats["lost_events"] == 0
        # Each page once; in the histogram of first writes too, except for those that wait for the
        # next reading of the clock.
        counted = int(stats["pages"])
        twice = kinds[abi.WRITE_FAULTS] - len(space.log) if self.live.tracer.byte_maps else 0
        assert len(space.log) <= counted <= len(space.log) + max(twice, 0)
        raced = space.first_writes.raced
        waiting = counted - int(space.hist.sum()) - (0 if raced is None else len(raced))
        assert waiting == 0 or (waiting < abi.CLOCK_EVERY and len(space.log) > abi.CLOCK_EACH)
        assert kinds[abi.WRITE_FAULTS] >= logged
        if "first_touch" in features:
            assert kinds[abi.FIRST_TOUCH] >= logged - protected
            assert kinds[abi.WRITE_FAULTS] == kinds[abi.FIRST_TOUCH] + kinds[abi.WRITE_PROTECT]
        if "write_protect" in features:
            assert kinds[abi.WRITE_PROTECT] >= protected


Start = Callable[..., Walk]
"""A function that starts a workload with some areas (name=(kind, MiB)), and its first round."""


def every_kind(name: str) -> pytest.MarkDecorator:
    """Parametrize over the areas of all mapping classes, by kind."""
    return pytest.mark.parametrize(name, [kind for kind, _ in DEFAULT_AREAS.values()])


def span(area: Area, first: int, count: int) -> Pages:
    """Return page numbers of a part of an area."""
    return area.pages[first : first + count]
