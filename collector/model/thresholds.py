"""The smallest bandwidth or downtime goal with which a policy converges."""

from __future__ import annotations

import math
from collections.abc import Callable

from redirty.collector.model.memory import Memory
from redirty.collector.model.policy import Policy
from redirty.collector.model.simulation import simulate
from redirty.collector.model.write_curve import WriteModel

_PRECISION = 1.001


def min_bandwidth(
    memory: Memory,
    written: WriteModel,
    policy: Policy,
    limit: float = 1e15,
    precision: float = _PRECISION,
) -> float | None:
    """Return the smallest bandwidth with which the policy keeps its downtime goal, in bytes per second.

    precision: relative, 1.001 is 0.1 %. None when the policy has no goal, or even `limit` does not suffice.
    """
    goal = policy.downtime_s
    if goal is None:
        return None
    guess = max(written(goal) * memory.page_bytes(policy) / goal, 1.0)
    return _smallest(
        lambda b: simulate(memory, written, policy, b).converges, guess, limit, precision=precision
    )


def min_downtime(
    memory: Memory, written: WriteModel, policy_with: Callable[[float], Policy], bandwidth: float
) -> float | None:
    """Return the smallest downtime goal that a policy can keep with a bandwidth, in seconds to 0.1 %.

    At least 1 ms; None when it is more than a day. policy_with: the policy with a given goal.
    """

    def suffices(goal: float) -> bool:
        return simulate(memory, written, policy_with(goal), bandwidth).converges

    return _smallest(suffices, 0.1, 86400.0, 1e-3)


def _smallest(
    suffices: Callable[[float], bool],
    guess: float,
    limit: float,
    floor: float = 1.0,
    precision: float = _PRECISION,
) -> float | None:
    """Return the smallest number that suffices, to a relative precision, and at least `floor`.

    Every larger number must also suffice. None when the result is above `limit`.
    """
    low = high = max(guess, floor)
    while not suffices(high):
        low, high = high, high * 2
        if high > limit:
            return None
    if low == high:
        while low > floor and suffices(low):
            low, high = max(low / 2, floor), low
        if low == floor and suffices(low):
            return floor
    while high / low > precision:
        middle = math.sqrt(low * high)
        low, high = (low, middle) if suffices(middle) else (middle, high)
    return high
