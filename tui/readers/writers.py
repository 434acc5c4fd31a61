"""Attributes the pages of the latest round to threads (by events) and stacks (by counts in the kernel)."""

from __future__ import annotations

from collections import Counter

import numpy as np
import numpy.typing as npt
from redirty.collector.bpf import abi
from redirty.collector.bpf.tracer import Tracer
from redirty.collector.foreign.symbols import Symbols
from redirty.collector.pageset import PAGE_SHIFT
from redirty.collector.recording.stacks import folded_stack
from redirty.tui.snapshots.round_summary import Writer

_MAX_WRITERS = 40  # of each kind, by round
_MAX_STACKS = 50_000  # cached
_NAMES_S = 0.2  # names that take longer are shown from the next round on


class WriterCounts:
    """Counts pages by thread and by stack, round by round."""

    def __init__(self, tracer: Tracer, names: dict[int, str]) -> None:
        self._tracer = tracer
        self._symbols = Symbols()
        self._names = names  # of processes
        self._stacks: dict[tuple[int, int], list[int]] = {}
        self._pairs: list[npt.NDArray[np.uint64]] = []

    def tick(self) -> None:
        """Read events before the ring buffer is full, and names that have arrived."""
        self._symbols.poll()
        ring = self._tracer.ring
        if ring is None:
            return
        records = ring.take()
        if len(records):
            who = records["space"].astype(np.uint64) << np.uint64(32) | records["tid"]
            pages = records["address"] >> np.uint64(PAGE_SHIFT)
            self._pairs.append(np.unique(np.stack([who, pages], axis=1), axis=0))

    def take(self) -> tuple[Writer, ...]:
        """Return the threads and stacks that dirtied most in the round that ended."""
        self.tick()
        return (*self._threads(), *self._by_stack())

    def _threads(self) -> list[Writer]:
        if not self._pairs:
            return []
        pairs = np.unique(np.concatenate(self._pairs), axis=0)
        self._pairs = []
        who, counts = np.unique(pairs[:, 0], return_counts=True)
        best = np.argsort(-counts, kind="stable")[:_MAX_WRITERS]
        return [
            Writer(abi.tgid_of(int(who[i]) >> 32), int(who[i]) & 0xFFFFFFFF, "", int(counts[i]))
            for i in best.tolist()
        ]

    def _by_stack(self) -> list[Writer]:
        pages: Counter[tuple[int, int]] = Counter()
        for space, stack, count in self._tracer.take_stacks():
            pages[space, stack] += count
        if len(self._stacks) > _MAX_STACKS:
            self._stacks.clear()
        best = pages.most_common(_MAX_WRITERS)
        for (space, stack), _ in best:
            if (space, stack) not in self._stacks:
                self._stacks[space, stack] = [] if stack < 0 else self._tracer.stack(stack)
                self._symbols.request(abi.tgid_of(space), self._stacks[space, stack])
        self._symbols.finish(_NAMES_S)
        return [
            Writer(abi.tgid_of(space), 0, self._folded(space, stack), count)
            for (space, stack), count in best
        ]

    def _folded(self, space: int, stack: int) -> str:
        pid = abi.tgid_of(space)
        addresses = self._stacks[space, stack]
        return folded_stack(self._names.get(pid, ""), pid, addresses, self._symbols)

    def close(self) -> None:
        """Release what names are read with."""
        self._symbols.close()
