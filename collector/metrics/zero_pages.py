"""Zero pages of a target: pages that contain only zeros, for which a mirror sends almost nothing.

Only present memory is read, and only once: reading a page that was never touched would
make the kernel map one.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import numpy as np
from redirty.collector.errors import ArmError, GoneError, require_resources
from redirty.collector.linux import pagemap as pm
from redirty.collector.linux.maps import Mapping, Mappings
from redirty.collector.linux.pagemap import ENTRY_PRESENT, ENTRY_SWAPPED, Pagemap
from redirty.collector.linux.procfs import directory
from redirty.collector.pageset import PAGE_SHIFT, PAGE_SIZE, PAGES_PER_REGION, REGION_SHIFT, Bools
from redirty.collector.tracking.address_space import AddressSpace

_WORDS = PAGE_SIZE // 8


@dataclass(frozen=True)
class ZeroRange:
    """Counts of a range of a mapping.

    Attributes:
        pid: the process.
        mapping: the mapping.
        start, end: addresses, end exclusive.
        present: pages in memory or swapped out.
        zero: those of them that contain only zeros.
        unread: those of them that cannot be read, of which nothing is known.
    """

    pid: int
    mapping: Mapping
    start: int
    end: int
    present: int
    zero: int
    unread: int = 0

    @property
    def pages(self) -> int:
        """The number of pages in the range."""
        return (self.end - self.start) >> PAGE_SHIFT

    @property
    def _uniform(self) -> str:
        """The state of its pages if all have the same: untouched or full; else empty."""
        if not self.present:
            return "untouched"
        known = not (self.zero or self.unread)
        return "full" if self.present == self.pages and known else ""


def runs(chosen: Bools) -> list[tuple[int, int]]:
    """Return the runs of indices where chosen, as ranges."""
    edges = np.flatnonzero(np.diff(chosen, prepend=False, append=False)).tolist()
    return list(zip(edges[::2], edges[1::2], strict=True))


def zero_pages(data: bytes) -> int:
    """Count the whole pages that contain only zeros."""
    words = np.frombuffer(data, np.uint64, len(data) // PAGE_SIZE * _WORDS).reshape(-1, _WORDS)
    return int((~words.any(axis=1)).sum())


def joined(found: Iterable[ZeroRange]) -> Iterator[ZeroRange]:
    """Merge neighbours that are completely untouched, or completely full."""
    last: ZeroRange | None = None
    for one in found:
        if (
            last is not None
            and last._uniform
            and last._uniform == one._uniform
            and (last.pid, last.mapping, last.end) == (one.pid, one.mapping, one.start)
        ):
            present = last.present + one.present
            last = ZeroRange(one.pid, one.mapping, last.start, one.end, present, 0)
            continue
        if last is not None:
            yield last
        last = one
    if last is not None:
        yield last


class ZeroPages:
    """Counts zero pages in the memory of address spaces, which is opened at once.

    Memory of a process that ends meanwhile counts as not present.
    """

    def __init__(self, spaces: Iterable[AddressSpace]) -> None:
        self._opened: list[tuple[int, Mappings, Pagemap, int]] = []
        for space in spaces:
            if space.gone:
                continue
            try:
                pagemap = Pagemap(space.pid)
            except OSError as e:
                require_resources(e, f"cannot read the memory of process {space.pid}")
                continue
            try:
                memory = os.open(f"{directory(space.pid)}/mem", os.O_RDONLY | os.O_CLOEXEC)
            except OSError as e:
                pagemap.close()
                require_resources(e, f"cannot read the memory of process {space.pid}")
                continue
            self._opened.append((space.pid, space.mappings, pagemap, memory))

    def count(
        self,
        stop: Callable[[], bool] = lambda: False,
        on_pages: Callable[[int], None] = lambda n: None,
    ) -> Iterator[ZeroRange]:
        """Read all memory; yield its ranges, of at most 2 MiB, larger where all pages are alike.

        stop: ends the search when it returns True. on_pages: called with the number of pages just searched.
        """
        for pid, mappings, pagemap, memory in self._opened:
            yield from joined(_reported(_ranges(pid, mappings, pagemap, memory, stop), on_pages))

    @property
    def pages(self) -> int:
        """The number of pages to search, present or not."""
        return sum(int((m.ends - m.starts).sum()) for _, m, _, _ in self._opened)

    def close(self) -> None:
        """Release the memory."""
        for *_, pagemap, memory in self._opened:
            pagemap.close()
            os.close(memory)
        self._opened = []


def _reported(found: Iterable[ZeroRange], on_pages: Callable[[int], None]) -> Iterator[ZeroRange]:
    for one in found:
        yield one
        on_pages(one.pages)


def _ranges(
    pid: int, mappings: Mappings, pagemap: Pagemap, memory: int, stop: Callable[[], bool]
) -> Iterator[ZeroRange]:
    for mapping in mappings.items:
        end = mapping.end >> PAGE_SHIFT
        first = mapping.start >> PAGE_SHIFT
        for region in _touched_regions(pagemap, mapping):
            if stop():
                return
            a = max(region * PAGES_PER_REGION, first)
            last = min(end, (region + 1) * PAGES_PER_REGION)
            if a > first:
                yield ZeroRange(pid, mapping, first << PAGE_SHIFT, a << PAGE_SHIFT, 0, 0)
            counts = _count(a, last, pagemap, memory)
            yield ZeroRange(pid, mapping, a << PAGE_SHIFT, last << PAGE_SHIFT, *counts)
            first = last
        if first < end:
            yield ZeroRange(pid, mapping, first << PAGE_SHIFT, mapping.end, 0, 0)


def _touched_regions(pagemap: Pagemap, mapping: Mapping) -> Iterable[int]:
    """Return the numbers of the 2 MiB regions of a mapping that may have pages: it may be TiB of nothing."""
    kinds = pm.PRESENT | pm.SWAPPED
    try:
        found = pagemap.scan(mapping.start, mapping.end, anyof=kinds, returned=kinds)
    except ArmError:  # a kernel before 6.7
        first, end = mapping.start >> REGION_SHIFT, -(-mapping.end >> REGION_SHIFT)
        return range(first, end)
    except GoneError:
        return ()
    regions: list[int] = pm.to_pages(found).keys.tolist()
    return regions


def _count(first: int, last: int, pagemap: Pagemap, memory: int) -> tuple[int, int, int]:
    """Return the number of (present, zero, unreadable) pages among page numbers [first, last)."""
    try:
        entries = pagemap.entries(first, last - first)
    except OSError:
        return 0, 0, 0  # the memory is gone
    there = (entries & ENTRY_PRESENT) != 0
    swapped = (entries & ENTRY_SWAPPED) != 0
    zero = unread = 0
    for a, b in runs(there & ~swapped):
        at = a
        while at < b:
            try:
                data = os.pread(memory, (b - at) * PAGE_SIZE, (first + at) * PAGE_SIZE)
            except OSError:
                data = b""
            if (
                len(data) < PAGE_SIZE
            ):  # unmapped meanwhile, a device, or an error of the memory or disk
                unread += 1
                at += 1
                continue
            zero += zero_pages(data)
            at += len(data) // PAGE_SIZE
    return int((there | swapped).sum()), zero, unread
