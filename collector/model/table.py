"""Points of single rounds' curves, side by side: a table of rounds by time, and runs by their length."""

from __future__ import annotations

import itertools
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
from redirty.collector.model.observed import ALL, Observed, Points

Floats = npt.NDArray[np.float64]

_AN_OCTAVE = 8  # columns
_ROUNDS = 256  # rows at most, the latest ones
_SHORT = 0.9  # a round shorter than this part of the usual one is none to take the end from


@dataclass(frozen=True, eq=False)
class Level:
    """Runs of a number of rounds. values: (n,) distinct pages of each; elapsed_s, new_pages, by_class: means."""

    elapsed_s: float
    values: Floats
    new_pages: float
    by_class: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class Table:
    """times: (c,) inside a round; inside: (r, c) pages written until then, NaN where the round was
    shorter. levels: single rounds, then runs, ascending; at least one."""

    times: Floats
    inside: Floats
    levels: tuple[Level, ...]


def tabulate(seen: Observed, first: int) -> Table:
    """Of the rounds from index `first` on."""
    duration_s = seen.duration_s[first:]
    usual = float(np.median(duration_s))
    points = seen.points.chosen(seen.points.number >= seen.number[first])
    whole = points.chosen(points.mapping_class == ALL)
    if not len(whole.number):
        return _from_averages(seen, first, usual)
    excess = _raced(seen, first, whole)
    times, inside = _inside(seen, first, usual, whole, excess)
    return Table(times, inside, _levels(seen, points, usual, excess, first))


def _from_averages(seen: Observed, first: int, usual: float) -> Table:
    """An older recording: rounds by their totals, and the average curve inside them."""
    duration_s, dirty = seen.duration_s[first:], seen.dirty[first:]
    values = dirty * (usual / duration_s)
    level = Level(usual, values, float((dirty - seen.redirtied[first:]).mean()))
    times, shape = seen.average if seen.average is not None else (np.empty(0), np.empty(0))
    used = (times > 0) & (times < usual * (1 - 1e-9))
    if not used.any() or shape[-1] <= 0:
        return Table(np.empty(0), np.empty((len(values), 0)), (level,))
    return Table(times[used], np.outer(values, shape[used] / shape[-1]), (level,))


def _raced(seen: Observed, first: int, whole: Points) -> Floats:
    """By round from `first` on, pages in its log that were written while it was armed, each before it
    was protected itself: they belong to the round before alone. None of them was written in that one
    before, so they come at the rate at which new pages come at a round's end, for half of the arm."""
    duration_s, dirty = seen.duration_s[first:], seen.dirty[first:]
    at = np.searchsorted(seen.number[first:], whole.number)
    share = whole.elapsed_s / duration_s[at]
    late = (whole.rounds == 0) & (share >= 0.4) & (share <= 0.6)
    half_s, half = np.zeros(len(dirty)), dirty.copy()
    half_s[at[late]], half[at[late]] = whole.elapsed_s[late], whole.dirty[late]
    slope = np.maximum(dirty - half, 0.0) / (duration_s - half_s)
    found: Floats = np.minimum(slope * seen.arm_s[first:] / 2, dirty / 2)
    return found


def _inside(
    seen: Observed, first: int, usual: float, whole: Points, excess: Floats
) -> tuple[Floats, Floats]:
    """(times, pages by round and time)."""
    numbers = seen.number[first:][-_ROUNDS:]
    points = whole.chosen((whole.rounds <= 1) & (whole.number >= numbers[0]))
    order = np.lexsort((points.elapsed_s, points.number))
    number, t, pages = points.number[order], points.elapsed_s[order], points.dirty[order]
    if not len(number):
        return np.empty(0), np.empty((0, 0))
    pages = np.maximum(pages - excess[np.searchsorted(seen.number[first:], number)], 0.0)
    least = max(float(t.min()), usual * 1e-6)
    count = max(2, int(np.ceil(np.log2(usual / least) * _AN_OCTAVE)) + 1)
    if least >= usual:  # nothing is known but the ends
        return np.empty(0), np.empty((0, 0))
    times = np.geomspace(least, usual, count)[:-1]
    starts = np.flatnonzero(np.append(True, number[1:] != number[:-1]))
    bounds = [*starts.tolist(), len(number)]
    rows = np.full((len(starts), len(times)), np.nan)
    for row, (a, b) in enumerate(itertools.pairwise(bounds)):
        there = int(np.searchsorted(times, t[b - 1], side="right"))
        rows[row, :there] = np.interp(times[:there], t[a:b], pages[a:b])
        if t[a] > times[0]:  # from nothing to the first point
            before = times[:there] < t[a]
            rows[row, :there][before] = pages[a] * times[:there][before] / t[a]
    reached = ~np.isnan(rows).all(axis=0)
    return times[reached], rows[:, reached]


def _levels(
    seen: Observed, points: Points, usual: float, excess: Floats, first: int
) -> tuple[Level, ...]:
    """Rounds, and runs of them, by their length. In a run of more than 2^j rounds that begins where one
    of 2^j does, pages are counted by how many times as many they are: so few long runs tell how the
    curve goes on, and the many short ones how high it is."""
    whole_runs = (points.rounds > 0) & (points.elapsed_s >= usual * _SHORT * points.rounds)
    whole = points.chosen(whole_runs & (points.mapping_class == ALL))
    order = np.lexsort((whole.number, whole.rounds))
    number, rounds, elapsed_s = whole.number[order], whole.rounds[order], whole.elapsed_s[order]
    dirty = whole.dirty[order]
    raced = excess[np.searchsorted(seen.number[first:], number)]
    pages, new = np.maximum(dirty - raced, 0.0), np.maximum(dirty - whole.redirtied[order], 0.0)
    classes = points.chosen(whole_runs & (points.mapping_class != ALL))
    lengths, starts = np.unique(rounds, return_index=True)
    sums = np.zeros((len(lengths), len(seen.classes)))
    known = np.isin(classes.rounds, lengths)
    at_length = np.searchsorted(lengths, classes.rounds[known])
    np.add.at(sums, (at_length, classes.mapping_class[known]), classes.dirty[known])
    found: list[Level] = []
    bases: dict[int, tuple[npt.NDArray[np.int64], Floats, float]] = {}
    bounds = [*starts.tolist(), len(number)]
    for row, length in enumerate(lengths.tolist()):
        part = slice(bounds[row], bounds[row + 1])
        values, scale = pages[part], 1.0
        base = bases.get(1 << (length - 1).bit_length() - 1) if length > 1 else None
        if base is not None:
            numbers, below, mean = base
            at = np.minimum(np.searchsorted(numbers, number[part]), len(numbers) - 1)
            same = numbers[at] == number[part]
            total = float(below[at[same]].sum())
            if total > 0:
                scale = mean * int(same.sum()) / total
                values = values[same] * scale
        count = bounds[row + 1] - bounds[row]
        by_class = {
            name: float(one) * scale / count
            for name, one in zip(seen.classes, sums[row].tolist(), strict=True)
            if one > 0
        }
        found.append(
            Level(float(elapsed_s[part].mean()), values, float(new[part].mean()) * scale, by_class)
        )
        if length & (length - 1) == 0:
            bases[length] = (number[part], pages[part], float(values.mean()))
    if not found:
        values = seen.dirty[-1:]
        found.append(Level(usual, values, float(seen.dirty[-1] - seen.redirtied[-1])))
    return tuple(found)
