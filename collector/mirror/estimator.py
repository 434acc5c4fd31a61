"""Estimates of a mirror in progress: its rate, the overhead of stopping, its end."""

from __future__ import annotations

import time
from collections.abc import Callable

import numpy as np
from redirty.collector.metrics.observed_rounds import ObservedRounds
from redirty.collector.mirror.observer import PassReport, ProgressReport
from redirty.collector.mirror.pipeline import PassCounts
from redirty.collector.mirror.request import MirrorRequest
from redirty.collector.model.fit import Fit, fit
from redirty.collector.model.memory import Memory
from redirty.collector.model.predict import answer
from redirty.collector.model.prediction import Question
from redirty.collector.model.simulation import Outcome, simulate
from redirty.collector.model.write_curve import WriteCurve
from redirty.collector.pageset import PAGE_SIZE
from redirty.collector.tracking.rounds import Round

_MIN_SAMPLE_BYTES = 4 << 20
_MOSTLY = 0.8
_REREAD_RATE = 4e9  # bytes a second, for memory that is only compared
_INTERVAL_S = 0.5
_BOUNDARIES = (
    3  # the median of several: one boundary that a busy machine delayed says little about the next
)
_MIN_SAMPLE_S = 1e-3
_RATES = 3
_OPTIMISM = 2.0
_MORE_CAUTION = 1.5


