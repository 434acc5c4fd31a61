"""The log of writes around an arm: single pages with their times, until the histogram is exact enough."""

from __future__ import annotations

import mmap
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from redirty.collector.bpf import abi, fault_log
from redirty.collector.bpf.kernel_clock import offset_ns
from redirty.collector.pageset import U64

Ints = npt.NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class ArmWrites:
    """Writes to pages while their targets were armed and for a while afterwards, by time.

    A page may be there several times: protected and written again. Only the first such write is sure to be there.

    Attributes:
        ns: (n,) ascending, CLOCK_MONOTONIC of this process.
        pages: (n,) page numbers.
        slots: (n,) slots of the targets.
    """

    ns: Ints
    pages: U64
    slots: Ints

    def of_slot(self, slot: int) -> ArmWrites:
        """Return the writes of one slot."""
        here = self.slots == slot
        return ArmWrites(self.ns[here], self.pages[here], self.slots[here])


class ArmLog:
    """Both epochs' logs, in shared memory."""

    def __init__(self, fd: int, config: npt.NDArray[np.void]) -> None:
        """Map the array.

        Args:
            fd: The map.
            config: (1,) abi.CONFIG.
        """
        count = 2 * abi.ARM_WRITES
        self._map = mmap.mmap(fd, fault_log.whole_pages(count * abi.ARM_WRITE.itemsize))
        self._rows = np.frombuffer(self._map, abi.ARM_WRITE, count).reshape(2, abi.ARM_WRITES)
        self._taken = config["arm_writes"][0]

    def take(self, epoch: int) -> ArmWrites:
        """Take what was logged in an epoch, once no BPF program writes there any more."""
        used = min(int(self._taken[epoch]), abi.ARM_WRITES)
        rows = self._rows[epoch, :used].copy()
        self._rows["ns"][epoch, :used] = 0
        self._taken[epoch] = 0
        rows = rows[rows["ns"] != 0]
        rows = rows[np.argsort(rows["ns"], kind="stable")]
        slot_shift = np.uint64(abi.ARM_SLOT_SHIFT)
        return ArmWrites(
            rows["ns"].astype(np.int64) + offset_ns(),
            rows["page"] & np.uint64((1 << abi.ARM_SLOT_SHIFT) - 1),
            (rows["page"] >> slot_shift).astype(np.int64),
        )

    def close(self) -> None:
        """Unmap the logs."""
        del self._rows, self._taken
        self._map.close()
