"""Mapped files as sources of pages."""

from __future__ import annotations

import errno
import itertools
import os
import stat
import time
from collections.abc import Iterable, Iterator

import numpy as np
from redirty.collector.errors import RESOURCE_ERRNOS
from redirty.collector.linux.process_memory import PAGE, read_file
from redirty.collector.mirror.sources.page_hashes import PageHashes
from redirty.collector.mirror.sources.spaces import SpaceSource
from redirty.collector.mirror.sources.vmas import (
    Key,
    Vma,
    key_of,
    ranges_of_file,
)
from redirty.collector.pageset import (
    PAGE_SHIFT,
    U64,
    Bools,
    PageSet,
    empty,
    from_pages,
    from_ranges,
)

# A file's times are those of the kernel's clock tick: younger ones can stay as they are at the next write.
_TICK_NS = 50_000_000


Signature = tuple[int, int, int]


class FileSource:
    """The pages of a file or of shared memory that the target maps. Takes the descriptor over.

    shown_by: (address space, mapping) that show it now. writable: whether one of them can change it.
    """

    def __init__(self, number: int, key: Key, fd: int, path: str) -> None:
        self.number = number
        self.key = key
        self.path = path
        self.have = empty()
        self.pending = empty()
        self.dirty: list[PageSet] = []  # of the last rounds, the youngest first
        self.sent = PageHashes()
        self.shown_by: list[tuple[SpaceSource, Vma]] = []
        self.declared = False
        self._fd = fd
        self._settled: Signature | None = None
        self._wanted: tuple[list[tuple[SpaceSource, Vma]], int, PageSet] = [], 0, empty()

    @property
    def writable(self) -> bool:
        """Whether the target can write to it through a mapping, or make one that can."""
        return any(v.shared for _, v in self.shown_by)

    def _status(self) -> os.stat_result:
        return os.fstat(self._fd)

    def wanted(self) -> PageSet:
        """The pages that mappings show, up to the file's end."""
        end = -(-self._status().st_size // PAGE)
        shown_by, known_end, found = self._wanted
        if known_end != end or shown_by != self.shown_by:
            whole = from_ranges(np.array([0], np.uint64), np.array([end], np.uint64))
            found = ranges_of_file(v for _, v in self.shown_by) & whole
            self._wanted = self.shown_by, end, found
        return found

    def holes(self, pages: PageSet) -> PageSet:
        """Those of the pages that the file system says are zero, without reading them."""
        if len(pages.keys) == 0:
            return empty()
        at = int(pages.keys[0]) * 512 * PAGE
        end = (int(pages.keys[-1]) + 1) * 512 * PAGE
        starts, ends = [], []
        while at < end:
            try:
                data = os.lseek(self._fd, at, os.SEEK_DATA)
                hole = os.lseek(self._fd, data, os.SEEK_HOLE)
            except OSError:  # no more data, or a file system that cannot tell
                break
            starts.append(data >> PAGE_SHIFT)
            ends.append(-(-hole // PAGE))
            at = max(hole, at + PAGE)
        if not starts:
            return empty() if self._status().st_blocks else pages
        return pages - from_ranges(np.array(starts, np.uint64), np.array(ends, np.uint64))

    def changed_outside(self) -> bool:
        """Whether the file may have changed in another way than through the target's mappings: written,
        truncated, punched. True until it was still for a moment at one settle()."""
        return self._settled is None or self._settled != _signature(self._status())

    def settle(self) -> None:
        """To be called before all of it is read."""
        status = self._status()
        still = time.time_ns() - max(status.st_mtime_ns, status.st_ctime_ns) > _TICK_NS
        self._settled = _signature(status) if still else None

    def read(self, pages: U64, buffer: memoryview) -> Bools:
        """See Source."""
        good = read_file(self._fd, pages, buffer)
        size = self._status().st_size
        if size % PAGE and self.writable and len(pages) and int(pages[-1]) == size >> PAGE_SHIFT:
            self._read_tail(int(pages[-1]), buffer[(len(pages) - 1) * PAGE : len(pages) * PAGE])
        return good

    def _read_tail(self, page: int, buffer: memoryview) -> None:
        """The file's last page as a mapping shows it: what was written behind the end is there only."""
        for space, vma in self.shown_by:
            first, end = vma.pages_of_file()
            if vma.shared and first <= page < end:
                at = np.array([(vma.start >> PAGE_SHIFT) + page - first], np.uint64)
                copy = memoryview(bytearray(PAGE))
                if space.read(at, copy).all():
                    buffer[:] = copy
                    return

    def close(self) -> None:
        """Lets go of the file."""
        os.close(self._fd)


def _signature(status: os.stat_result) -> Signature:
    return status.st_size, status.st_mtime_ns, status.st_ctime_ns


def open_behind(pid: int, vma: Vma) -> int | None:
    """A descriptor of what a mapping shows; None when it is no memory (a device, a ring of the kernel's).

    Errors: OSError when it is not there any more.
    """
    name = f"/proc/{pid}/map_files/{vma.start:x}-{vma.end:x}"
    # Opening a device can do something: looked at first.
    if not stat.S_ISREG(os.stat(name).st_mode):  # noqa: PTH116
        return None
    flags = os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK
    try:
        return os.open(name, flags | os.O_NOATIME)
    except PermissionError:  # a file server that does not take root for the owner
        return os.open(name, flags)


class Files:
    """All that the target's mappings show, by what is behind them."""

    def __init__(self) -> None:
        self.by_key: dict[Key, FileSource] = {}
        self._none: set[Key] = set()  # devices
        self._unreadable: set[Key] = (
            set()
        )  # other users' FUSE, say: read through the mapping instead

    def follow(self, spaces: Iterable[SpaceSource], numbers: Iterator[int]) -> None:
        """Brings the list up to the spaces' mappings; what nobody maps any more is kept, and shows nothing.

        Errors: OSError when no more files can be open.
        """
        for file in self.by_key.values():
            file.shown_by = []
        for space in spaces:
            space.direct = []
            for vma in space.vmas:
                if vma.has_file:
                    self._add(space, vma, numbers)

    def _add(self, space: SpaceSource, vma: Vma, numbers: Iterator[int]) -> None:
        key = key_of(vma, space.namespace)
        if key in self._none:
            return
        file = self.by_key.get(key)
        if file is None:
            if key in self._unreadable:
                space.direct.append(vma)
                return
            try:
                fd = open_behind(space.pid, vma)
            except OSError as e:
                if e.errno in (errno.ENOENT, errno.ESRCH):
                    return  # unmapped since the list was read
                if e.errno in RESOURCE_ERRNOS:
                    raise
                self._unreadable.add(key)
                space.direct.append(vma)
                return
            if fd is None:
                self._none.add(key)
                return
            file = FileSource(next(numbers), key, fd, vma.path)
            self.by_key[key] = file
        file.shown_by.append((space, vma))

    def behind(self, space: SpaceSource, vma: Vma) -> FileSource | None:
        """The file of a mapping."""
        return self.by_key.get(key_of(vma, space.namespace)) if vma.has_file else None

    def dirtied(self, space: SpaceSource, pages: U64) -> tuple[dict[Key, PageSet], bool]:
        """Which pages of files an address space wrote, from the pages of its own that are dirty, by its
        mappings now and before; and whether some lie in neither, so that nobody knows what was there."""
        found: dict[Key, PageSet] = {}
        known = np.zeros(len(pages), np.bool_)
        for vmas in {id(v): v for v in (space.before, space.vmas)}.values():
            starts = np.array([v.start >> PAGE_SHIFT for v in vmas], np.uint64)
            which = np.searchsorted(starts, pages, side="right").astype(np.int64) - 1
            cuts = np.flatnonzero(np.diff(which)) + 1
            bounds = [0, *cuts.tolist(), len(pages)]
            for a, last in itertools.pairwise(bounds):
                if a == last or which[a] < 0:
                    continue
                vma = vmas[int(which[a])]
                b = a + int(np.searchsorted(pages[a:last], np.uint64(vma.end >> PAGE_SHIFT)))
                known[a:b] = True
                if vma.shared and vma.has_file and b > a:
                    first, _ = vma.pages_of_file()
                    shift = np.uint64(vma.start >> PAGE_SHIFT)
                    more = from_pages(pages[a:b] - shift + np.uint64(first))
                    key = key_of(vma, space.namespace)
                    found[key] = found.get(key, empty()) | more
        return found, not bool(known.all())

    def close(self) -> None:
        """Lets go of all."""
        for file in self.by_key.values():
            file.close()
