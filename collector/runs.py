"""Which pages stay dirty from round to round: runs of consecutive dirty rounds, and the distinct
pages of windows of several rounds. All on packed bitmaps, so that it costs next to nothing."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from redirty.collector.bitmap import PageSet, empty

I64 = npt.NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Streaks:
    """What one address space had dirty in a round: those for the first round in a row are fresh."""

    dirty: PageSet
    fresh: PageSet

    def follow(self, dirty: PageSet) -> tuple[PageSet, Streaks]:
        """The next round: pages that stayed dirty, and its streaks."""
        stayed = dirty & self.dirty
        return stayed, Streaks(dirty, dirty - stayed)


def no_streaks() -> Streaks:
    """Of an address space that was not there in the round before."""
    return Streaks(empty(), empty())


class Lengths:
    """How many runs were how long. counts: (n,), counts[i] runs of i rounds."""

    def __init__(self) -> None:
        self.counts: I64 = np.zeros(2, np.int64)

    def add(self, lengths: npt.NDArray[np.integer]) -> None:
        """Runs of these lengths, each at least 1."""
        more = np.bincount(lengths)
        if len(more) > len(self.counts):
            grown = np.zeros(max(len(more), 2 * len(self.counts)), np.int64)
            grown[: len(self.counts)] = self.counts
            self.counts = grown
        self.counts[: len(more)] += more

    def add_ones(self, number: int) -> None:
        """So many runs of one round."""
        self.counts[1] += number


@dataclass(frozen=True)
class Window:
    """Distinct pages that a process dirtied in rounds [first_round, first_round + rounds)."""

    first_round: int
    rounds: int
    pid: int
    dirty_pages: int


class WorkingSet:
    """Distinct pages over windows of 2, 4, 8, … rounds that lie side by side.

    Each window is the union of two of half its length, so that a round costs about one union.
    """

    def __init__(self) -> None:
        self._waiting: dict[int, dict[tuple[int, int], PageSet]] = {}  # by length
        self._rounds = 0

    def add(self, dirty: Mapping[tuple[int, int], PageSet]) -> list[Window]:
        """One more round: the pages of each (pid, address space). The windows it completes."""
        found = []
        done = dict(dirty)
        self._rounds += 1
        length = 1
        while self._rounds % (2 * length) == 0:
            for key, pages in self._waiting.pop(length).items():
                done[key] = pages | done[key] if key in done else pages
            length *= 2
            sums: dict[int, int] = {}
            for (pid, _), pages in done.items():
                sums[pid] = sums.get(pid, 0) + len(pages)
            first = self._rounds - length
            found += [Window(first, length, pid, n) for pid, n in sorted(sums.items()) if n]
        self._waiting[length] = done
        return found
