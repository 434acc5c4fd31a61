"""Zero pages of a target: pages that contain only zeros, for which a mirror sends almost nothing.

Only present memory is read, and only once: reading a page that was never touched would
make the kernel map one.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace

import numpy as np
from redirty.collector.errors import ArmError, GoneError, require_resources
from redirty.collector.linux import pagemap as pm
from redirty.collector.linux.maps import Mapping, Mappings
from redirty.collector.linux.pagemap import ENTRY_PRESENT, ENTRY_SWAPPED, Pagemap
from redirty.collector.linux.procfs import directory
from redirty.collector.metrics.mapped_files import NOTHING, Shown, Where
from redirty.collector.metrics.seen_pages import SeenPages
from redirty.collector.pageset import (
    PAGE_SHIFT,
    PAGE_SIZE,
    PAGES_PER_REGION,
    REGION_SHIFT,
    Bools,
)
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
        once: pages that are not in a range before, as another mapping of the same shared memory.
        present_once, zero_once: those of them that are present, and zero, and that a mirror copies: not those of
            files in private mappings, nor the kernel's zero page.
    """

    pid: int
    mapping: Mapping
    start: int
    end: int
    present: int
    zero: int
    unread: int = 0
    once: int = 0
    present_once: int = 0
    zero_once: int = 0

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


def zero_pages(data: bytes) -> Bools:
    """Return (n,) which of the whole pages contain only zeros."""
    words = np.frombuffer(data, np.uint64, len(data) // PAGE_SIZE * _WORDS).reshape(-1, _WORDS)
    found: Bools = np.logical_not(words.any(axis=1))
    return found


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
            last = replace(
                last,
                end=one.end,
                present=last.present + one.present,
                once=last.once + one.once,
                present_once=last.present_once + one.present_once,
            )
            continue
        if last is not None:
            yield last
        last = one
    if last is not None:
        yield last


class ZeroPages:
    """Counts zero pages in the memory of address spaces, which is opened at once.

    Memory of a process that ends meanwhile counts as not present. shown: what they show of files.
    """

    def __init__(
        self, spaces: Iterable[AddressSpace], shown: Where = lambda number: NOTHING
    ) -> None:
        self._opened: list[_Memory] = []
        self._once = SeenPages()
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
            place = _Memory(space.pid, space.mappings, pagemap, memory, shown(space.number))
            self._opened.append(place)

    def count(
        self,
        stop: Callable[[], bool] = lambda: False,
        on_pages: Callable[[int], None] = lambda n: None,
    ) -> Iterator[ZeroRange]:
        """Read all memory; yield its ranges, of at most 2 MiB, larger where all pages are alike.

        stop: ends the search when it returns True. on_pages: called with the number of pages just searched.
        """
        for place in self._opened:
            yield from joined(_reported(_ranges(place, self._once, stop), on_pages))

    @property
    def pages(self) -> int:
        """The number of pages to search, present or not."""
        return sum(int((p.mappings.ends - p.mappings.starts).sum()) for p in self._opened)

    def close(self) -> None:
        """Release the memory."""
        for place in self._opened:
            place.pagemap.close()
            os.close(place.memory)
        self._opened = []


@dataclass(frozen=True, eq=False)
class _Memory:
    """The memory of a process: descriptors of its pagemap and mem."""

    pid: int
    mappings: Mappings
    pagemap: Pagemap
    memory: int
    shown: Shown


def _reported(found: Iterable[ZeroRange], on_pages: Callable[[int], None]) -> Iterator[ZeroRange]:
    for one in found:
        yield one
        on_pages(one.pages)


def _ranges(place: _Memory, once: SeenPages, stop: Callable[[], bool]) -> Iterator[ZeroRange]:
    for mapping in place.mappings.items:
        piece = _Mapping(place, mapping, once)
        end = mapping.end >> PAGE_SHIFT
        first = mapping.start >> PAGE_SHIFT
        for region in _touched_regions(place.pagemap, mapping):
            if stop():
                return
            a = max(region * PAGES_PER_REGION, first)
            last = min(end, (region + 1) * PAGES_PER_REGION)
            if a > first:
                yield piece.untouched(first, a)
            yield piece.count(a, last)
            first = last
        if first < end:
            yield piece.untouched(first, end)


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


class _Mapping:
    """A mapping whose pages are counted. Page numbers are those of its process."""

    def __init__(self, place: _Memory, mapping: Mapping, once: SeenPages) -> None:
        self._place, self._mapping, self._once = place, mapping, once
        shown, first = place.shown, mapping.start >> PAGE_SHIFT
        row = int(np.searchsorted(shown.starts, first, side="right")) - 1
        self._shared = mapping.shared and row >= 0 and first < int(shown.ends[row])
        if self._shared:
            self._file, self._distance = int(shown.file[row]), int(shown.distance[row])
        # A later mapping of the same memory has no untouched pages of its own.
        self._whole = not self._shared or once.first(self._file)

    def untouched(self, first: int, last: int) -> ZeroRange:
        """Return a range without pages."""
        return self._range(first, last, 0, 0, 0, 0, 0)

    def _range(
        self, first: int, last: int, present: int, zero: int, unread: int, once: int, zero_once: int
    ) -> ZeroRange:
        return ZeroRange(
            self._place.pid,
            self._mapping,
            first << PAGE_SHIFT,
            last << PAGE_SHIFT,
            present,
            zero,
            unread,
            last - first if self._whole else once,
            once,
            zero_once,
        )

    def count(self, first: int, last: int) -> ZeroRange:
        """Read the page numbers [first, last)."""
        try:
            entries = self._place.pagemap.entries(first, last - first)
        except OSError:
            return self.untouched(first, last)  # the memory is gone
        there = (entries & ENTRY_PRESENT) != 0
        swapped = (entries & ENTRY_SWAPPED) != 0
        here = there | swapped
        zero, unread = self._read(first, there & ~swapped)
        if self._shared:
            once = self._once.of_file(self._file, first + self._distance, here)
        else:
            once = self._once.own(entries, here)
        counts = (int(flags.sum()) for flags in (here, zero, unread, once, zero & once))
        return self._range(first, last, *counts)

    def _read(self, first: int, pages: Bools) -> tuple[Bools, Bools]:
        """Read pages; return which are zero, and which cannot be read."""
        zero, unread = np.zeros(len(pages), np.bool_), np.zeros(len(pages), np.bool_)
        for a, b in runs(pages):
            at = a
            while at < b:
                length, place = (b - at) * PAGE_SIZE, (first + at) * PAGE_SIZE
                try:
                    data = os.pread(self._place.memory, length, place)
                except OSError:
                    data = b""
                if (
                    len(data) < PAGE_SIZE
                ):  # unmapped meanwhile, a device, or an error of the memory or disk
                    unread[at] = True
                    at += 1
                    continue
                flags = zero_pages(data)
                zero[at : at + len(flags)] = flags
                at += len(flags)
        return zero, unread
