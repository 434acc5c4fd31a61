"""Fit of a write curve to observations, with an interval, and extrapolated beyond what was measured.

Inside a round W(t) is the mean over rounds; beyond, over windows of 2, 4, 8 ... rounds. The ends of the
interval come from the spread of single rounds and windows; they are never closer than FLOOR.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
from redirty.collector.model import change_points, stop_cost
from redirty.collector.model.extrapolation import fit_mixture
from redirty.collector.model.observations import Observations
from redirty.collector.model.samples import Samples, tabulate
from redirty.collector.model.write_curve import WriteCurve, smooth

Floats = npt.NDArray[np.float64]

FLOOR = 0.03  # relative error of the model itself
_ONE_ROUND = 0.5  # half width of the interval, where one round shows no spread
_MANY = 20  # from this number of values on, their own quantiles are used
_QUANTILES = (0.05, 0.95)
_FEW_ROUNDS = 5
_GAP = 1.12  # points are added between times whose ratio is larger
_MISSED_NOTED = 0.01  # a share of missed pages that is worth a note


@dataclass(frozen=True, eq=False)
class Fit:
    """Write curves of a target, with their inputs.

    Attributes:
        curve: the mean.
        low, high: the interval in which single rounds lie.
        by_class: curves of the mapping classes that were written.
        present: pages that the first pass copies.
        page_size: in bytes.
        growth_per_s: new pages per second.
        rounds, seconds: number and total length of the rounds that count.
        first_round: number of the first round that counts.
        rounds_seen: number of all rounds.
        changes: numbers of the rounds in which the dirty rate changed.
        notes: caveats for a reader, one sentence each.
        stop: the fixed part of a stop.
        run_pages, busy: see Observations.
    """

    curve: WriteCurve
    low: WriteCurve
    high: WriteCurve
    by_class: dict[str, WriteCurve]
    present: float
    page_size: int
    growth_per_s: float
    rounds: int
    seconds: float
    first_round: int
    rounds_seen: int
    changes: tuple[int, ...]
    notes: tuple[str, ...]
    stop: stop_cost.StopCost = field(default_factory=stop_cost.StopCost)
    run_pages: float | None = None
    busy: float | None = None


def fit(seen: Observations) -> Fit:
    """Fit the write curves of a target.

    Raises: ValueError when there is no round.
    """
    if seen.rounds == 0:
        raise ValueError("no round")
    found = change_points.find(change_points.rates_of(seen))
    samples = tabulate(seen, found.first)
    counted = slice(found.first, None)
    present = float(seen.present[-1] + seen.dirty[-1] - seen.redirtied[-1])
    missed = float(seen.missed[counted].sum() / max(seen.dirty[counted].sum(), 1.0))
    count = seen.rounds - found.first
    growth = samples.levels[-1].new_pages / samples.levels[-1].elapsed_s
    curve, low, high = _curves(samples, present, growth, missed, count)
    return Fit(
        curve=curve,
        low=low,
        high=high,
        by_class=_by_class(samples, curve, present),
        present=present,
        page_size=seen.page_size,
        growth_per_s=growth,
        rounds=count,
        seconds=float(seen.duration_s[counted].sum()),
        first_round=int(seen.number[found.first]),
        rounds_seen=seen.rounds,
        changes=tuple(int(seen.number[i]) for i in found.changes),
        notes=tuple(_notes(seen, found, count, missed)),
        stop=stop_cost.StopCost()
        if seen.boundary_s is None
        else stop_cost.measured(seen.boundary_s[counted]),
        run_pages=seen.run_pages,
        busy=seen.busy,
    )


def _curves(
    samples: Samples, present: float, growth: float, missed: float, count: int
) -> tuple[WriteCurve, WriteCurve, WriteCurve]:
    """Return the curve, and both ends of its interval."""
    times, middle, low, high = _joined(samples, count)
    new = min(samples.levels[-1].new_pages, float(middle[-1]))
    redirtied = middle - _new_pages(samples, times)
    beyond = fit_mixture(times, np.maximum.accumulate(np.maximum(redirtied, 0.0)))
    inside = (
        times < samples.levels[0].elapsed_s
    )  # the times at which missed pages were written are unknown
    low = np.where(inside, low * (1 - missed), low)
    high = np.where(inside, np.minimum(high + missed * middle, np.maximum(high, high[-1])), high)

    def curve(pages: Floats, more: Callable[[float], float]) -> WriteCurve:
        pages = np.maximum.accumulate(np.maximum(pages, 0.0))
        return WriteCurve(times, pages, max(present, new), new, growth, more)

    return (
        curve(middle, beyond),
        curve(low, lambda t: 0.0),
        curve(high, _straight(times, np.maximum.accumulate(high))),
    )


def _straight(times: Floats, pages: Floats) -> Callable[[float], float]:
    """Continue a curve with its slope since half of the longest time: no stationary writer grows faster."""
    last_s = float(times[-1])
    half = float(np.interp(last_s / 2, np.insert(times, 0, 0.0), np.insert(pages, 0, 0.0)))
    slope = (float(pages[-1]) - half) / (last_s / 2)
    return lambda t: slope * (t - last_s)


def _new_pages(samples: Samples, times: Floats) -> Floats:
    """Interpolate the number of new pages written within t: known at the ends of rounds and windows."""
    known = [0.0] + [level.elapsed_s for level in samples.levels]
    new = [0.0, *np.maximum.accumulate([level.new_pages for level in samples.levels]).tolist()]
    found: Floats = np.interp(times, known, new)
    return found


def _joined(samples: Samples, count: int) -> tuple[Floats, Floats, Floats, Floats]:
    """Return (times, mean, low, high), inside a round and at the ends of windows, ascending."""
    inside = samples.times < samples.levels[0].elapsed_s * (1 - 1e-6)
    rows = max(len(level.values) for level in samples.levels)
    ends = np.full((rows, len(samples.levels)), np.nan)
    for column, level in enumerate(samples.levels):
        ends[: len(level.values), column] = level.values
    single = (1 - _ONE_ROUND, 1 + _ONE_ROUND)
    short = _spread(samples.inside[:, inside], single)
    long = _spread(ends, single)
    middle, low, high = (np.concatenate(both) for both in zip(short, long, strict=True))
    times = np.concatenate((samples.times[inside], [level.elapsed_s for level in samples.levels]))
    kept = np.append(np.diff(times) > 1e-9, True)
    return _filled(times[kept], np.maximum.accumulate(middle)[kept], low[kept], high[kept])


def _filled(
    times: Floats, middle: Floats, low: Floats, high: Floats
) -> tuple[Floats, Floats, Floats, Floats]:
    """Add points in the gaps, the widest of which is between one round and two."""
    more = [times]
    for a, b in zip(times.tolist(), times[1:].tolist(), strict=False):
        if b > a * _GAP:
            count = math.ceil(math.log(b / a) / math.log(_GAP))
            more.append(a * (b / a) ** (np.arange(1, count) / count))
    all_times = np.sort(np.concatenate(more))
    filled = smooth(times, middle, all_times)
    safe = np.where(middle > 0, middle, 1.0)
    ends = [np.interp(all_times, times, np.where(middle > 0, e / safe, 1.0)) for e in (low, high)]
    return all_times, filled, filled * ends[0], filled * ends[1]


def _spread(values: Floats, single: tuple[float, float]) -> tuple[Floats, Floats, Floats]:
    """Return (mean, low, high) of each column of values (r, c), ignoring NaN.

    Where a column has only one value, low and high have the same ratio to it as in the previous column; in
    the first column, the ratio is `single`.
    """
    there = ~np.isnan(values)
    count = there.sum(axis=0)
    filled = np.where(there, values, 0.0)
    mean = filled.sum(axis=0) / count
    # Student's t for 5 % on each side, to 5 %
    some = np.maximum(count - 1, 1)
    spread = np.sqrt((np.where(there, values - mean, 0.0) ** 2).sum(axis=0) / some)
    half = (1.645 + 4.7 / some**1.5) * spread
    low, high = mean - half, mean + half
    many = count >= _MANY
    if many.any():
        ordered = np.sort(values[:, many], axis=0)  # NaN last
        for end, share in ((low, _QUANTILES[0]), (high, _QUANTILES[1])):
            at = share * (count[many] - 1)
            below = np.floor(at).astype(np.int64)
            above = np.minimum(below + 1, count[many] - 1)
            columns = np.arange(ordered.shape[1])
            first, second = ordered[below, columns], ordered[above, columns]
            end[many] = first + (at - below) * (second - first)
    for column in np.flatnonzero(count == 1).tolist():
        if column and mean[column - 1] > 0:
            single = (low[column - 1] / mean[column - 1], high[column - 1] / mean[column - 1])
        low[column], high[column] = mean[column] * single[0], mean[column] * single[1]
    low = np.clip(low, 0.0, mean * (1 - FLOOR))
    return mean, low, np.maximum(high, mean * (1 + FLOOR))


def _by_class(samples: Samples, whole: WriteCurve, present: float) -> dict[str, WriteCurve]:
    """Return a curve for each mapping class.

    Measured at the ends of rounds and windows; inside a round it is assumed to have the shape of the whole.
    """
    found = {}
    first = samples.levels[0]
    before = whole.elapsed_s < first.elapsed_s * (1 - 1e-9)
    inside = whole.elapsed_s[before]
    shape = whole.pages[before] / max(whole(first.elapsed_s), 1e-9)
    for name in sorted({n for level in samples.levels for n in level.by_class}):
        ends = [level.by_class.get(name, 0.0) for level in samples.levels]
        times = np.concatenate((inside, [level.elapsed_s for level in samples.levels]))
        pages = np.maximum.accumulate(np.concatenate((shape * ends[0], ends)))
        found[name] = WriteCurve(times, pages, max(present, float(pages[-1])))
    return found


def _notes(
    seen: Observations, found: change_points.ChangePoints, count: int, missed: float
) -> list[str]:
    notes = []
    if found.comes_back:
        notes.append(
            f"the dirty rate changed {len(found.changes)} times and came back: all rounds count, and "
            "the outcome depends on the time at which the mirror starts"
        )
    elif found.too_late:
        notes.append(
            f"the dirty rate changed in round {int(seen.number[found.changes[-1]])}, too late to rely on "
            "the rounds after it: if the new rate lasts, record again"
        )
    elif found.changes:
        old = seen.dirty[: found.first].sum() / seen.duration_s[: found.first].sum()
        new = seen.dirty[found.first :].sum() / seen.duration_s[found.first :].sum()
        notes.append(
            f"the dirty rate changed in round {int(seen.number[found.first])}, from {old:.0f} to "
            f"{new:.0f} pages/s: only the {count} rounds since then count"
        )
    if count == 1:
        notes.append("a single round does not show how rounds differ: the interval is a guess")
    elif count < _FEW_ROUNDS:
        notes.append(f"only {count} rounds: record more of them for a narrower interval")
    if missed > _MISSED_NOTED:
        notes.append(
            f"{missed:.0%} of the dirty pages were found by the scan alone: the times within the round at "
            "which they were written are unknown"
        )
    if not len(seen.points.number):
        notes.append(
            "the recording has no curves.csv (written by an older redirty): the interval is that of "
            "whole rounds"
        )
    return notes
