"""The time in which a target is stopped: what is done in it is urgent, and is measured."""

from __future__ import annotations

import contextlib
import gc
import os
import time
from collections.abc import Iterator
from pathlib import Path

_URGENT = -20


@contextlib.contextmanager
def urgent() -> Iterator[None]:
    """Give this process's threads the highest priority, and pause the cyclic garbage collector.

    One collection can take longer than a whole stop-and-copy pass; and on a busy machine a thread that waits for a
    processor prolongs the stop by some milliseconds each time.
    """
    enabled = gc.isenabled()
    gc.disable()
    before = _raise_priorities()
    try:
        yield
    finally:
        for tid, priority in before.items():
            with contextlib.suppress(OSError):
                os.setpriority(os.PRIO_PROCESS, tid, priority)
        if enabled:
            gc.enable()


def _raise_priorities() -> dict[int, int]:
    """Raise the priority of all threads, and return what it was; threads that may not be raised are left out."""
    before: dict[int, int] = {}
    with contextlib.suppress(OSError):
        for task in Path("/proc/self/task").iterdir():
            tid = int(task.name)
            with contextlib.suppress(OSError):
                priority = os.getpriority(os.PRIO_PROCESS, tid)
                os.setpriority(os.PRIO_PROCESS, tid, _URGENT)
                before[tid] = priority
    return before


class Timeline:
    """Measures consecutive phases. start: CLOCK_MONOTONIC in seconds."""

    def __init__(self) -> None:
        self.start = self._last = time.monotonic()
        self._ends: dict[str, float] = {}
        self._durations: dict[str, float] = {}

    def end(self, phase: str) -> None:
        """End a phase now; it started at the end of the phase before."""
        now = time.monotonic()
        self._ends[phase], self._durations[phase] = now, now - self._last
        self._last = now

    def duration_s(self, phase: str) -> float:
        """Return how long a phase took; 0 if it did not end."""
        return self._durations.get(phase, 0.0)

    def end_of(self, phase: str) -> float:
        """Return when a phase ended, CLOCK_MONOTONIC in seconds."""
        return self._ends[phase]
