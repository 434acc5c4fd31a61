"""Which pages of a target are all zeros: a mirror sends next to nothing for those.

The target's memory is read once for it, as far as it is present: reading what was never touched would
make the kernel map a page for it.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from redirty.collector.linux.maps import Mapping, Mappings
from redirty.collector.linux.pagemap import ENTRY_PRESENT, ENTRY_SWAPPED, Pagemap
from redirty.collector.pageset import PAGE_SHIFT, PAGES_PER_REGION
from redirty.collector.tracking.address_space import AddressSpace

_PAGE = 1 << PAGE_SHIFT
_WORDS = _PAGE // 8
Flags = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class Stretch:
    """A piece of a mapping, [start, end). Of its pages, present: those in memory or swapped out; zero:
    those of them that are all zeros."""

    pid: int
    mapping: Mapping
    start: int
    end: int
    present: int
    zero: int

    @property
    def pages(self) -> int:
        """How many there are."""
        return (self.end - self.start) >> PAGE_SHIFT

    @property
    def _plain(self) -> str:
        """How all its pages are, when they are all alike."""
        if not self.present:
            return "untouched"
        return "full" if self.present == self.pages and not self.zero else ""


def runs(chosen: Flags) -> list[tuple[int, int]]:
    """Half-open ranges of indices where chosen."""
    edges = np.flatnonzero(np.diff(chosen, prepend=False, append=False)).tolist()
    return list(zip(edges[::2], edges[1::2], strict=True))


def zero_pages(data: bytes) -> int:
    """How many whole pages of it are all zeros."""
    words = np.frombuffer(data, np.uint64, len(data) // _PAGE * _WORDS).reshape(-1, _WORDS)
    return int((~words.any(axis=1)).sum())


def joined(found: Iterable[Stretch]) -> Iterator[Stretch]:
    """With neighbours made one that are untouched, or full, as a whole."""
    last: Stretch | None = None
    for one in found:
        if (
            last is not None
            and last._plain
            and last._plain == one._plain
            and (last.pid, last.mapping, last.end) == (one.pid, one.mapping, one.start)
        ):
            last = Stretch(one.pid, one.mapping, last.start, one.end, last.present + one.present, 0)
            continue
        if last is not None:
            yield last
        last = one
    if last is not None:
        yield last


class ZeroPages:
    """Holds the memory of spaces as they are now; a process that ends meanwhile has no more of it."""

    def __init__(self, spaces: Iterable[AddressSpace]) -> None:
        self._held: list[tuple[int, Mappings, Pagemap, int]] = []
        for space in spaces:
            if space.gone:
                continue
            try:
                pagemap = Pagemap(space.pid, regions=1)
            except OSError:
                continue
            try:
                memory = os.open(f"/proc/{space.pid}/mem", os.O_RDONLY | os.O_CLOEXEC)
            except OSError:
                pagemap.close()
                continue
            self._held.append((space.pid, space.mappings, pagemap, memory))

    def count(
        self,
        stop: Callable[[], bool] = lambda: False,
        looked: Callable[[int], None] = lambda n: None,
    ) -> Iterator[Stretch]:
        """Reads all, until it is told to stop: pieces of at most 2 MiB, larger ones where all is
        alike. looked: is told of so many more pages."""
        for pid, mappings, pagemap, memory in self._held:
            yield from joined(_told(_pieces(pid, mappings, pagemap, memory, stop), looked))

    @property
    def pages(self) -> int:
        """How many there are, present or not."""
        return sum(int((m.ends - m.starts).sum()) for _, m, _, _ in self._held)

    def close(self) -> None:
        """Lets go of the memory."""
        for *_, pagemap, memory in self._held:
            pagemap.close()
            os.close(memory)
        self._held = []


def _told(found: Iterable[Stretch], looked: Callable[[int], None]) -> Iterator[Stretch]:
    for one in found:
        yield one
        looked(one.pages)


def _pieces(
    pid: int, mappings: Mappings, pagemap: Pagemap, memory: int, stop: Callable[[], bool]
) -> Iterator[Stretch]:
    for mapping in mappings.items:
        first, end = mapping.start >> PAGE_SHIFT, mapping.end >> PAGE_SHIFT
        while first < end:
            if stop():
                return
            last = min(end, (first // PAGES_PER_REGION + 1) * PAGES_PER_REGION)
            present, zero = _look(first, last, pagemap, memory)
            yield Stretch(pid, mapping, first << PAGE_SHIFT, last << PAGE_SHIFT, present, zero)
            first = last


def _look(first: int, last: int, pagemap: Pagemap, memory: int) -> tuple[int, int]:
    """(present, zero) of some pages."""
    try:
        entries = pagemap.entries(first, last - first)
    except OSError:
        return 0, 0  # the memory is gone
    there = (entries & ENTRY_PRESENT) != 0
    swapped = (entries & ENTRY_SWAPPED) != 0
    zero = 0
    for a, b in runs(there & ~swapped):
        try:
            data = os.pread(memory, (b - a) * _PAGE, (first + a) * _PAGE)
        except OSError:
            continue  # unmapped meanwhile, or of a device
        zero += zero_pages(data)
    return int((there | swapped).sum()), zero
