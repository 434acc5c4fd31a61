"""Hashes of the contents last sent of each page: a page with unchanged contents is not sent again.

Hashes have 64 bits and are keyed with a random seed of this process: two contents of a page collide with a
probability of 2^-64 each time, and nobody who does not know the seed can construct a collision.
"""

from __future__ import annotations

import itertools
import secrets
from collections.abc import Iterator, Sequence

import numpy as np
import numpy.typing as npt
import xxhash
from redirty.collector.pageset import (
    PAGES_PER_REGION,
    U64,
    Bools,
    PageSet,
    from_pages,
    page_numbers,
)

SEED = secrets.randbits(64)
# Special values: nothing was sent; the page is zero; the contents at the other end are unknown.
NEVER, _ZERO, _UNKNOWN = np.uint64(0), np.uint64(1), np.uint64(2)


def zero_pages(contents: U64) -> Bools:
    """Return (n,) which pages are all zero, of their (n, 512) words."""
    zero = contents[:, 0] == 0
    candidates = np.flatnonzero(zero)
    if len(candidates) == len(contents):
        return np.asarray(np.bitwise_or.reduce(contents, axis=1) == 0)
    if len(candidates):
        zero[candidates] = ~contents[candidates].any(axis=1)
    return np.asarray(zero)


def hashes_of(pages: Sequence[memoryview], zero: Bools, seed: int = SEED) -> U64:
    """Return (n,) hashes of pages: 1 for zero pages, above 2 for all others."""
    digests = map(xxhash.xxh3_64_intdigest, pages, itertools.repeat(seed))
    found = np.fromiter(digests, np.uint64, len(pages))
    found[found <= _UNKNOWN] = np.uint64(3)
    found[zero] = _ZERO
    return found


class PageHashes:
    """Hashes of the contents at the other end: 8 bytes for each page of the 2 MiB regions that were reserved."""

    def __init__(self) -> None:
        self._keys: U64 = np.empty(0, np.uint64)
        self._hashes: npt.NDArray[np.uint64] = np.empty((0, PAGES_PER_REGION), np.uint64)

    def reserve(self, pages: PageSet) -> None:
        """Make room for pages. Must not be called while other threads read hashes."""
        keys = np.union1d(self._keys, pages.keys)
        if len(keys) == len(self._keys):
            return
        hashes = np.zeros((len(keys), PAGES_PER_REGION), np.uint64)
        hashes[np.searchsorted(keys, self._keys)] = self._hashes
        self._keys, self._hashes = keys, hashes

    def _index(self, pages: U64) -> npt.NDArray[np.int64]:
        rows = np.searchsorted(self._keys, pages >> np.uint64(9)).astype(np.int64)
        return rows * PAGES_PER_REGION + (pages & np.uint64(511)).astype(np.int64)

    def get(self, pages: U64) -> U64:
        """Return (n,) the hashes last sent of reserved pages; NEVER where nothing was sent."""
        return np.asarray(self._hashes.reshape(-1)[self._index(pages)])

    def record(self, pages: U64, hashes: U64) -> None:
        """Note the contents of reserved pages that the other end has now."""
        self._hashes.reshape(-1)[self._index(pages)] = hashes

    def mark_unknown(self, pages: U64) -> None:
        """Note that the other end may have any contents of these pages, or none."""
        known = np.isin(pages >> np.uint64(9), self._keys)
        self._hashes.reshape(-1)[self._index(pages[known])] = _UNKNOWN

    def mark_never_sent(self, pages: U64) -> None:
        """Note that the other end no longer has these pages."""
        known = np.isin(pages >> np.uint64(9), self._keys)
        self._hashes.reshape(-1)[self._index(pages[known])] = NEVER

    def sent(self) -> Iterator[tuple[U64, U64]]:
        """Yield the pages of which contents were sent that are not zero, ascending, with their hashes."""
        for key, row in zip(self._keys.tolist(), self._hashes, strict=True):
            index = np.flatnonzero(row > _ZERO).astype(np.uint64)
            if len(index):
                yield index + np.uint64(key << 9), row[index]

    def maybe_sent(self, pages: U64) -> U64:
        """Return those of the pages that the other end may have, with whatever contents."""
        known = pages[np.isin(pages >> np.uint64(9), self._keys)]
        return np.asarray(known[self.get(known) != NEVER])

    def zero_among(self, pages: PageSet) -> U64:
        """Return those of the pages that were zero when they were read last, ascending."""
        found = [np.empty(0, np.uint64)]
        keys = pages.keys[np.isin(pages.keys, self._keys)]
        for key in keys.tolist():
            row = self._hashes[int(np.searchsorted(self._keys, np.uint64(key)))]
            found.append(np.flatnonzero(row == _ZERO).astype(np.uint64) + np.uint64(key << 9))
        return page_numbers(from_pages(np.concatenate(found)) & pages)
