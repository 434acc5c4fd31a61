"""Medians with an interval, of paired ratios: what a noisy machine allows to conclude."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Interval:
    """A median and where it lies with 95 % confidence; count: the number of values."""

    median: float
    low: float
    high: float
    count: int

    def times(self, factor: float) -> Interval:
        """Convert to another unit."""
        return Interval(self.median * factor, self.low * factor, self.high * factor, self.count)


def median(values: Sequence[float]) -> float:
    """Return the middle value, or the mean of the two in the middle."""
    ordered = sorted(values)
    half = len(ordered) // 2
    return ordered[half] if len(ordered) % 2 else (ordered[half - 1] + ordered[half]) / 2


def interval(values: Sequence[float]) -> Interval:
    """Return the median's interval from order statistics: no assumption on how the noise is distributed.

    The number of values below the true median is binomial (n, 1/2), so the values whose ranks cut off at most 2.5 % of
    it on each side enclose the median. With fewer than 6 values no ranks do: then the interval is all of them.
    """
    ordered = sorted(values)
    n = len(ordered)
    cut, below = 0, 0.0
    while cut < n // 2:
        below += math.comb(n, cut) / 2**n
        if below > 0.025:
            break
        cut += 1
    low = max(cut - 1, 0)
    return Interval(median(ordered), ordered[low], ordered[n - 1 - low], n)


@dataclass(frozen=True)
class Pairs:
    """A measurement, its floor, and their ratio, pair by pair."""

    measured: Interval
    floor: Interval
    ratio: Interval

    def times(self, factor: float) -> Pairs:
        """Convert to another unit."""
        return Pairs(self.measured.times(factor), self.floor.times(factor), self.ratio)


def pairs(measure: Callable[[], float], floor: Callable[[], float], count: int) -> Pairs:
    """Measure A B, B A, A B ...: what drifts from pair to pair hits both of a pair alike, and what comes first in a
    pair has no advantage on average. The first pair warms up and is dropped.
    """
    measured, floors = [], []
    for number in range(count + 1):
        if number % 2:
            a = measure()
            b = floor()
        else:
            b = floor()
            a = measure()
        if number:
            measured.append(a)
            floors.append(b)
    return of_pairs(measured, floors)


def of_pairs(measured: Sequence[float], floors: Sequence[float]) -> Pairs:
    """Build pairs from values measured elsewhere, one floor for each."""
    ratios = [a / b for a, b in zip(measured, floors, strict=True)]
    return Pairs(interval(measured), interval(floors), interval(ratios))
