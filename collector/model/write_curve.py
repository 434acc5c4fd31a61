"""The write curve W(t) as a function of any t: through measured points, and extrapolated by a model."""

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
    """W(t): the number of distinct pages written within t seconds of an arm."""

    def __call__(self, elapsed_s: float, /) -> float: ...


def smooth(x: Floats, y: Floats, at: Floats) -> Floats:
    """Interpolate points that never fall by a monotone cubic; return its values at the places `at`.

    Fritsch and Butland, A method for constructing local monotone piecewise cubic interpolants, 1984; but
    where the points bend down, the curve is held below the straight lines of both sides, extended.
    x: (n,) ascending.
    """
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
    """W(t) through measured points, linear between them.

    Beyond the last point two parts are extrapolated separately: re-dirtied pages, up to `limit`, and new
    pages, by which the footprint grows forever.

    Attributes:
        elapsed_s, pages: (n,) ascending, n >= 1, elapsed_s > 0.
        limit: pages present, which can be re-dirtied.
        new_pages: pages of the last point that were new.
        growth_per_s: new pages per second.
        beyond: re-dirtied pages added after the last point, by t; without it a power of t with the slope of
            the last doubling, which never grows faster than t.

    Raises: ValueError for points that do not form such a curve.
    """

    elapsed_s: Floats
    pages: Floats
    limit: float
    new_pages: float = 0.0
    growth_per_s: float = 0.0
    beyond: Callable[[float], float] | None = None

    def __post_init__(self) -> None:
        if len(self.elapsed_s) == 0 or len(self.elapsed_s) != len(self.pages):
            raise ValueError("a curve needs points, with as many times as page counts")
        if self.elapsed_s[0] <= 0 or (np.diff(self.elapsed_s) <= 0).any():
            raise ValueError("times must ascend and be positive")
        if self.pages[0] < 0 or (np.diff(self.pages) < 0).any():
            raise ValueError("pages must not decrease")

    @cached_property
    def _points(self) -> tuple[list[float], list[float]]:
        """The points and the origin, as Python lists: single lookups are faster there."""
        return [0.0, *self.elapsed_s.tolist()], [0.0, *self.pages.tolist()]

    @cached_property
    def measured_s(self) -> float:
        """Time up to which the curve was measured; beyond, it is extrapolated."""
        return float(self.elapsed_s[-1])

    @cached_property
    def tail(self) -> float:
        """Exponent of t beyond the points: 1 grows like t (every write hits another page), 0 not at all."""
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
        redirtied = max(last - self.new_pages, 0.0)
        if self.beyond is not None:
            more = self.beyond(elapsed_s)
        else:
            more = redirtied * (math.pow(elapsed_s / last_s, self.tail) - 1)
        total = max(min(redirtied + more, self.limit), redirtied)
        return total + last - redirtied + self.growth_per_s * (elapsed_s - last_s)

    def _inside(self, elapsed_s: float) -> float:
        times, pages = self._points
        at = min(bisect_left(times, elapsed_s), len(times) - 1)
        share = (elapsed_s - times[at - 1]) / (times[at] - times[at - 1])
        return pages[at - 1] + share * (pages[at] - pages[at - 1])
