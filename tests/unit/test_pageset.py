"""Tests of page sets, compared with Python's own sets."""

from __future__ import annotations

import tracemalloc
from collections.abc import Iterable

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from redirty.collector import pageset
from redirty.collector.pageset import PageSet

LAST_PAGE = (1 << 45) - 1  # of an address space of 57 bits

# Few regions, so that sets meet; the first and the last there are, and neighbours of regions.
_REGIONS = st.sampled_from([0, 1, 2, 5, 6, (1 << 26) - 1, 1 << 26, (1 << 36) - 2, (1 << 36) - 1])
_PAGE = st.builds(lambda region, page: region * 512 + page, _REGIONS, st.integers(0, 511))
_PAGES = st.sets(_PAGE, max_size=80)


def u64(values: Iterable[int]) -> pageset.U64:
    return np.array(list(values), np.uint64)


def made(pages: Iterable[int]) -> PageSet:
    return pageset.from_pages(u64(pages))


def listed(pages: PageSet) -> list[int]:
    """Check the shape of a set and return its pages."""
    assert pages.words.shape == (len(pages.keys), 8)
    assert (np.diff(pages.keys.astype(object)) > 0).all(), "region numbers ascend, each once"
    found: list[int] = pageset.page_numbers(pages).tolist()
    return found


@st.composite
def half_open_ranges(draw: st.DrawFn) -> list[tuple[int, int]]:
    """Draw ascending ranges that do not overlap; some empty, some adjacent, some over many regions."""
    base = draw(st.sampled_from([0, 63, 511, (1 << 36) - 7, (1 << 45) - 20_000]))
    found = []
    for gap, length in draw(
        st.lists(
            st.tuples(
                st.sampled_from([0, 1, 2, 63, 64, 65, 500, 1500]),
                st.sampled_from([0, 1, 2, 63, 64, 65, 511, 512, 513, 1600]),
            ),
            max_size=8,
        )
    ):
        found.append((base + gap, base + gap + length))
        base = found[-1][1]
    return found


@given(st.lists(_PAGE, max_size=120))
def test_from_pages_takes_any_order_and_repetition(pages: list[int]) -> None:
    found = made(pages)
    assert listed(found) == sorted(set(pages))
    assert len(found) == len(set(pages))


@given(half_open_ranges())
def test_from_ranges(ranges: list[tuple[int, int]]) -> None:
    found = pageset.from_ranges(u64(a for a, _ in ranges), u64(b for _, b in ranges))
    assert listed(found) == [page for a, b in ranges for page in range(a, b)]


@given(_PAGES, _PAGES)
def test_operators_are_those_of_sets(a: set[int], b: set[int]) -> None:
    left, right = made(a), made(b)
    before = left.words.copy(), right.words.copy()
    assert listed(left | right) == sorted(a | b)
    assert listed(left & right) == sorted(a & b)
    assert listed(left - right) == sorted(a - b)
    assert np.array_equal(left.words, before[0]), "the operands are unchanged"
    assert np.array_equal(right.words, before[1])


@given(_PAGES, _PAGES)
def test_operators_drop_no_region_they_should_keep(a: set[int], b: set[int]) -> None:
    """Chained operators, as the round protocol uses them, accept operands with empty rows."""
    left, right = made(a), made(b)
    only_one = (left - right) | (right - left)
    assert listed(only_one) == sorted(a ^ b)
    assert listed((left | right) - (left & right)) == sorted(a ^ b)
    assert only_one == (left | right) - (left & right)


@given(_PAGES)
def test_runs_are_maximal(pages: set[int]) -> None:
    starts, ends = pageset.page_runs(made(pages))
    covered = [p for a, b in zip(starts.tolist(), ends.tolist(), strict=True) for p in range(a, b)]
    assert covered == sorted(pages)
    assert all(b < a for b, a in zip(ends.tolist(), starts.tolist()[1:], strict=False))
    assert pageset.count_runs(made(pages)) == len(starts)


@given(_PAGES, st.lists(st.tuples(_PAGE, st.integers(0, 2000)), max_size=12))
def test_count_in(pages: set[int], places: list[tuple[int, int]]) -> None:
    """Ranges may be in any order, overlap, and reach to the very end of the address space."""
    bounds = [(a, min(a + length, LAST_PAGE + 1)) for a, length in places]
    counts = pageset.count_in(made(pages), u64(a for a, _ in bounds), u64(b for _, b in bounds))
    assert counts.tolist() == [sum(a <= page < b for page in pages) for a, b in bounds]


@given(_PAGES, half_open_ranges())
def test_within(pages: set[int], ranges: list[tuple[int, int]]) -> None:
    bounds = np.array(ranges, np.uint64).reshape(-1, 2)
    found = pageset.within(made(pages), bounds[:, 0], bounds[:, 1])
    assert listed(found) == sorted(p for p in pages if any(a <= p < b for a, b in ranges))
    assert (np.diff(found.keys.astype(np.int64)) > 0).all()


