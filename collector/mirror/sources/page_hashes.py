"""What was sent of each page, as a hash: a page whose contents are what they were is not sent again.

64 bits with a key of this session's own: that two contents of one page hash alike has the chance
2^-64 each time, and nobody who does not know the key can choose them so.
"""

from __future__ import annotations

import itertools
import secrets
from collections.abc import Sequence

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

_SEED = secrets.randbits(64)
# instead of a hash: nothing was sent, it is zero, or nobody knows what the other end has
NEVER, _ZERO, _UNKNOWN = np.uint64(0), np.uint64(1), np.uint64(2)


def zero_pages(contents: U64) -> Bools:
    """(n,) which of (n, 512) words of pages are zero throughout."""
    zero = contents[:, 0] == 0
    maybe = np.flatnonzero(zero)
    if len(maybe) == len(contents):
        return np.asarray(np.bitwise_or.reduce(contents, axis=1) == 0)
    if len(maybe):
        zero[maybe] = ~contents[maybe].any(axis=1)
    return np.asarray(zero)


def hashes_of(pages: Sequence[memoryview], zero: Bools) -> U64:
    """(n,) hashes of pages; of zero pages 1, of others more than 2."""
    digests = map(xxhash.xxh3_64_intdigest, pages, itertools.repeat(_SEED))
    found = np.fromiter(digests, np.uint64, len(pages))
    found[found <= _UNKNOWN] = np.uint64(3)
    found[zero] = _ZERO
    return found


class PageHashes:
    """Hashes of what the other end has, 8 bytes for each page of the 2 MiB regions that were made room for."""

    def __init__(self) -> None:
        self._keys: U64 = np.empty(0, np.uint64)
        self._hashes: npt.NDArray[np.uint64] = np.empty((0, PAGES_PER_REGION), np.uint64)

    def make_room(self, pages: PageSet) -> None:
        """To be called before a pass, never while others look."""
        keys = np.union1d(self._keys, pages.keys)
        if len(keys) == len(self._keys):
            return
        hashes = np.zeros((len(keys), PAGES_PER_REGION), np.uint64)
        hashes[np.searchsorted(keys, self._keys)] = self._hashes
        self._keys, self._hashes = keys, hashes

    def _at(self, pages: U64) -> npt.NDArray[np.int64]:
        rows = np.searchsorted(self._keys, pages >> np.uint64(9)).astype(np.int64)
        return rows * PAGES_PER_REGION + (pages & np.uint64(511)).astype(np.int64)

    def of(self, pages: U64) -> U64:
        """What was sent of pages that there is room for; 0: nothing."""
        return np.asarray(self._hashes.reshape(-1)[self._at(pages)])

    def note(self, pages: U64, hashes: U64) -> None:
        """The other end has these contents now."""
        self._hashes.reshape(-1)[self._at(pages)] = hashes

    def forget(self, pages: U64) -> None:
        """The other end may have anything of these pages, or nothing."""
        known = np.isin(pages >> np.uint64(9), self._keys)
        self._hashes.reshape(-1)[self._at(pages[known])] = _UNKNOWN

    def drop(self, pages: U64) -> None:
        """The other end has nothing of these pages any more."""
        known = np.isin(pages >> np.uint64(9), self._keys)
        self._hashes.reshape(-1)[self._at(pages[known])] = NEVER

    def zero_among(self, pages: PageSet) -> U64:
        """Those of the pages that were zero when they were read last, ascending."""
        found = [np.empty(0, np.uint64)]
        keys = pages.keys[np.isin(pages.keys, self._keys)]
        for key in keys.tolist():
            row = self._hashes[int(np.searchsorted(self._keys, np.uint64(key)))]
            found.append(np.flatnonzero(row == _ZERO).astype(np.uint64) + np.uint64(key << 9))
        return page_numbers(from_pages(np.concatenate(found)) & pages)
