"""Page tables of a process, walked from the top, each with its own physical address.

Format: Intel SDM volume 3, 4.5 (paging); Documentation/mm/page_tables.rst has the names.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from redirty.collector.bpf.page_table_reader import PageTableReader, PageTableReadError, known_page
from redirty.collector.linux.numa import NumaNodes
from redirty.collector.pageset import PAGE_SHIFT, U64

# by level: 1 maps pages, the highest is the root
NAMES = ("pte", "pmd", "pud", "p4d", "pgd")
REGION_SHIFT = 21  # size of what a table of level 1 maps
_PRESENT, _HUGE = np.uint64(1), np.uint64(0x80)
_USER_ENTRIES = 256  # of the top table; the others are the kernel's

Read = Callable[[U64], tuple[U64, npt.NDArray[np.bool_]]]


def shift_of(level: int) -> int:
    """Return how many bits of an address a table of this level maps: 21 for level 1."""
    return PAGE_SHIFT + 9 * level


@dataclass(frozen=True, eq=False)
class Tables:
    """The page tables of an address space, by level and ascending address.

    Attributes:
        level: (n,) level of each table.
        address: (n,) first address that it maps.
        physical: (n,) physical address at which it lies.
        huge: (m,) addresses of huge pages of 2 MiB.
        huge_1g: Addresses of huge pages of 1 GiB.
        top: The highest level.
    """

    level: npt.NDArray[np.int64]
    address: U64
    physical: U64
    huge: U64
    huge_1g: U64
    top: int

    @property
    def leaves(self) -> npt.NDArray[np.bool_]:
        """(n,) True for tables that map pages."""
        found: npt.NDArray[np.bool_] = self.level == 1
        return found

    def name(self, level: int) -> str:
        """Return the kernel's name of a level; the highest is the pgd, however many there are."""
        return "pgd" if level == self.top else NAMES[level - 1]


def leaves_by_node(tables: Tables, nodes: NumaNodes) -> dict[int, int]:
    """Count the tables of the lowest level by node."""
    where = nodes.of_frames(tables.physical[tables.leaves] >> np.uint64(PAGE_SHIFT))
    return {int(n): int(c) for n, c in zip(*np.unique(where, return_counts=True), strict=True)}


def walk(read: Read, addresses: Callable[[U64], U64], top: int, levels: int) -> Tables:
    """Walk all tables from the one at a physical address.

    The process may change them meanwhile: a table freed during the walk may or may not be included.

    Args:
        read: Reads pages, see PageTableReader.read.
        addresses: Extracts addresses from entries, see PageTableReader.addresses.
        top: Physical address of the top table.
        levels: Number of levels.
    """
    at, where = np.zeros(1, np.uint64), np.array([top], np.uint64)
    found = []
    huge: dict[int, U64] = {1: at[:0], 2: at[:0]}
    for level in range(levels, 0, -1):
        found.append((np.full(len(at), level, np.int64), at, where))
        if level == 1 or not len(at):
            break
        entries, good = read(where)
        entries = np.where(good[:, None], entries, np.uint64(0))
        if level == levels:
            entries = entries[:, :_USER_ENTRIES]
        step = np.uint64(shift_of(level - 1))
        targets = at[:, None] + (np.arange(entries.shape[1], dtype=np.uint64) << step)
        big = (entries & _HUGE) != 0
        if level <= 3:
            huge[level - 1] = targets[big]
            table = ((entries & _PRESENT) != 0) & ~big
        else:
            table = (entries & _PRESENT) != 0
        at, where = targets[table], addresses(entries[table])
    level_parts, address_parts, physical_parts = zip(*found, strict=True)
    return Tables(
        np.concatenate(level_parts),
        np.concatenate(address_parts),
        np.concatenate(physical_parts),
        huge[1],
        huge[2],
        levels,
    )


def translate(read: Read, addresses: Callable[[U64], U64], top: int, levels: int, at: int) -> int:
    """Return the page frame that an address maps to; -1: none. For the arguments see walk()."""
    where = top
    for level in range(levels, 0, -1):
        entries, good = read(np.array([where], np.uint64))
        entry = entries[0, at >> shift_of(level - 1) & 511]
        if not good[0] or not entry & _PRESENT:
            return -1
        if 1 < level <= 3 and entry & _HUGE:
            return -1
        where = int(addresses(np.array([entry], np.uint64))[0])
    return where >> PAGE_SHIFT


class Walker:
    """Walks address spaces through BPF.

    Raises:
        PageTableReadError: Page tables cannot be read on this machine, or a trial walk of this process's
            page tables does not lead to the frames that the kernel reports.
    """

    def __init__(self, highest: int) -> None:
        self._pages = PageTableReader(highest)
        try:
            self._levels = self._count_levels()
        except BaseException:
            self._pages.close()
            raise

    def _count_levels(self) -> int:
        top = self._pages.top("self")
        with known_page() as (address, frame, _):
            for levels in (4, 5):
                if (
                    translate(self._pages.read, self._pages.addresses, top, levels, address)
                    == frame
                ):
                    return levels
        raise PageTableReadError(
            "redirty's own page tables do not lead to its memory when BPF walks them"
        )

    def walk(self, pid: int) -> Tables:
        """Walk the tables of a process.

        Raises:
            OSError: The process is gone.
        """
        top = self._pages.top(pid)
        return walk(self._pages.read, self._pages.addresses, top, self._levels)

    def close(self) -> None:
        """Unload the reader."""
        self._pages.close()
