"""Address spaces as sources of pages."""

from __future__ import annotations

import contextlib

import numpy as np
from redirty.collector.errors import RESOURCE_ERRNOS
from redirty.collector.linux.maps import Mappings
from redirty.collector.linux.process_memory import ProcessMemory
from redirty.collector.mirror.sources.anon_pages import AnonPages
from redirty.collector.mirror.sources.page_cache import shows_file
from redirty.collector.mirror.sources.page_hashes import PageHashes
from redirty.collector.mirror.sources.vmas import (
    Key,
    Vma,
    VmaFile,
    bounds_of,
    inside,
    pages_of,
)
from redirty.collector.pageset import (
    U64,
    Bools,
    PageSet,
    empty,
)

_VDSO = "[vdso]"


class SpaceSource:
    """The own pages of one address space: a Source.

    Attributes:
        pid: a process that has this address space.
        vmas: its mappings at the last refresh(); none when it is gone.
        previous_vmas: its mappings at the refresh() before.
        keys: what identifies the files behind its mappings, now and before.
        direct_vmas: mappings whose file cannot be opened, or shows other pages: theirs are read through the mapping.
    """

    def __init__(self, number: int, pid: int, *, scan: bool) -> None:
        """Open the address space of a process.

        Args:
            number: identifies the source on the wire.
            pid: the process.
            scan: the kernel has PAGEMAP_SCAN.

        Raises:
            OSError: the process is gone.
        """
        self.number = number
        self.pid = pid
        self.have = empty()
        self.pending = empty()
        self.unread = empty()
        self.retried = empty()
        self.dirty: list[PageSet] = []
        self.sent = PageHashes()
        self.vmas: tuple[Vma, ...] = ()
        self.previous_vmas: tuple[Vma, ...] = ()
        self.keys: dict[Vma, Key] = {}
        self.direct_vmas: list[Vma] = []
        # cached by mappings: (n, 2) page numbers of the private ones, first and end; pages of the vdso
        self._private: tuple[tuple[Vma, ...], U64, PageSet] = (
            (),
            np.empty((0, 2), np.uint64),
            empty(),
        )
        with contextlib.ExitStack() as stack:
            self._vma_file = VmaFile(pid)
            stack.callback(self._vma_file.close)
            self._memory = ProcessMemory(pid)
            stack.callback(self._memory.close)
            self._anon = AnonPages(pid, scan=scan)
            stack.pop_all()

    @property
    def namespace(self) -> int:
        """The IPC namespace, which identifies System V shared memory."""
        return self._vma_file.namespace

    def refresh(self, mirrored: Mappings | None = None) -> None:
        """Read the current mappings, and keep the previous ones.

        Args:
            mirrored: mappings outside of these are left out; None: no mapping is left out.
        """
        found = self._vma_file.read()
        if mirrored is not None:
            found = inside(found, mirrored)
        self.previous_vmas, self.vmas = self.vmas, found

    def alive(self) -> bool:
        """Return whether this memory still exists. The memory of a killed process does not, even if it is stopped."""
        return self._vma_file.there()

    def current_pages(self) -> PageSet:
        """Return the own pages that exist now.

        Raises:
            GoneError: the memory is gone.
        """
        vmas, private, vdso = self._private
        if vmas is not self.vmas:
            private = bounds_of(v for v in self.vmas if not v.shared)
            vdso = pages_of(v for v in self.vmas if v.path == _VDSO)
            self._private = self.vmas, private, vdso
        return self._anon.find(private) | vdso | self.direct_pages()

    def direct_pages(self) -> PageSet:
        """Return the pages that are read through mappings of files; writes to the file change them unseen."""
        return pages_of(sorted(self.direct_vmas, key=lambda v: v.start))

    def shows_file(self, vma: Vma, fd: int) -> bool:
        """Return whether a mapping shows the pages of an opened file; True once the memory is gone."""
        try:
            return shows_file(self._anon.pagemap, self._memory.fileno(), vma, fd)
        except OSError as e:
            if e.errno in RESOURCE_ERRNOS:
                raise
            return True

    def read(self, pages: U64, buffer: memoryview) -> Bools:
        """See Source."""
        return self._memory.read(pages, buffer)

    def close(self) -> None:
        """Release the process's memory."""
        self._vma_file.close()
        self._memory.close()
        self._anon.close()
