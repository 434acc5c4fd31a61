"""Sets of pages as packed, sparse bitmaps: 64 bytes for every 2 MiB region that has a page in it.

A page number is address >> 12, a region number address >> 21 (512 pages). The same shape as
the maps in the kernel, so a drained map becomes a PageSet without a loop. All functions are
pure; a PageSet's arrays are never written after it was made.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

U64 = npt.NDArray[np.uint64]

PAGE_SHIFT = 12
PAGE_SIZE = 1 << PAGE_SHIFT
REGION_SHIFT = 21
PAGES_PER_REGION = 512
WORDS_PER_REGION = 8

_ONES = np.uint64(0xFFFF_FFFF_FFFF_FFFF)
_FULL_REGION = b"\xff" * (8 * WORDS_PER_REGION)
FEW_RANGES = 16  # so many or fewer become a set quicker by Python's integers than by numpy's calls


@dataclass(frozen=True, eq=False)
class PageSet:
    """A set of pages of one address space.

    keys: (n,) region numbers, ascending, each once.
    words: (n, 8) bits: bit b of word w of row i is page keys[i] * 512 + w * 64 + b.
    """

    keys: U64
    words: U64

    def __len__(self) -> int:
        """Number of pages."""
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
    """The set of no pages."""
    return PageSet(np.empty(0, np.uint64), np.empty((0, WORDS_PER_REGION), np.uint64))


def from_rows(keys: U64, words: U64) -> PageSet:
    """A set from rows in any order, such as a drained map: keys (n,), words (n, 8)."""
    order = np.argsort(keys, kind="stable")
    return PageSet(keys[order], words[order])


def from_pages(pages: U64) -> PageSet:
    """A set from page numbers, in any order, repeated or not."""
    if len(pages) == 0:
        return empty()
    pages = np.asarray(pages, np.uint64)
    if len(pages) > 1 and bool((pages[1:] < pages[:-1]).any()):
        pages = np.sort(pages)
    word_numbers = pages >> np.uint64(6)
    bits = np.uint64(1) << (pages & np.uint64(63))
    return _from_words(word_numbers, bits)


def from_ranges(starts: U64, ends: U64) -> PageSet:
    """A set from half-open ranges of page numbers, ascending by start and not overlapping."""
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
    spans = last - first + 1
    stops = np.cumsum(spans)
    begins = stops - spans
    masks = np.full(int(stops[-1]), _ONES, np.uint64)
    masks[begins] = head
    masks[stops - 1] &= tail
    numbers = np.repeat(first - begins, spans) + np.arange(len(masks))
    return _from_words(numbers.astype(np.uint64), masks)


def from_few_ranges(ranges: list[tuple[int, int]]) -> PageSet:
    """from_ranges of some ranges that are not empty."""
    keys: list[int] = []
    words = bytearray()
    for start, end in ranges:
        first, last = start >> 9, (end - 1) >> 9
        for region in (first, last) if last > first else (first,):
            a = max(start - (region << 9), 0)
            b = min(end - (region << 9), PAGES_PER_REGION)
            bits = (1 << b) - (1 << a)
            if keys and keys[-1] == region:  # the range before ended in it
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
    """numbers: (n,) ascending numbers of 64-page words, repeated or not; masks: their bits."""
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
    """The same set without rows that hold no page."""
    full = pages.words.any(axis=1)
    return pages if bool(full.all()) else PageSet(pages.keys[full], pages.words[full])


def find(haystack: U64, needles: U64) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.bool_]]:
    """For each needle its place in the ascending haystack, and whether it is there."""
    at = np.searchsorted(haystack, needles)
    clipped = np.minimum(at, max(len(haystack) - 1, 0))
    found = haystack[clipped] == needles if len(haystack) else np.zeros(len(needles), np.bool_)
    return clipped, found


def _same_regions(a: PageSet, b: PageSet) -> bool:
    """Mostly so: then nothing needs to be searched for."""
    return a.keys is b.keys or (
        len(a.keys) == len(b.keys) and bool(np.logical_and.reduce(a.keys == b.keys))
    )


def union(a: PageSet, b: PageSet) -> PageSet:
    """Pages in a or b."""
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
    """Pages in both."""
    if len(a.keys) == 0 or len(b.keys) == 0:
        return empty()
    if _same_regions(a, b):
        return drop_empty(PageSet(a.keys, a.words & b.words))
    at, found = find(b.keys, a.keys)
    return drop_empty(PageSet(a.keys[found], a.words[found] & b.words[at[found]]))


def difference(a: PageSet, b: PageSet) -> PageSet:
    """Pages in a that are not in b."""
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
    """Those of the pages that lie in half-open ranges of page numbers, ascending and not overlapping. Takes
    no memory for the ranges, of which a program can have terabytes."""
    if len(pages.keys) == 0 or len(starts) == 0:
        return empty()
    firsts = pages.keys << np.uint64(9)
    lasts = firsts + np.uint64(PAGES_PER_REGION)
    at = np.searchsorted(ends, firsts, side="right")
    clipped = np.minimum(at, len(ends) - 1)
    whole = (starts[clipped] <= firsts) & (ends[clipped] >= lasts)
    if bool(whole.all()):
        return pages
    # Regions in which ranges begin or end: the pieces of ranges in each of them.
    broken = ~whole
    firsts, lasts, at = firsts[broken], lasts[broken], at[broken]
    counts = np.searchsorted(starts, lasts) - at
    begins = np.cumsum(counts) - counts
    row = np.repeat(np.arange(len(counts)), counts)
    piece = at[row] + np.arange(len(row)) - begins[row]
    bounds = np.maximum(starts[piece], firsts[row]), np.minimum(ends[piece], lasts[row])
    part = PageSet(pages.keys[broken], pages.words[broken]) & from_ranges(*bounds)
    return PageSet(pages.keys[whole], pages.words[whole]) | part


def whole_regions(part: PageSet, of: PageSet, least: int) -> int:
    """How many pages of a set lie in regions where it has all of another set, at least so many."""
    at, found = find(of.keys, part.keys)
    rows, whole = part.words[found], of.words[at[found]]
    counts = np.bitwise_count(rows).sum(axis=1, dtype=np.int64)
    all_of_it = ((whole & ~rows) == 0).all(axis=1) & (counts >= least)
    return int(counts[all_of_it].sum())


def matrix(pages: PageSet) -> npt.NDArray[np.uint8]:
    """(n, 512) array of 0 and 1, one row for each of pages.keys."""
    as_bytes = np.ascontiguousarray(pages.words).view(np.uint8)
    return np.unpackbits(as_bytes, axis=1, bitorder="little")


def page_numbers(pages: PageSet) -> U64:
    """The page numbers, ascending."""
    if len(pages.keys) == 0:
        return np.empty(0, np.uint64)
    flat = np.flatnonzero(matrix(pages)).astype(np.uint64)
    rows = flat >> np.uint64(9)
    base = pages.keys[rows.astype(np.int64)] << np.uint64(9)
    return base | (flat & np.uint64(PAGES_PER_REGION - 1))


def ranges(pages: PageSet) -> tuple[U64, U64]:
    """Half-open ranges of page numbers (starts, ends), ascending, as long as they can be."""
    # No list of pages: of millions in a few runs it would take a hundred times more than their bits.
    bits = matrix(pages).astype(np.bool_)
    joined = np.diff(pages.keys) == np.uint64(1)
    before, after = np.zeros_like(bits), np.zeros_like(bits)
    before[:, 1:], after[:, :-1] = bits[:, :-1], bits[:, 1:]
    before[1:, 0], after[:-1, -1] = bits[:-1, -1] & joined, bits[1:, 0] & joined

    def numbers(where: npt.NDArray[np.bool_]) -> U64:
        rows, columns = np.nonzero(where)
        return (pages.keys[rows] << np.uint64(9)) | columns.astype(np.uint64)

    return numbers(bits & ~before), numbers(bits & ~after) + np.uint64(1)


def count_in(pages: PageSet, starts: U64, ends: U64) -> npt.NDArray[np.int64]:
    """How many of the pages lie in each half-open range of page numbers; ranges in any order."""
    # Running totals by word, then the two partial words at a range's ends: no list of pages.
    if len(pages.keys) == 0:
        return np.zeros(len(starts), np.int64)
    counts = np.bitwise_count(pages.words).reshape(-1).astype(np.int64)
    before = np.concatenate((np.zeros(1, np.int64), np.cumsum(counts)))
    return _rank(pages, before, ends) - _rank(pages, before, starts)


def _rank(pages: PageSet, before: npt.NDArray[np.int64], limit: U64) -> npt.NDArray[np.int64]:
    """Number of pages below each limit; before: running totals by word."""
    regions = limit >> np.uint64(9)
    rows = np.searchsorted(pages.keys, regions)
    clipped = np.minimum(rows, len(pages.keys) - 1)
    inside = pages.keys[clipped] == regions
    column = ((limit >> np.uint64(6)) & np.uint64(7)).astype(np.int64)
    word = pages.words[clipped, column]
    below = (np.uint64(1) << (limit & np.uint64(63))) - np.uint64(1)
    partial = before[clipped * WORDS_PER_REGION + column] + np.bitwise_count(word & below)
    return np.where(inside, partial, before[rows * WORDS_PER_REGION]).astype(np.int64)


def full_runs(pages: PageSet, least: int, most: int) -> list[tuple[int, int]]:
    """Runs of region numbers [first, last) of which every page is in the set: at most so many, the
    longest ones, ascending, each of at least so many regions."""
    keys = pages.keys[np.bitwise_and.reduce(pages.words, axis=1) == _ONES].astype(np.int64)
    if len(keys) < least:
        return []
    first, last = int(keys[0]), int(keys[-1]) + 1
    if last - first == len(keys):
        return [(first, last)]
    firsts, lasts = _runs(keys, 1)
    longest = np.argsort(firsts - lasts, kind="stable")[:most]
    chosen = np.sort(longest[(lasts - firsts)[longest] >= least])
    return list(zip(firsts[chosen].tolist(), lasts[chosen].tolist(), strict=True))


def spans(pages: PageSet, gap: int = 2) -> list[tuple[int, int]]:
    """Runs of region numbers [first, last) that cover the pages, joined over small gaps."""
    keys = pages.keys[pages.words.any(axis=1)].astype(np.int64)
    if len(keys) == 0:
        return []
    firsts, lasts = _runs(keys, gap)
    return list(zip(firsts.tolist(), lasts.tolist(), strict=True))


def _runs(
    keys: npt.NDArray[np.int64], gap: int
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """First keys, and last keys plus 1, of the runs of ascending keys (at least one) that lie no
    more than a gap apart."""
    cuts = np.flatnonzero(np.diff(keys) > gap)
    firsts = keys[np.concatenate(([0], cuts + 1))]
    lasts = keys[np.concatenate((cuts, [len(keys) - 1]))] + 1
    return firsts, lasts


Bools = npt.NDArray[np.bool_]


def runs_of(pages: U64) -> tuple[U64, U64]:
    """Ascending pages as runs: first pages and lengths."""
    if len(pages) == 0:
        return pages, pages
    breaks = np.flatnonzero(pages[1:] != pages[:-1] + np.uint64(1)) + 1
    at = np.concatenate(([0], breaks, [len(pages)]))
    return pages[at[:-1]], np.diff(at).astype(np.uint64)
