"""The BPF ring buffer, read as numpy arrays without callbacks and with a single copy.

Layout (kernel/bpf/ringbuf.c): a page with the consumer's position, one with the producer's, then
the data, mapped twice in a row so that no record is split at the end. A record is an 8-byte
header, whose first word has the length and in bit 31 "still being written", and the payload. All
records of redirty have the same size, so the data is an array.
"""

from __future__ import annotations

import mmap

import numpy as np
import numpy.typing as npt
from redirty.collector.bpf import abi
from redirty.collector.pageset import PAGE_SIZE

_BUSY = np.uint32(1 << 31)
_DISCARDED = np.uint32(1 << 30)
RECORD = np.dtype(
    [("length", "<u4"), ("page", "<u4"), *((n, abi.EVENT[n]) for n in abi.EVENT.names or ())]
)


class Ring:
    """A ring buffer map, from which records are taken."""

    def __init__(self, fd: int, size: int) -> None:
        """Map the ring; size: bytes of data, a power of two and a multiple of the page size."""
        page = PAGE_SIZE
        self._size = size
        self._consumer = mmap.mmap(
            fd, page, mmap.MAP_SHARED, mmap.PROT_READ | mmap.PROT_WRITE, offset=0
        )
        self._rest = mmap.mmap(fd, page + 2 * size, mmap.MAP_SHARED, mmap.PROT_READ, offset=page)
        self._consumed = np.frombuffer(self._consumer, np.uint64, 1)
        self._produced = np.frombuffer(self._rest, np.uint64, 1)
        self._data = np.frombuffer(self._rest, np.uint8, 2 * size, offset=page)

    def take(self, limit: int = 1 << 20) -> npt.NDArray[np.void]:
        """Take up to limit records as a (n,) array of RECORD, oldest first."""
        # x86 keeps loads in order, so a record that counts as produced has its header. The payload is
        # complete once the header's busy bit is cleared, which is read before the copy.
        start, end = int(self._consumed[0]), int(self._produced[0])
        stride = RECORD.itemsize
        count = min((end - start) // stride, limit, self._size // stride)
        if count <= 0:
            return np.empty(0, RECORD)
        at = start & (self._size - 1)
        view = self._data[at : at + count * stride].view(RECORD)
        busy = np.flatnonzero(view["length"] & _BUSY)
        if len(busy):
            view = view[: int(busy[0])]
        records = view.copy()
        self._consumed[0] = start + len(records) * stride
        discarded = records["length"] & _DISCARDED
        return records[discarded == 0] if discarded.any() else records

    def close(self) -> None:
        """Unmap the ring."""
        del self._consumed, self._produced, self._data
        self._consumer.close()
        self._rest.close()
