"""Prediction: passes, times, bytes, what would suffice, and why a mirror does not converge."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from redirty.collector.model import breakdown, settings
from redirty.collector.model.fit import Fit, fit
from redirty.collector.model.memory import Memory
from redirty.collector.model.observations import Layout, MappingRate, Observations
from redirty.collector.model.policy import Policy
from redirty.collector.model.prediction import Answer, Question
from redirty.collector.model.reasons import reasons_of
from redirty.collector.model.simulation import Outcome, simulate
from redirty.collector.model.write_curve import WriteCurve

SCHEMA = 1  # of the JSON object; grows when a key is added
_FACTORS = (1 / 4, 1 / 2, 1, 2, 4)  # of the requested bandwidth
_DOWNTIMES_S = (0.03, 0.1, 0.3, 1.0)
# A guest whose processors are busy for less than this share of the time may catch up after each moment in which it is
# throttled, and write as much: whether a throttle helps is then uncertain.
_CATCHES_UP = 0.5
_NEAR = 1.1  # times the critical bandwidth: up to it no verdict is certain
_MAX_BANDWIDTH = 20e9  # bytes per second: no machine reads its memory page by page that fast


def memory_of(fit: Fit, question: Question, policy: Policy, layout: Layout | None = None) -> Memory:
    """Return the memory to copy: as in the question, else as counted, else the present pages."""
    page = fit.page_size
    rate, compare_s = None, 0.0
    if question.copier is not None:
        run = page * (1.0 if fit.run_pages is None else fit.run_pages)
        rate = question.copier.of_runs(run) / question.compression
        compare_s = question.copier.compare_s
    given = question.memory is not None or question.zero is not None
    if layout is not None and not given and policy.zero_page_bytes is not None:
        pages, zero = float(layout.pages.sum()), float(layout.zero.sum())
        parts = layout.pages, layout.zero
        return Memory(pages, zero, page, parts, question.compression, rate, compare_s)
    pages = fit.present if question.memory is None else question.memory / page
    zero = min((question.zero or 0.0) / page, pages)
    return Memory(pages, zero, page, None, question.compression, rate, compare_s)


def forecast(seen: Observations, question: Question, slack: float = 1.0) -> Answer:
    """Predict the outcome of a mirror from what was observed: the one way to a prediction, for every command.

    slack: as for answer().

    Raises: UsageError for an unknown policy; ValueError when there is no round.
    """
    return answer(fit(seen), question, seen.layout, slack)


def answer(
    fit: Fit, question: Question, layout: Layout | None = None, slack: float = 1.0
) -> Answer:
    """Predict the outcome of a mirror. Fast: a live screen calls it each round.

    Args:
        fit: the write curves of the target.
        question: bandwidth, goal and policy.
        layout: that of the observations.
        slack: factor by which the bandwidth may also be less, or more, for the ends of the interval: a screen
            that has said "uncertain" says anything else only when it is that far from being so.

    Raises: UsageError for an unknown policy.
    """

    def policy_of(boundary_s: float) -> Policy:
        return question.policy_for(question.downtime_s, boundary_s, fit.busy)

    policy = policy_of(fit.stop.usual_s)
    memory = memory_of(fit, question, policy, layout)

    def outcome(
        curve: WriteCurve, boundary_s: float, factor: float = 1.0, *, throttled: bool = True
    ) -> Outcome:
        bandwidth = question.bandwidth * factor
        policy = policy_of(boundary_s)
        if not throttled and policy.throttle is not None:
            policy = replace(policy, throttle=None)  # type: ignore[type-var]
        return simulate(memory, curve, policy, bandwidth, question.last_bandwidth)

    slowed = fit.busy is None or fit.busy >= _CATCHES_UP
    middle = outcome(fit.curve, fit.stop.usual_s)
    low = outcome(fit.low, fit.stop.low_s, slack)
    high = outcome(fit.high, fit.stop.high_s, 1 / slack, throttled=slowed)
    near = _NEAR * slack
    # That close to the critical bandwidth, chance decides.
    if high.converges and not (below := outcome(fit.curve, fit.stop.usual_s, 1 / near)).converges:
        high = below
    if not low.converges and (above := outcome(fit.curve, fit.stop.usual_s, near)).converges:
        low = above
    return Answer(question, fit, policy, memory, middle, low, high)


def as_json(a: Answer, mappings: tuple[MappingRate, ...] = ()) -> dict[str, Any]:
    """Return the object of `predict --json`. Times of a mirror that never ends are null."""
    fit, curve = a.fit, a.fit.curve
    question = a.question
    found = settings.settings_of(a)
    stops = math.isfinite(a.middle.total_s) and not a.policy.postcopy
    enough, goal = found.bandwidth, found.downtime_s
    return {
        "schema": SCHEMA,
        "converges": a.middle.converges,
        "verdict": a.verdict,
        "passes": [
            {
                "pass": p.number,
                "bytes": round(p.bytes),
                "duration_s": round(p.duration_s, 6),
                "stopped": stops and p is a.middle.passes[-1],
            }
            for p in a.middle.passes
        ],
        "total_s": _finite(a.middle.total_s),
        "downtime_s": _finite(a.middle.downtime_s),
        "transferred_bytes": round(a.middle.transferred_bytes),
        "left_bytes": round(a.middle.left_bytes),
        "min_bandwidth_bytes_per_s": None if enough is None else round(enough),
        "min_downtime_s": _finite(math.inf if goal is None else goal),
        "settings": settings.as_json(found),
        "low": _end(a, min),
        "high": _end(a, max),
        "policy": a.policy.name,
        "bandwidth_bytes_per_s": question.bandwidth,
        "downtime_goal_s": a.policy.downtime_s,
        "compression": question.compression,
        "basis": {
            "rounds": fit.rounds,
            "seconds": round(fit.seconds, 6),
            "first_round": fit.first_round,
            "rounds_recorded": fit.rounds_seen,
            "measured_s": round(curve.measured_s, 6),
            "present_pages": round(fit.present),
            "zero_pages": round(a.memory.zero_pages) if a.memory.zero_pages else None,
            "page_size": fit.page_size,
            "boundary_s": round(a.policy.boundary_s, 6),
            "stop_s": round(a.policy.stop_s, 6),
        },
        "parts": breakdown.as_json(a),
        "changed_in_rounds": list(fit.changes),
        "new_pages_per_s": round(fit.growth_per_s, 3),
        "reasons": reasons_of(a, _classes(a), mappings),
        "notes": notes(a),
        "curve": _curve_points(fit),
        "mapping_classes": _classes(a),
        "table": table(a),
    }


def _finite(value: float) -> float | None:
    return round(value, 6) if math.isfinite(value) else None


def _end(a: Answer, which: Callable[..., float]) -> dict[str, float | None]:
    """Return the smallest or largest outcome of the curve and both ends of its interval.

    More written pages may mean a shorter last pass, so each figure is compared by itself.
    """
    outcomes = (a.low, a.middle, a.high)
    sent = which(o.transferred_bytes if o.converges else math.inf for o in outcomes)
    return {
        "total_s": _finite(which(o.total_s for o in outcomes)),
        "downtime_s": _finite(which(o.downtime_s for o in outcomes)),
        "transferred_bytes": round(sent) if math.isfinite(sent) else None,
    }


def _curve_points(fit: Fit) -> list[dict[str, float]]:
    """Return W(t) at three times a decade, with its interval; `measured`: False where it is extrapolated."""
    found = []
    exponent = math.floor(math.log10(float(fit.curve.elapsed_s[0])) * 3)
    last = math.ceil(math.log10(fit.curve.measured_s) * 3) + 3
    for step in range(exponent, last + 1):
        t = 10 ** (step / 3)
        found.append(
            {
                "elapsed_s": float(f"{t:.6g}"),
                "unique_dirty_pages": round(fit.curve(t), 1),
                "low": round(fit.low(t), 1),
                "high": round(fit.high(t), 1),
                "measured": t <= fit.curve.measured_s,
            }
        )
    return found


def _pass_s(a: Answer) -> float:
    """Return the length of the pass that decides whether the mirror ends.

    It is the last one before the stop, or the one after which nothing changes any more.
    """
    passes = a.middle.passes[:-1] if a.middle.converges else a.middle.passes
    return passes[-1].duration_s if passes else 0.0


def _classes(a: Answer) -> dict[str, dict[str, float]]:
    """Return the bytes that each mapping class dirties in the last pass before the stop."""
    seconds = _pass_s(a)
    dirty = {name: curve(seconds) for name, curve in a.fit.by_class.items()}
    total = sum(dirty.values()) or 1.0
    return {
        name: {
            "pass_s": round(seconds, 6),
            "unique_dirty_pages": round(pages, 1),
            "share": round(pages / total, 4),
        }
        for name, pages in dirty.items()
    }


def table(a: Answer) -> list[dict[str, Any]]:
    """Return total times for bandwidths around the requested one, by downtime goals."""
    goal_s = a.policy.downtime_s
    goals: list[float | None] = [None]
    if goal_s is not None:
        goals = [*sorted({*_DOWNTIMES_S, goal_s})]
    rows = []
    for factor in _FACTORS:
        bandwidth = a.question.bandwidth * factor
        for goal in goals:
            found = simulate(
                a.memory, a.fit.curve, a.policy_for(goal), bandwidth,
                a.question.last_bandwidth and a.question.last_bandwidth * factor,
            )  # fmt: skip
            rows.append(
                {
                    "bandwidth_bytes_per_s": bandwidth,
                    "downtime_goal_s": goal,
                    "converges": found.converges,
                    "passes": len(found.passes),
                    "total_s": _finite(found.total_s),
                    "downtime_s": _finite(found.downtime_s),
                }
            )
    return rows


def notes(a: Answer) -> list[str]:
    """Return the caveats of the figures, one sentence each."""
    found = list(a.fit.notes)
    longest = max((p.duration_s for p in a.middle.passes), default=0.0)
    if longest > 1.5 * a.fit.curve.measured_s:
        found.append(
            f"passes of up to {longest:.3g} s are longer than what was measured "
            f"({a.fit.curve.measured_s:.3g} s): beyond that the curve is extrapolated by a mixture of "
            "Poisson writers; record for longer"
        )
    if a.policy.throttle is not None and a.fit.busy is not None and a.fit.busy < _CATCHES_UP:
        found.append(
            f"the guest's busiest processor runs for {a.fit.busy:.0%} of the time: a guest that idles may "
            "catch up after each moment in which it is throttled, and write as much"
        )
    if a.question.bandwidth > _MAX_BANDWIDTH:
        found.append(
            f"{a.question.bandwidth / 1e9:.3g} GB/s is faster than memory can be read: the passes will "
            "take longer"
        )
    return found
