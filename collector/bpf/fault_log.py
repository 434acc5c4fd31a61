"""Where the write-fault log lies while it is written: one table of bitmaps for each epoch.

Two shapes of bpfprogs/events.h. Usually an array in shared memory, with open addressing, read and
emptied in place: no system call, no copy but the one of the rows used. On kernels whose BPF has
no atomic OR a hash map with a byte a page, drained in bulk by system calls.
"""

from __future__ import annotations

import mmap
from typing import Protocol

import numpy as np
import numpy.typing as npt
from redirty.collector.bpf import abi, syscalls
from redirty.collector.pageset import U64, WORDS_PER_REGION

Rows = tuple[U64, U64]
"""(n,) keys in no order, (n, 8) words."""


class Log(Protocol):
    """The log of one epoch."""

    def drain(self) -> Rows:
        """All rows, removed. Only when no BPF program writes here any more."""

    def find(self, keys: U64) -> Rows:
        """Those of some keys that have a row now, as they are at this moment."""

    def count(self) -> int | None:
        """How many pages it holds at this moment, or so; None where counting them takes long."""


def rows_bits(regions: int) -> int:
    """Binary logarithm of a table's rows: it is at most half full when it holds its regions."""
    return (2 * regions - 1).bit_length()


class TableLog:
    """Half of the shared arrays. table: (rows,) abi.ROW; taken: (regions,) places in it, in
    the order they were taken; used: (1,) how many were; lookups stop where the kernel side's do."""

    def __init__(
        self, table: npt.NDArray[np.void], taken: npt.NDArray[np.uint32], used: U64
    ) -> None:
        self._table = table
        self._taken = taken
        self._used = used

    def drain(self) -> Rows:
        """See Log."""
        used = int(self._used[0])
        places = self._taken[:used].astype(np.int64)
        if used > len(self._taken):  # more than half full: the list had no room for the last ones
            places = np.flatnonzero(self._table["key"])
        found = self._table[places]
        self._table[places] = np.zeros((), abi.ROW)
        self._used[0] = 0
        return found["key"].copy(), found["bits"].copy()

    def count(self) -> int | None:
        """See Log."""
        places = self._taken[: min(int(self._used[0]), len(self._taken))]
        return int(np.bitwise_count(self._table["bits"][places]).sum())

    def find(self, keys: U64) -> Rows:
        """See Log."""
        mask = len(self._table) - 1
        shift = np.uint64(64 - mask.bit_length())
        place = ((keys * np.uint64(abi.HASH_FACTOR)) >> shift).astype(np.int64)
        found_keys, found_words = [], []
        for _ in range(abi.PROBES):
            row_keys = self._table["key"][place]
            hit = row_keys == keys
            found_keys.append(keys[hit])
            found_words.append(self._table["bits"][place[hit]])
            on = ~hit & (row_keys != 0)
            keys, place = keys[on], (place[on] + 1) & mask
            if len(keys) == 0:
                break
        return np.concatenate(found_keys), np.concatenate(found_words)


class MapLog:
    """A hash map whose values hold a byte a page."""

    def __init__(self, fd: int) -> None:
        self._reader = syscalls.HashReader(
            fd, np.empty(16384, np.uint64), np.empty((16384, 512), np.uint8)
        )

    def drain(self) -> Rows:
        """See Log."""
        keys, values = self._reader.drain()
        return keys.astype(np.uint64, copy=False), _packed(values)

    def count(self) -> int | None:
        """See Log."""
        return None

    def find(self, keys: U64) -> Rows:
        """See Log."""
        value = np.empty((1, 512), np.uint8)
        found_keys, found = [], [np.empty((0, 512), np.uint8)]
        for key in keys:
            if syscalls.map_lookup(self._reader.fd, np.array([key], np.uint64), value):
                found_keys.append(key)
                found.append(value.copy())
        return np.array(found_keys, np.uint64), _packed(np.concatenate(found))


def _packed(values: npt.NDArray[np.generic]) -> U64:
    """(n, 8) words of (n, 512) bytes."""
    packed = np.packbits(values.astype(np.bool_), axis=1, bitorder="little")
    return packed.reshape(-1, 8 * WORDS_PER_REGION).view(np.uint64)


def tables(rows_fd: int, taken_fd: int, regions: int, used: U64) -> tuple[TableLog, TableLog]:
    """The logs of both epochs, from shared arrays mapped as long as they are used; used: (2,)."""
    rows = 1 << rows_bits(regions)
    row_map = mmap.mmap(rows_fd, whole_pages(2 * rows * abi.ROW.itemsize))
    taken_map = mmap.mmap(taken_fd, whole_pages(2 * regions * 8))
    table = np.frombuffer(row_map, abi.ROW, 2 * rows).reshape(2, rows)
    # an array map's elements are at least 8 bytes apart
    taken = np.frombuffer(taken_map, np.uint32, 4 * regions)[::2].reshape(2, regions)
    return TableLog(table[0], taken[0], used[0:1]), TableLog(table[1], taken[1], used[1:2])


def whole_pages(size: int) -> int:
    """A length to map: the next multiple of the page size."""
    return -(-size // mmap.PAGESIZE) * mmap.PAGESIZE
