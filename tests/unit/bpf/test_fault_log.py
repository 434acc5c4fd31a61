"""The log's table as the collector reads it, filled by the rules of bpfprogs/dirty.bpf.c."""

from __future__ import annotations

import numpy as np
import pytest
from redirty.collector.bpf import abi
from redirty.collector.bpf.fault_log import TableLog, rows_bits
from redirty.collector.pageset import U64

MASK = (1 << 64) - 1


class Filled:
    """A table, with the kernel side's allocation of rows written independently."""

    def __init__(self, regions: int) -> None:
        self.bits = rows_bits(regions)
        self.table = np.zeros(1 << self.bits, abi.ROW)
        self.taken = np.zeros(regions, np.uint32)
        self.used = np.zeros(1, np.uint64)
        self.log = TableLog(self.table, self.taken, self.used)

    def take(self, key: int) -> bool:
        """Take a row for a key and put the key's complement into its first word."""
        first = ((key * 0x9E3779B97F4A7C15) & MASK) >> (64 - self.bits)
        for probe in range(64):
            at = (first + probe) % len(self.table)
            if self.table["key"][at] == 0:
                self.table["key"][at] = key
                self.table["bits"][at, 0] = ~key & MASK
                if self.used[0] < len(self.taken):
                    self.taken[int(self.used[0])] = at
                self.used[0] += 1
                return True
        return False


def some_keys(count: int, seed: int) -> list[int]:
    """Return runs of adjacent keys, in several address spaces, in no order."""
    rng = np.random.default_rng(seed)
    found: set[int] = set()
    while len(found) < count:
        first = int(rng.integers(1, 1 << 28)) << abi.REGION_BITS | int(rng.integers(1 << 26))
        found.update(range(first, first + int(rng.integers(1, 40))))
    keys = list(found)[:count]
    rng.shuffle(keys)
    return keys


def assert_rows(rows: tuple[U64, U64], keys: list[int]) -> None:
    """Check that the rows are those of the keys, each with its own words."""
    assert sorted(rows[0].tolist()) == sorted(keys)
    assert np.array_equal(rows[1][:, 0], ~rows[0])
    assert not rows[1][:, 1:].any()


@pytest.mark.parametrize("count", [0, 1, 100, 256])
def test_drain_takes_every_row_and_leaves_none(count: int) -> None:
    filled = Filled(256)
    for again in range(2):
        keys = some_keys(count, seed=again)
        assert all(filled.take(key) for key in keys)
        assert_rows(filled.log.drain(), keys)
        assert not filled.table["key"].any()
        assert not filled.table["bits"].any()
        assert filled.used[0] == 0


def test_rows_past_the_list_are_drained_too() -> None:
    filled = Filled(256)
    kept = [key for key in some_keys(512, seed=3) if filled.take(key)]
    assert len(kept) > 400
    assert_rows(filled.log.drain(), kept)
    assert not filled.table["key"].any()
    few = some_keys(3, seed=4)
    assert all(filled.take(key) for key in few)
    assert_rows(filled.log.drain(), few)


@pytest.mark.parametrize("count", [1, 200, 500])
def test_find(count: int) -> None:
    filled = Filled(256)
    keys = some_keys(count + 50, seed=5)
    there = [key for key in keys[:count] if filled.take(key)]
    requested = np.array(sorted(keys), np.uint64)
    assert_rows(filled.log.find(requested), there)
    assert_rows(filled.log.find(requested[:0]), [])
    assert_rows(filled.log.drain(), there)
    assert_rows(filled.log.find(requested), [])


@pytest.mark.parametrize("regions", [8, 9, 4096, 65536])
def test_at_most_half_full(regions: int) -> None:
    assert regions * 2 <= 1 << rows_bits(regions) < regions * 4
