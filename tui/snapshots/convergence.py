"""Predicts for the screens whether mirroring the target now would converge, and explains the verdict."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np
from redirty.collector.errors import one_line
from redirty.collector.model.fit import Fit
from redirty.collector.model.observations import Observations
from redirty.collector.model.policy import DEFAULT_DOWNTIME_S
from redirty.collector.model.predict import forecast, notes
from redirty.collector.model.prediction import CONVERGES, UNCERTAIN, Answer, Question
from redirty.collector.model.reasons import obstacle
from redirty.collector.model.simulation import Pass
from redirty.collector.model.thresholds import min_bandwidth
from redirty.collector.units import (
    RateUnit,
    parse_positive_time,
    show_bytes,
    show_rate,
    show_time,
)
from redirty.tui.snapshots.history import MappingTable
from redirty.tui.snapshots.round_summary import Floats

POLICIES = (
    "redirty",
    "qemu",
    "qemu-auto-converge",
    "qemu-postcopy",
    "qemu-multifd",
    "cloud-hypervisor",
    "criu:3",
    "passes:5",
    "xen",
)
AS_TYPED = "as typed"
_CURVE_POINTS = 96
_SLACK = 1.15  # see predict.answer()
_EXTRAPOLATION = 4.0  # the curve is shown up to this multiple of the measured time


@dataclass(frozen=True)
class ConvergenceQuestion:
    """A question to the convergence model.

    Attributes:
        bandwidth: bandwidth of the link in bytes per second.
        downtime_s: longest acceptable downtime.
        policy: name of the stop policy.
        source: origin of the bandwidth, for display.
        stop_cost_s: the fixed part of a stop; None: as measured.
        unit: in which the bandwidth was given, for display; None: bits.
        downtime_asked: False: downtime_s is the default, and counts for policies that need one.
    """

    bandwidth: float
    downtime_s: float = DEFAULT_DOWNTIME_S
    policy: str = "redirty"
    source: str = AS_TYPED
    stop_cost_s: float | None = None
    downtime_asked: bool = True
    unit: RateUnit | None = None

    def for_model(self) -> Question:
        """Return the question in the model's terms."""
        downtime_s = self.downtime_s if self.downtime_asked else None
        return Question(
            self.bandwidth, downtime_s, self.policy, stop_cost_s=self.stop_cost_s, unit=self.unit
        )

    def scale_bandwidth(self, factor: float) -> ConvergenceQuestion:
        """Return a copy with the bandwidth multiplied, within 1 kB/s and 10 TB/s."""
        bandwidth = min(max(self.bandwidth * factor, 1e3), 1e13)
        return replace(self, bandwidth=bandwidth, source=AS_TYPED)

    def scale_downtime(self, factor: float) -> ConvergenceQuestion:
        """Return a copy with the downtime multiplied, within 1 ms and one hour."""
        return self.with_downtime(min(max(self.downtime_s * factor, 1e-3), 3600.0))

    def with_downtime(self, downtime_s: float) -> ConvergenceQuestion:
        """Return a copy with another longest acceptable downtime."""
        return replace(self, downtime_s=downtime_s, downtime_asked=True)

    def next_policy(self) -> ConvergenceQuestion:
        """Return a copy with the next policy of POLICIES."""
        at = POLICIES.index(self.policy) if self.policy in POLICIES else -1
        return replace(self, policy=POLICIES[(at + 1) % len(POLICIES)])


@dataclass(frozen=True, eq=False)
class Convergence:
    """A prediction, ready to be drawn.

    Attributes:
        question: the question it answers.
        good: True if mirroring converges, False if it does not, None if uncertain.
        verdict: one line of text.
        passes: the predicted passes.
        total_s: predicted duration of the mirror; infinite if it never ends.
        downtime_s: predicted downtime.
        stop_s: the fixed part of it.
        stopped: whether the target is stopped in the last pass.
        transferred_bytes: predicted amount sent.
        sufficient: bandwidth in bytes per second that meets the downtime; None if none does, or if
            the policy has no downtime goal.
        elapsed_s: (n,) the times t of W(t).
        pages: (n,) W(t) in pages.
        low: (n,) lower bound of W(t).
        high: (n,) upper bound of W(t).
        measured_s: W(t) was measured up to this t, and is extrapolated beyond.
        notes: caveats, one line each.
    """

    question: ConvergenceQuestion
    good: bool | None
    verdict: str
    passes: tuple[Pass, ...]
    total_s: float
    downtime_s: float
    stop_s: float
    stopped: bool
    transferred_bytes: float
    sufficient: float | None
    elapsed_s: Floats
    pages: Floats
    low: Floats
    high: Floats
    measured_s: float
    notes: tuple[str, ...]


