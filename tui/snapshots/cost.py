"""The cost of tracing to the target, and the guard that lengthens rounds when it is too high.

The first write to a page after an arm faults once; how long such a fault takes is measured on this machine
before the target is armed. While memory is being armed, the target's own faults and mmap calls wait, so
the time of the arm counts in full.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from redirty.collector.units import show_time
from redirty.tui.snapshots.round_summary import RoundSummary

DEFAULT_MAX = 0.02
MAX_INTERVAL_S = 60.0  # the guard makes rounds at most this long
_MIN_STEP, _MAX_STEP = 1.25, 2.0
_IDLE_S = 1e-3  # below this CPU time in a round, the share is meaningless


@dataclass(frozen=True)
class Cost:
    """The cost of tracing over the latest rounds.

    Attributes:
        share: share of the target's CPU time; None if the target was idle.
        faults_s: seconds spent in faults, per second.
        arm_s: seconds spent arming, per second.
        fault_s: measured cost of one fault.
        limit: largest acceptable share.
    """

    share: float | None
    faults_s: float
    arm_s: float
    fault_s: float
    limit: float

    @property
    def too_high(self) -> bool:
        """True if the share exceeds the limit."""
        return self.share is not None and self.share > self.limit

    def text(self) -> str:
        """Return the cost as one line."""
        if self.share is None:
            return "tracing costs: the target is idle"
        return (
            f"tracing costs {self.share:.1%} of the target's CPU time: faults "
            f"{show_time(self.faults_s)}/s, arming {show_time(self.arm_s)}/s"
        )


def cost_of(recent: Sequence[RoundSummary], fault_s: float, limit: float) -> Cost | None:
    """Compute the cost over rounds; None if the target's CPU time is unknown in all of them."""
    known = [r for r in recent if r.cpu_s is not None]
    seconds = sum(r["duration_s"] for r in known)
    if not known or seconds <= 0:
        return None
    cpu_s = sum(r.cpu_s or 0.0 for r in known)
    faults_s = sum(r["write_faults"] for r in known) * fault_s
    arm_s = sum(r["arm_s"] for r in known)
    share = (faults_s + arm_s) / cpu_s if cpu_s > _IDLE_S * len(known) else None
    return Cost(share, faults_s / seconds, arm_s / seconds, fault_s, limit)


def longer_interval(interval_s: float, cost: Cost) -> float:
    """Return the interval to continue with, in seconds: longer in proportion to the excess cost.

    The change is bounded, because only pages that are written repeatedly cost in proportion to the
    number of rounds.
    """
    if not cost.too_high or cost.share is None:
        return interval_s
    step = cost.share / cost.limit if cost.limit > 0 else _MAX_STEP
    longest = max(MAX_INTERVAL_S, interval_s)
    return min(interval_s * min(max(step, _MIN_STEP), _MAX_STEP), longest)
