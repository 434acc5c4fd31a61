"""Who dirtied pages in a round that has just ended: threads by their events, stacks by their counts."""

from __future__ import annotations

from collections import Counter

import numpy as np
import numpy.typing as npt
from redirty.collector.bpf import abi
from redirty.collector.bpf.tracer import Tracer
from redirty.collector.errors import one_line
from redirty.tui.snapshots.round_summary import Writer

_TOP = 40  # of each kind, by round
_NAMES = 50_000  # of stacks that are kept


class WriterCounts:
    """Collects what the kernel side tells of one round after the other."""

    def __init__(self, tracer: Tracer, names: dict[int, str]) -> None:
        self._tracer = tracer
        self._symbols = tracer.symbols()
        self._names = names  # of processes
        self._stacks: dict[tuple[int, int], str] = {}
        self._waiting: list[npt.NDArray[np.uint64]] = []

    def tick(self) -> None:
        """Takes events before the ring is full."""
        ring = self._tracer.ring
        if ring is None:
            return
        records = ring.take()
        if len(records):
            who = records["space"].astype(np.uint64) << np.uint64(32) | records["tid"]
            pages = records["address"] >> np.uint64(12)
            self._waiting.append(np.unique(np.stack([who, pages], axis=1), axis=0))

    def take(self) -> tuple[Writer, ...]:
        """Of the round that ended, those that dirtied most."""
        self.tick()
        return (*self._threads(), *self._by_stack())

    def _threads(self) -> list[Writer]:
        if not self._waiting:
            return []
        pairs = np.unique(np.concatenate(self._waiting), axis=0)
        self._waiting = []
        who, counts = np.unique(pairs[:, 0], return_counts=True)
        best = np.argsort(-counts, kind="stable")[:_TOP]
        return [
            Writer(abi.tgid_of(int(who[i]) >> 32), int(who[i]) & 0xFFFFFFFF, "", int(counts[i]))
            for i in best.tolist()
        ]

    def _by_stack(self) -> list[Writer]:
        pages: Counter[tuple[int, int]] = Counter()
        for space, stack, count in self._tracer.take_stacks():
            pages[space, stack] += count
        if len(self._stacks) > _NAMES:
            self._stacks.clear()
        return [
            Writer(abi.tgid_of(space), 0, self._name(space, stack), count)
            for (space, stack), count in pages.most_common(_TOP)
        ]

    def _name(self, space: int, stack: int) -> str:
        key = (space, stack)
        if key not in self._stacks:
            pid = abi.tgid_of(space)
            addresses = [] if stack < 0 else self._tracer.stack(stack)
            names = [self._symbols.name(pid, a) for a in reversed(addresses)]
            parts = [self._names.get(pid, f"pid {pid}"), *(names or ["[stack unknown]"])]
            self._stacks[key] = ";".join(one_line(part).replace(";", ":") for part in parts)
        return self._stacks[key]
