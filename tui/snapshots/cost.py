"""The cost of tracing, and the guard that lengthens rounds when it is too high.

The first write to a page after an arm faults once; how long such a fault takes is measured on this machine
before the target is armed. While memory is being armed, the target's own faults and mmap calls wait, so
the time of the arm counts in full. A cost is a share of one core, or of the target's CPU time where it uses more
than a core: of a target that hardly runs, any cost is many times its CPU time and yet next to nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from redirty.collector.units import show_time
from redirty.tui.snapshots.round_summary import RoundSummary

DEFAULT_MAX = 0.02
MAX_INTERVAL_S = (
    2.0  # the guard makes rounds at most this long: a screen that hardly moves is not live
)
_MIN_STEP, _MAX_STEP = 1.25, 2.0


@dataclass(frozen=True)
class Cost:
    """The cost of tracing over the latest rounds.

    Attributes:
        share: what it costs the target, as a share of one core, or of the target's CPU time if that is more.
        faults_s: seconds spent in faults, per second.
        arm_s: seconds spent arming, per second.
        own_s: CPU seconds used by redirty itself, per second; None: unknown.
        limit: largest acceptable share.
    """

    share: float
    faults_s: float
    arm_s: float
    own_s: float | None
    limit: float

    @property
    def too_high(self) -> bool:
        """True if the share exceeds the limit."""
        return self.share > self.limit

    def text(self) -> str:
        """Return the cost as one line."""
        own = "" if self.own_s is None else f"; redirty uses {self.own_s:.1%}"
        return (
            f"tracing costs the target {self.faults_s + self.arm_s:.1%} of a core: faults "
            f"{show_time(self.faults_s)}/s, arming {show_time(self.arm_s)}/s{own}"
        )


def cost_of(recent: Sequence[RoundSummary], fault_s: float, limit: float) -> Cost | None:
    """Compute the cost over rounds; None without any.

    fault_s: measured cost of one fault.
    """
    seconds = sum(r["duration_s"] for r in recent)
    if seconds <= 0:
        return None
    cpu_s = sum(r.cpu_s or 0.0 for r in recent)
    faults_s = sum(r["write_faults"] for r in recent) * fault_s
    arm_s = sum(r["arm_s"] for r in recent)
    own = [r.own_cpu_s for r in recent if r.own_cpu_s is not None]
    return Cost(
        share=(faults_s + arm_s) / max(cpu_s, seconds),
        faults_s=faults_s / seconds,
        arm_s=arm_s / seconds,
        own_s=sum(own) / seconds if len(own) == len(recent) else None,
        limit=limit,
    )


def longer_interval(interval_s: float, cost: Cost) -> float:
    """Return the interval to continue with, in seconds: longer in proportion to the excess cost.

    The change is bounded, because only pages that are written repeatedly cost in proportion to the
    number of rounds.
    """
    if not cost.too_high:
        return interval_s
    step = cost.share / cost.limit if cost.limit > 0 else _MAX_STEP
    longest = max(MAX_INTERVAL_S, interval_s)
    return min(interval_s * min(max(step, _MIN_STEP), _MAX_STEP), longest)
