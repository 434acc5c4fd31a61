"""Would mirroring the target converge, as it is now: the verdict, and why, in words."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from redirty.collector.errors import UsageError, one_line
from redirty.collector.model.fit import Fit, fit
from redirty.collector.model.observations import Observations
from redirty.collector.model.policy import DEFAULT_DOWNTIME_S
from redirty.collector.model.predict import answer, notes
from redirty.collector.model.prediction import CONVERGES, UNCERTAIN, Answer, Question
from redirty.collector.model.simulation import Pass, least_bandwidth
from redirty.collector.units import parse_time, show_bytes, show_time
from redirty.tui.snapshots.history import MappingTable
from redirty.tui.snapshots.round_summary import Floats

POLICIES = ("redirty", "qemu", "criu:3", "passes:5", "xen")
_CURVE_POINTS = 96
_SHOWN = 1.01  # precision of what would do: it is asked again and again while rounds go by
_BEYOND = 4.0  # times what was measured: so far the curve is shown


@dataclass(frozen=True)
class ConvergenceQuestion:
    """What is asked of the model. source: where the bandwidth comes from, in words."""

    bandwidth: float
    downtime_s: float = DEFAULT_DOWNTIME_S
    policy: str = "redirty"
    source: str = "as typed"

    def question(self) -> Question:
        """As the model takes it."""
        return Question(self.bandwidth, self.downtime_s, self.policy)

    def faster(self, factor: float) -> ConvergenceQuestion:
        """With another bandwidth."""
        bandwidth = min(max(self.bandwidth * factor, 1e3), 1e13)
        return replace(self, bandwidth=bandwidth, source="as typed")

    def longer(self, factor: float) -> ConvergenceQuestion:
        """With another downtime."""
        return replace(self, downtime_s=min(max(self.downtime_s * factor, 1e-3), 3600.0))

    def next_policy(self) -> ConvergenceQuestion:
        """With the policy after this one."""
        at = POLICIES.index(self.policy) if self.policy in POLICIES else -1
        return replace(self, policy=POLICIES[(at + 1) % len(POLICIES)])


@dataclass(frozen=True, eq=False)
class Convergence:
    """The answer. good: True it converges, False it will not, None: uncertain. elapsed_s, pages, low,
    high: (n,) W(t); measured_s: up to there it was seen. enough: bytes per second that would do for
    this downtime; None: nothing would, or the policy has no goal."""

    asked: ConvergenceQuestion
    good: bool | None
    verdict: str
    passes: tuple[Pass, ...]
    total_s: float
    downtime_s: float
    transferred_bytes: float
    enough: float | None
    elapsed_s: Floats
    pages: Floats
    low: Floats
    high: Floats
    measured_s: float
    notes: tuple[str, ...]


def convergence(
    seen: Observations, asked: ConvergenceQuestion, mappings: MappingTable
) -> Convergence:
    """Of what was seen so far. Takes some 10 ms.

    Errors: UsageError for a policy that is none.
    """
    fitted = fit(seen)
    found = answer(fitted, asked.question(), seen.layout)
    enough = least_bandwidth(found.memory, fitted.curve, found.policy, precision=_SHOWN)
    times = _times(fitted)
    pages, low, high = (
        np.array([curve(t) for t in times.tolist()])
        for curve in (fitted.curve, fitted.low, fitted.high)
    )
    return Convergence(
        asked,
        None if found.verdict == UNCERTAIN else found.verdict == CONVERGES,
        verdict(found, enough, mappings),
        found.middle.passes,
        found.middle.total_s,
        found.middle.downtime_s,
        found.middle.transferred_bytes,
        enough,
        times,
        pages,
        low,
        high,
        fitted.curve.measured_s,
        tuple(notes(found)),
    )


def _times(fitted: Fit) -> Floats:
    last = fitted.curve.measured_s * _BEYOND
    first = max(float(fitted.curve.elapsed_s[0]), last * 1e-5)
    found: Floats = np.geomspace(min(first, last / 2), last, _CURVE_POINTS)
    return found


def parse_downtime(text: str, name: str = "downtime") -> float:
    """Parse a downtime goal in seconds. name: what an error calls it.

    Raises:
        UsageError: it is not a time, or not positive.
    """
    seconds = parse_time(text)
    if seconds <= 0:
        raise UsageError(f"{name} must be positive, got {text}")
    return seconds


def verdict(found: Answer, enough: float | None, mappings: MappingTable) -> str:
    """One line: 'converges in 5 passes, 12.0 s, downtime 140.0 ms', or what is in the way and what
    would do."""
    passes = len(found.middle.passes)
    how = (
        f"in {passes} {'pass' if passes == 1 else 'passes'}, {show_time(found.middle.total_s)}, "
        f"downtime {show_time(found.middle.downtime_s)}"
    )
    would_do = "" if enough is None else f"; {show_bytes(enough)}/s would do"
    if found.verdict == CONVERGES:
        return f"converges {how}"
    if found.verdict == UNCERTAIN:
        if found.middle.converges:
            return f"uncertain: perhaps {how}{would_do}"
        return f"uncertain: perhaps not{would_do}"
    return f"will not: {_in_the_way(found, mappings)}{would_do}"


def _in_the_way(found: Answer, mappings: MappingTable) -> str:
    """The mapping that alone is re-dirtied faster than the link carries, else all that is written."""
    page, bandwidth = found.fit.page_size, found.question.bandwidth
    if len(mappings):
        first = mappings[0]
        rate = float(mappings.redirtied_per_s[0]) * page
        name = one_line(first.path) or f"{first.start:#x} (anonymous)"
        if rate >= bandwidth:
            return f"{name} alone is re-dirtied at {show_bytes(rate)}/s"
        total = float(mappings.redirtied_per_s.sum()) * page
        part = rate / total if total > 0 else 0.0
        if total >= bandwidth:
            return f"re-dirtied at {show_bytes(total)}/s, {part:.0%} of it in {name}"
    left = found.middle.left_bytes or (found.middle.passes[-1].bytes if found.middle.passes else 0)
    goal = found.policy.downtime_s
    within = "" if goal is None else f", and {show_time(goal)} carry {show_bytes(bandwidth * goal)}"
    return f"each pass leaves {show_bytes(left)}{within}"
