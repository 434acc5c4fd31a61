"""Write curves of single rounds, and of windows of several rounds: the input of a prediction.

Inside a round the kernel side's histogram shows when pages were first written. Beyond its end, the
distinct pages of windows of 2, 3, 4 ... rounds are counted from their page sets.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace

import numpy as np
import numpy.typing as npt
from redirty.collector.bpf import abi
from redirty.collector.linux.maps import CLASSES, Mappings
from redirty.collector.metrics.counted_once import CountedOnce
from redirty.collector.pageset import PageSet, empty
from redirty.collector.tracking.first_writes import NOT_KNOWN, FirstWrites
from redirty.collector.tracking.rounds import Round

Floats = npt.NDArray[np.float64]

_MAX_THINNINGS = 4
_MAX_ERROR, _MAX_ERROR_PAGES = 0.003, 0.5  # of omitting a point, relative or in pages
_STEP = 2  # in slots of the histogram: 8 points an octave
_EDGES_S = abi.hist_edges_ns() / 1e9


@dataclass(frozen=True)
class Point:
    """A point of a write curve.

    Attributes:
        round: the round whose arm the time is measured from.
        rounds: number of whole rounds that the time spans, 0 inside a round.
        mapping_class: empty for all classes together.
        elapsed_s: seconds since the arm.
        dirty: distinct pages written within that time.
        redirtied: those of them that were present at the arm; None when not known.
        raced: those of them that were written only before they were protected, while the first round was armed;
            None when not known, and inside a round, where dirty is without them.
        dirty_once, redirtied_once: the same with shared memory counted once, see CountedOnce; None when not known.
    """

    round: int
    rounds: int
    mapping_class: str
    elapsed_s: float
    dirty: float
    redirtied: int | None
    raced: int | None = None
    dirty_once: float | None = None
    redirtied_once: int | None = None

    @property
    def pages(self) -> float:
        """The number of pages written, each counted once if that is known."""
        return self.dirty if self.dirty_once is None else self.dirty_once

    @property
    def raced_of_pages(self) -> float | None:
        """The raced ones of `pages`: as many of them as of all are counted once. None if not known."""
        return None if self.raced is None else self.raced * self.pages / max(self.dirty, 1)


def inside(result: Round, once: CountedOnce | None = None) -> Iterator[Point]:
    """Yield the curve inside one round, of all its processes together, without its end.

    The time of a page starts when that page was protected: known for pages written around the arm, for others of
    a process their mean. Missed pages are assumed to have been written at the same times as the others.
    """
    seen = _logged(result)
    total = sum(float(hist.sum()) + len(first.elapsed_s) for hist, first in seen)
    raced = sum(len(first.raced) for _, first in seen if first.raced is not None)
    dirty = sum(len(s.dirty) for s in result.spaces) - raced
    if not total or dirty <= 0:
        return
    times = _EDGES_S[::_STEP]
    pages = np.zeros(len(times))
    for hist, first in seen:
        reached = np.insert(np.cumsum(hist), 0, 0.0)
        pages += np.interp(times - first.lag_s, np.insert(_EDGES_S, 0, 0.0), reached)
        pages += np.searchsorted(first.elapsed_s, times, side="right")
    pages *= dirty / total
    used = (pages > 0) & (times < result.duration_s)
    times, pages = thinned(times[used], np.minimum(pages[used], dirty))
    union: list[float | None] = [None] * len(times)
    if once is not None:
        union = np.minimum(once.union_of(pages / dirty), pages).tolist()
    for t, w, u in zip(times.tolist(), pages.tolist(), union, strict=True):
        yield Point(result.number, 0, "", t, w, None, dirty_once=u)


def _logged(result: Round) -> list[tuple[Floats, FirstWrites]]:
    """Return the histograms of a round, with the times that are not in them: by process, and the rest."""
    rest = result.stats["hist"].sum(axis=0).astype(np.float64)
    found = []
    for space in result.spaces:
        hist = space.stats["hist"].sum(axis=0).astype(np.float64)
        rest -= hist
        found.append((hist, space.first_writes))
    return [*found, (np.maximum(rest, 0.0), NOT_KNOWN)]


def thinned(times: Floats, pages: Floats) -> tuple[Floats, Floats]:
    """Drop points that lie on the straight line between their neighbours."""
    for _ in range(_MAX_THINNINGS):
        if len(times) < 3:
            break
        odd = np.arange(1, len(times) - 1, 2)
        share = (times[odd] - times[odd - 1]) / (times[odd + 1] - times[odd - 1])
        line = pages[odd - 1] + share * (pages[odd + 1] - pages[odd - 1])
        limit = np.maximum(_MAX_ERROR_PAGES, _MAX_ERROR * pages[odd])
        redundant = np.abs(pages[odd] - line) <= limit
        kept = np.ones(len(times), np.bool_)
        kept[odd[redundant]] = False
        times, pages = times[kept], pages[kept]
    return times, pages


@dataclass(frozen=True)
class WorkingSet:
    """Number of distinct pages that a process dirtied in rounds [first_round, first_round + rounds)."""

    first_round: int
    rounds: int
    pid: int
    dirty_pages: int


@dataclass(frozen=True)
class FinishedWindows:
    """Results that end with a round.

    Attributes:
        points: ends of windows.
        working_sets: of consecutive windows of 2, 4, 8 ... rounds, for each process that dirtied a page.
    """

    points: list[Point]
    working_sets: list[WorkingSet]


@dataclass(frozen=True)
class _Window:
    """Consecutive rounds.

    Attributes:
        first: number of the first round.
        rounds: number of rounds.
        duration_s: their total length.
        by_space: (pages written, pages present when the first round started, last known mappings) by
            process and address space.
        raced: pages of the first round that were written only before they were protected then, and not in the
            later rounds, by process and address space; None if not known.
        once: with every page counted once; None if that is not known.
    """

    first: int
    rounds: int
    duration_s: float
    by_space: dict[tuple[int, int], tuple[PageSet, PageSet, Mappings]] = field(repr=False)
    raced: dict[tuple[int, int], PageSet] | None = field(repr=False, default=None)
    once: CountedOnce | None = None

    def joined(self, later: _Window) -> _Window:
        """Return this window joined with the one after it."""
        both, raced = dict(self.by_space), self.raced
        if raced:
            written = {space: dirty for space, (dirty, _, _) in later.by_space.items()}
            left = {space: pages - written.get(space, empty()) for space, pages in raced.items()}
            raced = {space: pages for space, pages in left.items() if len(pages.keys)}
        for space, (dirty, _, mappings) in later.by_space.items():
            old = both.get(space)
            if old is None:  # created since: none of its pages was present then
                both[space] = (dirty, empty(), mappings)
            else:
                kept = mappings if mappings.items else old[2]
                both[space] = (old[0] | dirty, old[1], kept)
        rounds, duration_s = self.rounds + later.rounds, self.duration_s + later.duration_s
        once = self.once and later.once and self.once.joined(later.once)
        return _Window(self.first, rounds, duration_s, both, raced, once)

    def point(self) -> Point:
        """Return the end of the window as a point of the curve."""
        dirty = redirtied = 0
        for written, present, _ in self.by_space.values():
            dirty += len(written)
            redirtied += len(written & present)
        raced = None if self.raced is None else sum(map(len, self.raced.values()))
        point = Point(self.first, self.rounds, "", self.duration_s, float(dirty), redirtied, raced)
        if self.once is None:
            return point
        pages, again = self.once.dirty_pages, self.once.redirtied_pages
        return replace(point, dirty_once=float(pages), redirtied_once=again)

    def by_class(self) -> Iterator[Point]:
        """Yield the end of the window for each mapping class that was written."""
        counts = np.zeros((len(CLASSES), 2), np.int64)
        for written, present, mappings in self.by_space.values():
            counts[:, 0] += mappings.count_by_class(written)
            counts[:, 1] += mappings.count_by_class(written & present)
        once = {} if self.once is None else self.once.by_class()
        for name, (d, r) in zip(CLASSES, counts.tolist(), strict=True):
            if d:
                pages = once.get(name, (None, None))
                yield Point(self.first, self.rounds, name, self.duration_s, float(d), r, *pages)

    def working_sets(self) -> Iterator[WorkingSet]:
        """Yield the number of distinct pages in the window, by process."""
        sums: dict[int, int] = {}
        for (pid, _), (written, _, _) in self.by_space.items():
            sums[pid] = sums.get(pid, 0) + len(written)
        for pid, pages in sorted(sums.items()):
            if pages:
                yield WorkingSet(self.first, self.rounds, pid, pages)


def _raced(result: Round) -> dict[tuple[int, int], PageSet] | None:
    """Return the pages of each address space that were written only before they were protected, if known of all."""
    found: dict[tuple[int, int], PageSet] = {}
    for space in result.spaces:
        raced = space.first_writes.raced
        if raced is None:
            if len(space.dirty.keys):
                return None
        elif len(raced.keys):
            found[space.pid, space.space] = raced
    return found


_FINE = 4  # a window grows in 2^4 steps


class WindowCurves:
    """Distinct pages of windows of 1, 2, 3 ... 16, 18, 20 ... 32, 36 ... rounds, at 8 lengths an octave.

    A window of 2^j rounds starts at each multiple of that. It grows by single rounds up to j = 4, and by
    whole windows of 2^(j - 4) beyond: five unions of sets a round, however long the recording. max_rounds:
    rounds of the longest window; 0: no limit.
    """

    def __init__(self, max_rounds: int = 0) -> None:
        self._max_rounds = max_rounds
        self._growing: dict[int, _Window] = {}  # by j

    def add(self, result: Round, once: CountedOnce | None = None) -> FinishedWindows:
        """Add a round; return what ends with it. once: the same round with every page counted once."""
        whole = _Window(
            result.number,
            1,
            result.duration_s,
            {(s.pid, s.space): (s.dirty, s.present, s.mappings) for s in result.spaces},
            _raced(result),
            once,
        )
        points = [whole.point(), *whole.by_class()]
        working_sets: list[WorkingSet] = []
        done = {0: whole}
        j = 1
        while max(0, j - _FINE) in done and (not self._max_rounds or 1 << j <= self._max_rounds):
            window = self._grown(j, done[max(0, j - _FINE)])
            if window is not None and 2 * window.rounds > 1 << j:
                points.append(window.point())
            if window is not None and window.rounds == 1 << j:
                points += window.by_class()
                working_sets += window.working_sets()
                done[j] = window
            j += 1
        return FinishedWindows(points, working_sets)

    def _grown(self, j: int, part: _Window) -> _Window | None:
        """Add a part to the window of 2^j rounds that it belongs to; None when its start is missing."""
        before = self._growing.pop(j, None)
        if part.first % (1 << j) == 0:
            window = part
        elif before is not None and before.first + before.rounds == part.first:
            window = before.joined(part)
        else:
            return None
        self._growing[j] = window
        return window
