"""A mapped file as a source of pages: those that hold data.

Holes are zero and no pages of it, so a mirror of a sparse file costs what is in the file, not what is mapped.
"""

from __future__ import annotations

import errno
import os
import time
from collections.abc import Iterator

import numpy as np
from redirty.collector.foreign import mapped_files
from redirty.collector.linux.open_files import FUSE, OVERLAY, file_system
from redirty.collector.mirror.sources.page_hashes import PageHashes
from redirty.collector.mirror.sources.spaces import SpaceSource
from redirty.collector.mirror.sources.vmas import Key, Vma
from redirty.collector.pageset import (
    PAGE_SHIFT,
    PAGE_SIZE,
    U64,
    Bools,
    PageSet,
    empty,
    from_ranges,
    within,
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
        end: the number of its pages at the last current_pages(), holes included.
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
        self.unread = empty()
        self.retried = empty()
        self.dirty: list[PageSet] = []
        self.sent = PageHashes()
        self.mapped_by: list[tuple[SpaceSource, Vma]] = []
        self.declared = False
        self._fd = fd
        self._signature: Signature | None = None
        self.end = 0
        if isinstance(fd, int):
            kind = file_system(fd)
            self._fuse, self._layered = kind == FUSE, kind == OVERLAY
        else:
            self._fuse, self._layered = True, fd.layered
        self._shown_by: dict[tuple[int, Vma], bool] = {}
        self._written = empty()
        # cached by mappings, size, blocks and times: the pages of the file that they show
        self._current: tuple[list[tuple[SpaceSource, Vma]], tuple[int, ...], PageSet] = (
            [],
            (),
            empty(),
        )

    @property
    def writable(self) -> bool:
        """Whether the target can write to the file through a mapping, or create a mapping that can."""
        return any(v.shared for _, v in self.mapped_by)

    def _status(self) -> os.stat_result | mapped_files.Status:
        return mapped_files.status(self._fd)

    def shown_by(self, space: SpaceSource, vma: Vma, *, again: bool = False) -> bool:
        """Return whether a mapping of the file shows what is read here, see page_cache.

        Args:
            space: the address space.
            vma: the mapping.
            again: look even if it is known that it did.

        Raises:
            OSError: the memory is gone.
        """
        if not self._layered:
            return True
        if not isinstance(self._fd, int):
            return False  # what this process has not opened, it cannot compare
        known = self._shown_by.get((space.number, vma))
        if known is None or (known and again):
            known = self._shown_by[space.number, vma] = space.shows_file(vma, self._fd)
        return known

    def note_written(self, pages: PageSet) -> None:
        """Note pages that the target wrote through a mapping: they are there, whatever the file system says."""
        if len(pages.keys):
            self._written = self._written | pages

    def current_pages(self, *, fresh: bool = False) -> PageSet:
        """Return the pages that mappings show and that are no holes, up to the end of the file.

        Args:
            fresh: search for holes again even if the file looks unchanged.

        Raises:
            OSError: the file system fails.
        """
        status = self._status()
        self.end = -(-status.st_size // PAGE_SIZE)
        state = status.st_size, status.st_blocks, status.st_mtime_ns, status.st_ctime_ns
        mapped_by, known, found = self._current
        if fresh or known != state or mapped_by != self.mapped_by:
            found = self._with_data()
            self._current = self.mapped_by, state, found
        if len(self._written.keys):
            ends = np.array([self.end], np.uint64)
            written = within(self._written, np.zeros(1, np.uint64), ends)
            shown = self._shown()
            found = found | within(written, shown[:, 0], shown[:, 1])
        return found

    def _shown(self) -> U64:
        """Return the (n, 2) ranges of pages that mappings show, up to the end of the file."""
        joined: list[list[int]] = []
        for first, last in sorted({v.pages_of_file() for _, v in self.mapped_by}):
            end = min(last, self.end)
            if joined and first <= joined[-1][1]:
                joined[-1][1] = max(joined[-1][1], end)
            elif first < end:
                joined.append([first, end])
        return np.array(joined, np.uint64).reshape(-1, 2)

    def _with_data(self) -> PageSet:
        shown = self._shown()
        if self._fuse and self.writable:
            # Its server does not know yet what was written through mappings.
            return from_ranges(shown[:, 0], shown[:, 1])
        found = [part for first, end in shown.tolist() for part in _data(self._fd, first, end)]
        ranges = np.array(found, np.uint64).reshape(-1, 2)
        return from_ranges(ranges[:, 0], ranges[:, 1])

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


def _data(fd: mapped_files.Handle, first: int, end: int) -> Iterator[tuple[int, int]]:
    """Yield the ranges of pages of a file that are no holes, among the pages [first, end), ascending."""
    at, stop = first << PAGE_SHIFT, end << PAGE_SHIFT
    done = first  # a page that is data in part belongs to one range only
    while at < stop:
        try:
            data = mapped_files.seek(fd, at, os.SEEK_DATA)
            hole = mapped_files.seek(fd, data, os.SEEK_HOLE) if data < stop else stop
        except OSError as e:
            if e.errno != errno.ENXIO:  # a file system that does not tell; else no more data
                yield max(at >> PAGE_SHIFT, done), end
            return
        if data >= stop:
            return
        last = min(-(-hole // PAGE_SIZE), end)
        if last > done:
            yield max(data >> PAGE_SHIFT, done), last
            done = last
        at = max(hole, at + 1)
