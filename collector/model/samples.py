"""Points of single rounds' curves, side by side: a table of rounds by time, and runs by their length."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
from redirty.collector.model.observations import ALL, Observations, Points

Floats = npt.NDArray[np.float64]

_AN_OCTAVE = 8  # columns
_ROUNDS = 64  # rows at most, the latest ones
_SHORT = 0.9  # a round shorter than this part of the usual one is none to take the end from


@dataclass(frozen=True, eq=False)
class Level:
    """Runs of a number of rounds. values: (n,) distinct pages of each; elapsed_s, new_pages, by_class: means."""

    elapsed_s: float
    values: Floats
    new_pages: float
    by_class: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class Samples:
    """times: (c,) inside a round; inside: (r, c) pages written until then, NaN where the round was
    shorter. levels: single rounds, then runs, ascending; at least one."""

    times: Floats
    inside: Floats
    levels: tuple[Level, ...]


def tabulate(seen: Observations, first: int) -> Samples:
    """Of the rounds from index `first` on."""
    duration_s = seen.duration_s[first:]
    usual = float(np.median(duration_s))
    points = seen.points
    recent = int(seen.number[first:][-_ROUNDS:][0])
    near = points.chosen(
        (points.number >= recent) & (points.rounds <= 1) & (points.mapping_class == ALL)
    )
    if not len(near.number):
        return _from_averages(seen, first, usual)
    number, rows, times = _inside(near, usual)
    dirty = seen.dirty[first:]
    at = np.searchsorted(seen.number[first:], number)
    excess = _raced(dirty, seen.arm_s[first:], dirty[at], rows[:, -1], usual)
    inside = np.maximum(rows[:, :-1] - excess[at][:, None], 0.0)
    reached = ~np.isnan(inside).all(axis=0)
    ends = points.chosen((points.rounds > 0) & (points.number >= seen.number[first]))
    return Samples(
        times[:-1][reached], inside[:, reached], _levels(seen, ends, usual, excess, first)
    )


def _from_averages(seen: Observations, first: int, usual: float) -> Samples:
    """An older recording: rounds by their totals, and the average curve inside them."""
    duration_s, dirty = seen.duration_s[first:], seen.dirty[first:]
    values = dirty * (usual / duration_s)
    level = Level(usual, values, float((dirty - seen.redirtied[first:]).mean()))
    times, shape = seen.average if seen.average is not None else (np.empty(0), np.empty(0))
    used = (times > 0) & (times < usual * (1 - 1e-9))
    if not used.any() or shape[-1] <= 0:
        return Samples(np.empty(0), np.empty((len(values), 0)), (level,))
    return Samples(times[used], np.outer(values, shape[used] / shape[-1]), (level,))


def _raced(dirty: Floats, arm_s: Floats, ends: Floats, half: Floats, usual: float) -> Floats:
    """By round, pages in its log that were written while it was armed, each before it was protected
    itself: they belong to the round before alone. None of them was written in that one before, so they
    come at the rate at which new pages come at a round's end, for half of the arm.

    dirty, arm_s: of all rounds. ends, half: of some, pages at their ends and half way there.
    """
    known = ~np.isnan(half)
    total = float(ends[known].sum())
    if total <= 0:
        return np.zeros(len(dirty))
    late = float(np.maximum(ends[known] - half[known], 0.0).sum()) / total
    found: Floats = dirty * np.minimum(late / (usual / 2) * arm_s / 2, 0.5)
    return found


def _inside(points: Points, usual: float) -> tuple[npt.NDArray[np.int64], Floats, Floats]:
    """(numbers of rounds, pages by round and time, times); NaN where a round was shorter. The last
    column is half of the usual length."""
    order = np.lexsort((points.elapsed_s, points.number))
    number, t, pages = points.number[order], points.elapsed_s[order], points.dirty[order]
    new = np.append(True, number[1:] != number[:-1])
    starts = np.flatnonzero(new)
    least = max(float(t.min()), usual * 1e-6)
    times = np.empty(0)
    if least < usual:  # else nothing is known but the ends
        count = max(2, int(np.ceil(np.log2(usual / least) * _AN_OCTAVE)) + 1)
        times = np.geomspace(least, usual, count)[:-1]
    times = np.append(times, usual / 2)
    # All rounds one after the other on one axis, each from a point of no time and no pages on.
    apart = 2 * max(float(t.max()), usual)
    x = np.insert(t + (np.cumsum(new) - 1) * apart, starts, np.arange(len(starts)) * apart)
    y = np.insert(pages, starts, 0.0)
    wanted = np.arange(len(starts))[:, None] * apart + times
    rows = np.interp(wanted.ravel(), x, y).reshape(wanted.shape)
    rows[times > np.maximum.reduceat(t, starts)[:, None]] = np.nan
    return number[starts], rows, times


def _at_the_end(lengths: npt.NDArray[np.int64], mean_s: Floats, mean: Floats) -> Floats:
    """By length of runs, in rounds and ascending, how fast new pages come at their end, pages per second:
    since the end of runs that are half as long. All (n,); 0 for the shortest. mean_s, mean: of the runs
    of a length, how long they took and how many pages were written in them."""
    half = np.maximum(np.searchsorted(lengths, lengths // 2, side="right") - 1, 0)
    longer = np.maximum(mean_s - mean_s[half], 1e-9)
    slope = np.maximum(mean - mean[half], 0.0) / longer
    found: Floats = np.where(half < np.arange(len(lengths)), slope, 0.0)
    return found


def _levels(
    seen: Observations, points: Points, usual: float, excess: Floats, first: int
) -> tuple[Level, ...]:
    """Rounds, and runs of them, by their length. In a run of more than 2^j rounds that begins where one
    of 2^j does, pages are counted by how many times as many they are: so few long runs tell how the
    curve goes on, and the many short ones how high it is."""
    whole_runs = points.elapsed_s >= usual * _SHORT * points.rounds
    whole = points.chosen(whole_runs & (points.mapping_class == ALL))
    order = np.lexsort((whole.number, whole.rounds))
    number, rounds, elapsed_s = whole.number[order], whole.rounds[order], whole.elapsed_s[order]
    dirty = whole.dirty[order]
    lengths, starts, counts = np.unique(rounds, return_index=True, return_counts=True)
    mean_s, mean_new = np.empty(0), np.empty(0)
    pages = dirty
    if len(starts):
        mean_s = np.add.reduceat(elapsed_s, starts) / counts
        at = np.searchsorted(seen.number[first:], number)
        slope = _at_the_end(lengths, mean_s, np.add.reduceat(dirty, starts) / counts)
        late = seen.arm_s[first:][at] / 2 * np.repeat(slope, counts)
        pages = np.maximum(dirty - np.where(rounds == 1, excess[at], late), 0.0)
        new = np.maximum(dirty - whole.redirtied[order], 0.0)
        mean_new = np.add.reduceat(new, starts) / counts
    classes = points.chosen(whole_runs & (points.mapping_class != ALL))
    sums = np.zeros((len(lengths), len(seen.classes)))
    known = np.isin(classes.rounds, lengths)
    at_length = np.searchsorted(lengths, classes.rounds[known])
    np.add.at(sums, (at_length, classes.mapping_class[known]), classes.dirty[known])
    found: list[Level] = []
    bases: dict[int, tuple[npt.NDArray[np.int64], Floats, float]] = {}
    bounds = [*starts.tolist(), len(number)]
    of_length = zip(
        lengths.tolist(), mean_s.tolist(), mean_new.tolist(), sums.tolist(), strict=True
    )
    for row, (length, elapsed, fresh, class_sums) in enumerate(of_length):
        a, b = bounds[row], bounds[row + 1]
        values, scale = pages[a:b], 1.0
        base = bases.get(1 << (length - 1).bit_length() - 1) if length > 1 else None
        if base is not None:
            numbers, below, mean = base
            at = np.minimum(numbers.searchsorted(number[a:b]), len(numbers) - 1)
            same = numbers[at] == number[a:b]
            total = float(below[at[same]].sum())
            if total > 0:
                values = values[same]
                scale = mean * len(values) / total
                values = values * scale
        by_class = {
            name: one * scale / (b - a)
            for name, one in zip(seen.classes, class_sums, strict=True)
            if one > 0
        }
        found.append(Level(elapsed, values, fresh * scale, by_class))
        if length & (length - 1) == 0:
            bases[length] = (number[a:b], pages[a:b], float(values.sum()) / len(values))
    if not found:
        values = seen.dirty[-1:]
        found.append(Level(usual, values, float(seen.dirty[-1] - seen.redirtied[-1])))
    return tuple(found)