def convergence(
    observed: Observations,
    question: ConvergenceQuestion,
    mappings: MappingTable,
    before: Convergence | None = None,
) -> Convergence:
    """Predict convergence from the rounds observed so far; takes some 10 ms.

    Args:
        observed: the rounds.
        question: what is asked.
        mappings: recently written mappings.
        before: what was said a moment ago, so that chance does not change the verdict back and forth; None:
            nothing.

    Raises:
        UsageError: the policy is unknown.
    """
    unsure = before is not None and before.good is None
    found = forecast(observed, question.for_model(), _SLACK if unsure else 1.0)
    fitted = found.fit
    good = None if found.verdict == UNCERTAIN else found.verdict == CONVERGES
    if before is not None and good is (not before.good):
        good = None  # one verdict turns into the other by way of "uncertain" only
    sufficient = None
    if not found.policy.postcopy:
        sufficient = min_bandwidth(found.memory, fitted.curve, found.policy)
    times = _times(fitted)
    pages, low, high = (
        np.array([curve(t) for t in times.tolist()])
        for curve in (fitted.curve, fitted.low, fitted.high)
    )
    return Convergence(
        question=question,
        good=good,
        verdict=verdict(found, good, sufficient, mappings),
        passes=found.middle.passes,
        total_s=found.middle.total_s,
        downtime_s=found.middle.downtime_s,
        stop_s=found.policy.stop_s,
        stopped=math.isfinite(found.middle.total_s) and not found.policy.postcopy,
        transferred_bytes=found.middle.transferred_bytes,
        sufficient=sufficient,
        elapsed_s=times,
        pages=pages,
        low=low,
        high=high,
        measured_s=fitted.curve.measured_s,
        notes=tuple(notes(found)),
    )


def _times(fitted: Fit) -> Floats:
    last = fitted.curve.measured_s * _EXTRAPOLATION
    first = max(float(fitted.curve.elapsed_s[0]), last * 1e-5)
    found: Floats = np.geomspace(min(first, last / 2), last, _CURVE_POINTS)
    return found


def parse_downtime(text: str) -> float:
    """Parse a downtime goal that was typed; return seconds.

    Raises:
        UsageError: the text is not a time, or not positive.
    """
    return parse_positive_time(text, "downtime")


def verdict(
    found: Answer, good: bool | None, sufficient: float | None, mappings: MappingTable
) -> str:
    """Return one line: 'converges in 5 passes, 12.0 s, downtime 140.0 ms', or what prevents it and
    which bandwidth would suffice. good: as in Convergence."""
    passes = len(found.middle.passes)
    how = (
        f"in {passes} {'pass' if passes == 1 else 'passes'}, {show_time(found.middle.total_s)}, "
        f"downtime {show_time(found.middle.downtime_s)}"
    )
    unit = found.question.unit
    suffices = "" if sufficient is None else f"; {show_rate(sufficient, unit)} would suffice"
    if good:
        return f"converges {how}"
    if good is None:
        if found.middle.converges:
            return f"uncertain: may converge {how}{suffices}"
        return f"uncertain: may not converge{suffices}"
    return f"will not converge: {_obstacle(found, mappings)}{suffices}"


def _obstacle(found: Answer, mappings: MappingTable) -> str:
    """Name the mapping that alone is re-dirtied faster than the link carries, else the total rate."""
    page, bandwidth = found.fit.page_size, found.question.bandwidth
    goal = found.policy.downtime_s
    possible = goal is None or not found.policy.counts_stop or found.policy.stop_s <= goal
    if len(mappings) and possible:
        first = mappings[0]
        rate = float(mappings.redirtied_per_s[0]) * page
        name = one_line(first.path) or f"{first.start:#x} (anonymous)"
        if rate >= bandwidth:
            return f"{name} alone is re-dirtied at {show_bytes(rate)}/s"
        total = float(mappings.redirtied_per_s.sum()) * page
        share = rate / total if total > 0 else 0.0
        if total >= bandwidth:
            return f"re-dirtied at {show_bytes(total)}/s, {share:.0%} of it in {name}"
    return obstacle(found)
