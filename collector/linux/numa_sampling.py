"""Samples on which NUMA nodes the threads of a process run.

Sources: proc(5) (/proc/PID/task/TID/stat: processor), Documentation/scheduler/sched-stats.rst.
"""

from __future__ import annotations

import os
import time
from collections import Counter
from collections.abc import Mapping
from pathlib import Path

from redirty.collector.errors import require_resources
from redirty.collector.linux import procfs

_EVERY_S = 0.02


class NumaSampler:
    """Sums the processor time of threads by node, from one sample to the next.

    Attributes:
        ns: Nanoseconds by node since the first sample.
    """

    def __init__(self, pid: int, nodes: Mapping[int, int]) -> None:
        """Sample process pid; nodes maps processors to nodes."""
        self._pid = pid
        self._nodes = nodes
        self._before: dict[str, int] = {}
        self.ns: Counter[int] = Counter()

    def sample(self) -> None:
        """Count each thread's run time since the last sample for the node on which the thread is now."""
        now = {}
        try:
            threads = os.listdir(f"/proc/{self._pid}/task")  # noqa: PTH208
        except OSError as e:
            require_resources(e, f"cannot list the threads of process {self._pid}")
            return  # the process ended
        for tid in threads:
            thread = f"{self._pid}/task/{tid}"
            try:
                ran = int(Path(f"/proc/{thread}/schedstat").read_text().split()[0])
            except (OSError, IndexError) as e:
                if isinstance(e, OSError):
                    require_resources(e, f"cannot sample thread {tid}")
                continue  # this thread ended
            stat = procfs.read_stat(thread)
            if stat is None:
                continue
            now[tid] = ran
            if ran > self._before.get(tid, ran):
                self.ns[self._nodes.get(stat.processor, 0)] += ran - self._before[tid]
        self._before = now

    def sampled(self) -> Counter[int]:
        """Take a sample; return the nanoseconds by node since the one before."""
        before = self.ns.copy()
        self.sample()
        return self.ns - before


def run_by_node(
    pids: list[int], nodes: Mapping[int, int], seconds: float
) -> list[dict[int, float]]:
    """Sample processes for a while; return for each its seconds of processor time by node.

    Args:
        pids: The processes.
        nodes: Processor -> node.
        seconds: How long to sample.
    """
    samplers = [NumaSampler(pid, nodes) for pid in pids]
    end = time.monotonic() + seconds
    while True:
        for sampler in samplers:
            sampler.sample()
        left = end - time.monotonic()
        if left <= 0:
            return [{node: ns / 1e9 for node, ns in sorted(s.ns.items())} for s in samplers]
        time.sleep(min(_EVERY_S, left))
