"""Change-point detection: the rounds in which the dirty rate of a workload changed."""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from redirty.collector.model.observations import ALL, Observations

Floats = npt.NDArray[np.float64]

MIN_ROUNDS = 5  # length of a phase
_MIN_SHARE = 1 / 16  # of all rounds, for the last phase to count alone
_MIN_CHANGE = 0.2  # of the larger of the two rates
_MIN_SIGNIFICANCE = 5.0  # times the noise
_LONGER = 1.25  # times a short round: from here on lengths differ
_SHORT = 0.1  # quantile of the lengths
_SIMILAR = 0.25  # relative difference of two rates that count as the same


@dataclass(frozen=True)
class ChangePoints:
    """Changes of a dirty rate.

    Attributes:
        first: index of the first round that counts for a prediction.
        changes: indices of the first rounds with another rate.
        comes_back: whether the rate returned to an earlier value, so that all rounds count.
        too_late: whether too few rounds follow the last change to rely on them.
    """

    first: int
    changes: tuple[int, ...]
    comes_back: bool
    too_late: bool = False


def rates_of(seen: Observations) -> Floats:
    """Return the dirty rate of each round, (n,) in pages per second, as if all had the same length.

    The longer a round, the fewer distinct pages a second: where lengths differ, what a long round wrote by the
    end of a short one counts, as far as its curve is known.
    """
    duration_s = np.maximum(seen.duration_s, 1e-9)
    rates: Floats = seen.dirty / duration_s
    short_s = float(np.quantile(duration_s, _SHORT)) if len(duration_s) else 0.0
    long = np.flatnonzero(duration_s > _LONGER * short_s)
    if not len(long):
        return rates
    inside = seen.points.chosen((seen.points.rounds == 0) & (seen.points.mapping_class == ALL))
    order = np.lexsort((inside.elapsed_s, inside.number))
    number, elapsed_s, pages = inside.number[order], inside.elapsed_s[order], inside.dirty[order]
    starts = np.searchsorted(number, seen.number[long])
    ends = np.searchsorted(number, seen.number[long], side="right")
    for i, a, b in zip(long.tolist(), starts.tolist(), ends.tolist(), strict=True):
        if a < b:
            times = np.concatenate(([0.0], elapsed_s[a:b], [duration_s[i]]))
            written = np.concatenate(([0.0], pages[a:b], [seen.dirty[i]]))
            rates[i] = np.interp(short_s, times, written) / short_s
    return rates


def find(rate: Floats) -> ChangePoints:
    """Find the changes of a dirty rate, (n,) in pages per second by round."""
    cuts = tuple(sorted(_split(rate, 0, len(rate), _noise(rate))))
    if not cuts:
        return ChangePoints(0, (), False)
    bounds = [0, *cuts, len(rate)]
    levels = [float(rate[a:b].mean()) for a, b in itertools.pairwise(bounds)]
    now = levels[-1]
    similar = [abs(level - now) <= _SIMILAR * max(level, now) for level in levels[:-2]]
    if any(similar) and len(cuts) >= 3:
        return ChangePoints(0, cuts, True)
    if len(rate) - cuts[-1] < _MIN_SHARE * len(rate):
        return ChangePoints(cuts[-2] if len(cuts) > 1 else 0, cuts, False, True)
    return ChangePoints(cuts[-1], cuts, False)


def _noise(rate: Floats) -> float:
    """Estimate the spread from one round to the next, robust against changes; at least 2 % of the mean."""
    if len(rate) < 2:
        return 0.0
    steps = np.abs(np.diff(rate))
    found: float = max(
        1.4826 * float(np.median(steps)) / np.sqrt(2), 0.02 * float(np.abs(rate).mean())
    )
    return found


def _split(rate: Floats, first: int, end: int, noise: float) -> list[int]:
    """Split the rounds [first, end) at their most significant change, then both parts likewise."""
    found: list[int] = []
    todo = [(first, end)]
    while todo:
        a, b = todo.pop()
        count = b - a
        if count < 2 * MIN_ROUNDS or noise <= 0:
            continue
        part = rate[a:b]
        sums = np.cumsum(part)
        left = np.arange(1, count)
        before = sums[:-1] / left
        after = (sums[-1] - sums[:-1]) / (count - left)
        change = np.abs(before - after)
        significance = change * np.sqrt(left * (count - left) / count) / noise
        significance[: MIN_ROUNDS - 1] = 0
        significance[count - MIN_ROUNDS :] = 0
        best = int(np.argmax(significance))
        larger = max(before[best], after[best])
        if significance[best] < _MIN_SIGNIFICANCE or change[best] < _MIN_CHANGE * larger:
            continue
        cut = a + best + 1
        found.append(cut)
        todo += [(a, cut), (cut, b)]
    return found
