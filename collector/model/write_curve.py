"""The write curve W(t) as a function of any t: through measured points, and carried on by a model."""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Protocol

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]


class WriteModel(Protocol):
    """W(t): how many distinct pages are written within t seconds of an arm."""

    def __call__(self, elapsed_s: float, /) -> float: ...


def smooth(x: Floats, y: Floats, at: Floats) -> Floats:
    """Values at some places of a monotone cubic through points that never fall (Fritsch and Butland,
    A method for constructing local monotone piecewise cubic interpolants, 1984), but where the points
    bend down, no higher than the straight lines on both sides go on. x: (n,) ascending."""
    if len(x) < 3:
        return np.interp(at, x, y)
    step = np.diff(x)
    secant = np.diff(y) / step
    slope = np.empty(len(x))
    before, after = secant[:-1], secant[1:]
    one, two = 2 * step[1:] + step[:-1], step[1:] + 2 * step[:-1]
    with np.errstate(divide="ignore", invalid="ignore"):
        mean = (one + two) / (one / before + two / after)
    slope[1:-1] = np.where((before > 0) & (after > 0), mean, 0.0)
    slope[0], slope[-1] = secant[0], secant[-1]
    i = np.clip(np.searchsorted(x, at, side="right") - 1, 0, len(step) - 1)
    t = (at - x[i]) / step[i]
    h = step[i]
    found: Floats = (
        (1 + 2 * t) * (1 - t) ** 2 * y[i]
        + t * (1 - t) ** 2 * h * slope[i]
        + t**2 * (3 - 2 * t) * y[i + 1]
        + t**2 * (t - 1) * h * slope[i + 1]
    )
    chord = y[i] + secant[i] * (at - x[i])
    left = y[i] + secant[np.maximum(i - 1, 0)] * (at - x[i])
    right = y[i + 1] - secant[np.minimum(i + 1, len(secant) - 1)] * (x[i + 1] - at)
    return np.minimum(found, np.maximum(np.minimum(left, right), chord))


@dataclass(frozen=True, eq=False)
class WriteCurve:
    """W(t) through measured points, straight lines between them. Beyond the last one two parts go on
    apart: re-dirtied pages, up to `limit`, and new pages, with which the footprint grows, for ever.

    elapsed_s, pages: (n,) ascending, n >= 1, elapsed_s > 0. limit: pages there are to be re-dirtied.
    new_pages: how many of the last point's were new. growth_per_s: new pages per second.
    beyond: the re-dirtied pages that are added after the last point, by t; without it a power of t
    with the slope of the last doubling, which never grows faster than t.
    """

    elapsed_s: Floats
    pages: Floats
    limit: float
    new_pages: float = 0.0
    growth_per_s: float = 0.0
    beyond: Callable[[float], float] | None = None

    def __post_init__(self) -> None:
        if len(self.elapsed_s) == 0 or len(self.elapsed_s) != len(self.pages):
            raise ValueError("a curve has points, as many times as pages")
        if self.elapsed_s[0] <= 0 or (np.diff(self.elapsed_s) <= 0).any():
            raise ValueError("times ascend, from above 0")
        if self.pages[0] < 0 or (np.diff(self.pages) < 0).any():
            raise ValueError("pages never become fewer")

    @cached_property
    def _points(self) -> tuple[list[float], list[float]]:
        """With the beginning, as numbers of Python's, which are quicker one by one."""
        return [0.0, *self.elapsed_s.tolist()], [0.0, *self.pages.tolist()]

    @cached_property
    def measured_s(self) -> float:
        """Up to here it was seen; beyond, it is carried on."""
        return float(self.elapsed_s[-1])

    @cached_property
    def tail(self) -> float:
        """The power of t beyond: 1 grows like t (all pages are fresh ones), 0 not at all."""
        last = float(self.pages[-1])
        before = self._inside(self.measured_s / 2)
        if before <= 0 or last <= 0:
            return 1.0 if last > 0 else 0.0
        return min(max(math.log2(last / before), 0.0), 1.0)

    def __call__(self, elapsed_s: float) -> float:
        """See WriteModel."""
        if elapsed_s <= 0:
            return 0.0
        last_s, last = self.measured_s, float(self.pages[-1])
        if elapsed_s <= last_s:
            return self._inside(elapsed_s)
        again = max(last - self.new_pages, 0.0)
        if self.beyond is not None:
            more = self.beyond(elapsed_s)
        else:
            more = again * (math.pow(elapsed_s / last_s, self.tail) - 1)
        carried = max(min(again + more, self.limit), again)
        return carried + last - again + self.growth_per_s * (elapsed_s - last_s)

    def _inside(self, elapsed_s: float) -> float:
        times, pages = self._points
        at = min(bisect_left(times, elapsed_s), len(times) - 1)
        share = (elapsed_s - times[at - 1]) / (times[at] - times[at - 1])
        return pages[at - 1] + share * (pages[at] - pages[at - 1])
