"""Where pages are read from: address spaces, and the files and shared memory that they map.

Each source knows what the other end has of it (`have`), and what it should have now (`wanted`).
"""

from __future__ import annotations

import contextlib

import numpy as np
from redirty.collector.linux.maps import Mappings
from redirty.collector.linux.process_memory import ProcessMemory
from redirty.collector.mirror.sources.anon_pages import AnonPages
from redirty.collector.mirror.sources.page_hashes import PageHashes
from redirty.collector.mirror.sources.vmas import (
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
    """The own pages of one address space. vmas: as of the last look(); none when it is gone.

    Errors of the constructor: OSError when it is gone.
    """

    def __init__(self, number: int, pid: int, *, scan: bool) -> None:
        self.number = number
        self.pid = pid
        self.have = empty()
        self.pending = empty()
        self.dirty: list[PageSet] = []  # of the last rounds, the youngest first
        self.sent = PageHashes()
        self.vmas: tuple[Vma, ...] = ()
        self.before: tuple[Vma, ...] = ()
        self.direct: list[Vma] = []  # whose file cannot be opened
        # of these mappings: the private ones' page numbers, first and end, and the pages of the vdso
        self._private: tuple[tuple[Vma, ...], U64, PageSet] = (
            (),
            np.empty((0, 2), np.uint64),
            empty(),
        )
        with contextlib.ExitStack() as stack:
            self._layout = VmaFile(pid)
            stack.callback(self._layout.close)
            self._reader = ProcessMemory(pid)
            stack.callback(self._reader.close)
            self._own = AnonPages(pid, scan=scan)
            stack.pop_all()

    @property
    def namespace(self) -> int:
        """Of System V memory."""
        return self._layout.namespace

    def look(self, part: Mappings | None = None) -> None:
        """Reads the mappings as they are now, and keeps those of before. part: leaves out all others."""
        found = self._layout.read()
        if part is not None:
            found = inside(found, part)
        self.before, self.vmas = self.vmas, found

    def there(self) -> bool:
        """Whether this memory is still there: a process that is killed has none, also while it is held."""
        return self._layout.there()

    def wanted(self) -> PageSet:
        """The own pages it has now. Errors: arm.base.GoneError."""
        vmas, private, vdso = self._private
        if vmas is not self.vmas:
            private = bounds_of(v for v in self.vmas if not v.shared)
            vdso = pages_of(v for v in self.vmas if v.path == _VDSO)
            self._private = self.vmas, private, vdso
        return self._own.find(private) | vdso | pages_of(self.direct)

    def read(self, pages: U64, buffer: memoryview) -> Bools:
        """See Source."""
        return self._reader.read(pages, buffer)

    def close(self) -> None:
        """Lets go of the process's memory."""
        self._layout.close()
        self._reader.close()
        self._own.close()
