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
from redirty.collector.linux.maps import Mappings, maps_text, maps_there
from redirty.collector.pageset import PAGE_SHIFT, U64, PageSet, empty, from_ranges

Key = tuple[str, int, int]
"""Device, inode, and for System V memory its namespace, as each namespace counts from 0."""

_MADE_UP = ("[vsyscall]", "[vvar]", "[vvar_vclock]")  # of the kernel's, the same in every process
_NO_FILE = ("[", "/anon_hugepage")
_SYSTEM_V = "/SYSV"


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


def parse_line(line: bytes) -> Vma | None:
    """One line of a maps file; None for what the kernel makes up."""
    text = line.decode(errors="surrogateescape")
    bounds, perms, offset, device, inode, *rest = text.split(None, 5)
    path = rest[0] if rest else ""
    if path in _MADE_UP:
        return None
    start, _, end = bounds.partition("-")
    return Vma(int(start, 16), int(end, 16), perms, int(offset, 16), device, int(inode), path)


class VmaFile:
    """An open /proc/PID/maps, which belongs to the memory that was there when it was opened."""

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
        """The mappings, ascending, without overlaps; none when this memory is gone."""
        text = maps_text(self._fd)
        if text != self._text:
            old, lines = self._lines, [line for line in text.split(b"\n") if line]
            self._lines = {line: old[line] if line in old else parse_line(line) for line in lines}
            self._vmas = without_overlaps(v for v in self._lines.values() if v is not None)
            self._text = text
        return self._vmas

    def there(self) -> bool:
        """Whether this memory is still there."""
        return maps_there(self._fd)

    def close(self) -> None:
        """Lets go of the process's memory."""
        os.close(self._fd)


def without_overlaps(vmas: Iterable[Vma]) -> tuple[Vma, ...]:
    """A list that changed while it was read in pieces can show a mapping that begins before the end of
    the one before; what it shows there is cut off."""
    kept: list[Vma] = []
    for v in sorted(vmas, key=lambda v: v.start):
        start = max(v.start, kept[-1].end) if kept else v.start
        if v.end > start:
            offset = v.offset + start - v.start if v.inode else v.offset
            kept.append(v._replace(start=start, offset=offset))
    return tuple(kept)


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
    return vma.device, vma.inode, namespace if vma.path.startswith(_SYSTEM_V) else 0


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
