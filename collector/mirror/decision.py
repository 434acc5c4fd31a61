"""After each pass: another one, stop the target now, or it will not converge. Each with its reason.

The rules are those of the policies redirty and passes:N of redirty.collector.model, with what was measured
instead of a curve.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from redirty.collector.units import show_bits, show_bytes, show_time

PASS, QUIESCE, GIVE_UP = "pass", "quiesce", "give up"
# So many passes that leave no less than the least before, to this part, and it will not converge.
_PATIENCE = 6
_LESS = 0.03


@dataclass(frozen=True)
class Goals:
    """downtime_s: for how long the target may stand still; None: no matter. deadline_s: when all has to
    be done, counted from the start. passes: so many before the target is stopped, whatever is left."""

    downtime_s: float | None = 0.2
    deadline_s: float | None = None
    passes: int | None = None


@dataclass(frozen=True)
class Situation:
    """What is known after a pass. left: bytes that are to be sent, after each pass so far. rate: bytes a
    second. fixed_s: what stopping takes beside sending. failed: stops that did not end well."""

    number: int
    left: Sequence[float]
    rate: float
    fixed_s: float
    elapsed_s: float
    failed: int = 0

    @property
    def downtime_s(self) -> float:
        """If it was stopped now."""
        return self.left[-1] / self.rate + self.fixed_s


@dataclass(frozen=True)
class Decision:
    """action: PASS, QUIESCE or GIVE_UP."""

    number: int
    action: str
    reason: str
    left_bytes: float
    downtime_s: float

    def as_json(self) -> dict[str, Any]:
        """For mirror.json."""
        return {
            "after_pass": self.number,
            "decision": self.action,
            "reason": self.reason,
            "left_bytes": int(self.left_bytes),
            "predicted_downtime_s": round(self.downtime_s, 6),
        }


def decide(goals: Goals, now: Situation) -> Decision:
    """The next step."""
    action, reason = _choose(goals, now)
    return Decision(now.number, action, reason, now.left[-1], now.downtime_s)


def _choose(goals: Goals, now: Situation) -> tuple[str, str]:
    left, would_take = show_bytes(now.left[-1]), show_time(now.downtime_s)
    takes = f"{left} are left, which take {would_take} at {show_bits(now.rate)}"
    fits = goals.downtime_s is None or now.downtime_s <= goals.downtime_s
    if goals.deadline_s is not None and now.elapsed_s + now.downtime_s > goals.deadline_s:
        if fits:
            return QUIESCE, f"{takes}: the deadline has come"
        assert goals.downtime_s is not None
        return (
            GIVE_UP,
            f"{takes}, more than {show_time(goals.downtime_s)}, and the deadline has come",
        )
    if goals.passes is not None:
        if now.number >= goals.passes:
            if fits:
                return QUIESCE, f"{takes}: pass {now.number} was the last that was asked for"
            assert goals.downtime_s is not None
            return (
                GIVE_UP,
                f"{takes}, more than {show_time(goals.downtime_s)}, after the last pass asked for",
            )
        return PASS, f"{takes}: pass {now.number + 1} of {goals.passes}"
    if goals.downtime_s is None:  # with a deadline only: as few as can be until then
        next_s = 2 * now.downtime_s  # a pass, and then what it leaves, which is no more than now
        if goals.deadline_s is not None and now.elapsed_s + next_s <= goals.deadline_s:
            return PASS, f"{takes}: there is time for another pass"
        return QUIESCE, f"{takes}: no time for another pass before the deadline"
    if fits:
        return QUIESCE, f"{takes}, within {show_time(goals.downtime_s)}"
    if now.fixed_s > goals.downtime_s:
        why = f"stopping alone takes {show_time(now.fixed_s)}"
        return GIVE_UP, f"{why}, more than {show_time(goals.downtime_s)}"
    if _stuck(now.left):
        n = _PATIENCE
        return (
            GIVE_UP,
            f"{takes}, more than {show_time(goals.downtime_s)}, and {n} passes made it no less",
        )
    return PASS, f"{takes}, more than {show_time(goals.downtime_s)}"


def _stuck(left: Sequence[float]) -> bool:
    if len(left) <= _PATIENCE:
        return False
    return min(left[-_PATIENCE:]) > min(left[:-_PATIENCE]) * (1 - _LESS)


def would_do(goals: Goals, written_bytes: float, now: Situation) -> str:
    """What would make it converge, after it was given up. written_bytes: written in downtime_s."""
    shortest = min(now.left) / now.rate + now.fixed_s
    words = [f"--downtime {shortest * 1.1 * 1000:.0f}ms would do at this rate"]
    if goals.downtime_s is not None and goals.downtime_s > now.fixed_s:
        needed = written_bytes / (goals.downtime_s - now.fixed_s)
        words.append(f"so would {show_bits(needed * 1.1)} for {show_time(goals.downtime_s)}")
    return "; ".join(words)
