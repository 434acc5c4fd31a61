"""Tests of sums over rounds: compared with dictionaries, and with closed forms of W(t)."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from redirty.collector.bpf import abi
from redirty.collector.metrics.page_counts import Curve, CurveSum, PageHistory, rates
from redirty.collector.pageset import from_pages

_REGIONS = st.sampled_from([3, 4, 9, 1 << 30])
_PAGES = st.sets(st.builds(lambda r, p: r * 512 + p, _REGIONS, st.integers(0, 511)), max_size=20)


@dataclass
class Counted:
    """Expected counters of a page."""

    dirty: int = 0
    redirtied: int = 0
    faults: int = 0
    runs: int = 0
    rounds: list[int] = field(default_factory=list)


def pages_of(pages: set[int]) -> npt.NDArray[np.uint64]:
    return np.array(sorted(pages), np.uint64)


@given(
    st.lists(st.tuples(_PAGES, st.integers(0, 3)), max_size=8),
    st.lists(st.integers(1, 5), min_size=8, max_size=8),
)
def test_page_counts_are_those_of_a_dictionary(
    rounds: list[tuple[set[int], int]], steps: list[int]
) -> None:
    counts = PageHistory()
    model: dict[int, Counted] = {}
    number = -1
    for (dirty, divisor), step in zip(rounds, steps, strict=False):
        number += step
        redirtied = {p for p in dirty if divisor and p % divisor == 0}
        logged = {p for p in dirty if (p + number) % 3}
        counts.add(
            number,
            from_pages(pages_of(dirty)),
            from_pages(pages_of(redirtied)),
            from_pages(pages_of(logged)),
            from_pages(pages_of({p for p in dirty if p % 4 > 1})),
        )
        for page in dirty:
            entry = model.setdefault(page, Counted())
            entry.dirty += 1
            entry.redirtied += page in redirtied
            entry.faults += page in logged
            entry.runs += page % 4 > 1
            entry.rounds.append(number)
    table = counts.table()
    assert table["page"].tolist() == sorted(model)
    for column, values in (
        ("dirty", [model[p].dirty for p in sorted(model)]),
        ("redirtied", [model[p].redirtied for p in sorted(model)]),
        ("faults", [model[p].faults for p in sorted(model)]),
        ("first", [model[p].rounds[0] for p in sorted(model)]),
        ("runs", [model[p].runs for p in sorted(model)]),
        ("last", [model[p].rounds[-1] for p in sorted(model)]),
    ):
        assert table[column].tolist() == values, column


def test_page_counts_of_nothing() -> None:
    table = PageHistory().table()
    assert all(len(column) == 0 for column in table.values())


# ---- the write curve ----


def histogram(w_of_t: npt.NDArray[np.float64]) -> npt.NDArray[np.uint64]:
    """Return pages by slot for a curve given at the upper edge of each slot.

    Rounded so that the running total is within half a page of the curve everywhere.
    """
    return np.diff(np.round(w_of_t), prepend=0.0).astype(np.uint64)


def curve_of(w_of_t: npt.NDArray[np.float64], durations: list[float], end: list[int]) -> Curve:
    total = CurveSum()
    for duration, dirty in zip(durations, end, strict=True):
        inside = np.minimum(w_of_t, dirty)
        total.add(histogram(inside), duration, dirty)
    return total.curve()


def at(curve: Curve) -> npt.NDArray[np.float64]:
    """Return all points but the last, which is the mean round and not the edge of a slot."""
    return curve.elapsed_s[:-1]


@pytest.mark.parametrize(("pages", "rate"), [(16384, 8000.0), (500, 100_000.0), (10**6, 3e5)])
def test_cyclic_writer(pages: int, rate: float) -> None:
    """The curve of a cyclic writer is min(S, P t)."""
    edges_s = abi.hist_edges_ns() / 1e9
    duration = 1.0
    end = int(min(pages, rate * duration))
    curve = curve_of(np.minimum(pages, rate * edges_s), [duration] * 3, [end] * 3)
    expected = np.minimum(pages, rate * at(curve))
    assert np.abs(curve.unique_dirty_pages[:-1] - expected).max() <= 0.5
    assert curve.unique_dirty_pages[-1] == end
    assert curve.elapsed_s[-1] == pytest.approx(duration)
    assert len(curve.elapsed_s) > 100, "a curve this long has points to show for it"


@pytest.mark.parametrize(("pages", "rate"), [(16384, 8000.0), (2000, 50_000.0)])
def test_uniform_writer(pages: int, rate: float) -> None:
    """The curve of a uniform random writer is S (1 - (1 - 1/S)^(P t))."""

    def w(t: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        expected: npt.NDArray[np.float64] = -pages * np.expm1(rate * t * np.log1p(-1 / pages))
        return expected

    edges_s = abi.hist_edges_ns() / 1e9
    end = round(float(w(np.array([2.0]))[0]))
    curve = curve_of(w(edges_s), [2.0, 2.0], [end, end])
    assert np.abs(curve.unique_dirty_pages[:-1] - w(at(curve))).max() <= 0.5
    assert curve.unique_dirty_pages[-1] == end


def test_rounds_of_other_lengths_count_where_they_reach() -> None:
    """A short round does not count for times after its end."""
    edges_s = abi.hist_edges_ns() / 1e9
    rate = 10_000.0
    total = CurveSum()
    for duration in (0.5, 1.0, 1.5):
        dirty = int(rate * duration)
        total.add(histogram(np.minimum(rate * edges_s, dirty)), duration, dirty)
    curve = total.curve()
    assert np.abs(curve.unique_dirty_pages[:-1] - rate * at(curve)).max() <= 0.5
    assert curve.elapsed_s[-1] == pytest.approx(1.0)
    assert curve.unique_dirty_pages[-1] == pytest.approx(10_000)


def test_missed_pages_are_spread_like_the_logged_ones() -> None:
    edges_s = abi.hist_edges_ns() / 1e9
    total = CurveSum()
    total.add(histogram(np.minimum(1000, 1000 * edges_s)), 1.0, 2000)
    curve = total.curve()
    assert np.abs(curve.unique_dirty_pages[:-1] - 2000 * at(curve)).max() <= 1.0
    assert curve.unique_dirty_pages[-1] == 2000


def test_no_rounds_no_curve() -> None:
    curve = CurveSum().curve()
    assert len(curve.elapsed_s) == len(curve.unique_dirty_pages) == 0


def test_a_round_without_a_logged_page_has_its_pages_at_its_end() -> None:
    total = CurveSum()
    total.add(np.zeros(abi.HIST, np.uint64), 1.0, 40)
    curve = total.curve()
    assert curve.elapsed_s.tolist() == [1.0]
    assert curve.unique_dirty_pages.tolist() == [40.0]


@st.composite
def one_round(draw: st.DrawFn) -> tuple[npt.NDArray[np.uint64], float, int]:
    """Draw a histogram as the kernel side fills it: empty after the end of the round."""
    duration = draw(st.sampled_from([0.001, 0.1, 0.1003, 1.0, 60.0]))
    last = int(np.searchsorted(abi.hist_edges_ns() / 1e9, duration, side="right"))
    hist = np.zeros(abi.HIST, np.uint64)
    for slot, pages in draw(
        st.dictionaries(st.integers(0, last), st.integers(1, 5000), max_size=12)
    ).items():
        hist[slot] = pages
    missed = draw(st.sampled_from([0, 0, 7, 100_000]))
    return hist, duration, int(hist.sum()) + missed


@settings(max_examples=200)
@given(st.lists(one_round(), min_size=1, max_size=6))
def test_a_curve_never_falls_and_ends_at_the_mean(
    rounds: list[tuple[npt.NDArray[np.uint64], float, int]],
) -> None:
    total = CurveSum()
    for hist, duration, dirty in rounds:
        total.add(hist, duration, dirty)
    curve = total.curve()
    mean_dirty = float(np.mean([dirty for _, _, dirty in rounds]))
    mean_s = float(np.mean([duration for _, duration, _ in rounds]))
    assert curve.elapsed_s[-1] == pytest.approx(mean_s)
    assert curve.unique_dirty_pages[-1] == pytest.approx(mean_dirty)
    assert (np.diff(curve.elapsed_s) > 0).all()
    assert (np.diff(curve.unique_dirty_pages) >= -1e-6).all()
    assert (curve.unique_dirty_pages >= 0).all()


def test_rates() -> None:
    found = rates(dirty=300, redirtied=200, write_faults=450, duration_s=0.5)
    assert (found.dirty_pages, found.redirtied_pages) == (600, 400)
    assert (found.new_pages, found.write_faults) == (200, 900)
    assert rates(1, 1, 1, 0.0).dirty_pages == 0
