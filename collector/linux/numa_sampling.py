"""On which NUMA nodes the threads of a process run, sampled for a while.

Sources: proc(5) (/proc/PID/task/TID/stat: processor), Documentation/scheduler/sched-stats.rst.
"""

from __future__ import annotations

import os
import time
from collections import Counter
from collections.abc import Mapping
from pathlib import Path

_EVERY_S = 0.02
_PROCESSOR = 36  # in the fields of stat from the third (state) on


def processor(stat: str) -> int:
    """The processor on which a thread last ran, from its stat line."""
    return int(stat.rpartition(")")[2].split()[_PROCESSOR])


class NumaSampler:
    """Sums processor time of threads by node, from one look to the next."""

    def __init__(self, pid: int, nodes: Mapping[int, int]) -> None:
        self._directory = f"/proc/{pid}/task"
        self._nodes = nodes
        self._before: dict[str, int] = {}
        self.ns: Counter[int] = Counter()

    def look(self) -> None:
        """What ran since the last look counts for the node on which the thread is now."""
        now = {}
        try:
            threads = os.listdir(self._directory)  # noqa: PTH208
        except OSError:
            return  # it ended
        for tid in threads:
            directory = f"{self._directory}/{tid}"
            try:
                ran = int(Path(f"{directory}/schedstat").read_text().split()[0])
                where = processor(Path(f"{directory}/stat").read_text(errors="replace"))
            except (OSError, IndexError):
                continue  # that thread ended
            now[tid] = ran
            if ran > self._before.get(tid, ran):
                self.ns[self._nodes.get(where, 0)] += ran - self._before[tid]
        self._before = now

    def taken(self) -> Counter[int]:
        """What a look adds: nanoseconds by node since the look before."""
        before = self.ns.copy()
        self.look()
        return self.ns - before


def run_by_node(
    pids: list[int], nodes: Mapping[int, int], seconds: float
) -> list[dict[int, float]]:
    """For each process the seconds of processor time by node (nodes: processor -> node)."""
    sampled = [NumaSampler(pid, nodes) for pid in pids]
    end = time.monotonic() + seconds
    while True:
        for one in sampled:
            one.look()
        left = end - time.monotonic()
        if left <= 0:
            return [{node: ns / 1e9 for node, ns in sorted(one.ns.items())} for one in sampled]
        time.sleep(min(_EVERY_S, left))
