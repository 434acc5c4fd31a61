"""The decision after each pass: another pass, stop the target now, or give up. Each with its reason.

The rules are those of the policies "redirty" and "passes:N" of redirty.collector.model, applied to measurements
instead of a curve.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from redirty.collector.units import show_bits, show_bytes, show_time

PASS, QUIESCE, GIVE_UP = "pass", "quiesce", "give up"
# Not converging: the minimum of pending bytes did not fall by at least this share in this many passes.
_STUCK_PASSES = 6
_MIN_PROGRESS = 0.03
_SURE_PASSES = 3
# What stopping takes is measured while the target runs, which also takes processors, and writes on.
_ONE_STOP = ", as it seems while the target runs: one stop will tell"
# How many times longer than the goal a stop may seem to take, and be tried all the same.
_WORTH_TRYING = 3.0


@dataclass(frozen=True)
class Goals:
    """When to stop the target.

    Attributes:
        downtime_s: for how long the target may be stopped; None: no limit.
        deadline_s: when the mirror has to be complete, counted from its start; None: no limit.
        passes: the number of passes before the target is stopped, regardless of the rest; None: as many as needed.
    """

    downtime_s: float | None = 0.2
    deadline_s: float | None = None
    passes: int | None = None


@dataclass(frozen=True)
class Situation:
    """The state of a mirror after a pass.

    Attributes:
        number: of the pass, from 1.
        left: bytes that were pending after each pass so far.
        rate: bytes a second.
        fixed_s: overhead of stopping the target, not counting the sending.
        elapsed_s: since the start of the mirror.
        stops: number of stops so far, which did not lead to a mirror.
    """

    number: int
    left: Sequence[float]
    rate: float
    fixed_s: float
    elapsed_s: float
    stops: int = 0

    @property
    def downtime_s(self) -> float:
        """The downtime if the target were stopped now."""
        return self.left[-1] / self.rate + self.fixed_s


@dataclass(frozen=True)
class Decision:
    """A decision after a pass.

    Attributes:
        number: of the pass, from 1.
        action: PASS, QUIESCE or GIVE_UP.
        reason: for people, and for mirror.json.
        left_bytes: pending after the pass.
        downtime_s: if the target were stopped now.
    """

    number: int
    action: str
    reason: str
    left_bytes: float
    downtime_s: float

    def as_json(self) -> dict[str, Any]:
        """Return a JSON-serializable dict for mirror.json."""
        return {
            "after_pass": self.number,
            "decision": self.action,
            "reason": self.reason,
            "left_bytes": int(self.left_bytes),
            "predicted_downtime_s": round(self.downtime_s, 6),
        }


def decide(goals: Goals, now: Situation) -> Decision:
    """Decide what to do next."""
    action, reason = _choose(goals, now)
    return Decision(now.number, action, reason, now.left[-1], now.downtime_s)


def _choose(goals: Goals, now: Situation) -> tuple[str, str]:
    left, would_take = show_bytes(now.left[-1]), show_time(now.downtime_s)
    takes = f"{left} are left, which take {would_take} at {show_bits(now.rate)}"
    fits = goals.downtime_s is None or now.downtime_s <= goals.downtime_s
    if goals.deadline_s is not None and now.elapsed_s + now.downtime_s > goals.deadline_s:
        if fits:
            return QUIESCE, f"{takes}: the deadline is reached"
        assert goals.downtime_s is not None
        return (
            GIVE_UP,
            f"{takes}, more than {show_time(goals.downtime_s)}, and the deadline is reached",
        )
    if goals.passes is not None:
        if now.number >= goals.passes:
            if fits:
                return QUIESCE, f"{takes}: pass {now.number} was the last requested one"
            assert goals.downtime_s is not None
            return (
                GIVE_UP,
                f"{takes}, more than {show_time(goals.downtime_s)}, after the last requested pass",
            )
        return PASS, f"{takes}: pass {now.number + 1} of {goals.passes}"
    if goals.downtime_s is None:  # a deadline only: leave as little as possible until then
        next_s = (
            2 * now.downtime_s
        )  # a pass, then the rest, which is not more than what is pending now
        if goals.deadline_s is not None and now.elapsed_s + next_s <= goals.deadline_s:
            return PASS, f"{takes}: there is time for another pass"
        return QUIESCE, f"{takes}: no time for another pass before the deadline"
    if fits:
        return QUIESCE, f"{takes}, within {show_time(goals.downtime_s)}"
    # A busy moment of the machine may have delayed the first boundaries.
    if now.fixed_s > goals.downtime_s and now.number >= _SURE_PASSES:
        why = f"stopping alone takes {show_time(now.fixed_s)}, more than {show_time(goals.downtime_s)}"
        if now.stops == 0 and _may_fit(goals.downtime_s, now):
            return QUIESCE, f"{why}{_ONE_STOP}"
        return GIVE_UP, why
    if _stuck(now.left):
        why = f"{takes}, more than {show_time(goals.downtime_s)}, which {_STUCK_PASSES} passes did not reduce"
        if now.stops == 0 and _may_fit(goals.downtime_s, now):
            return QUIESCE, f"{why}{_ONE_STOP}"
        return GIVE_UP, why
    return PASS, f"{takes}, more than {show_time(goals.downtime_s)}"


def _may_fit(goal_s: float, now: Situation) -> bool:
    """Return whether a stop may take much less time than it seems; it is ended when the goal has passed."""
    return now.fixed_s <= _WORTH_TRYING * goal_s and now.left[-1] / now.rate < goal_s


def _stuck(left: Sequence[float]) -> bool:
    if len(left) <= _STUCK_PASSES:
        return False
    return min(left[-_STUCK_PASSES:]) > min(left[:-_STUCK_PASSES]) * (1 - _MIN_PROGRESS)


def advise(goals: Goals, written_bytes: float, now: Situation) -> str:
    """Explain what would make a mirror converge that was given up.

    Args:
        goals: the goals that were not met.
        written_bytes: bytes that the target writes within goals.downtime_s.
        now: the state after the last pass.
    """
    shortest = min(now.left) / now.rate + now.fixed_s
    words = [f"--downtime {shortest * 1.1 * 1000:.0f}ms would suffice at this rate"]
    if goals.downtime_s is not None and goals.downtime_s > now.fixed_s:
        needed = written_bytes / (goals.downtime_s - now.fixed_s)
        words.append(f"so would {show_bits(needed * 1.1)} for {show_time(goals.downtime_s)}")
    return "; ".join(words)
