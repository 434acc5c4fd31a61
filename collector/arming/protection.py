"""When each page was write-protected in an arm, which passes over the page tables from the lowest address up."""

from __future__ import annotations

import time

import numpy as np
import numpy.typing as npt
from redirty.collector.pageset import PAGE_SHIFT, REGION_SHIFT, U64, PageSet

Floats = npt.NDArray[np.float64]

_REGION_PAGES_SHIFT = REGION_SHIFT - PAGE_SHIFT


class Protection:
    """The course of one arm: moments at which it had come to an address.

    In between it is assumed to pass present pages at a constant pace.
    """

    def __init__(self, present: PageSet) -> None:
        """Begin an arm now; present: pages that it will pass."""
        self._keys = present.keys
        self._counts = np.bitwise_count(present.words).sum(axis=1, dtype=np.int64)
        self._before = np.concatenate(([0], np.cumsum(self._counts)))
        self._passed = [0.0]
        self._ns = [float(time.monotonic_ns())]

    def passed(self, end: int) -> None:
        """Note that the arm has protected all pages below an address."""
        region, offset = end >> REGION_SHIFT, end & (1 << REGION_SHIFT) - 1
        pages = np.array([(region << _REGION_PAGES_SHIFT) + (offset >> PAGE_SHIFT)], np.uint64)
        self._passed.append(float(self._rank(pages)[0]))
        self._ns.append(float(time.monotonic_ns()))

    def finished(self) -> None:
        """Note that the arm has protected all pages."""
        self._passed.append(float(self._before[-1]))
        self._ns.append(float(time.monotonic_ns()))

    def cuts(self, start: int, end: int, pages: int) -> list[int]:
        """Return addresses that split [start, end) into pieces of some present pages, the end included."""
        first, last = np.searchsorted(self._keys, np.array([start, end], np.uint64) >> REGION_SHIFT)
        cuts = np.arange(self._before[first] + pages, self._before[last], pages)
        at = np.unique(np.searchsorted(self._before[first + 1 : last], cuts)) + first + 1
        found = (self._keys[at[at < last]] << np.uint64(REGION_SHIFT)).tolist()
        return [a for a in found if start < a < end] + [end]

    def times_ns(self, pages: U64) -> Floats:
        """Return (n,) CLOCK_MONOTONIC at which pages were protected, or would have been if present."""
        return np.interp(self._rank(pages), self._passed, self._ns)

    def mean_ns(self, pages: PageSet) -> float:
        """Return the mean time at which some pages were protected; of none, the end."""
        counts = np.bitwise_count(pages.words).sum(axis=1, dtype=np.int64)
        if not counts.any():
            return self._ns[-1]
        # by region: its first page's time is as good as that of its middle
        times = self.times_ns(pages.keys << np.uint64(_REGION_PAGES_SHIFT))
        return float(np.average(times - self._ns[0], weights=counts)) + self._ns[0]

    def _rank(self, pages: U64) -> Floats:
        """Return (n,) how many present pages lie below each page, evenly spread within a region."""
        regions = pages >> np.uint64(_REGION_PAGES_SHIFT)
        at = np.searchsorted(self._keys, regions)
        rank = self._before[at].astype(np.float64)
        here = at < len(self._keys)
        here[here] = self._keys[at[here]] == regions[here]
        inside = (pages[here] & np.uint64((1 << _REGION_PAGES_SHIFT) - 1)).astype(np.float64)
        rank[here] += self._counts[at[here]] * inside / (1 << _REGION_PAGES_SHIFT)
        return rank
