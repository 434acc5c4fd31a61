"""The schedule of rounds: a fixed grid, however long each round takes; the interval may be changed."""

from __future__ import annotations


class Schedule:
    """Boundaries of rounds, in seconds of CLOCK_MONOTONIC.

    interval_s: > 0; may be set from another thread, and takes effect from the last boundary on.
    """

    def __init__(self, start: float, interval_s: float) -> None:
        self.interval_s = interval_s
        self._used_s = interval_s
        self._base = start
        self._boundary = 1

    def due(self) -> float:
        """Return when the current round is to end."""
        if self.interval_s != self._used_s:
            self._base += (self._boundary - 1) * self._used_s
            self._boundary = 1
            self._used_s = self.interval_s
        return self._base + self._boundary * self._used_s

    def ended(self, now: float) -> None:
        """Record that a round has ended. Missed boundaries are skipped, not made up for.

        The schedule therefore never drifts.
        """
        passed = int((now - self._base) / self._used_s)
        self._boundary = max(self._boundary + 1, passed + 1)
