"""Sets of pages as packed, sparse bitmaps: 64 bytes for every 2 MiB region that has a page in it.

A page number is address >> 12, a region number address >> 21 (512 pages). The layout is that of the
BPF maps, so a drained map becomes a PageSet without a loop. All functions are pure; a PageSet's arrays
are never written after construction.

Vocabulary: a range is any half-open interval [start, end); a run is a maximal range of consecutive
numbers in a set; a region is always an aligned 2 MiB of address space.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

U64 = npt.NDArray[np.uint64]
Bools = npt.NDArray[np.bool_]

PAGE_SHIFT = 12
PAGE_SIZE = 1 << PAGE_SHIFT  # in bytes
REGION_SHIFT = 21
PAGES_PER_REGION = 512
WORDS_PER_REGION = 8

_ONES = np.uint64(0xFFFF_FFFF_FFFF_FFFF)
_FULL_REGION = b"\xff" * (8 * WORDS_PER_REGION)
FEW_RANGES = 16  # up to this number, Python's integers build a set faster than numpy's calls


@dataclass(frozen=True, eq=False)
class PageSet:
    """A set of pages of one address space.

    Attributes:
        keys: (n,) region numbers, ascending and unique.
        words: (n, 8) bitmap words: bit b of word w of row i is page keys[i] * 512 + w * 64 + b.
    """

    keys: U64
    words: U64

    def __len__(self) -> int:
        """Return the number of pages."""
        return int(np.bitwise_count(self.words).sum(dtype=np.int64))

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, PageSet):
            return NotImplemented
        a, b = drop_empty(self), drop_empty(other)
        return np.array_equal(a.keys, b.keys) and np.array_equal(a.words, b.words)

    __hash__ = None  # type: ignore[assignment]

    def __or__(self, other: PageSet) -> PageSet:
        return union(self, other)

    def __and__(self, other: PageSet) -> PageSet:
        return intersection(self, other)

    def __sub__(self, other: PageSet) -> PageSet:
        return difference(self, other)


def empty() -> PageSet:
    """Return the empty set."""
    return PageSet(np.empty(0, np.uint64), np.empty((0, WORDS_PER_REGION), np.uint64))


def from_rows(keys: U64, words: U64) -> PageSet:
    """Build a set from rows in any order, such as a drained map: keys (n,), words (n, 8)."""
    order = np.argsort(keys, kind="stable")
    return PageSet(keys[order], words[order])


def from_pages(pages: U64) -> PageSet:
    """Build a set from page numbers in any order, with or without duplicates."""
    if len(pages) == 0:
        return empty()
    pages = np.asarray(pages, np.uint64)
    if len(pages) > 1 and bool((pages[1:] < pages[:-1]).any()):
        pages = np.sort(pages)
    word_numbers = pages >> np.uint64(6)
    bits = np.uint64(1) << (pages & np.uint64(63))
    return _from_words(word_numbers, bits)


def from_ranges(starts: U64, ends: U64) -> PageSet:
    """Build a set from ranges of page numbers, ascending by start and not overlapping."""
    keep = ends > starts
    if not bool(keep.all()):
        starts, ends = starts[keep], ends[keep]
    if len(starts) <= FEW_RANGES:
        return from_few_ranges(list(zip(starts.tolist(), ends.tolist(), strict=True)))
    first = (starts >> np.uint64(6)).astype(np.int64)
    last = ((ends - np.uint64(1)) >> np.uint64(6)).astype(np.int64)
    head = _ONES << (starts & np.uint64(63))
    tail = _ONES >> (np.uint64(63) - ((ends - np.uint64(1)) & np.uint64(63)))
    if bool((first == last).all()):
        return _from_words(first.astype(np.uint64), head & tail)
    word_counts = last - first + 1
    stops = np.cumsum(word_counts)
    offsets = stops - word_counts
    masks = np.full(int(stops[-1]), _ONES, np.uint64)
    masks[offsets] = head
    masks[stops - 1] &= tail
    numbers = np.repeat(first - offsets, word_counts) + np.arange(len(masks))
    return _from_words(numbers.astype(np.uint64), masks)


def from_few_ranges(ranges: list[tuple[int, int]]) -> PageSet:
    """Build a set as from_ranges() does, from a short list of non-empty ranges."""
    keys: list[int] = []
    words = bytearray()
    for start, end in ranges:
        first, last = start >> 9, (end - 1) >> 9
        for region in (first, last) if last > first else (first,):
            a = max(start - (region << 9), 0)
            b = min(end - (region << 9), PAGES_PER_REGION)
            bits = (1 << b) - (1 << a)
            if keys and keys[-1] == region:  # the previous range ended in this region
                bits |= int.from_bytes(words[-64:], "little")
                del keys[-1], words[-64:]
            keys.append(region)
            words += bits.to_bytes(64, "little")
            if region == first and last > first + 1:
                keys.extend(range(first + 1, last))
                words += _FULL_REGION * (last - first - 1)
    rows = np.frombuffer(words, np.uint64).reshape(-1, WORDS_PER_REGION)
    return PageSet(np.array(keys, np.uint64), rows)


def _from_words(numbers: U64, masks: U64) -> PageSet:
    """Build a set from bitmap words.

    Args:
        numbers: (n,) ascending word numbers (page number >> 6), with or without duplicates.
        masks: (n,) the bits of each word.
    """
    starts = np.flatnonzero(np.concatenate(([True], numbers[1:] != numbers[:-1])))
    if len(starts) < len(numbers):
        masks = np.bitwise_or.reduceat(masks, starts)
        numbers = numbers[starts]
    regions = numbers >> np.uint64(3)
    new_row = np.concatenate(([True], regions[1:] != regions[:-1]))
    rows = np.cumsum(new_row) - 1
    words = np.zeros((int(rows[-1]) + 1, WORDS_PER_REGION), np.uint64)
    words[rows, (numbers & np.uint64(7)).astype(np.int64)] = masks
    return PageSet(regions[new_row], words)


def drop_empty(pages: PageSet) -> PageSet:
    """Return the same set without rows that hold no page."""
    full = pages.words.any(axis=1)
    return pages if bool(full.all()) else PageSet(pages.keys[full], pages.words[full])


def find(haystack: U64, needles: U64) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.bool_]]:
    """Return for each needle its index in the ascending haystack, and whether it is present."""
    at = np.searchsorted(haystack, needles)
    clipped = np.minimum(at, max(len(haystack) - 1, 0))
    found = haystack[clipped] == needles if len(haystack) else np.zeros(len(needles), np.bool_)
    return clipped, found


def _same_regions(a: PageSet, b: PageSet) -> bool:
    """Return whether both sets have the same rows: the common case, which needs no search."""
    return a.keys is b.keys or (
        len(a.keys) == len(b.keys) and bool(np.logical_and.reduce(a.keys == b.keys))
    )


def union(a: PageSet, b: PageSet) -> PageSet:
    """Return the pages in a or b."""
    if len(a.keys) == 0:
        return b
    if len(b.keys) == 0:
        return a
    if _same_regions(a, b):
        return PageSet(a.keys, a.words | b.words)
    keys = np.union1d(a.keys, b.keys)
    words = np.zeros((len(keys), WORDS_PER_REGION), np.uint64)
    words[np.searchsorted(keys, a.keys)] = a.words
    words[np.searchsorted(keys, b.keys)] |= b.words
    return PageSet(keys, words)


def intersection(a: PageSet, b: PageSet) -> PageSet:
    """Return the pages in both sets."""
    if len(a.keys) == 0 or len(b.keys) == 0:
        return empty()
    if _same_regions(a, b):
        return drop_empty(PageSet(a.keys, a.words & b.words))
    at, found = find(b.keys, a.keys)
    return drop_empty(PageSet(a.keys[found], a.words[found] & b.words[at[found]]))


def difference(a: PageSet, b: PageSet) -> PageSet:
    """Return the pages in a that are not in b."""
    if len(a.keys) == 0 or len(b.keys) == 0:
        return a
    if _same_regions(a, b):
        return drop_empty(PageSet(a.keys, a.words & ~b.words))
    at, found = find(b.keys, a.keys)
    if not bool(found.any()):
        return a
    words = a.words.copy()
    words[found] &= ~b.words[at[found]]
    return drop_empty(PageSet(a.keys, words))


def within(pages: PageSet, starts: U64, ends: U64) -> PageSet:
    """Return the pages that lie in ranges of page numbers, ascending and not overlapping.

    The ranges are never expanded into a set: a program can have terabytes of them.
    """
    if len(pages.keys) == 0 or len(starts) == 0:
        return empty()
    firsts = pages.keys << np.uint64(9)
    lasts = firsts + np.uint64(PAGES_PER_REGION)
    at = np.searchsorted(ends, firsts, side="right")
    clipped = np.minimum(at, len(ends) - 1)
    whole = (starts[clipped] <= firsts) & (ends[clipped] >= lasts)
    if bool(whole.all()):
        return pages
    # Regions in which ranges start or end: clip each range to each region that it overlaps.
    partial = ~whole
    firsts, lasts, at = firsts[partial], lasts[partial], at[partial]
    counts = np.searchsorted(starts, lasts) - at
    offsets = np.cumsum(counts) - counts
    row = np.repeat(np.arange(len(counts)), counts)
    number = at[row] + np.arange(len(row)) - offsets[row]
    bounds = np.maximum(starts[number], firsts[row]), np.minimum(ends[number], lasts[row])
    part = PageSet(pages.keys[partial], pages.words[partial]) & from_ranges(*bounds)
    return PageSet(pages.keys[whole], pages.words[whole]) | part


def shifted(pages: PageSet, by: int) -> PageSet:
    """Return the pages with their numbers increased by `by`, which may be negative; none may become negative."""
    if not by:
        return pages
    regions, bits = by >> 9, by & (PAGES_PER_REGION - 1)
    keys = (pages.keys.astype(np.int64) + regions).astype(np.uint64)
    if not bits or len(keys) == 0:
        return PageSet(keys, pages.words)
    # Each region's bits lie in two regions afterwards.
    both = np.zeros((len(keys), 2 * WORDS_PER_REGION), np.uint64)
    word, bit = bits >> 6, np.uint64(bits & 63)
    both[:, word : word + WORDS_PER_REGION] = pages.words << bit
    if bit:
        both[:, word + 1 : word + 1 + WORDS_PER_REGION] |= pages.words >> (np.uint64(64) - bit)
    low, high = both[:, :WORDS_PER_REGION], both[:, WORDS_PER_REGION:]
    return drop_empty(PageSet(keys, low) | PageSet(keys + np.uint64(1), high))


def pages_in_covered_regions(part: PageSet, of: PageSet, min_pages: int) -> int:
    """Count the pages of `part` in regions where it covers all pages of `of`, at least min_pages."""
    at, found = find(of.keys, part.keys)
    rows, whole = part.words[found], of.words[at[found]]
    counts = np.bitwise_count(rows).sum(axis=1, dtype=np.int64)
    covered = ((whole & ~rows) == 0).all(axis=1) & (counts >= min_pages)
    return int(counts[covered].sum())


def matrix(pages: PageSet) -> npt.NDArray[np.uint8]:
    """Return an (n, 512) array of 0 and 1, one row for each of pages.keys."""
    as_bytes = np.ascontiguousarray(pages.words).view(np.uint8)
    return np.unpackbits(as_bytes, axis=1, bitorder="little")


def page_numbers(pages: PageSet) -> U64:
    """Return the page numbers, ascending."""
    if len(pages.keys) == 0:
        return np.empty(0, np.uint64)
    flat = np.flatnonzero(matrix(pages)).astype(np.uint64)
    rows = flat >> np.uint64(9)
    base = pages.keys[rows.astype(np.int64)] << np.uint64(9)
    return base | (flat & np.uint64(PAGES_PER_REGION - 1))


def page_runs(pages: PageSet) -> tuple[U64, U64]:
    """Return the runs of page numbers as ranges (starts, ends), ascending."""
    # No list of pages: for millions in a few runs it would take a hundred times more memory than the bits.
    bits = matrix(pages).astype(np.bool_)
    joined = np.diff(pages.keys) == np.uint64(1)
    before, after = np.zeros_like(bits), np.zeros_like(bits)
    before[:, 1:], after[:, :-1] = bits[:, :-1], bits[:, 1:]
    before[1:, 0], after[:-1, -1] = bits[:-1, -1] & joined, bits[1:, 0] & joined

    def numbers(where: npt.NDArray[np.bool_]) -> U64:
        rows, columns = np.nonzero(where)
        return (pages.keys[rows] << np.uint64(9)) | columns.astype(np.uint64)

    return numbers(bits & ~before), numbers(bits & ~after) + np.uint64(1)


def count_runs(pages: PageSet) -> int:
    """Return the number of runs of consecutive page numbers."""
    if len(pages.keys) == 0:
        return 0
    words = np.ascontiguousarray(pages.words)
    # The highest bit of the word before each: 0 for the first one of a region that follows none.
    before = np.zeros_like(words)
    before[:, 1:] = words[:, :-1] >> np.uint64(63)
    joined = np.diff(pages.keys) == np.uint64(1)
    before[1:, 0] = np.where(joined, words[:-1, -1] >> np.uint64(63), np.uint64(0))
    firsts = words & ~((words << np.uint64(1)) | before)
    return int(np.bitwise_count(firsts).sum(dtype=np.int64))


def count_in(pages: PageSet, starts: U64, ends: U64) -> npt.NDArray[np.int64]:
    """Count the pages in each range of page numbers; ranges in any order."""
    # Running totals by word, then the two partial words at the ends of a range: no list of pages.
    if len(pages.keys) == 0:
        return np.zeros(len(starts), np.int64)
    counts = np.bitwise_count(pages.words).reshape(-1).astype(np.int64)
    before = np.concatenate((np.zeros(1, np.int64), np.cumsum(counts)))
    return _rank(pages, before, ends) - _rank(pages, before, starts)


def _rank(pages: PageSet, before: npt.NDArray[np.int64], limit: U64) -> npt.NDArray[np.int64]:
    """Return the number of pages below each limit; before: running totals by word."""
    regions = limit >> np.uint64(9)
    rows = np.searchsorted(pages.keys, regions)
    clipped = np.minimum(rows, len(pages.keys) - 1)
    inside = pages.keys[clipped] == regions
    column = ((limit >> np.uint64(6)) & np.uint64(7)).astype(np.int64)
    word = pages.words[clipped, column]
    below = (np.uint64(1) << (limit & np.uint64(63))) - np.uint64(1)
    partial = before[clipped * WORDS_PER_REGION + column] + np.bitwise_count(word & below)
    return np.where(inside, partial, before[rows * WORDS_PER_REGION]).astype(np.int64)


def full_region_runs(pages: PageSet, min_length: int, max_runs: int) -> list[tuple[int, int]]:
    """Return runs of region numbers [first, last) of which every page is in the set.

    At most max_runs, the longest ones, in ascending order, each of at least min_length regions.
    """
    keys = pages.keys[np.bitwise_and.reduce(pages.words, axis=1) == _ONES].astype(np.int64)
    if len(keys) < min_length:
        return []
    first, last = int(keys[0]), int(keys[-1]) + 1
    if last - first == len(keys):
        return [(first, last)]
    firsts, lasts = _key_runs(keys, 1)
    longest = np.argsort(firsts - lasts, kind="stable")[:max_runs]
    chosen = np.sort(longest[(lasts - firsts)[longest] >= min_length])
    return list(zip(firsts[chosen].tolist(), lasts[chosen].tolist(), strict=True))


def region_runs(pages: PageSet, gap: int = 2) -> list[tuple[int, int]]:
    """Return runs of region numbers [first, last) that cover the pages, joined across small gaps.

    Regions whose numbers differ by at most `gap` belong to one run; 1 joins neighbours only.
    """
    keys = pages.keys[pages.words.any(axis=1)].astype(np.int64)
    if len(keys) == 0:
        return []
    firsts, lasts = _key_runs(keys, gap)
    return list(zip(firsts.tolist(), lasts.tolist(), strict=True))


def _key_runs(
    keys: npt.NDArray[np.int64], gap: int
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Split ascending keys (at least one) into runs whose members are at most `gap` apart.

    Returns the first keys, and the last keys plus 1.
    """
    cuts = np.flatnonzero(np.diff(keys) > gap)
    firsts = keys[np.concatenate(([0], cuts + 1))]
    lasts = keys[np.concatenate((cuts, [len(keys) - 1]))] + 1
    return firsts, lasts


def runs_of(pages: U64) -> tuple[U64, U64]:
    """Return the runs of ascending page numbers: their first pages and lengths."""
    if len(pages) == 0:
        return pages, pages
    breaks = np.flatnonzero(pages[1:] != pages[:-1] + np.uint64(1)) + 1
    at = np.concatenate(([0], breaks, [len(pages)]))
    return pages[at[:-1]], np.diff(at).astype(np.uint64)
