"""A mirror of a target's memory, kept by the rules of the round protocol and nothing else.

At each boundary, only after end_round() has returned, it copies exactly the pages that the round reports as
dirty; of an address space that it sees for the first time it copies, once, everything present. Private memory
belongs to its address space. A shared object is kept once, by page of the file, whoever writes to it through
whichever mapping.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
from redirty.collector.pageset import page_numbers
from redirty.collector.tracking.rounds import Round, SpaceRound

from tests.torture.memory import (
    PAGE,
    U64,
    Contents,
    Key,
    PageTables,
    Vma,
    chunks,
    open_shared,
    read_into,
    vmas,
)

_REGION = 512  # pages that are kept together
NEVER = -1


class Region:
    """Copies of 512 pages. have: which were copied; last: the last round that reported them dirty."""

    def __init__(self) -> None:
        self.data: Contents = np.zeros((_REGION, PAGE // 8), np.uint64)
        self.have = np.zeros(_REGION, np.bool_)
        self.last = np.full(_REGION, NEVER, np.int64)


class Shadow:
    """Copies of pages, by page number."""

    def __init__(self) -> None:
        self.regions: dict[int, Region] = {}

    def at(self, region: int) -> Region:
        """Return a region by its number; create it if there is none."""
        if region not in self.regions:
            self.regions[region] = Region()
        return self.regions[region]

    def parts(self, pages: U64) -> Iterable[tuple[Region, npt.NDArray[np.int64], slice]]:
        """Split ascending pages by region: yield the region, indices within it, and the slice of the pages."""
        numbers = pages // np.uint64(_REGION)
        cuts = np.concatenate(([0], np.flatnonzero(np.diff(numbers)) + 1, [len(pages)]))
        for a, b in zip(cuts[:-1].tolist(), cuts[1:].tolist(), strict=True):
            if a < b:
                yield (
                    self.at(int(numbers[a])),
                    (pages[a:b] % np.uint64(_REGION)).astype(np.int64),
                    slice(a, b),
                )

    def copy_from(self, pid: int, pages: U64, number: int) -> int:
        """Copy pages of a process's private memory; return how many could be read."""
        addresses = np.empty(len(pages), np.uint64)
        for region, at, place in self.parts(pages):
            addresses[place] = region.data.ctypes.data + at * PAGE
        done = read_into(pid, pages, addresses)
        for region, at, place in self.parts(pages):
            region.have[at] = done[place]
            region.last[at] = number
        return int(done.sum())

    def copy_of(self, source: Contents, pages: U64, number: int) -> int:
        """Copy pages of a shared object; return their number."""
        pages = pages[pages < len(source)]
        for region, at, place in self.parts(pages):
            region.data[at] = source[pages[place]]
            region.have[at] = True
            region.last[at] = number
        return len(pages)

    def copies(self, pages: U64) -> tuple[Contents, npt.NDArray[np.bool_], npt.NDArray[np.int64]]:
        """Look up ascending pages.

        Returns: their contents, with zeros where there is no copy; whether there is one; and the last round in which
        they were dirty.
        """
        data = np.empty((len(pages), PAGE // 8), np.uint64)
        have, last = np.empty(len(pages), np.bool_), np.empty(len(pages), np.int64)
        for region, at, place in self.parts(pages):
            data[place], have[place], last[place] = (
                region.data[at],
                region.have[at],
                region.last[at],
            )
        return data, have, last


@dataclass
class Copy:
    """An address space's part of the mirror. vmas: as of the last boundary."""

    pid: int
    vmas: list[Vma]
    shadow: Shadow = field(default_factory=Shadow)


class Mirror:
    """A mirror of a target.

    Attributes:
        root: the process whose children the other processes are.
        copies: the number of pages copied.
    """

    def __init__(self, root: int) -> None:
        self.root = root
        self.spaces: dict[int, Copy] = {}
        self.shared: dict[Key, tuple[Contents, Shadow]] = {}
        self.copies = 0
        self.root_vmas: list[Vma] = []

    def start(self, live: dict[int, int]) -> None:
        """Copy everything present after the first arm. live: see sync()."""
        self._update(live, NEVER)

    def sync(self, result: Round, live: dict[int, int]) -> bool:
        """Copy what a round reports as dirty, after its boundary.

        Args:
            result: the round.
            live: number and PID of the address spaces that the recorder has now.

        Returns: True when an address space was seen for the first time.
        """
        before = {number: copy.vmas for number, copy in self.spaces.items()}
        parent = self.root_vmas
        new = self._update(live, result.number)
        for space in result.spaces:
            # Written before it ran another program, or it ended in the round in which it was forked: it
            # had its parent's mappings.
            self._copy_dirty(space, [*before.get(space.space, []), *parent], result.number)
        return new

    def _update(self, live: dict[int, int], number: int) -> bool:
        """Read the current mappings; copy what is seen for the first time as a whole."""
        now = {space: vmas(pid) for space, pid in live.items()}
        self.root_vmas = vmas(self.root)
        keys = {v.key for found in (*now.values(), self.root_vmas) for v in found if v.shared}
        for key in self.shared.keys() - keys:
            del self.shared[key]
        for space, found in now.items():
            for vma in found:
                if vma.shared and vma.key not in self.shared:
                    self._first_shared(live[space], vma, number)
        new = live.keys() - self.spaces.keys()
        for space in self.spaces.keys() - live.keys():
            del self.spaces[space]
        for space, found in now.items():
            if space in new:
                self.spaces[space] = copy = Copy(live[space], found)
                self._first_space(copy, number)
            self.spaces[space].vmas = found
        return bool(new)

    def _first_space(self, copy: Copy, number: int) -> None:
        try:
            with PageTables(copy.pid) as tables:
                for vma in copy.vmas:
                    for first, count in chunks(vma):
                        pages = tables.populated(first, count, anonymous=not vma.shared)
                        if len(pages):
                            self._copy(copy, vma, pages, number)
        except OSError:  # the process has ended
            pass

    def _first_shared(self, pid: int, vma: Vma, number: int) -> None:
        source = open_shared(pid, vma)
        if source is None:
            return  # it has just moved, and is seen first at the next boundary
        shadow = Shadow()
        self.copies += shadow.copy_of(source, np.arange(len(source), dtype=np.uint64), number)
        self.shared[vma.key] = source, shadow

    def _copy_dirty(self, space: SpaceRound, before: list[Vma], number: int) -> None:
        copy = self.spaces.get(space.space)
        now = copy.vmas if copy else []
        pages = page_numbers(space.dirty)
        for vma in dict.fromkeys([*before, *now]):
            a, b = np.searchsorted(pages, np.array([vma.first, vma.last], np.uint64))
            if a < b:
                self._copy(copy if vma in now else None, vma, pages[a:b], number)

    def _copy(self, copy: Copy | None, vma: Vma, pages: U64, number: int) -> None:
        """Copy pages of one mapping. copy: of an address space that has the mapping now."""
        if not vma.shared:
            if copy is not None:
                self.copies += copy.shadow.copy_from(copy.pid, pages, number)
        elif vma.key in self.shared:
            source, shadow = self.shared[vma.key]
            offsets = pages - np.uint64(vma.first) + np.uint64(vma.offset)
            self.copies += shadow.copy_of(source, offsets, number)
