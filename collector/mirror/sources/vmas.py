"""The mappings of a process with the files behind them, as in /proc/PID/maps.

A mirror stores contents by their owner, not by where they are mapped: an address space owns anonymous memory and
private copies of file pages; files and shared memory own their pages, which are stored once, however many
mappings show them.
"""

from __future__ import annotations

import bisect
import os
from collections.abc import Iterable
from typing import NamedTuple

import numpy as np
from redirty.collector.linux import maps, procfs, shared_mappings
from redirty.collector.linux.maps import IncrementalMaps, Mappings
from redirty.collector.pageset import PAGE_SHIFT, U64, PageSet, empty, from_ranges

Key = shared_mappings.Identity
"""Identifies a file or a piece of memory."""
without_overlaps = maps.without_overlaps


class Vma(NamedTuple):
    """A mapping. start, end, offset: in bytes, end exclusive."""

    start: int
    end: int
    perms: str
    offset: int
    device: str
    inode: int
    path: str

    @property
    def shared(self) -> bool:
        """Whether writes go to the file."""
        return self.perms[3] == "s"

    @property
    def has_file(self) -> bool:
        """Whether its pages show a file or shared memory, unless they are private copies."""
        return maps.shows_file(self.perms, self.path, self.inode)

    def pages_of_file(self) -> tuple[int, int]:
        """Return (first, end) page numbers within the file."""
        first = self.offset >> PAGE_SHIFT
        return first, first + ((self.end - self.start) >> PAGE_SHIFT)

    def starting_at(self, start: int) -> Vma:
        """Return the part of the mapping from an address on."""
        offset = self.offset + start - self.start if self.inode else self.offset
        return self._replace(start=start, offset=offset)


def parse_line(line: bytes) -> Vma | None:
    """Parse a line of a maps file; return None for mappings that the kernel provides."""
    fields = maps.split_line(line)
    path = maps.decode_path(fields.path)
    if path in maps.KERNEL_PATHS:
        return None
    start, end = maps.bounds_of(fields.bounds)
    return Vma(
        start,
        end,
        fields.perms.decode(),
        int(fields.offset, 16),
        fields.device.decode(),
        int(fields.inode),
        path,
    )


class VmaFile(IncrementalMaps[Vma]):
    """An open /proc/PID/maps, which stays with the memory that the process had when it was opened."""

    def __init__(self, pid: int) -> None:
        super().__init__(pid, parse_line)
        try:
            self.namespace = os.stat(f"{procfs.directory(pid)}/ns/ipc").st_ino  # noqa: PTH116
        except BaseException:
            self.close()
            raise
        self._vmas: tuple[Vma, ...] = ()

    def read(self) -> tuple[Vma, ...]:
        """Return the mappings, ascending, without overlaps; none when this memory is gone."""
        if self.changed():
            self._vmas = without_overlaps(self.parsed())
        return self._vmas


def inside(vmas: Iterable[Vma], outer: Mappings) -> tuple[Vma, ...]:
    """Return the mappings that lie within one of `outer`."""
    chosen = outer.items
    starts = [m.start for m in chosen]

    def has(v: Vma) -> bool:
        at = bisect.bisect_right(starts, v.start) - 1
        return at >= 0 and v.end <= chosen[at].end

    return tuple(v for v in vmas if has(v))


def namespace_of(vma: Vma, namespace: int) -> int:
    """Return the IPC namespace if a mapping shows System V memory, else 0."""
    return namespace if vma.path.startswith(maps.SYSTEM_V_PATH) else 0


def bounds_of(vmas: Iterable[Vma]) -> U64:
    """Return (n, 2) page numbers of mappings, first and end."""
    bounds = np.array([(v.start, v.end) for v in vmas], np.uint64).reshape(-1, 2)
    return bounds >> np.uint64(PAGE_SHIFT)


def pages_of(vmas: Iterable[Vma]) -> PageSet:
    """Return all pages of ascending mappings."""
    bounds = bounds_of(vmas)
    return from_ranges(bounds[:, 0], bounds[:, 1]) if len(bounds) else empty()
