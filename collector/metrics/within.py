"""Pages written within a fixed time, whatever the length of the rounds: the rate that is no artefact."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from redirty.collector.metrics.write_curves import Point

HEADLINE_S = 1.0
_MAX_STARTS = 256  # of windows that have not come to an end yet


@dataclass(frozen=True)
class _Reached:
    elapsed_s: float
    pages: float


class WrittenWithin:
    """Follows W(t) at one t through a recording: by points inside rounds, or of windows of short rounds.

    Attributes:
        pages: its latest value; None before the first.
    """

    def __init__(self, seconds: float = HEADLINE_S) -> None:
        self.pages: float | None = None
        self._seconds = seconds
        self._before: dict[int, _Reached] = {}  # by first round, the last point before that time

    def add(self, points: Iterable[Point]) -> float | None:
        """Take the points that end with a round, in ascending order of time by window; return the latest value."""
        for point in points:
            if not point.mapping_class:
                self._follow(point)
        while len(self._before) > _MAX_STARTS:
            del self._before[min(self._before)]
        return self.pages

    def _follow(self, point: Point) -> None:
        now = _Reached(point.elapsed_s, point.pages - (point.raced_of_pages or 0))
        before = self._before.get(point.round, _Reached(0.0, 0.0))
        if now.elapsed_s < self._seconds:
            self._before[point.round] = now
        elif before.elapsed_s < self._seconds:
            share = (self._seconds - before.elapsed_s) / (now.elapsed_s - before.elapsed_s)
            self.pages = before.pages + share * max(now.pages - before.pages, 0.0)
            # the window goes on: not to be taken once more
            self._before[point.round] = _Reached(self._seconds, self.pages)
