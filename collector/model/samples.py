"""Samples for the fit: points of single rounds at common times, and windows of rounds by length."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
from redirty.collector.model.observations import ALL, Observations, Points

Floats = npt.NDArray[np.float64]

_TIMES_AN_OCTAVE = 8
_MAX_ROUNDS = 64  # the latest ones
_SHORT = 0.9  # the end of a round shorter than this part of the usual length does not count


@dataclass(frozen=True, eq=False)
class Level:
    """Windows of one length.

    Attributes:
        elapsed_s: their mean duration.
        values: (n,) distinct pages written in each.
        new_pages: mean number of them that are new.
        by_class: mean number by mapping class.
    """

    elapsed_s: float
    values: Floats
    new_pages: float
    by_class: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class Samples:
    """Samples of W(t).

    Attributes:
        times: (c,) times inside a round, in seconds since the arm.
        inside: (r, c) pages written until each time, by round; NaN where the round was shorter.
        levels: single rounds, then windows of several rounds, by ascending length; at least one.
    """

    times: Floats
    inside: Floats
    levels: tuple[Level, ...]


def tabulate(seen: Observations, first: int) -> Samples:
    """Build the samples of the rounds from index `first` on."""
    duration_s = seen.duration_s[first:]
    usual = float(np.median(duration_s))
    points = seen.points
    recent = int(seen.number[first:][-_MAX_ROUNDS:][0])
    near = points.chosen(
        (points.number >= recent) & (points.rounds <= 1) & (points.mapping_class == ALL)
    )
    if not len(near.number):
        return _from_averages(seen, first, usual)
    ends = points.chosen((points.rounds > 0) & (points.number >= seen.number[first]))
    # Counted in new recordings; in older ones, estimated for the length of an arm.
    counted = not np.isnan(ends.raced[ends.mapping_class == ALL]).any()
    arm_s = np.zeros_like(duration_s) if counted else seen.arm_s[first:]
    number, rows, times = _inside(near.without_raced(), usual)
    dirty = seen.dirty[first:]
    at = np.searchsorted(seen.number[first:], number)
    excess = _raced(dirty, arm_s, dirty[at], rows[:, -1], usual)
    inside = np.maximum(rows[:, :-1] - excess[at][:, None], 0.0)
    reached = ~np.isnan(inside).all(axis=0)
    levels = _levels(seen, ends, usual, excess, arm_s, first)
    return Samples(times[:-1][reached], inside[:, reached], levels)


def _from_averages(seen: Observations, first: int, usual: float) -> Samples:
    """Build samples of an older recording: totals of rounds, and the average curve inside them."""
    duration_s, dirty = seen.duration_s[first:], seen.dirty[first:]
    values = dirty * (usual / duration_s)
    level = Level(usual, values, float((dirty - seen.redirtied[first:]).mean()))
    times, shape = seen.average if seen.average is not None else (np.empty(0), np.empty(0))
    used = (times > 0) & (times < usual * (1 - 1e-9))
    if not used.any() or shape[-1] <= 0:
        return Samples(np.empty(0), np.empty((len(values), 0)), (level,))
    return Samples(times[used], np.outer(values, shape[used] / shape[-1]), (level,))


def _raced(dirty: Floats, arm_s: Floats, ends: Floats, half: Floats, usual: float) -> Floats:
    """Estimate the pages in a round's log that were written while it was armed, each before it was protected.

    For older recordings, which do not have their number.

    They belong to the previous round alone. None of them was written earlier in that round, so they appear at
    the rate at which new pages appear at the end of a round, for half of the arm.

    Args:
        dirty, arm_s: (n,) of all rounds.
        ends, half: (r,) of some rounds, pages written until their end, and until half of it.
        usual: usual length of a round in seconds.

    Returns: (n,) pages by round.
    """
    known = ~np.isnan(half)
    total = float(ends[known].sum())
    if total <= 0:
        return np.zeros(len(dirty))
    late = float(np.maximum(ends[known] - half[known], 0.0).sum()) / total
    found: Floats = dirty * np.minimum(late / (usual / 2) * arm_s / 2, 0.5)
    return found


def _inside(points: Points, usual: float) -> tuple[npt.NDArray[np.int64], Floats, Floats]:
    """Interpolate the curves of single rounds at common times.

    Returns: (round numbers, pages by round and time, times); NaN where a round was shorter. The last column
    is at half of the usual length.
    """
    order = np.lexsort((points.elapsed_s, points.number))
    number, t, pages = points.number[order], points.elapsed_s[order], points.dirty[order]
    new = np.append(True, number[1:] != number[:-1])
    starts = np.flatnonzero(new)
    shortest = max(float(t.min()), usual * 1e-6)
    times = np.empty(0)
    if shortest < usual:  # else only the ends are known
        count = max(2, int(np.ceil(np.log2(usual / shortest) * _TIMES_AN_OCTAVE)) + 1)
        times = np.geomspace(shortest, usual, count)[:-1]
    times = np.append(times, usual / 2)
    # All rounds consecutively on one time axis, each starting at (0 s, 0 pages).
    apart = 2 * max(float(t.max()), usual)
    x = np.insert(t + (np.cumsum(new) - 1) * apart, starts, np.arange(len(starts)) * apart)
    y = np.insert(pages, starts, 0.0)
    wanted = np.arange(len(starts))[:, None] * apart + times
    rows = np.interp(wanted.ravel(), x, y).reshape(wanted.shape)
    rows[times > np.maximum.reduceat(t, starts)[:, None]] = np.nan
    return number[starts], rows, times


@dataclass(frozen=True, eq=False)
class _Windows:
    """Windows of whole rounds, sorted by length.

    Attributes:
        number: (m,) first round of each window, ascending within a length.
        dirty, new: (m,) distinct pages written, and those of them that are new.
        raced: (m,) those of dirty that are known to be raced (see Points).
        lengths: (l,) lengths in rounds, ascending.
        starts, counts: (l,) index of the first window of each length, and the number of windows.
        mean_s: (l,) mean duration of the windows of each length.
    """

    number: npt.NDArray[np.int64]
    dirty: Floats
    new: Floats
    raced: Floats
    lengths: npt.NDArray[np.int64]
    starts: npt.NDArray[np.int64]
    counts: npt.NDArray[np.int64]
    mean_s: Floats

    def mean(self, values: Floats) -> Floats:
        """Return the mean of values (m,) over the windows of each length: (l,)."""
        means: Floats = np.add.reduceat(values, self.starts) / self.counts
        return means


def _levels(
    seen: Observations, points: Points, usual: float, excess: Floats, arm_s: Floats, first: int
) -> tuple[Level, ...]:
    """Build the levels: rounds, and windows of several rounds, by length."""
    complete = points.elapsed_s >= usual * _SHORT * points.rounds
    ends = points.chosen(complete & (points.mapping_class == ALL))
    if not len(ends.number):
        values = seen.dirty[-1:]
        return (Level(usual, values, float(seen.dirty[-1] - seen.redirtied[-1])),)
    windows = _by_length(ends)
    pages = _without_raced(windows, seen.number[first:], arm_s, excess)
    classes = points.chosen(complete & (points.mapping_class != ALL))
    class_sums = np.zeros((len(windows.lengths), len(seen.classes)))
    known = np.isin(classes.rounds, windows.lengths)
    at_length = np.searchsorted(windows.lengths, classes.rounds[known])
    np.add.at(class_sums, (at_length, classes.mapping_class[known]), classes.dirty[known])
    return _chained(windows, pages, class_sums, seen.classes)


def _by_length(ends: Points) -> _Windows:
    """Group windows by their length in rounds. ends: the end point of each, at least one."""
    order = np.lexsort((ends.number, ends.rounds))
    dirty = ends.dirty[order]
    lengths, starts, counts = np.unique(ends.rounds[order], return_index=True, return_counts=True)
    return _Windows(
        number=ends.number[order],
        dirty=dirty,
        new=np.maximum(dirty - ends.redirtied[order], 0.0),
        raced=np.nan_to_num(ends.raced[order]),
        lengths=lengths,
        starts=starts,
        counts=counts,
        mean_s=np.add.reduceat(ends.elapsed_s[order], starts) / counts,
    )


def _without_raced(
    windows: _Windows, number: npt.NDArray[np.int64], arm_s: Floats, excess: Floats
) -> Floats:
    """Return the pages of each window, (m,), without those written while its first round was armed.

    Where they were not counted, they are estimated: for a single round see _raced(); for a longer window they
    appear at the rate at which new pages appear at its end, for half of the arm. number, arm_s, excess: of all
    rounds; arm_s is 0 if they were counted.
    """
    at = np.searchsorted(number, windows.number)
    slope = _rate_at_the_end(windows.lengths, windows.mean_s, windows.mean(windows.dirty))
    late = arm_s[at] / 2 * np.repeat(slope, windows.counts)
    single = np.repeat(windows.lengths, windows.counts) == 1
    estimated = np.where(single, excess[at], late)
    return np.maximum(windows.dirty - windows.raced - estimated, 0.0)


def _rate_at_the_end(lengths: npt.NDArray[np.int64], mean_s: Floats, mean: Floats) -> Floats:
    """Return the rate of new pages at the end of windows of each length, in pages per second.

    Measured since the end of windows that are half as long; 0 for the shortest. All (l,): lengths in
    rounds, ascending; mean_s, mean: mean duration, and mean pages written.
    """
    half = np.maximum(np.searchsorted(lengths, lengths // 2, side="right") - 1, 0)
    longer = np.maximum(mean_s - mean_s[half], 1e-9)
    slope = np.maximum(mean - mean[half], 0.0) / longer
    found: Floats = np.where(half < np.arange(len(lengths)), slope, 0.0)
    return found


def _chained(
    windows: _Windows, pages: Floats, class_sums: Floats, classes: tuple[str, ...]
) -> tuple[Level, ...]:
    """Build the levels, each relative to the one half as long.

    Pages of a window of more than 2^j rounds that starts where one of 2^j does are expressed as a multiple of
    that one's: the few long windows give the slope of the curve, and the many short ones its height.
    pages: (m,) by window. class_sums: (l, classes) pages by length and mapping class.
    """
    levels: list[Level] = []
    bases: dict[int, tuple[npt.NDArray[np.int64], Floats, float]] = {}  # by length 2^j
    bounds = [*windows.starts.tolist(), len(windows.number)]
    by_length = zip(
        windows.lengths.tolist(),
        windows.mean_s.tolist(),
        windows.mean(windows.new).tolist(),
        class_sums.tolist(),
        strict=True,
    )
    for row, (length, elapsed_s, new_pages, sums) in enumerate(by_length):
        a, b = bounds[row], bounds[row + 1]
        values, scale = pages[a:b], 1.0
        base = bases.get(1 << (length - 1).bit_length() - 1) if length > 1 else None
        if base is not None:
            numbers, base_pages, base_mean = base
            at = np.minimum(numbers.searchsorted(windows.number[a:b]), len(numbers) - 1)
            same = numbers[at] == windows.number[a:b]
            total = float(base_pages[at[same]].sum())
            if total > 0:
                values = values[same]
                scale = base_mean * len(values) / total
                values = values * scale
        by_class = {
            name: one * scale / (b - a) for name, one in zip(classes, sums, strict=True) if one > 0
        }
        levels.append(Level(elapsed_s, values, new_pages * scale, by_class))
        if length & (length - 1) == 0:
            bases[length] = (windows.number[a:b], pages[a:b], float(values.sum()) / len(values))
    # Where rounds differ much in length, the few windows of more rounds may be shorter on average.
    longest = np.maximum.accumulate([0.0] + [level.elapsed_s for level in levels])
    return tuple(level for level, gain in zip(levels, np.diff(longest), strict=True) if gain > 0)
