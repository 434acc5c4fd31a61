"""Streaks: numbers of consecutive dirty rounds, by page. Computed on packed bitmaps, at almost no cost."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from redirty.collector.pageset import U64, WORDS_PER_REGION, PageSet, drop_empty, empty, find

I64 = npt.NDArray[np.int64]
_LENGTH_BITS = 40  # of the longest streak: more rounds than any recording has


def length_classes() -> list[tuple[int, int]]:
    """Return the classes of lengths in rounds, (from, to) inclusive, that Lengths distinguishes.

    1, 2, 3, 4 to 5, 6 to 7, 8 to 11, 12 to 15, …: by the two upper bits of the number.
    """
    found = [(1, 1)]
    for bit in range(1, _LENGTH_BITS):
        half = 1 << (bit - 1)
        found += [(2 * half, 3 * half - 1), (3 * half, 4 * half - 1)]
    return found


class Lengths:
    """Number of streaks by length.

    counts: (n,) by length_classes().
    """

    def __init__(self) -> None:
        self.counts: I64 = np.zeros(2 * _LENGTH_BITS - 1, np.int64)

    def add(self, streaks: U64, planes: U64) -> None:
        """Add streaks of pages: (n, 8) with a bit each; planes (k, n, 8): bit k of each length."""
        left = streaks
        for bit in range(len(planes) - 1, 0, -1):
            here = left & planes[bit]
            number = _ones(here)
            if not number:
                continue
            upper = _ones(here & planes[bit - 1])
            self.counts[2 * bit - 1] += number - upper
            self.counts[2 * bit] += upper
            left = left & ~here
        self.counts[0] += _ones(left)


def _ones(words: U64) -> int:
    return int(np.bitwise_count(words).sum(dtype=np.int64))


class Streaks:
    """Number of consecutive rounds in which each page of one address space has been dirty.

    The numbers are stored bit-sliced: bit k of all pages is one bitmap (a plane), so that a round costs a
    few operations on bitmaps, whatever the pages do, and a page costs one bit per plane.
    """

    def __init__(self) -> None:
        self._dirty = empty()  # in the last round
        self._planes = np.zeros((0, 0, WORDS_PER_REGION), np.uint64)

    def follow(self, dirty: PageSet, lengths: Lengths) -> tuple[PageSet, PageSet]:
        """Add a round. Return its pages that were dirty in the previous round, too, and the others.

        lengths: receives the streaks that have ended.
        """
        before = self._align(dirty.keys, lengths)
        stayed = before & dirty.words
        ended = before ^ stayed
        if ended.any():
            lengths.add(ended, self._planes)
            self._planes &= dirty.words
        carry = dirty.words
        for plane in self._planes:
            plane ^= carry  # noqa: PLW2901 (in place)
            carry = carry & ~plane
            if not carry.any():
                break
        else:
            self._planes = np.concatenate((self._planes, carry[None]))
        self._dirty = dirty
        return PageSet(dirty.keys, stayed), drop_empty(PageSet(dirty.keys, dirty.words ^ stayed))

    def _align(self, keys: U64, lengths: Lengths) -> U64:
        """Align all bitmaps with the regions of a round; return the previous round's bits in these rows.

        Streaks in other regions have ended, and are added to lengths.
        """
        old = self._dirty
        if np.array_equal(old.keys, keys):
            return old.words
        lost = ~np.isin(old.keys, keys, assume_unique=True)
        lengths.add(old.words[lost], self._planes[:, lost])
        at, found = find(old.keys, keys)
        words = np.zeros((len(keys), WORDS_PER_REGION), np.uint64)
        words[found] = old.words[at[found]]
        planes = np.zeros((len(self._planes), len(keys), WORDS_PER_REGION), np.uint64)
        planes[:, found] = self._planes[:, at[found]]
        self._planes = planes
        return words

    def add_ongoing(self, lengths: Lengths) -> None:
        """Add the streaks that have not ended to lengths, with their current length."""
        lengths.add(self._dirty.words, self._planes)
