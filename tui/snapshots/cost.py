"""What tracing costs the target: the guard that lengthens the interval when it is too much.

A page's first write after an arm faults once; how long that takes is measured on this machine before
the target is armed. While memory is armed the target's own faults and mappings wait for it, so the
time of the arm counts in full.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from redirty.collector.units import show_time
from redirty.tui.snapshots.round_summary import RoundSummary

DEFAULT_MAX = 0.02
LONGEST_S = 60.0
_LEAST_STEP, _MOST_STEP = 1.25, 2.0
_IDLE_S = 1e-3  # a target that used less of the CPU in a round has no share to speak of


@dataclass(frozen=True)
class Cost:
    """Lately: share of the target's CPU time (None: it hardly used any), of which faults and arming
    made so many seconds in each second. fault_s: what one fault was measured to cost."""

    share: float | None
    faults_s: float
    arm_s: float
    fault_s: float
    limit: float

    @property
    def too_much(self) -> bool:
        """Whether it passes the limit."""
        return self.share is not None and self.share > self.limit

    def said(self) -> str:
        """In words."""
        if self.share is None:
            return "tracing costs: the target uses no CPU to speak of"
        return (
            f"tracing costs {self.share:.1%} of the target's CPU: each second faults "
            f"{show_time(self.faults_s)}, arming {show_time(self.arm_s)}"
        )


def cost_of(recent: Sequence[RoundSummary], fault_s: float, limit: float) -> Cost | None:
    """Of some rounds; None when what the target used of the CPU is not known of any."""
    known = [f for f in recent if f.cpu_s is not None]
    seconds = sum(f["duration_s"] for f in known)
    if not known or seconds <= 0:
        return None
    cpu_s = sum(f.cpu_s or 0.0 for f in known)
    faults_s = sum(f["write_faults"] for f in known) * fault_s
    arm_s = sum(f["arm_s"] for f in known)
    share = (faults_s + arm_s) / cpu_s if cpu_s > _IDLE_S * len(known) else None
    return Cost(share, faults_s / seconds, arm_s / seconds, fault_s, limit)


def longer_interval(interval_s: float, cost: Cost) -> float:
    """The interval to go on with: longer by what the cost is above the limit, but in steps, for
    pages that are written again and again cost in proportion to the rounds, others do not."""
    if not cost.too_much or cost.share is None:
        return interval_s
    step = cost.share / cost.limit if cost.limit > 0 else _MOST_STEP
    return min(interval_s * min(max(step, _LEAST_STEP), _MOST_STEP), max(LONGEST_S, interval_s))
