"""What is known of a mirror while it is made: how fast it goes, what stopping would take, when it ends."""

from __future__ import annotations

import time
from collections.abc import Callable

import numpy as np
from redirty.collector.linux.process_memory import PAGE
from redirty.collector.mirror.observer import PassReport, ProgressReport
from redirty.collector.mirror.pipeline import PassCounts
from redirty.collector.mirror.request import MirrorRequest
from redirty.collector.model.policy import Fixed, Goal, Policy
from redirty.collector.model.simulation import Memory, simulate
from redirty.collector.model.write_curve import WriteCurve
from redirty.collector.tracking.rounds import Round

_ENOUGH_TO_MEASURE = 4 << 20  # bytes
_MOSTLY = 0.8
_READ_AGAIN_RATE = 4e9  # bytes a second, of memory that is only compared
_EVERY_S = 0.5
_BOUNDARIES = 3  # a boundary that the machine delayed once says little of the next one
_LEAST_S = 1e-3


class Estimator:
    """rate: bytes a second. own_s: what a batch takes beside waiting for the link. fixed_s: what stopping takes
    beside sending. written: pages written since the last arm, None where that is not known. clock: of seconds,
    for tests."""

    def __init__(
        self,
        wish: MirrorRequest,
        written: Callable[[], int | None] = lambda: None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._wish, self._written, self._clock = wish, written, clock
        self.rate = 1e9
        self.own_s = 0.0
        self.fixed_s = 0.0
        self.begun = clock()
        self._known = False
        self._boundaries: list[float] = []
        self._points: dict[float, float] = {}  # W(t), of all rounds
        self._pages = 0  # of the first pass
        self._pass = (0, 0, 0.0, 0)  # number, pages, since when, bytes sent before
        self._due = 0.0
        self._dirty_per_s: float | None = None

    @property
    def elapsed_s(self) -> float:
        """Since the mirror began."""
        return self._clock() - self.begun

    @property
    def link_rate(self) -> float:
        """What the link is taken to carry, before anything was sent, too."""
        return self.rate if self._known else self._wish.bandwidth or self.rate

    # ---- passes ----

    def passing(self, number: int, pages: int, sent_bytes: int) -> None:
        """A pass begins. sent_bytes: in all passes before."""
        self._pass = number, pages, self._clock(), sent_bytes
        self._pages = self._pages or pages
        self._due = self._clock() + _EVERY_S

    def sent(self, number: int, counts: PassCounts, sent: int, took_s: float) -> None:
        """A pass is over: how fast it was is measured, when it sent enough."""
        if number == 1 and sent:
            self.rate = sent / took_s
        elif sent >= _ENOUGH_TO_MEASURE:
            # When much was found unchanged the time went into reading, not into sending.
            mostly_sent = counts.sent_pages > _MOSTLY * counts.pages
            self.rate = sent / took_s if mostly_sent else max(self.rate, sent / took_s)
        if self._wish.bandwidth is not None:
            self.rate = min(self.rate, self._wish.bandwidth)
        self._known = True
        if counts.batches:
            self.own_s = max(took_s - counts.link_s, 0.0) / counts.batches

    def bounded(
        self, done: PassReport, result: Round, took_s: float, fresh_pages: int, unsettled_bytes: int
    ) -> None:
        """A round is over, whose boundary would take took_s if the target stood still. fresh_pages: dirty in
        it and not in the one before. unsettled_bytes: what is to be read again at the end."""
        self._boundaries = [*self._boundaries[1 - _BOUNDARIES :], took_s]
        boundary_s = min(self._boundaries)
        duration_s = max(result.duration_s, boundary_s)
        self._dirty_per_s = done.dirty_pages * PAGE / duration_s
        # Until it stands still it writes on: what is not pending already comes as it came in this round.
        meanwhile_s = fresh_pages * PAGE / duration_s * boundary_s / self.rate
        self.fixed_s = boundary_s + unsettled_bytes / _READ_AGAIN_RATE + meanwhile_s
        self._points[duration_s] = done.dirty_pages

    # ---- while one goes on ----

    def going(self, counts: PassCounts, sent_bytes: int) -> ProgressReport | None:
        """What there is to tell now; None when something was told a moment ago."""
        now = self._clock()
        if now < self._due:
            return None
        self._due = now + _EVERY_S
        number, pages, since, before = self._pass
        lasts_s = now - since
        written = self._written()
        dirty_per_s = self._dirty_per_s
        if written is not None and lasts_s > _LEAST_S:
            dirty_per_s = written * PAGE / lasts_s
            if number == 1:
                self._points[lasts_s] = written
        rate = (sent_bytes - before) / lasts_s
        end_s, downtime_s = self._end(rate if rate > 0 else self.link_rate)
        return ProgressReport(
            number,
            pages=pages,
            done_pages=counts.pages,
            sent_bytes=sent_bytes - before,
            rate=rate,
            dirty_per_s=dirty_per_s,
            left_s=end_s,
            downtime_s=downtime_s,
        )

    def _end(self, rate: float) -> tuple[float | None, float | None]:
        """In how many seconds all would be over, and the downtime; None: never, or not known."""
        if not self._points or self.elapsed_s <= 0:
            return None, None
        times = np.array(sorted(self._points))
        pages = np.maximum.accumulate([self._points[t] for t in times.tolist()])
        curve = WriteCurve(times, pages, limit=float(max(self._pages, pages[-1])))
        goals = self._wish.goals
        policy: Policy = Fixed(goals.passes or 1)
        if goals.downtime_s is not None and goals.passes is None:
            policy = Goal(goals.downtime_s, min(self._boundaries, default=0.0))
        found = simulate(Memory(self._pages, 0, PAGE), curve, policy, rate)
        if not found.converges:
            return None, None
        return max(found.total_s - self.elapsed_s, 0.0), found.downtime_s
