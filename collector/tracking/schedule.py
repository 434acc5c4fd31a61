"""When rounds end: on schedule from the start, however long each takes; the interval may change."""

from __future__ import annotations


class Schedule:
    """Times are seconds of CLOCK_MONOTONIC. interval_s > 0; it may be set from another thread, and
    counts from the last boundary on."""

    def __init__(self, start: float, interval_s: float) -> None:
        self.interval_s = interval_s
        self._used_s = interval_s
        self._base = start
        self._boundary = 1

    def due(self) -> float:
        """When the round that runs is to end."""
        if self.interval_s != self._used_s:
            self._base += (self._boundary - 1) * self._used_s
            self._boundary = 1
            self._used_s = self.interval_s
        return self._base + self._boundary * self._used_s

    def ended(self, now: float) -> None:
        """A round has ended. Missed boundaries are skipped, not made up for: the schedule never
        drifts."""
        passed = int((now - self._base) / self._used_s)
        self._boundary = max(self._boundary + 1, passed + 1)
