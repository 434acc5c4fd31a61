"""What a process has mapped, and what is behind it: each line of /proc/PID/maps with its file.

A mirror keeps contents by where they live, not by where they are seen: pages that belong to one address
space (its own: anonymous memory, and private copies of file pages), and pages of files and shared
memory, which belong to the file and count once, however many mappings show them.
"""

from __future__ import annotations

import bisect
import os
from collections.abc import Iterable
from typing import NamedTuple

import numpy as np
from redirty.collector.linux import maps, shared_mappings
from redirty.collector.linux.maps import ANON_HUGEPAGE_PATH, IncrementalMaps, Mappings
from redirty.collector.pageset import PAGE_SHIFT, U64, PageSet, empty, from_ranges

Key = shared_mappings.Key
without_overlaps = maps.without_overlaps

_NO_FILE = ("[", ANON_HUGEPAGE_PATH)


class Vma(NamedTuple):
    """One mapping. start, end, offset: in bytes, end exclusive."""

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
        """Whether something is behind it that a page of it shows as long as nobody wrote to a copy."""
        return self.inode != 0 and (self.shared or not self.path.startswith(_NO_FILE))

    def pages_of_file(self) -> tuple[int, int]:
        """(first, end) page numbers within the file."""
        first = self.offset >> PAGE_SHIFT
        return first, first + ((self.end - self.start) >> PAGE_SHIFT)

    def starting_at(self, start: int) -> Vma:
        """Return the part of the mapping from an address on."""
        offset = self.offset + start - self.start if self.inode else self.offset
        return self._replace(start=start, offset=offset)


def parse_line(line: bytes) -> Vma | None:
    """Parse one line of a maps file; return None for pages provided by the kernel."""
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
    """An open /proc/PID/maps, which belongs to the memory that was there when it was opened."""

    def __init__(self, pid: int) -> None:
        super().__init__(pid, parse_line)
        try:
            self.namespace = os.stat(f"/proc/{pid}/ns/ipc").st_ino  # noqa: PTH116
        except BaseException:
            self.close()
            raise
        self._vmas: tuple[Vma, ...] = ()

    def read(self) -> tuple[Vma, ...]:
        """Return the mappings, ascending and without overlaps; none once this memory is gone."""
        if self.changed():
            self._vmas = without_overlaps(self.parsed())
        return self._vmas


def inside(vmas: Iterable[Vma], part: Mappings) -> tuple[Vma, ...]:
    """Those that lie within one of the mappings of part."""
    chosen = part.items
    starts = [m.start for m in chosen]

    def has(v: Vma) -> bool:
        at = bisect.bisect_right(starts, v.start) - 1
        return at >= 0 and v.end <= chosen[at].end

    return tuple(v for v in vmas if has(v))


def key_of(vma: Vma, namespace: int) -> Key:
    """What is behind a mapping that has a file."""
    return vma.device, vma.inode, namespace if vma.path.startswith(maps.SYSTEM_V_PATH) else 0


def bounds_of(vmas: Iterable[Vma]) -> U64:
    """(n, 2) page numbers, first and end, of mappings."""
    bounds = np.array([(v.start, v.end) for v in vmas], np.uint64).reshape(-1, 2)
    return bounds >> np.uint64(PAGE_SHIFT)


def pages_of(vmas: Iterable[Vma]) -> PageSet:
    """All pages of mappings, ascending."""
    bounds = bounds_of(vmas)
    return from_ranges(bounds[:, 0], bounds[:, 1]) if len(bounds) else empty()


def ranges_of_file(vmas: Iterable[Vma]) -> PageSet:
    """Which pages of one file its mappings show, whatever their order."""
    found = empty()
    for first, end in sorted({v.pages_of_file() for v in vmas}):
        found = found | from_ranges(np.array([first], np.uint64), np.array([end], np.uint64))
    return found
