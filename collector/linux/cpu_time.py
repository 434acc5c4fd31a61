"""What a process has used of the CPU, in nanoseconds' resolution: its CPU clock.

Source: clock_getcpuclockid(3); the kernel's MAKE_PROCESS_CPUCLOCK with CPUCLOCK_SCHED.
"""

from __future__ import annotations

import time
from collections.abc import Iterable

_SCHED = 2


def cpu_s(pid: int) -> float | None:
    """Seconds, of all its threads since it began; None when it is gone."""
    try:
        return time.clock_gettime((~pid << 3) | _SCHED)
    except OSError:
        return None


class CpuTimeSampler:
    """How much processes use between one look and the next."""

    def __init__(self) -> None:
        self._before: dict[int, float] = {}

    def take(self, pids: Iterable[int]) -> float | None:
        """Seconds of all these since the last look; a process not seen before counts from now on.
        None when nothing of them was seen before."""
        now = {pid: used for pid in pids if (used := cpu_s(pid)) is not None}
        known = [used - self._before[pid] for pid, used in now.items() if pid in self._before]
        self._before = now
        return sum(known) if known else None
