"""Tests of the fit against writers with known curves.

Within 3 % of the formula over three decades of t; and the extrapolation, interval, growth and phases.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
from redirty.collector.model import change_points
from redirty.collector.model.extrapolation import fit_mixture
from redirty.collector.model.fit import FLOOR, Fit, fit
from redirty.collector.model.observations import ALL, Observations, Points
from redirty.collector.model.predict import answer
from redirty.collector.model.prediction import CONVERGES, DOES_NOT, UNCERTAIN, Question
from redirty.collector.model.write_curve import smooth

from tests.support.known_writers import (
    PAGE,
    Known,
    cyclic,
    hot_and_cold,
    record,
    uniform,
    zipf,
)

PRESENT = 131072
WRITERS = (
    # writer, rounds, seconds each
    (cyclic(16384, 8000.0), 16, 1.0),
    (cyclic(16384, 8000.0), 64, 0.1),
    (cyclic(500, 40_000.0), 32, 0.25),
    (uniform(20000, 50_000.0), 16, 0.5),
    (uniform(20000, 20_000.0), 64, 0.1),
    (uniform(300, 30_000.0), 32, 0.25),
    (zipf(50_000, 40_000.0), 16, 0.5),
    (zipf(50_000, 40_000.0, 0.7), 32, 0.25),
    (hot_and_cold(2000, 60_000, 40_000.0), 16, 0.5),
)
NAMES = [f"{known.name}-{rounds}x{interval_s:g}s" for known, rounds, interval_s in WRITERS]


def errors(found: Fit, known: Known, times: np.ndarray) -> np.ndarray:
    """Return the relative errors of a fit at some times."""
    curve = np.array([found.curve(t) for t in times])
    return curve / known.curve(times) - 1


@pytest.mark.parametrize(("known", "rounds", "interval_s"), WRITERS, ids=NAMES)
def test_within_3_percent_over_three_decades(known: Known, rounds: int, interval_s: float) -> None:
    found = fit(record(known, rounds, interval_s, PRESENT))
    last_s = rounds * interval_s
    times = np.geomspace(last_s / 1000, last_s, 300)
    worst = errors(found, known, times)
    at = int(np.abs(worst).argmax())
    assert abs(worst[at]) < 0.03, f"{worst[at]:+.2%} at {times[at]:.4g} s"
    assert found.changes == ()


@pytest.mark.parametrize(("known", "rounds", "interval_s"), WRITERS, ids=NAMES)
def test_extrapolation_beyond_what_was_measured(
    known: Known, rounds: int, interval_s: float
) -> None:
    """The curve is within 5 % twice as far out, and the truth within the interval ten times as far."""
    found = fit(record(known, rounds, interval_s, PRESENT))
    last_s = rounds * interval_s
    assert abs(errors(found, known, np.array([2 * last_s]))[0]) < 0.05
    for t in np.geomspace(last_s, 10 * last_s, 10):
        true = float(known.curve(np.array([t]))[0])
        assert found.low(t) <= true <= found.high(t)
        assert found.low(t) <= found.curve(t) * (1 + 1e-9) <= found.high(t) * (1 + 2e-9)


def test_two_phases_of_a_writer() -> None:
    """Only the later phase counts, and the change is noted."""
    first, second = (
        record(cyclic(16384, 8000.0), 24, 0.5, PRESENT),
        record(uniform(4000, 2000.0), 16, 0.5, PRESENT),
    )
    found = fit(joined(first, second))
    assert found.changes == (24,)
    assert (found.first_round, found.rounds, found.rounds_seen) == (24, 16, 40)
    assert "changed in round 24, from 8000 to" in found.notes[0]
    times = np.geomspace(0.008, 8.0, 100)
    assert np.abs(errors(found, uniform(4000, 2000.0), times)).max() < 0.04


def joined(first: Observations, second: Observations) -> Observations:
    """Append one recording to another, without the windows that span both."""
    shift = first.rounds
    later = dataclasses.replace(second.points, number=second.points.number + shift)
    fields = {
        f.name: np.concatenate((getattr(first.points, f.name), getattr(later, f.name)))
        for f in dataclasses.fields(Points)
    }
    rows: dict[str, Any] = {
        name: np.concatenate((getattr(first, name), getattr(second, name)))
        for name in ("duration_s", "arm_s", "present", "dirty", "redirtied", "missed")
    }
    number = np.arange(shift + second.rounds)
    return dataclasses.replace(first, number=number, points=Points(**fields), **rows)


@pytest.mark.parametrize(
    ("rate", "first", "changes", "comes_back"),
    [
        ([100.0] * 30, 0, 0, False),
        ([100.0] * 2, 0, 0, False),
        ([0.0] * 30, 0, 0, False),
        ([100.0] * 20 + [300.0] * 10, 20, 1, False),
        ([100.0] * 20 + [0.0] * 10, 20, 1, False),
        ([100.0] * 100 + [300.0] * 5, 0, 1, False),
        (([100.0] * 10 + [300.0] * 10) * 3, 0, 5, True),
        ([100.0, 300.0] * 20, 0, 0, False),
        ([100.0] * 10 + [110.0] * 10, 0, 0, False),
    ],
)
def test_phases(rate: list[float], first: int, changes: int, comes_back: bool) -> None:
    noise = np.random.default_rng(5).normal(1, 0.02, len(rate))
    found = change_points.find(np.array(rate) * noise)
    assert (found.first, len(found.changes), found.comes_back) == (first, changes, comes_back)


def test_a_change_at_the_very_end_is_noted_and_ignored() -> None:
    first = record(cyclic(16384, 8000.0), 96, 0.1, PRESENT)
    found = fit(joined(first, record(cyclic(16384, 2000.0), 5, 0.1, PRESENT)))
    assert (found.first_round, found.rounds) == (0, 101)
    assert "changed in round 96, too late" in found.notes[0]


def test_one_round() -> None:
    found = fit(record(cyclic(16384, 8000.0), 1, 1.0, PRESENT))
    assert found.curve(0.5) == pytest.approx(4000, rel=0.01)
    assert (found.low(0.5), found.high(0.5)) == pytest.approx((2000, 6000), rel=0.01)
    assert "a single round does not show" in found.notes[0]


def test_an_idle_target() -> None:
    seen = record(cyclic(16384, 8000.0), 4, 0.5, PRESENT)
    zeros = np.zeros(4)
    nothing = dataclasses.replace(
        seen.points, dirty=seen.points.dirty * 0, redirtied=seen.points.redirtied * 0
    )
    found = fit(dataclasses.replace(seen, dirty=zeros, redirtied=zeros, points=nothing))
    assert [f(t) for f in (found.curve, found.high) for t in (0.1, 100.0)] == [0.0] * 4


def test_no_round() -> None:
    seen = record(cyclic(100, 100.0), 2, 1.0, PRESENT)
    empty = np.empty(0)
    with pytest.raises(ValueError):
        fit(dataclasses.replace(seen, number=np.empty(0, np.int64), dirty=empty, duration_s=empty))


def test_steady_rounds_have_the_narrowest_interval() -> None:
    found = fit(record(cyclic(16384, 8000.0), 32, 0.5, PRESENT))
    for t in (0.1, 0.5, 4.0):
        assert found.low(t) == pytest.approx(found.curve(t) * (1 - FLOOR), rel=0.005)
        assert found.high(t) == pytest.approx(found.curve(t) * (1 + FLOOR), rel=0.005)


def test_rounds_that_differ_widen_the_interval() -> None:
    """Bursts in every other round, with three times the writes, widen the interval."""
    quiet, busy = (record(cyclic(10**6, rate), 40, 0.5, PRESENT) for rate in (4000.0, 12_000.0))
    odd = quiet.points.number % 2 == 1
    whole = quiet.points.rounds <= 1
    mixed = np.where(odd, busy_at(busy, quiet), quiet.points.dirty)
    seen = dataclasses.replace(
        quiet,
        dirty=np.where(quiet.number % 2 == 1, busy.dirty, quiet.dirty),
        points=dataclasses.replace(quiet.points, dirty=mixed).chosen(whole),
    )
    found = fit(seen)
    assert found.curve(0.25) == pytest.approx(2000, rel=0.01)
    assert found.low(0.25) == pytest.approx(1000, rel=0.02)
    assert found.high(0.25) == pytest.approx(3000, rel=0.02)
    assert found.changes == (), "alternating rates are not a change"


def busy_at(busy: Observations, quiet: Observations) -> np.ndarray:
    """Return the busy writer's pages at the quiet one's points: it writes three times as fast."""
    assert busy.rounds == quiet.rounds
    return quiet.points.dirty * 3


def test_growth_is_apart_from_what_is_written_again() -> None:
    """A cyclic writer over 1,000 pages plus 500 new pages a second are told apart."""
    seen = record(cyclic(1000, 10_000.0), 16, 0.5, 50_000)
    points = seen.points
    known = points.rounds > 0
    seen = dataclasses.replace(
        seen,
        dirty=seen.dirty + 250,
        points=dataclasses.replace(
            points,
            dirty=points.dirty + 500 * points.elapsed_s,
            redirtied=np.where(known, points.dirty, np.nan),
        ),
    )
    found = fit(seen)
    assert found.growth_per_s == pytest.approx(500, rel=0.01)
    assert found.present == pytest.approx(50_250)
    for t in (8.0, 80.0, 8000.0):
        assert found.curve(t) == pytest.approx(1000 + 500 * t, rel=0.02)
        assert found.high(t) >= found.curve(t)


def test_re_dirtied_pages_never_exceed_those_that_are_there() -> None:
    found = fit(record(cyclic(10**9, 8000.0), 16, 0.5, PRESENT))
    assert found.growth_per_s == 0
    assert found.curve(10.0) == pytest.approx(80_000, rel=0.01)
    assert found.curve(1e4) == PRESENT
    assert found.high(1e4) <= PRESENT * (1 + FLOOR)


def test_missed_pages_widen_the_interval() -> None:
    seen = record(cyclic(16384, 8000.0), 32, 0.5, PRESENT)
    found = fit(dataclasses.replace(seen, missed=seen.dirty * 0.2))
    assert "20% of the dirty pages were found by the scan alone" in found.notes[0]
    assert found.low(0.1) == pytest.approx(800 * 0.97 * 0.8, rel=0.02)
    assert found.high(0.1) >= 800 * 1.2
    assert found.low(4.0) == pytest.approx(16384 * 0.97, rel=0.1), "sets of pages are whole"


def test_pages_written_while_the_arm_passes_count_once() -> None:
    """Pages written during an arm of 100 ms before they are protected count for the old round alone.

    They are in the log of the new round and in the scan of the old one.
    """
    seen = record(cyclic(10**6, 8000.0), 16, 0.5, PRESENT)
    arm_s = 0.1
    early = 8000 * arm_s / 2
    points = seen.points
    shifted = dataclasses.replace(
        points,
        dirty=points.dirty + np.where(points.rounds == 0, early, early),
    )
    found = fit(
        dataclasses.replace(
            seen, arm_s=np.full(16, arm_s), dirty=seen.dirty + early, points=shifted
        )
    )
    for t in (0.05, 0.2, 0.5, 2.0):
        assert found.curve(t) == pytest.approx(8000 * t, rel=0.02)


def test_recordings_without_points() -> None:
    """A recording of an older redirty is fitted by totals of rounds and the average curve."""
    seen = record(cyclic(16384, 8000.0), 8, 1.0, PRESENT)
    times = np.geomspace(0.001, 1.0, 100)
    old = dataclasses.replace(seen, points=Points.none(), average=(times, 8000 * times))
    found = fit(old)
    for t in (0.01, 0.1, 1.0, 1.5):
        assert found.curve(t) == pytest.approx(8000 * t, rel=0.01)
    assert any("no curves.csv" in note for note in found.notes)
    bare = fit(dataclasses.replace(old, average=None))
    assert bare.curve(1.0) == pytest.approx(8000, rel=0.01)


def test_mapping_classes() -> None:
    """Curves of mapping classes are measured at the ends of windows, and inside a round have the shape of the whole."""
    seen = record(cyclic(16384, 8000.0), 16, 0.5, PRESENT)
    ends = seen.points.chosen(
        (seen.points.rounds > 0) & (seen.points.rounds & (seen.points.rounds - 1) == 0)
    )
    parts = [
        dataclasses.replace(
            ends, dirty=ends.dirty * share, mapping_class=np.full(len(ends.number), code)
        )
        for code, share in enumerate((0.75, 0.25))
    ]
    fields = {
        f.name: np.concatenate([getattr(p, f.name) for p in (seen.points, *parts)])
        for f in dataclasses.fields(Points)
    }
    found = fit(
        dataclasses.replace(seen, points=Points(**fields), classes=("anon_private", "file_shared"))
    )
    for t in (0.1, 0.5, 4.0):
        assert found.by_class["anon_private"](t) == pytest.approx(found.curve(t) * 0.75, rel=0.02)
        assert found.by_class["file_shared"](t) == pytest.approx(found.curve(t) * 0.25, rel=0.02)


# ---- parts ----


def test_a_mixture_finds_what_it_was_made_of() -> None:
    times = np.geomspace(0.01, 10, 80)
    made = 300 * -np.expm1(-times / 0.3125) + 4000 * -np.expm1(-times / 20.0)
    found = fit_mixture(times, made)
    for t in (20.0, 50.0, 100.0):
        more = 4000 * (np.exp(-10 / 20.0) - np.exp(-t / 20.0))
        assert found(t) == pytest.approx(more, rel=0.1)
    assert found(10.0) == pytest.approx(0)
    flat = fit_mixture(times, np.full(80, 100.0))
    assert flat(1000.0) == pytest.approx(0, abs=3)
    line = fit_mixture(times, 50 * times)
    assert line(100.0) == pytest.approx(50 * 90, rel=0.01)
    nothing = fit_mixture(times, np.zeros(80))
    assert nothing(1e6) == 0


def test_smooth_never_falls_and_goes_through_its_points() -> None:
    x = np.array([0.0, 1.0, 2.0, 3.0, 8.0])
    y = np.array([0.0, 10.0, 12.0, 12.0, 40.0])
    at = np.linspace(0, 8, 400)
    found = smooth(x, y, at)
    assert (np.diff(found) >= -1e-9).all()
    assert smooth(x, y, x).tolist() == pytest.approx(y.tolist())
    knee = smooth(np.array([0.0, 1.0, 2.0, 3.0, 4.0]), np.array([0, 8.0, 16, 16.4, 16.4]), at[:200])
    assert np.abs(knee[at[:200] < 2] - 8 * at[:200][at[:200] < 2]).max() < 1e-9


# ---- verdicts ----


@pytest.mark.parametrize("policy", ["redirty", "qemu"])
def test_near_the_critical_bandwidth_it_is_uncertain(policy: str) -> None:
    """Verdicts on a cyclic writer are certain beyond 10 % from the critical bandwidth, and uncertain within."""
    found = fit(record(cyclic(16384, 8000.0), 32, 0.5, PRESENT))
    critical = 8000 * PAGE * (1 if policy == "redirty" else (PAGE + 8) / PAGE)

    def verdict(share: float) -> str:
        return answer(found, Question(critical * share, 0.1, policy)).verdict

    assert verdict(1.13) == CONVERGES
    assert verdict(0.87) == DOES_NOT
    assert {verdict(share) for share in (0.95, 0.99, 1.01, 1.05)} == {UNCERTAIN}
    assert verdict(4.0) == CONVERGES
    assert verdict(0.3) == DOES_NOT


def test_classes_are_codes() -> None:
    seen = record(cyclic(100, 100.0), 2, 1.0, PRESENT)
    assert set(seen.points.mapping_class.tolist()) == {ALL}


@pytest.mark.parametrize("long_s", [1.0, 10.0, 100.0])
@pytest.mark.parametrize("seed", [1, 2])
def test_rounds_of_very_different_lengths_give_a_curve(long_s: float, seed: int) -> None:
    """On a busy machine windows of more rounds may be shorter on average than windows of fewer."""
    seen = record(uniform(20000, 20_000.0), 60, 0.1, PRESENT)
    duration_s = np.full(60, 0.1)
    duration_s[np.random.default_rng(seed).choice(60, 5, replace=False)] = long_s
    ends = np.append(0.0, np.cumsum(duration_s))
    points = seen.points
    whole = points.rounds > 0
    elapsed_s = points.elapsed_s.copy()
    first, last = points.number[whole], (points.number + points.rounds)[whole]
    elapsed_s[whole] = ends[last] - ends[first]
    every, by_class = (
        dataclasses.replace(points, elapsed_s=elapsed_s, mapping_class=np.full(len(whole), code))
        for code in (ALL, 0)
    )
    both = Points(
        *(
            np.concatenate(pair)
            for pair in zip(dataclasses.astuple(every), dataclasses.astuple(by_class), strict=True)
        )
    )
    found = fit(
        dataclasses.replace(seen, duration_s=duration_s, points=both, classes=("anon_private",))
    )
    assert (np.diff(found.by_class["anon_private"].elapsed_s) > 0).all()
    assert (np.diff(found.curve.elapsed_s) > 0).all()
    assert found.curve.measured_s > 1.0
    assert answer(found, Question(1e9, 0.3)).middle.passes
