"""Samples where a target's page tables lie while it is traced."""

from __future__ import annotations

import logging
import threading
import time
from collections import Counter
from collections.abc import Callable, Collection

from redirty.collector.errors import RedirtyError, require_resources
from redirty.collector.linux import numa as host_nodes
from redirty.collector.linux.malloc import trim_heap
from redirty.collector.linux.numa import NumaNodes
from redirty.collector.linux.numa_sampling import NumaSampler
from redirty.collector.pagetables.placement import counted_pages
from redirty.collector.pagetables.walker import Walker, leaves_by_node
from redirty.tui.snapshots.page_tables import PageTables

log = logging.getLogger(__name__)

_EVERY_S = 1.0
_CPU_SHARE = 0.01  # of a CPU, for sampling
_JOIN_S = 10.0  # the walker may be loading


class PageTableSampler:
    """Samples the page tables of processes; walks them only where several NUMA nodes have memory.

    Raises:
        RedirtyError: the kernel refuses the walk (from the constructor).
    """

    def __init__(self, nodes: NumaNodes) -> None:
        self._nodes = nodes
        self._walker: Walker | None = None
        if len(nodes.with_memory) > 1:
            self._walker = Walker(nodes.highest)
            trim_heap()  # memory of the compiler
        self._ran: dict[int, NumaSampler] = {}

    def take(self, pids: Collection[int]) -> PageTables:
        """Sample the page tables now. Processes that have ended are left out."""
        by_node, ran_s = Counter[int](), Counter[int]()
        if self._walker is not None:
            self._ran = {
                pid: self._ran.get(pid) or NumaSampler(pid, self._nodes.cpus) for pid in pids
            }
            for pid, sampled in self._ran.items():
                ran_s.update(sampled.sampled())
                try:
                    by_node.update(leaves_by_node(self._walker.walk(pid), self._nodes))
                except OSError as e:
                    require_resources(e, f"cannot read the page tables of process {pid}")
                    continue
        seconds = {node: ns / 1e9 for node, ns in ran_s.items()}
        return PageTables(sum(map(counted_pages, pids)), dict(by_node), seconds)

    def close(self) -> None:
        """Unload the walker."""
        if self._walker is not None:
            self._walker.close()


class PageTableWatch:
    """A thread that samples page tables as often as its share of a CPU allows.

    Attributes:
        latest: the latest sample; None before the first one, or if nothing can be sampled.
    """

    def __init__(self, pids: Callable[[], Collection[int]]) -> None:
        self.latest: PageTables | None = None
        self._pids = pids
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="page tables", daemon=True)

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def _run(self) -> None:
        try:
            sampler = PageTableSampler(host_nodes.read_nodes())
        except (RedirtyError, OSError) as e:
            log.debug("page tables are not sampled: %s", e)
            return
        try:
            while True:
                started = time.thread_time()
                self.latest = sampler.take(self._pids())
                used = time.thread_time() - started
                if self._stop.wait(max(_EVERY_S, used / _CPU_SHARE)):
                    return
        finally:
            sampler.close()

    def close(self) -> None:
        """Stop the thread and wait until the walker is unloaded."""
        self._stop.set()
        self._thread.join(_JOIN_S)
