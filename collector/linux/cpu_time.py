"""CPU time used by a process, in nanosecond resolution: its CPU clock.

Source: clock_getcpuclockid(3); the kernel's MAKE_PROCESS_CPUCLOCK with CPUCLOCK_SCHED.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterable

from redirty.collector.linux import procfs

_SCHED = 2


def cpu_s(pid: int) -> float | None:
    """Return the CPU seconds of all threads since the process started; None once it is gone."""
    try:
        return time.clock_gettime((~pid << 3) | _SCHED)
    except OSError:
        return None


class CpuTimeSampler:
    """Measures the CPU time that processes use from one sample to the next."""

    def __init__(self) -> None:
        self._before: dict[int, float] = {}

    def take(self, pids: Iterable[int]) -> float | None:
        """Return the CPU seconds of these processes since the last sample.

        A process that was not in the last sample counts from now on. None if no process was in it.
        """
        now = {pid: used for pid in pids if (used := cpu_s(pid)) is not None}
        known = [used - self._before[pid] for pid, used in now.items() if pid in self._before]
        self._before = now
        return sum(known) if known else None


class BusiestThreadSampler:
    """Measures the CPU time of the busiest thread of a process: of a virtual machine, of a virtual CPU."""

    def __init__(self, pid: int) -> None:
        self._pid = pid
        self._before = procfs.thread_cpu_ticks(pid)

    def take(self) -> float | None:
        """Return the CPU seconds of the thread that has used most since the last sample; None once all are gone.

        In clock ticks: a thread's own clock can be read within its process only.
        """
        now = procfs.thread_cpu_ticks(self._pid)
        used = [ticks - self._before.get(tid, 0) for tid, ticks in now.items()]
        self._before = now
        return max(used) / os.sysconf("SC_CLK_TCK") if used else None
