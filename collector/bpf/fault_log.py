"""The write-fault log of one epoch: a table of bitmaps that BPF programs write.

It has two shapes (bpfprogs/events.h). Usually it is an array in shared memory with open addressing,
read and emptied in place: no system call, and only the rows used are copied. On kernels whose BPF
has no atomic OR it is a hash map with a byte for each page, drained in bulk by system calls.
"""

from __future__ import annotations

import mmap
from typing import Protocol

import numpy as np
import numpy.typing as npt
from redirty.collector.bpf import abi, syscalls
from redirty.collector.pageset import PAGE_SIZE, U64, WORDS_PER_REGION

Rows = tuple[U64, U64]
"""(n,) keys in no order, (n, 8) words."""


class Log(Protocol):
    """The log of one epoch."""

    def drain(self) -> Rows:
        """Remove and return all rows, once no BPF program writes here any more."""

    def find(self, keys: U64) -> Rows:
        """Return the current rows of those of some keys that have one."""

    def count(self) -> int | None:
        """Return about how many pages it holds now; None where counting them takes long."""


def rows_bits(regions: int) -> int:
    """Return the binary logarithm of a table's rows, with which it is at most half full."""
    return (2 * regions - 1).bit_length()


class TableLog:
    """The half of the shared arrays that belongs to an epoch. Lookups stop where those of the kernel side do."""

    def __init__(
        self, table: npt.NDArray[np.void], taken: npt.NDArray[np.uint32], used: U64
    ) -> None:
        """Use the arrays of one epoch.

        Args:
            table: (rows,) abi.ROW.
            taken: (regions,) indices of rows in use, in the order in which they were taken.
            used: (1,) number of rows in use.
        """
        self._table = table
        self._taken = taken
        self._used = used

    def drain(self) -> Rows:
        """Copy the rows in use and clear them; see Log."""
        used = int(self._used[0])
        indices = self._taken[:used].astype(np.int64)
        if used > len(self._taken):  # more than half full: the list had no room for the last ones
            indices = np.flatnonzero(self._table["key"])
        found = self._table[indices]
        self._table[indices] = np.zeros((), abi.ROW)
        self._used[0] = 0
        return found["key"].copy(), found["bits"].copy()

    def count(self) -> int | None:
        """Count the bits of the rows in use; see Log."""
        indices = self._taken[: min(int(self._used[0]), len(self._taken))]
        return int(np.bitwise_count(self._table["bits"][indices]).sum())

    def find(self, keys: U64) -> Rows:
        """Probe for each key as the kernel side does; see Log."""
        mask = len(self._table) - 1
        shift = np.uint64(64 - mask.bit_length())
        index = ((keys * np.uint64(abi.HASH_FACTOR)) >> shift).astype(np.int64)
        found_keys, found_words = [], []
        for _ in range(abi.PROBES):
            row_keys = self._table["key"][index]
            hit = row_keys == keys
            found_keys.append(keys[hit])
            found_words.append(self._table["bits"][index[hit]])
            more = ~hit & (row_keys != 0)
            keys, index = keys[more], (index[more] + 1) & mask
            if len(keys) == 0:
                break
        return np.concatenate(found_keys), np.concatenate(found_words)


class MapLog:
    """A hash map whose values hold a byte for each page."""

    def __init__(self, fd: int) -> None:
        self._reader = syscalls.HashReader(
            fd, np.empty(16384, np.uint64), np.empty((16384, 512), np.uint8)
        )

    def drain(self) -> Rows:
        """Drain the map; see Log."""
        keys, values = self._reader.drain()
        return keys.astype(np.uint64, copy=False), _packed(values)

    def count(self) -> int | None:
        """Return None: it would have to read the whole map; see Log."""
        return None

    def find(self, keys: U64) -> Rows:
        """Look each key up; see Log."""
        value = np.empty((1, 512), np.uint8)
        found_keys, found = [], [np.empty((0, 512), np.uint8)]
        for key in keys:
            if syscalls.map_lookup(self._reader.fd, np.array([key], np.uint64), value):
                found_keys.append(key)
                found.append(value.copy())
        return np.array(found_keys, np.uint64), _packed(np.concatenate(found))


def _packed(values: npt.NDArray[np.generic]) -> U64:
    """Pack (n, 512) bytes into (n, 8) words."""
    packed = np.packbits(values.astype(np.bool_), axis=1, bitorder="little")
    return packed.reshape(-1, 8 * WORDS_PER_REGION).view(np.uint64)


def tables(rows_fd: int, taken_fd: int, regions: int, used: U64) -> tuple[TableLog, TableLog]:
    """Map the shared arrays; return the logs of both epochs.

    Args:
        rows_fd: The array of rows.
        taken_fd: The array of indices of rows in use.
        regions: Number of regions for which there is room.
        used: (2,) number of rows in use in each epoch.
    """
    rows = 1 << rows_bits(regions)
    row_map = mmap.mmap(rows_fd, whole_pages(2 * rows * abi.ROW.itemsize))
    taken_map = mmap.mmap(taken_fd, whole_pages(2 * regions * 8))
    table = np.frombuffer(row_map, abi.ROW, 2 * rows).reshape(2, rows)
    # an array map's elements are at least 8 bytes apart
    taken = np.frombuffer(taken_map, np.uint32, 4 * regions)[::2].reshape(2, regions)
    return TableLog(table[0], taken[0], used[0:1]), TableLog(table[1], taken[1], used[1:2])


def whole_pages(size: int) -> int:
    """Round a size up to a multiple of the page size."""
    return -(-size // PAGE_SIZE) * PAGE_SIZE
