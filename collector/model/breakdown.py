"""The parts that a predicted total and downtime are the sum of."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from redirty.collector.model.policy import arms_s
from redirty.collector.model.prediction import Answer, Question

# What a stop consists of, in this order. A recording shows how long the arm takes: it arms at each boundary.
# The commit follows when the target runs again.
STOP_STEPS = ("freeze", "arm", "scan", "flush", "registers", "commit")


@dataclass(frozen=True)
class Parts:
    """Parts of a predicted mirror. Seconds and bytes on the link; their seconds add up to the total.

    Attributes:
        first_pass_s, first_pass_bytes: the pass over all memory, zero pages included.
        zero_pages_s, zero_pages_bytes: what its zero pages take of that.
        passes: number of passes after the first, the final one excluded.
        passes_s, passes_bytes: those passes.
        until_timeout_s: passes like the last ones, until a policy stops the target by force.
        arms_s: what is done before the first pass, and boundaries between passes.
        final_pass_s, final_pass_bytes: the pass while the target is stopped; None: it never is.
        stop_s: the fixed part of the stop; None: the target is never stopped.
    """

    first_pass_s: float
    first_pass_bytes: float
    zero_pages_s: float
    zero_pages_bytes: float
    passes: int
    passes_s: float
    passes_bytes: float
    until_timeout_s: float
    arms_s: float
    final_pass_s: float | None
    final_pass_bytes: float | None
    stop_s: float | None


def parts_of(a: Answer) -> Parts:
    """Return the parts of the expected outcome."""
    outcome, policy = a.middle, a.policy
    ends = math.isfinite(outcome.total_s)
    first, *rest = outcome.passes
    final = rest.pop() if ends else None
    each = policy.zero_page_bytes
    each = a.memory.page_bytes(policy) if each is None else each
    zero_bytes = min(a.memory.zero_pages * each, first.bytes)
    counted_s = sum(p.duration_s for p in outcome.passes) + policy.stop_s
    arming_s = arms_s(policy, len(outcome.passes))
    return Parts(
        first_pass_s=first.duration_s,
        first_pass_bytes=first.bytes,
        zero_pages_s=zero_bytes / a.question.bandwidth,
        zero_pages_bytes=zero_bytes,
        passes=len(rest),
        passes_s=sum(p.duration_s for p in rest),
        passes_bytes=sum(p.bytes for p in rest),
        until_timeout_s=max(outcome.total_s - counted_s - arming_s, 0.0) if policy.forced else 0.0,
        arms_s=arming_s,
        final_pass_s=None if final is None else final.duration_s,
        final_pass_bytes=None if final is None else final.bytes,
        stop_s=policy.stop_s if ends else None,
    )


def stop_steps(a: Answer) -> dict[str, float | None]:
    """Return the seconds of each step of the stop; None: not measured, or a part of what was given."""
    found: dict[str, float | None] = dict.fromkeys(STOP_STEPS)
    if a.question.stop_cost_s is not None or a.policy.boundary_s <= 0:
        return found
    if (steps := a.question.stop_steps) is not None:
        found |= {name.removesuffix("_s"): value for name, value in vars(steps).items()}
        found["commit"] = 0.0
    elif a.fit.stop.boundaries > 0:
        found["arm"] = a.policy.boundary_s
    return found


def _from_boundaries(question: Question) -> bool:
    return question.stop_cost_s is None and question.stop_steps is None


def as_json(a: Answer) -> dict[str, Any]:
    """Return the parts as a JSON-serializable dict, times rounded to a microsecond."""
    found: dict[str, Any] = {
        name: value
        if value is None or isinstance(value, int)
        else (round(value) if name.endswith("bytes") else round(value, 6))
        for name, value in vars(parts_of(a)).items()
    }
    found["stop"] = {
        **{
            f"{name}_s": None if value is None else round(value, 6)
            for name, value in stop_steps(a).items()
        },
        "given": a.question.stop_cost_s is not None,
        "boundaries": a.fit.stop.boundaries if _from_boundaries(a.question) else 0,
        "low_s": round(a.fit.stop.low_s, 6),
        "high_s": round(a.fit.stop.high_s, 6),
    }
    return found
