"""The write curve of single rounds, and of runs of rounds: what a prediction is made of.

Inside a round the kernel side's histogram tells when pages were written first. Beyond its end,
the distinct pages of 2, 3, 4 ... rounds that follow each other are counted from their sets.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
from redirty.collector.bpf import abi
from redirty.collector.linux.maps import CLASSES, Mappings
from redirty.collector.pageset import PageSet, count_in, empty
from redirty.collector.tracking.rounds import Round

Floats = npt.NDArray[np.float64]

_THINNINGS = 4
_OFF, _OFF_PAGES = 0.003, 0.5  # what leaving a point out may cost, as a share or in pages
_EVERY = 2  # of the histogram's slots: 8 points an octave
_EDGES_S = abi.hist_edges_ns() / 1e9


@dataclass(frozen=True)
class Point:
    """Within elapsed_s of the arm that began a round, `dirty` distinct pages were written, of which
    `redirtied` were present at that arm (None: not known). rounds: how many whole rounds that is, 0
    inside one. mapping_class: empty for all of them."""

    round: int
    rounds: int
    mapping_class: str
    elapsed_s: float
    dirty: float
    redirtied: int | None


def inside(result: Round) -> Iterator[Point]:
    """The curve inside one round, of all its processes together, without its end.

    A page's time begins when it was protected itself, half an arm before its process was armed as a
    whole, on average. What the log missed is taken to have been written when the rest was.
    """
    hist = result.stats["hist"].sum(axis=0).astype(np.float64)
    total = float(hist.sum())
    if not total:
        return
    dirty = sum(len(s.dirty) for s in result.spaces)
    pages = np.cumsum(hist) * (dirty / total)
    armed = max(1, sum(1 for s in result.spaces if len(s.stats)))
    times = _EDGES_S + result.arm_s / armed / 2
    used = (pages > 0) & (times < result.duration_s)
    used &= np.arange(len(times)) % _EVERY == 0
    times, pages = thinned(times[used], np.minimum(pages[used], dirty))
    for t, w in zip(times.tolist(), pages.tolist(), strict=True):
        yield Point(result.number, 0, "", t, w, None)


def thinned(times: Floats, pages: Floats) -> tuple[Floats, Floats]:
    """Without points that lie on the straight line between their neighbours."""
    for _ in range(_THINNINGS):
        if len(times) < 3:
            break
        odd = np.arange(1, len(times) - 1, 2)
        share = (times[odd] - times[odd - 1]) / (times[odd + 1] - times[odd - 1])
        line = pages[odd - 1] + share * (pages[odd + 1] - pages[odd - 1])
        plain = np.abs(pages[odd] - line) <= np.maximum(_OFF_PAGES, _OFF * pages[odd])
        kept = np.ones(len(times), np.bool_)
        kept[odd[plain]] = False
        times, pages = times[kept], pages[kept]
    return times, pages


@dataclass(frozen=True)
class Window:
    """Distinct pages that a process dirtied in rounds [first_round, first_round + rounds)."""

    first_round: int
    rounds: int
    pid: int
    dirty_pages: int


@dataclass(frozen=True)
class FinishedWindows:
    """What ends with a round. windows: of 2, 4, 8 ... rounds, side by side, of each process that
    dirtied a page in them."""

    points: list[Point]
    windows: list[Window]


@dataclass(frozen=True)
class _Run:
    """Rounds that follow each other. by_space: written in them, present when the first began, and
    the last known mappings, by process and address space."""

    first: int
    rounds: int
    duration_s: float
    by_space: dict[tuple[int, int], tuple[PageSet, PageSet, Mappings]] = field(repr=False)

    def joined(self, later: _Run) -> _Run:
        """With the run after it."""
        both = dict(self.by_space)
        for space, (dirty, _, mappings) in later.by_space.items():
            old = both.get(space)
            if old is None:  # born since: nothing of it was present then
                both[space] = (dirty, empty(), mappings)
            else:
                kept = mappings if mappings.items else old[2]
                both[space] = (old[0] | dirty, old[1], kept)
        rounds, duration_s = self.rounds + later.rounds, self.duration_s + later.duration_s
        return _Run(self.first, rounds, duration_s, both)

    def point(self) -> Point:
        """Its end."""
        dirty = redirtied = 0
        for written, present, _ in self.by_space.values():
            dirty += len(written)
            redirtied += len(written & present)
        return Point(self.first, self.rounds, "", self.duration_s, float(dirty), redirtied)

    def by_class(self) -> Iterator[Point]:
        """Its end, for each class that was written."""
        counts = np.zeros((len(CLASSES), 2), np.int64)
        for written, present, mappings in self.by_space.values():
            again = written & present
            for number, (starts, ends) in enumerate(mappings.class_ranges):
                if len(starts):
                    counts[number] += [
                        int(count_in(pages, starts, ends).sum()) for pages in (written, again)
                    ]
        for name, (d, r) in zip(CLASSES, counts.tolist(), strict=True):
            if d:
                yield Point(self.first, self.rounds, name, self.duration_s, float(d), r)

    def windows(self) -> Iterator[Window]:
        """Its distinct pages, by process."""
        sums: dict[int, int] = {}
        for (pid, _), (written, _, _) in self.by_space.items():
            sums[pid] = sums.get(pid, 0) + len(written)
        for pid, pages in sorted(sums.items()):
            if pages:
                yield Window(self.first, self.rounds, pid, pages)


_FINE = 4  # a run grows in 2^4 steps


class WindowCurves:
    """Distinct pages of 1, 2, 3 ... 16, 18, 20 ... 32, 36 ... rounds, at 8 lengths an octave.

    A run of 2^j rounds begins at each multiple of that. It grows by single rounds up to j = 4, and by
    whole runs of 2^(j - 4) beyond: five unions of sets a round, however long it goes on. most: rounds
    of the longest run that is followed; 0: no limit.
    """

    def __init__(self, most: int = 0) -> None:
        self._most = most
        self._growing: dict[int, _Run] = {}  # by j

    def add(self, result: Round) -> FinishedWindows:
        """Of this round, and of each run that ends with it."""
        whole = _Run(
            result.number,
            1,
            result.duration_s,
            {(s.pid, s.space): (s.dirty, s.present, s.mappings) for s in result.spaces},
        )
        points = [whole.point(), *whole.by_class()]
        windows: list[Window] = []
        done = {0: whole}
        j = 1
        while max(0, j - _FINE) in done and (not self._most or 1 << j <= self._most):
            run = self._grown(j, done[max(0, j - _FINE)])
            if run is not None and 2 * run.rounds > 1 << j:
                points.append(run.point())
            if run is not None and run.rounds == 1 << j:
                points += run.by_class()
                windows += run.windows()
                done[j] = run
            j += 1
        return FinishedWindows(points, windows)

    def _grown(self, j: int, part: _Run) -> _Run | None:
        """The run of length 2^j that a part belongs to, with it; None when its beginning is missing."""
        before = self._growing.pop(j, None)
        if part.first % (1 << j) == 0:
            run = part
        elif before is not None and before.first + before.rounds == part.first:
            run = before.joined(part)
        else:
            return None
        self._growing[j] = run
        return run
