"""The write-fault logs of both epochs: one is written by the kernel side, the other is drained."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import numpy.typing as npt
from redirty.collector.bpf import abi, fault_log, syscalls
from redirty.collector.pageset import PAGE_SHIFT, PageSet, empty, from_ranges, from_rows

_REGION_MASK = np.uint64((1 << abi.REGION_BITS) - 1)


class EpochLogs:
    """The two logs, and which of them is being written."""

    def __init__(
        self,
        logs: tuple[fault_log.Log, fault_log.Log],
        config: npt.NDArray[np.void],
        grace_fd: int,
        grace_inner_fd: int,
        mprotected_fd: int | None,
    ) -> None:
        """Take over the maps.

        Args:
            logs: The log of each epoch.
            config: (1,) abi.CONFIG.
            grace_fd: The map of maps that is changed to wait for running programs.
            grace_inner_fd: The map in it.
            mprotected_fd: The map of ranges that mprotect made writable; None if this kernel's mprotect makes none.
        """
        self._logs = logs
        self._config = config
        self._grace_fd = grace_fd
        self._grace_inner = np.array([grace_inner_fd], np.uint32)
        self._mprotected = None
        if mprotected_fd is not None:
            self._mprotected = syscalls.HashReader(
                mprotected_fd, np.empty(abi.RANGES, abi.RANGE), np.empty(abi.RANGES, np.uint64)
            )

    @property
    def epoch(self) -> int:
        """0 or 1: the log that faults go to now."""
        return int(self._config["epoch"][0]) & 1

    def switch(self, epoch: int) -> None:
        """Direct faults to the log of an epoch from now on."""
        self._config["epoch"] = epoch

    def wait_grace(self) -> None:
        """Wait until no BPF program is running that started before this call.

        Changing a map of maps waits for that in the kernel (synchronize_rcu in
        kernel/bpf/syscall.c, since 4.20, made for this use). Sleeps, without using the CPU.
        """
        syscalls.map_update(self._grace_fd, np.zeros(1, np.uint32), self._grace_inner)

    def drain(self) -> dict[int, PageSet]:
        """Drain the log of the previous epoch into address space -> pages. Call it after wait_grace()."""
        keys, words = self._logs[1 - self.epoch].drain()
        order = np.argsort(keys)
        keys, words = keys[order], words[order]
        spaces = keys >> np.uint64(abi.REGION_BITS)
        regions = keys & _REGION_MASK
        cuts = np.flatnonzero(spaces[1:] != spaces[:-1]) + 1
        bounds = [0, *cuts.tolist(), len(keys)]
        return {
            int(spaces[a]): PageSet(regions[a:b], words[a:b]) for a, b in pairwise(bounds) if b > a
        }

    def drain_mprotected(self) -> dict[int, PageSet]:
        """Take the pages that mprotect made writable without a fault in the previous epoch.

        Only some kernels do that (kp_change_protection in dirty.bpf.c). Call it after wait_grace().

        Returns:
            Address space -> pages.
        """
        if self._mprotected is None:
            return {}
        keys, ends = self._mprotected.read()
        found: dict[int, PageSet] = {}
        for key, end in zip(keys, ends.tolist(), strict=True):
            if key["epoch"] == 1 - self.epoch:
                bounds = np.array([key["start"], end], np.uint64) >> np.uint64(PAGE_SHIFT)
                space = int(key["space"])
                found[space] = found.get(space, empty()) | from_ranges(bounds[:1], bounds[1:])
                syscalls.map_delete(self._mprotected.fd, np.array([key], abi.RANGE))
        return found

    def peek(self, space: int, regions: npt.NDArray[np.uint64]) -> PageSet:
        """Return the pages of some regions of an address space logged so far in this epoch."""
        base = np.uint64(space << abi.REGION_BITS)
        keys, words = self._logs[self.epoch].find(regions | base)
        return from_rows(keys & _REGION_MASK, words)

    def logged(self) -> int | None:
        """Return about how many pages were logged in this epoch; None if counting takes long."""
        return self._logs[self.epoch].count()