def test_within_takes_no_memory_for_the_ranges() -> None:
    """A range as large as the 20 TiB that a sanitizer reserves takes no memory."""
    pages, reserved = made([7, 1 << 30, 1 << 33]), (u64([1]), u64([1 << 32]))
    tracemalloc.start()
    found = pageset.within(pages, *reserved)
    _, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert listed(found) == [7, 1 << 30]
    assert most < 1 << 16


@given(_PAGES)
def test_matrix_has_a_row_for_each_region(pages: set[int]) -> None:
    found = made(pages)
    rows = pageset.matrix(found)
    assert rows.shape == (len(found.keys), 512)
    expected = {(page // 512, page % 512) for page in pages}
    row, column = np.nonzero(rows)
    assert set(zip(found.keys[row].tolist(), column.tolist(), strict=True)) == expected


@given(_PAGES, st.randoms(use_true_random=False))
def test_from_rows_takes_a_drained_map_in_any_order(pages: set[int], random: object) -> None:
    whole = made(pages)
    order = list(range(len(whole.keys)))
    random.shuffle(order)  # type: ignore[attr-defined]
    shuffled = pageset.from_rows(whole.keys[order], whole.words[order])
    assert shuffled == whole
    assert listed(shuffled) == sorted(pages)


@given(_PAGES, st.sets(_REGIONS, max_size=4))
def test_rows_without_a_page_make_no_difference(pages: set[int], regions: set[int]) -> None:
    plain = made(pages)
    extra = sorted(regions - set(plain.keys.tolist()))
    padded = pageset.from_rows(
        np.concatenate((plain.keys, u64(extra))),
        np.concatenate((plain.words, np.zeros((len(extra), 8), np.uint64))),
    )
    assert padded == plain
    assert plain == padded
    assert len(padded) == len(plain)
    assert listed(pageset.drop_empty(padded)) == sorted(pages)
    assert len(pageset.drop_empty(padded).keys) == len({page // 512 for page in pages})
    assert (padded | plain) == plain
    assert (padded & plain) == plain
    assert len(padded - plain) == 0


@given(_PAGES, _PAGES)
def test_equality(a: set[int], b: set[int]) -> None:
    assert (made(a) == made(b)) == (a == b)


def test_a_set_is_not_equal_to_something_else() -> None:
    assert pageset.empty() != set()


def test_the_ends_of_the_address_space() -> None:
    pages = [0, 511, 512, LAST_PAGE - 512, LAST_PAGE]
    found = made(pages)
    assert listed(found) == pages
    assert found.keys.tolist() == [0, 1, (1 << 36) - 2, (1 << 36) - 1]
    starts, ends = pageset.page_runs(found)
    assert ends.tolist()[-1] == LAST_PAGE + 1
    assert pageset.count_in(found, u64([0]), u64([LAST_PAGE + 1])).tolist() == [5]
    assert listed(pageset.from_ranges(starts, ends)) == pages


def test_empty() -> None:
    nothing = pageset.empty()
    assert len(nothing) == 0
    assert listed(nothing) == []
    assert nothing == made([]) == pageset.from_ranges(u64([7]), u64([7]))
    assert [a.tolist() for a in pageset.page_runs(nothing)] == [[], []]
    assert pageset.count_in(nothing, u64([0, 5]), u64([9, 6])).tolist() == [0, 0]
    assert pageset.matrix(nothing).shape == (0, 512)
    assert listed(nothing | made([3])) == listed(made([3]) - nothing) == [3]
    assert listed(nothing & made([3])) == listed(nothing - made([3])) == []


def test_pages_in_covered_regions() -> None:
    of = pageset.from_ranges(
        np.array([0, 512, 1024], np.uint64), np.array([100, 1024, 1030], np.uint64)
    )
    part = pageset.from_ranges(
        np.array([0, 512, 1024], np.uint64), np.array([100, 1023, 1536], np.uint64)
    )
    assert pageset.pages_in_covered_regions(part, of, 64) == 100 + 512
    assert pageset.pages_in_covered_regions(part, of, 101) == 512
    assert pageset.pages_in_covered_regions(pageset.empty(), of, 1) == 0
    assert pageset.pages_in_covered_regions(part, pageset.empty(), 1) == 0


@given(_PAGES, st.integers(-2000, 2000) | st.sampled_from([-(1 << 40), 1 << 30, 512, -64]))
def test_shifted(pages: set[int], by: int) -> None:
    pages = {p for p in pages if p + by >= 0}
    assert listed(pageset.shifted(made(pages), by)) == sorted(p + by for p in pages)
