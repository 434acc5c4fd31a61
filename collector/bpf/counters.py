"""Counters that the BPF side keeps: by slot and epoch, and pages by stack."""

from __future__ import annotations

import mmap

import numpy as np
import numpy.typing as npt
from redirty.collector.bpf import abi, fault_log, syscalls
from redirty.collector.bpf.kernel_clock import kernel_ns

_END_OF_TIME = (1 << 64) - 1


class Counters:
    """The statistics of each slot in both epochs, in shared memory."""

    def __init__(self, fd: int, slots: int, *, arm_log: bool) -> None:
        """Map the statistics.

        Args:
            fd: The map.
            slots: Number of slots; that of slot 0 is shared.
            arm_log: Whether writes around an arm are logged (arm_log.py).
        """
        size = fault_log.whole_pages(abi.STATS.itemsize * slots * 2)
        self._map = mmap.mmap(fd, size)
        self._stats = np.frombuffer(self._map, abi.STATS, slots * 2).reshape(slots, 2)
        self._stats["ref_ns"] = kernel_ns()
        self._slots_used = 1
        self._arm_log = arm_log

    def use(self, slot: int) -> None:
        """Count for a slot from now on."""
        if slot >= self._slots_used:
            self._stats["ref_ns"][self._slots_used : slot + 1] = self._stats["ref_ns"][0]
            self._slots_used = slot + 1

    def start(self, epoch: int, now_ns: int) -> None:
        """Start the write curves of an epoch at a time (CLOCK_MONOTONIC, in ns); the arms follow."""
        self._stats["ref_ns"][: self._slots_used, epoch] = kernel_ns(now_ns)
        if self._arm_log:
            self._stats["arm_writes_until"][1 : self._slots_used, epoch] = _END_OF_TIME

    def restart(self, slot: int, epoch: int) -> None:
        """Start the write curve of a slot now, as it has been armed.

        Writes are logged singly for as long again as its arm took. From then on it matters no more that the
        histogram has the same lag for all pages.
        """
        now, begun = kernel_ns(), int(self._stats["ref_ns"][slot, epoch])
        self._stats["ref_ns"][slot, epoch] = now
        if self._arm_log and slot:
            self._stats["arm_writes_until"][slot, epoch] = 2 * now - begun

    def take(self, epoch: int) -> npt.NDArray[np.void]:
        """Return (slots used so far,) counters of an epoch, and set them to 0."""
        # as words: numpy copies records field by field
        words = self._stats.view(np.uint64).reshape(len(self._stats), 2, -1)
        old = words[: self._slots_used, epoch]
        taken: npt.NDArray[np.void] = old.copy().view(abi.STATS).reshape(-1)
        old[...] = 0
        return taken

    def tlb(self, slot: int, epoch: int) -> npt.NDArray[np.void]:
        """Return a copy of the (TLB_REASONS,) flush counters of a slot in an epoch."""
        counts: npt.NDArray[np.void] = self._stats["tlb"][slot, epoch].copy()
        return counts

    def close(self) -> None:
        """Unmap the statistics."""
        del self._stats
        self._map.close()


class StackCounts:
    """Pages dirtied by stack, and the stacks."""

    def __init__(self, counts_fd: int, stacks_fd: int) -> None:
        """Take over the maps' descriptors."""
        self._counts_fd = counts_fd
        self._stacks_fd = stacks_fd

    def take(self) -> list[tuple[int, int, int]]:
        """Remove and return the counts: (address space, stack ID, pages) each."""
        reader = syscalls.HashReader(
            self._counts_fd, np.empty(8192, abi.STACK_KEY), np.empty(8192, np.uint64)
        )
        keys, values = reader.drain()
        return [
            (space, stack, n)
            for (space, stack), n in zip(keys.tolist(), values.tolist(), strict=True)
        ]

    def addresses(self, stack_id: int) -> list[int]:
        """Return the addresses of a stack, the writing instruction first; none if it is unknown."""
        found = np.zeros(127, np.uint64)
        if not syscalls.map_lookup(self._stacks_fd, np.array([stack_id], np.uint32), found):
            return []
        return [int(a) for a in found[found != 0]]
