"""A mirror of a target's memory that is kept by the rules of the round protocol and nothing else.

At each boundary, only after end_round() returned, it copies exactly the pages that the round calls
dirty; of an address space that it sees for the first time, once, all that is there. Private memory
belongs to its address space. What shared mappings show is one thing, whoever writes to it through
whichever mapping: it is kept once, by page of the file.
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
    """Copies of 512 pages. have: which were copied; last: the round that called them dirty last."""

    def __init__(self) -> None:
        self.data: Contents = np.zeros((_REGION, PAGE // 8), np.uint64)
        self.have = np.zeros(_REGION, np.bool_)
        self.last = np.full(_REGION, NEVER, np.int64)


class Shadow:
    """Copies of pages, by page number."""

    def __init__(self) -> None:
        self.regions: dict[int, Region] = {}

    def at(self, region: int) -> Region:
        """The region of a number, made when there is none."""
        if region not in self.regions:
            self.regions[region] = Region()
        return self.regions[region]

    def parts(self, pages: U64) -> Iterable[tuple[Region, npt.NDArray[np.int64], slice]]:
        """For ascending pages: region, indices within it, place among the pages."""
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
        """Copies pages of a process's private memory; how many could be read."""
        addresses = np.empty(len(pages), np.uint64)
        for region, at, place in self.parts(pages):
            addresses[place] = region.data.ctypes.data + at * PAGE
        done = read_into(pid, pages, addresses)
        for region, at, place in self.parts(pages):
            region.have[at] = done[place]
            region.last[at] = number
        return int(done.sum())

    def copy_of(self, source: Contents, pages: U64, number: int) -> int:
        """Copies pages of what is shared; how many."""
        pages = pages[pages < len(source)]
        for region, at, place in self.parts(pages):
            region.data[at] = source[pages[place]]
            region.have[at] = True
            region.last[at] = number
        return len(pages)

    def copies(self, pages: U64) -> tuple[Contents, npt.NDArray[np.bool_], npt.NDArray[np.int64]]:
        """(contents: zeros where there is no copy; whether there is one; the round in which it was
        dirty last) of ascending pages."""
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
    """An address space's part of the mirror. vmas: as they were at the last boundary."""

    pid: int
    vmas: list[Vma]
    shadow: Shadow = field(default_factory=Shadow)


class Mirror:
    """root: the process whose children the others are. copies: pages copied, in all."""

    def __init__(self, root: int) -> None:
        self.root = root
        self.spaces: dict[int, Copy] = {}
        self.shared: dict[Key, tuple[Contents, Shadow]] = {}
        self.copies = 0
        self.root_vmas: list[Vma] = []

    def begin(self, live: dict[int, int]) -> None:
        """After the first arm: all that is there. live: see follow()."""
        self._look(live, NEVER)

    def follow(self, result: Round, live: dict[int, int]) -> bool:
        """After a boundary: what the round calls dirty. live: number and pid of the spaces that the
        recorder has now. True when one was seen for the first time."""
        before = {number: copy.vmas for number, copy in self.spaces.items()}
        parent = self.root_vmas
        new = self._look(live, result.number)
        for space in result.spaces:
            # Written before it ran another program, or ended in the round in which it was born: it
            # had its parent's mappings.
            self._copy_dirty(space, [*before.get(space.space, []), *parent], result.number)
        return new

    def _look(self, live: dict[int, int], number: int) -> bool:
        """Takes the mappings as they are now; what is seen first is copied whole."""
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
        except OSError:  # the process is gone
            pass

    def _first_shared(self, pid: int, vma: Vma, number: int) -> None:
        source = open_shared(pid, vma)
        if source is None:
            return  # it moved just now: seen first at the next boundary
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
        """Pages of one mapping; copy: of a space that has it now."""
        if not vma.shared:
            if copy is not None:
                self.copies += copy.shadow.copy_from(copy.pid, pages, number)
        elif vma.key in self.shared:
            source, shadow = self.shared[vma.key]
            offsets = pages - np.uint64(vma.first) + np.uint64(vma.offset)
            self.copies += shadow.copy_of(source, offsets, number)
