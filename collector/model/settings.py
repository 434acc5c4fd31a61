"""Settings that make a migration converge: the smallest bandwidth, downtime limit and throttle that do."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from redirty.collector.model.policy import Policy
from redirty.collector.model.prediction import Answer
from redirty.collector.model.simulation import simulate
from redirty.collector.model.thresholds import min_bandwidth, min_downtime
from redirty.collector.model.throttle import pace_of
from redirty.collector.model.write_curve import WriteModel

MAX_THROTTLE = 99  # percent, of QEMU's max-cpu-throttle


@dataclass(frozen=True)
class Settings:
    """The smallest settings with which a policy converges, each with the others as asked for.

    Attributes:
        bandwidth: bytes per second; None: none suffices, or the policy has no goal.
        downtime_s: the shortest goal; of a policy that always ends its downtime; None: none suffices.
        throttle_percent: by which the target would have to be slowed down from the start, 0 when it need not be;
            None: that does not suffice, or the policy's tool cannot do it.
    """

    bandwidth: float | None
    downtime_s: float | None
    throttle_percent: int | None


def settings_of(a: Answer) -> Settings:
    """Return the smallest settings that make a migration converge."""
    goal: float | None = a.middle.downtime_s
    if a.policy.endless:
        goal = min_downtime(a.memory, a.fit.curve, a.policy_for, a.question.bandwidth)
    enough = None  # post-copy stops the target as long at any bandwidth
    if not a.policy.postcopy:
        enough = min_bandwidth(a.memory, a.fit.curve, a.policy)
    return Settings(enough, goal, _throttle(a))


def _throttle(a: Answer) -> int | None:
    """Return the smallest percentage by which QEMU would have to throttle the vCPUs from the start."""
    if not a.policy.name.startswith("qemu") or a.policy.postcopy:
        return None
    policy: Policy = replace(a.policy, throttle=None)  # type: ignore[type-var]

    def converges(percent: int) -> bool:
        def written(elapsed_s: float) -> float:
            return a.fit.curve(elapsed_s * pace_of(percent, a.fit.busy or 1.0))

        return _converges(a, written, policy)

    if not converges(MAX_THROTTLE):
        return None
    low, high = -1, MAX_THROTTLE  # the last one that does not, the first one that does
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if converges(middle) else (middle, high)
    return high


def _converges(a: Answer, written: WriteModel, policy: Policy) -> bool:
    question = a.question
    return simulate(
        a.memory, written, policy, question.bandwidth, question.last_bandwidth
    ).converges


def as_json(settings: Settings) -> dict[str, Any]:
    """Return the settings as a JSON-serializable dict."""
    enough, goal = settings.bandwidth, settings.downtime_s
    return {
        "bandwidth_bytes_per_s": None if enough is None else round(enough),
        "downtime_s": None if goal is None else round(goal, 6),
        "throttle_percent": settings.throttle_percent,
    }