class Estimator:
    """Makes estimates from the measurements so far.

    Attributes:
        rate: bytes a second that passes send.
        batch_overhead_s: time per batch, not counting the wait for the link.
        fixed_s: overhead of stopping the target, not counting the sending.
        stop_rate: bytes a second that can be relied on while the target is stopped.
        started: the start of the mirror, by the clock.
    """

    def __init__(
        self,
        request: MirrorRequest,
        written: Callable[[], int | None] = lambda: None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Start the clock.

        Args:
            request: the mirror's goals and bandwidth limit.
            written: returns the number of pages written since the last arm; None: not known.
            clock: returns seconds.
        """
        self._request, self._written, self._clock = request, written, clock
        self.rate = 1e9
        self.batch_overhead_s = 0.0
        self.fixed_s = 0.0
        self.started = clock()
        self._measured = False
        self._rates: list[float] = []  # after the last passes
        self._expansion = 1.0  # bytes of pages for each byte sent
        self._mostly_sent = False  # the pages of the last pass
        self._caution = 1.0  # how much slower than passes stop-and-copy was
        self._late_fixed_s: list[float] = []  # overheads of stops that were too late
        self._boundaries: list[float] = []
        self._points: dict[float, float] = {}  # W(t) in the first pass
        self._ended: list[
            tuple[Round, float]
        ] = []  # rounds that the model has not seen, boundaries
        self._observed = ObservedRounds()
        self._fit: Fit | None = None  # of all rounds
        self._pages = 0  # in the first pass
        self._zero_pages = 0  # of these, known from its end on
        self._pass = (0, 0, 0.0, 0)  # number, pages, start, bytes sent before
        self._due = 0.0
        self._dirty_per_s: float | None = None

    @property
    def elapsed_s(self) -> float:
        """Seconds since the start of the mirror."""
        return self._clock() - self.started

    @property
    def link_rate(self) -> float:
        """Bytes a second that the link is assumed to carry; before anything was measured, the limit."""
        return self.rate if self._measured else self._request.bandwidth or self.rate

    @property
    def stop_rate(self) -> float:
        """Bytes a second that can be relied on while the target is stopped: those of the slowest of the last passes."""
        return min(self._rates, default=self.rate) / self._caution

    def least_s(self, size: float) -> float:
        """Return the time that a number of pending bytes takes at the very least."""
        rate = _OPTIMISM * self.rate
        # Pages whose contents are unchanged are only compared.
        return size / (rate if self._mostly_sent else max(rate, _REREAD_RATE))

    def late_stop(self, fixed_s: float) -> None:
        """Learn from a stop that was too late. fixed_s: how long it took before anything was copied."""
        self._caution *= _MORE_CAUTION
        self._late_fixed_s = [*self._late_fixed_s[-1:], fixed_s]

    # ---- passes ----

    def start_pass(self, number: int, pages: int, sent_bytes: int) -> None:
        """Start a pass over a number of pages. sent_bytes: sent in all passes before."""
        self._pass = number, pages, self._clock(), sent_bytes
        self._pages = self._pages or pages
        self._due = self._clock() + _INTERVAL_S

    def end_pass(self, number: int, counts: PassCounts, sent_bytes: int, took_s: float) -> None:
        """End a pass, and measure its rate if it sent enough bytes."""
        if number == 1:
            self._zero_pages = counts.zero_pages
        if self._request.compress is not None and sent_bytes and counts.sent_pages:
            self._expansion = counts.sent_pages * PAGE_SIZE / sent_bytes
        rate = sent_bytes * self._expansion / took_s
        if number == 1 and sent_bytes:
            self.rate = rate
        elif sent_bytes >= _MIN_SAMPLE_BYTES:
            # If many pages were unchanged the time was spent on reading, not on sending.
            self._mostly_sent = counts.sent_pages > _MOSTLY * counts.pages
            self.rate = rate if self._mostly_sent else max(self.rate, rate)
        if self._request.bandwidth is not None:
            self.rate = min(self.rate, self._request.bandwidth * self._expansion)
        self._rates = [*self._rates[1 - _RATES :], self.rate]
        self._measured = True
        if counts.batches:
            self.batch_overhead_s = max(took_s - counts.link_s, 0.0) / counts.batches

    def end_round(
        self,
        report: PassReport,
        result: Round,
        took_s: float,
        newly_dirty_pages: int,
        reread_bytes: int,
    ) -> None:
        """End a round, and estimate the overhead of stopping the target.

        Args:
            report: the pass that ended with the round.
            result: the round.
            took_s: how long the boundary would take if the target were stopped.
            newly_dirty_pages: pages that were dirty in the round and not in the one before.
            reread_bytes: bytes that have to be read again while the target is stopped.
        """
        self._boundaries = [*self._boundaries[1 - _BOUNDARIES :], took_s]
        # While the target was stopped it took no processor: those were the true ones.
        boundary_s = min([*self._boundaries, *self._late_fixed_s])
        duration_s = max(result.duration_s, boundary_s)
        self._dirty_per_s = report.dirty_pages * PAGE_SIZE / duration_s
        # The target writes until it is stopped: more pages become pending at the rate of this round.
        meanwhile_s = newly_dirty_pages * PAGE_SIZE / duration_s * boundary_s / self.rate
        self.fixed_s = boundary_s + reread_bytes / _REREAD_RATE + meanwhile_s
        if len(self._late_fixed_s) > 1:  # one may have been a busy moment of the machine
            self.fixed_s = max(self.fixed_s, min(self._late_fixed_s))
        self._ended.append((result, took_s))

    # ---- progress ----

    def progress(self, counts: PassCounts, sent_bytes: int) -> ProgressReport | None:
        """Return the progress of the current pass; None if the last report is recent."""
        now = self._clock()
        if now < self._due:
            return None
        self._due = now + _INTERVAL_S
        number, pages, started, sent_before = self._pass
        elapsed_s = now - started
        written = self._written()
        dirty_per_s = self._dirty_per_s
        if written is not None and elapsed_s > _MIN_SAMPLE_S:
            dirty_per_s = written * PAGE_SIZE / elapsed_s
            if number == 1:
                self._points[elapsed_s] = written
        rate = (sent_bytes - sent_before) / elapsed_s
        left_s, downtime_s = self._predict(rate * self._expansion if rate > 0 else self.link_rate)
        return ProgressReport(
            number=number,
            pages=pages,
            done_pages=counts.pages,
            sent_bytes=sent_bytes - sent_before,
            rate=rate,
            dirty_per_s=dirty_per_s,
            left_s=left_s,
            downtime_s=downtime_s,
        )

    def _predict(self, rate: float) -> tuple[float | None, float | None]:
        """Predict the seconds until the mirror is complete, and the downtime; None: never, or unknown."""
        goals = self._request.goals
        name = f"passes:{goals.passes or 1}"
        if goals.downtime_s is not None and goals.passes is None:
            name = "redirty"
        found = self.forecast(
            Question(
                bandwidth=rate,
                downtime_s=goals.downtime_s,
                policy=name,
                memory=float(self._pages * PAGE_SIZE),
                zero=float(self._zero_pages * PAGE_SIZE),
            )
        )
        if found is None or not found.converges:
            return None, None
        return max(found.total_s - self.elapsed_s, 0.0), found.downtime_s

    def forecast(self, question: Question) -> Outcome | None:
        """Return the outcome that `redirty predict` expects on the rounds so far; None: nothing is known yet.

        Within the first pass there is no round yet: what was written so far counts.
        """
        if self._ended:  # not at the end of a round: the target writes meanwhile
            for result, took_s in self._ended:
                self._observed.add(result, took_s)
            self._ended.clear()
            self._fit = fit(self._observed.observations())
        if self._fit is not None:
            return answer(self._fit, question).middle
        if not self._points or self.elapsed_s <= 0:
            return None
        times = np.array(sorted(self._points))
        pages = np.maximum.accumulate([self._points[t] for t in times.tolist()])
        curve = WriteCurve(times, pages, limit=float(max(self._pages, pages[-1])))
        policy = question.policy_for(question.downtime_s, 0.0)
        return simulate(Memory(self._pages, 0, PAGE_SIZE), curve, policy, question.bandwidth)
