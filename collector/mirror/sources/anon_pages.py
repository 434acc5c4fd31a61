"""Which pages an address space has for itself: anonymous memory, and private copies of file pages.

What the page tables show of a file in a private mapping is the file's; the kernel's page of zeros
is nobody's. Both are left out.
"""

from __future__ import annotations

import numpy as np
from redirty.collector.linux import pagemap as pm
from redirty.collector.pageset import PAGE_SHIFT, U64, PageSet, empty, region_runs, within

_MARKER, _SWAP_TYPE = np.uint64(31), np.uint64(31)  # include/linux/swapops.h: the last swap type
_CHUNK = 1 << 16  # pages whose raw entries are read at once


class AnonPages:
    """Asks the page tables of one process. Errors of the constructor: OSError when it is gone."""

    def __init__(self, pid: int, *, scan: bool) -> None:
        """scan: whether the kernel has PAGEMAP_SCAN."""
        self._pagemap = pm.Pagemap(pid)
        self._scan = scan

    def find(self, bounds: U64) -> PageSet:
        """Own pages, swapped out ones too, of private mappings. bounds: (n, 2) their page numbers, first and
        end, ascending.

        Errors: arm.base.GoneError, arm.base.ArmError.
        """
        if not len(bounds):
            return empty()
        return self._scanned(bounds) if self._scan else self._from_entries(bounds)

    def _scanned(self, bounds: U64) -> PageSet:
        kinds = pm.PRESENT | pm.SWAPPED
        # One walk over all that lies close together: a call for each of 65,530 mappings would take
        # longer than their pages.
        regions = self._pagemap.scan(
            int(bounds[0, 0]) << PAGE_SHIFT,
            int(bounds[-1, 1]) << PAGE_SHIFT,
            inverted=pm.FILE | pm.PFNZERO,
            mask=pm.FILE | pm.PFNZERO,
            anyof=kinds,
            returned=kinds,
        )
        out = (regions["categories"] & pm.SWAPPED) != 0
        found = pm.to_pages(regions[~out])
        if out.any():
            found = found | self._without_markers(pm.to_pages(regions[out]))
        return within(found, bounds[:, 0], bounds[:, 1])

    def _without_markers(self, pages: PageSet) -> PageSet:
        """Write protection of a place with no page is noted in the form of a swap entry, too."""
        found = empty()
        for first, last in region_runs(pages):
            found = found | self._entries(first << 9, last << 9)
        return found & pages

    def _from_entries(self, bounds: U64) -> PageSet:
        found = empty()
        for first, end in bounds.tolist():
            found = found | self._entries(first, end)
        return found

    def _entries(self, first: int, last: int) -> PageSet:
        """Page numbers [first, last), by their raw entries."""
        found = empty()
        for at in range(first, last, _CHUNK):
            entries = self._pagemap.entries(at, min(_CHUNK, last - at))
            swapped = (entries & pm.ENTRY_SWAPPED) != 0
            swapped &= (entries & _SWAP_TYPE) != _MARKER
            present = (entries & pm.ENTRY_PRESENT) != 0
            own = (present | swapped) & ((entries & pm.ENTRY_FILE) == 0)
            if own.any():
                found = found | pm.pages_where(at, own)
        return found

    def close(self) -> None:
        """Lets go of the process's memory."""
        self._pagemap.close()
