"""Page tables: walked, attributed to nodes, and the advice that follows."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest
from redirty.collector.linux.numa import NumaNodes, parse_list, zone_ranges
from redirty.collector.linux.procfs import split_stat
from redirty.collector.pageset import U64
from redirty.collector.pagetables.advice import advice, remote_share
from redirty.collector.pagetables.walker import shift_of, translate, walk

PRESENT, HUGE, OTHERS = 1, 0x80, 0x8000_0000_0000_0862
ADDRESS = np.uint64(0x000F_FFFF_FFFF_F000)


class Memory:
    """Synthetic page tables: pages by physical address."""

    def __init__(self) -> None:
        self.pages: dict[int, U64] = {}

    def table(self, at: int, **entries: int) -> int:
        """Create a page with entries by number (e3=...); return an entry that refers to it."""
        page = self.pages.setdefault(at, np.zeros(512, np.uint64))
        for name, value in entries.items():
            page[int(name[1:])] = value
        return at | PRESENT | OTHERS

    def read(self, physical: U64) -> tuple[U64, npt.NDArray[np.bool_]]:
        """Stand in for the method of PageTableReader."""
        good = np.array([int(p) in self.pages for p in physical])
        none = np.full(512, 0xDEAD, np.uint64)
        return np.array([self.pages.get(int(p), none) for p in physical]), good

    @staticmethod
    def addresses(entries: U64) -> U64:
        """Stand in for the method of PageTableReader."""
        return entries & ADDRESS


def synthetic(levels: int) -> Memory:
    """Create a table of each kind; the top is at 0x1000."""
    memory = Memory()
    leaf = memory.table(0x5000, e7=0x77000 | PRESENT | OTHERS)
    gone = 0x9000 | PRESENT  # freed during the walk
    middle = memory.table(
        0x4000, e0=leaf, e2=0xA00000 | PRESENT | HUGE, e3=0xC00000 | HUGE, e4=0x1234 << 1, e511=gone
    )
    upper = memory.table(0x3000, e5=middle, e6=0x40000000 | PRESENT | HUGE, e8=gone)
    if levels == 5:
        upper = memory.table(0x2000, e0=upper)
    memory.table(0x1000, e1=upper, e256=memory.table(0x8000))
    return memory


@pytest.mark.parametrize("levels", [4, 5])
def test_every_table_is_found_where_it_is(levels: int) -> None:
    memory = synthetic(levels)
    tables = walk(memory.read, memory.addresses, 0x1000, levels)
    base = 1 << shift_of(levels - 1)
    found = dict(
        zip(
            zip(tables.level.tolist(), tables.physical.tolist(), strict=True),
            tables.address.tolist(),
            strict=True,
        )
    )
    at = base + (5 << 30)
    expected = {
        (1, 0x5000): at,
        (1, 0x9000): at + (511 << 21),
        (2, 0x4000): at,
        (2, 0x9000): base + (8 << 30),
        (3, 0x3000): base,
        (levels, 0x1000): 0,
    }
    if levels == 5:
        expected[4, 0x2000] = base
    assert found == expected
    assert tables.huge.tolist() == [at + (2 << 21), at + (3 << 21)]
    assert tables.huge_1g.tolist() == [base + (6 << 30)]
    assert tables.name(levels) == "pgd"
    assert tables.name(1) == "pte"
    page = at + (7 << 12)
    assert translate(memory.read, memory.addresses, 0x1000, levels, page) == 0x77
    assert translate(memory.read, memory.addresses, 0x1000, levels, page + 4096) == -1
    assert translate(memory.read, memory.addresses, 0x1000, levels, at + (2 << 21)) == -1


ZONEINFO = """Node 0, zone      DMA
  pages free     2816
        spanned  4095
        present  3998
  start_pfn:           1
Node 0, zone    Normal
        spanned  0
  start_pfn:           0
Node 1, zone   Normal
        spanned  1000
  start_pfn:           8192
"""


def test_frames_belong_to_nodes() -> None:
    ranges = zone_ranges(ZONEINFO)
    assert ranges == [(1, 4096, 0), (8192, 9192, 1)]
    starts, ends, owners = (np.array([r[i] for r in ranges]) for i in range(3))
    nodes = NumaNodes(
        (0, 1),
        (0, 1),
        {},
        starts.astype(np.uint64),
        ends.astype(np.uint64),
        owners.astype(np.int64),
    )
    frames = np.array([0, 1, 4095, 4096, 8191, 8192, 9191, 9192], np.uint64)
    assert nodes.of_frames(frames).tolist() == [-1, 0, 0, -1, -1, 1, 1, -1]
    assert nodes.highest == 9192 * 4096
    assert parse_list("0-2,5\n") == [0, 1, 2, 5]
    assert parse_list("\n") == []


def test_the_processor_of_a_thread() -> None:
    stat = "12 (a) b (c) S " + " ".join(str(n) for n in range(4, 53))
    assert split_stat(stat.encode()).processor == 39  # as proc(5) numbers it


def test_remote_share() -> None:
    assert remote_share({0: 10}, {0: 1.0}) == 0
    assert remote_share({0: 10}, {1: 1.0}) == 1
    assert remote_share({0: 75, 1: 25}, {0: 1.0, 1: 3.0}) == pytest.approx(
        0.25 * 0.25 + 0.75 * 0.75
    )
    assert remote_share({}, {0: 1.0}) is None
    assert remote_share({0: 1}, {}) is None


@pytest.mark.parametrize(
    ("tables", "ran", "with_memory", "expected"),
    [
        ({0: 10}, {0: 1.0}, (0,), "only one node"),
        ({}, {0: 1.0}, (0, 1), "cannot be read here"),
        ({0: 10}, {}, (0, 1), "did not run"),
        ({0: 10}, {0: 1.0}, (0, 1), "nothing to do"),
        (
            {0: 10},
            {1: 1.0},
            (0, 1),
            "-p 7 --to-node 1 --yes would lower",
        ),
        ({0: 10}, {0: 1.0, 1: 1.0}, (0, 1), "several nodes, so about 50%"),
        ({0: 10}, {0: 1.0, 1: 4.0}, (0, 1), "from 80% to 20%"),
        ({0: 10}, {2: 1.0}, (0, 1), "on nodes without memory"),
    ],
)
def test_advice(
    tables: dict[int, float], ran: dict[int, float], with_memory: tuple[int, ...], expected: str
) -> None:
    text = advice("-p 7", tables, ran, with_memory)
    assert expected in text
    assert "\n" not in text
