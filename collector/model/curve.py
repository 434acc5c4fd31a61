"""The write curve W(t) as a function of any t: measured, joined over rounds, and carried on."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]


class Written(Protocol):
    """W(t): how many distinct pages are written within t seconds of an arm."""

    def __call__(self, elapsed_s: float) -> float: ...


@dataclass(frozen=True, eq=False)
class WriteCurve:
    """W(t) through measured points: straight lines between them, and beyond the last one a power
    of t with the slope of the last doubling, which never grows faster than t, up to `limit`.

    elapsed_s, pages: (n,) ascending, n >= 1, elapsed_s > 0. limit: pages there are at most.
    """

    elapsed_s: Floats
    pages: Floats
    limit: float

    def __post_init__(self) -> None:
        if len(self.elapsed_s) == 0 or len(self.elapsed_s) != len(self.pages):
            raise ValueError("a curve has points, as many times as pages")
        if self.elapsed_s[0] <= 0 or (np.diff(self.elapsed_s) <= 0).any():
            raise ValueError("times ascend, from above 0")
        if self.pages[0] < 0 or (np.diff(self.pages) < 0).any():
            raise ValueError("pages never become fewer")

    @property
    def measured_s(self) -> float:
        """Up to here it was seen; beyond, it is carried on."""
        return float(self.elapsed_s[-1])

    @property
    def tail(self) -> float:
        """The power of t beyond: 1 grows like t (all pages are fresh ones), 0 not at all."""
        last_s, last = self.measured_s, float(self.pages[-1])
        before = self._inside(last_s / 2)
        if before <= 0 or last <= 0:
            return 1.0 if last > 0 else 0.0
        return min(max(math.log2(last / before), 0.0), 1.0)

    def __call__(self, elapsed_s: float) -> float:
        """See Written."""
        if elapsed_s <= 0:
            return 0.0
        last_s = float(self.elapsed_s[-1])
        if elapsed_s <= last_s:
            return min(self._inside(elapsed_s), self.limit)
        grown = math.pow(elapsed_s / last_s, self.tail)
        return min(float(self.pages[-1]) * grown, self.limit)

    def _inside(self, elapsed_s: float) -> float:
        first_s = float(self.elapsed_s[0])
        if elapsed_s < first_s:
            return float(self.pages[0]) * (elapsed_s / first_s)
        return float(np.interp(elapsed_s, self.elapsed_s, self.pages))

    def scaled(self, factor: float) -> WriteCurve:
        """With so many times the pages at every t, for the two ends of an interval."""
        return WriteCurve(self.elapsed_s, np.minimum(self.pages * factor, self.limit), self.limit)
