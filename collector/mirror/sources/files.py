"""Mapped files as sources of pages."""

from __future__ import annotations

import errno
import itertools
import os
import time
from collections.abc import Iterable, Iterator

import numpy as np
from redirty.collector.errors import RESOURCE_ERRNOS
from redirty.collector.foreign import mapped_files
from redirty.collector.mirror.sources.page_hashes import PageHashes
from redirty.collector.mirror.sources.spaces import SpaceSource
from redirty.collector.mirror.sources.vmas import (
    Key,
    Vma,
    file_pages,
    key_of,
)
from redirty.collector.pageset import (
    PAGE_SHIFT,
    PAGE_SIZE,
    U64,
    Bools,
    PageSet,
    empty,
    from_pages,
    from_ranges,
)

# File times have the resolution of the clock tick: a recent one may not change at the next write.
_TICK_NS = 50_000_000


Signature = tuple[int, int, int]


class FileSource:
    """The pages of a file or of shared memory that the target maps: a Source.

    Attributes:
        key: identifies the file.
        path: its path, for messages.
        mapped_by: the mappings that show it now, each with its address space.
        declared: whether the sink knows this source.
    """

    def __init__(self, number: int, key: Key, fd: mapped_files.Handle, path: str) -> None:
        """Take over an open file.

        Args:
            number: identifies the source on the wire.
            key: identifies the file.
            fd: the open file, which close() closes.
            path: its path, for messages.
        """
        self.number = number
        self.key = key
        self.path = path
        self.have = empty()
        self.pending = empty()
        self.dirty: list[PageSet] = []
        self.sent = PageHashes()
        self.mapped_by: list[tuple[SpaceSource, Vma]] = []
        self.declared = False
        self._fd = fd
        self._signature: Signature | None = None
        # cached by mappings and end of file (page number): the pages of the file that they show
        self._current: tuple[list[tuple[SpaceSource, Vma]], int, PageSet] = [], 0, empty()

    @property
    def writable(self) -> bool:
        """Whether the target can write to the file through a mapping, or create a mapping that can."""
        return any(v.shared for _, v in self.mapped_by)

    def _status(self) -> os.stat_result | mapped_files.Status:
        return mapped_files.status(self._fd)

    def current_pages(self) -> PageSet:
        """Return the pages that mappings show, up to the end of the file.

        Raises:
            OSError: the file system fails.
        """
        end = -(-self._status().st_size // PAGE_SIZE)
        mapped_by, known_end, found = self._current
        if known_end != end or mapped_by != self.mapped_by:
            whole = from_ranges(np.array([0], np.uint64), np.array([end], np.uint64))
            found = file_pages(v for _, v in self.mapped_by) & whole
            self._current = self.mapped_by, end, found
        return found

    def holes(self, pages: PageSet) -> PageSet:
        """Return those of the pages that are holes of the file, and so zero, without reading them."""
        if len(pages.keys) == 0:
            return empty()
        at = int(pages.keys[0]) * 512 * PAGE_SIZE
        end = (int(pages.keys[-1]) + 1) * 512 * PAGE_SIZE
        starts, ends = [], []
        while at < end:
            try:
                data = mapped_files.seek(self._fd, at, os.SEEK_DATA)
                hole = mapped_files.seek(self._fd, data, os.SEEK_HOLE)
            except OSError:  # no more data, or a file system without SEEK_DATA
                break
            starts.append(data >> PAGE_SHIFT)
            ends.append(-(-hole // PAGE_SIZE))
            at = max(hole, at + PAGE_SIZE)
        if not starts:
            return empty() if self._status().st_blocks else pages
        return pages - from_ranges(np.array(starts, np.uint64), np.array(ends, np.uint64))

    def may_have_changed(self) -> bool:
        """Return whether the file may have changed since remember_state(), other than through the target's mappings.

        Writes, truncation and holes count. Also True if the file had been written shortly before remember_state().
        """
        return self._signature is None or self._signature != _signature(self._status())

    def remember_state(self) -> None:
        """Remember size and times of the file; has to be called before all of it is read."""
        status = self._status()
        stable = time.time_ns() - max(status.st_mtime_ns, status.st_ctime_ns) > _TICK_NS
        self._signature = _signature(status) if stable else None

    def read(self, pages: U64, buffer: memoryview) -> Bools:
        """See Source."""
        good = mapped_files.read(self._fd, pages, buffer)
        size = self._status().st_size
        if (
            size % PAGE_SIZE
            and self.writable
            and len(pages)
            and int(pages[-1]) == size >> PAGE_SHIFT
        ):
            self._read_tail(
                int(pages[-1]), buffer[(len(pages) - 1) * PAGE_SIZE : len(pages) * PAGE_SIZE]
            )
        return good

    def _read_tail(self, page: int, buffer: memoryview) -> None:
        """Read the last page of the file through a mapping: only there are writes beyond the end of the file."""
        for space, vma in self.mapped_by:
            first, end = vma.pages_of_file()
            if vma.shared and first <= page < end:
                at = np.array([(vma.start >> PAGE_SHIFT) + page - first], np.uint64)
                copy = memoryview(bytearray(PAGE_SIZE))
                if space.read(at, copy).all():
                    buffer[:] = copy
                    return

    def close(self) -> None:
        """Close the file."""
        mapped_files.close(self._fd)


def _signature(status: os.stat_result | mapped_files.Status) -> Signature:
    return status.st_size, status.st_mtime_ns, status.st_ctime_ns


class Files:
    """The files and shared memory that the target maps, by key."""

    def __init__(self) -> None:
        self.by_key: dict[Key, FileSource] = {}
        self._devices: set[Key] = set()  # keys of devices, which are not memory
        # For example another user's FUSE: read through the mapping instead.
        self._unreadable: set[Key] = set()

    def sync(self, spaces: Iterable[SpaceSource], numbers: Iterator[int]) -> None:
        """Update the files to the current mappings; files that are no longer mapped are kept, without pages.

        Args:
            spaces: all address spaces.
            numbers: yields numbers for new sources.

        Raises:
            OSError: this process has no file descriptors or memory left.
        """
        for file in self.by_key.values():
            file.mapped_by = []
        for space in spaces:
            space.direct_vmas = []
            for vma in space.vmas:
                if vma.has_file:
                    self._add(space, vma, numbers)

    def _add(self, space: SpaceSource, vma: Vma, numbers: Iterator[int]) -> None:
        key = key_of(vma, space.namespace)
        if key in self._devices:
            return
        file = self.by_key.get(key)
        if file is None:
            if key in self._unreadable:
                space.direct_vmas.append(vma)
                return
            try:
                fd = mapped_files.open_mapped(space.pid, vma.start, vma.end, vma.device, vma.path)
            except OSError as e:
                if e.errno in (errno.ENOENT, errno.ESRCH):
                    return  # unmapped since the list was read
                if e.errno in RESOURCE_ERRNOS:
                    raise
                self._unreadable.add(key)
                space.direct_vmas.append(vma)
                return
            if fd is None:
                self._devices.add(key)
                return
            file = FileSource(next(numbers), key, fd, vma.path)
            self.by_key[key] = file
        file.mapped_by.append((space, vma))

    def file_of(self, space: SpaceSource, vma: Vma) -> FileSource | None:
        """Return the file behind a mapping, if it has one that can be read."""
        return self.by_key.get(key_of(vma, space.namespace)) if vma.has_file else None

    def dirty_pages(self, space: SpaceSource, pages: U64) -> tuple[dict[Key, PageSet], bool]:
        """Translate dirty pages of an address space to pages of files.

        Uses the current and the previous mappings, as a page may have been written before it was remapped.

        Returns:
            The dirty pages by file, and whether some pages lie in no known mapping.
        """
        found: dict[Key, PageSet] = {}
        known = np.zeros(len(pages), np.bool_)
        for vmas in {id(v): v for v in (space.previous_vmas, space.vmas)}.values():
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
        """Close all files."""
        for file in self.by_key.values():
            file.close()
