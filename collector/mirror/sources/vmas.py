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
from redirty.collector.linux.maps import Mappings, maps_text, maps_there
from redirty.collector.pageset import PAGE_SHIFT, U64, PageSet, empty, from_ranges

Key = tuple[str, int, int]
"""Device, inode, and for System V memory its IPC namespace, as each namespace counts from 0."""

# Provided by the kernel, the same in every process.
_MADE_UP = ("[vsyscall]", "[vvar]", "[vvar_vclock]")
_NO_FILE = ("[", "/anon_hugepage")
_SYSTEM_V = "/SYSV"


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
        return self.inode != 0 and (self.shared or not self.path.startswith(_NO_FILE))

    def pages_of_file(self) -> tuple[int, int]:
        """Return (first, end) page numbers within the file."""
        first = self.offset >> PAGE_SHIFT
        return first, first + ((self.end - self.start) >> PAGE_SHIFT)


def parse_line(line: bytes) -> Vma | None:
    """Parse a line of a maps file; return None for mappings that the kernel provides."""
    text = line.decode(errors="surrogateescape")
    bounds, perms, offset, device, inode, *rest = text.split(None, 5)
    path = rest[0] if rest else ""
    if path in _MADE_UP:
        return None
    start, _, end = bounds.partition("-")
    return Vma(int(start, 16), int(end, 16), perms, int(offset, 16), device, int(inode), path)


class VmaFile:
    """An open /proc/PID/maps, which stays with the memory that the process had when it was opened."""

    def __init__(self, pid: int) -> None:
        self._fd = os.open(f"/proc/{pid}/maps", os.O_RDONLY | os.O_CLOEXEC)
        try:
            self.namespace = os.stat(f"/proc/{pid}/ns/ipc").st_ino  # noqa: PTH116
        except BaseException:
            os.close(self._fd)
            raise
        self._text = b""
        self._lines: dict[bytes, Vma | None] = {}
        self._vmas: tuple[Vma, ...] = ()

    def read(self) -> tuple[Vma, ...]:
        """Return the mappings, ascending, without overlaps; none when this memory is gone."""
        text = maps_text(self._fd)
        if text != self._text:
            old, lines = self._lines, [line for line in text.split(b"\n") if line]
            self._lines = {line: old[line] if line in old else parse_line(line) for line in lines}
            self._vmas = without_overlaps(v for v in self._lines.values() if v is not None)
            self._text = text
        return self._vmas

    def there(self) -> bool:
        """Return whether this memory still exists."""
        return maps_there(self._fd)

    def close(self) -> None:
        """Close the file."""
        os.close(self._fd)


def without_overlaps(vmas: Iterable[Vma]) -> tuple[Vma, ...]:
    """Sort mappings, and trim the start of each that overlaps the one before.

    A list that changed while it was read piece by piece can contain such mappings.
    """
    kept: list[Vma] = []
    for v in sorted(vmas, key=lambda v: v.start):
        start = max(v.start, kept[-1].end) if kept else v.start
        if v.end > start:
            offset = v.offset + start - v.start if v.inode else v.offset
            kept.append(v._replace(start=start, offset=offset))
    return tuple(kept)


def inside(vmas: Iterable[Vma], outer: Mappings) -> tuple[Vma, ...]:
    """Return the mappings that lie within one of `outer`."""
    chosen = outer.items
    starts = [m.start for m in chosen]

    def has(v: Vma) -> bool:
        at = bisect.bisect_right(starts, v.start) - 1
        return at >= 0 and v.end <= chosen[at].end

    return tuple(v for v in vmas if has(v))


def key_of(vma: Vma, namespace: int) -> Key:
    """Return the key of the file behind a mapping that has one."""
    return vma.device, vma.inode, namespace if vma.path.startswith(_SYSTEM_V) else 0


def bounds_of(vmas: Iterable[Vma]) -> U64:
    """Return (n, 2) page numbers of mappings, first and end."""
    bounds = np.array([(v.start, v.end) for v in vmas], np.uint64).reshape(-1, 2)
    return bounds >> np.uint64(PAGE_SHIFT)


def pages_of(vmas: Iterable[Vma]) -> PageSet:
    """Return all pages of ascending mappings."""
    bounds = bounds_of(vmas)
    return from_ranges(bounds[:, 0], bounds[:, 1]) if len(bounds) else empty()


def file_pages(vmas: Iterable[Vma]) -> PageSet:
    """Return the pages of a file that its mappings show, in whatever order they are."""
    found = empty()
    for first, end in sorted({v.pages_of_file() for v in vmas}):
        found = found | from_ranges(np.array([first], np.uint64), np.array([end], np.uint64))
    return found
