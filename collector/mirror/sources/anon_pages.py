"""Finds the pages that an address space owns: anonymous memory, and private copies of file pages.

Pages of a file that the page tables map in a private mapping belong to the file, and the kernel's zero page to
no one. Both are left out.
"""

from __future__ import annotations

from redirty.collector.linux import pagemap as pm
from redirty.collector.pageset import PAGE_SHIFT, U64, PageSet, empty, within

_CHUNK = 1 << 16  # raw entries per read


class AnonPages:
    """Finds the own pages of one process in its page tables."""

    def __init__(self, pid: int, *, scan: bool) -> None:
        """Open the page map of a process.

        Args:
            pid: the process.
            scan: the kernel has PAGEMAP_SCAN.

        Raises:
            OSError: the process is gone.
        """
        self.pagemap = pm.Pagemap(pid)
        self._scan = scan

    def find(self, bounds: U64) -> PageSet:
        """Find anonymous pages, present or swapped out, in private mappings.

        Args:
            bounds: (n, 2) page numbers of the mappings, first and end, ascending.

        Raises:
            GoneError: the memory is gone.
            ArmError: the page tables cannot be read.
        """
        if not len(bounds):
            return empty()
        return self._from_scan(bounds) if self._scan else self._from_entries(bounds)

    def _from_scan(self, bounds: U64) -> PageSet:
        kinds = pm.PRESENT | pm.SWAPPED
        # One walk over everything: a call for each of 65,530 mappings would take longer than their pages.
        regions = self.pagemap.scan(
            int(bounds[0, 0]) << PAGE_SHIFT,
            int(bounds[-1, 1]) << PAGE_SHIFT,
            inverted=pm.FILE | pm.PFNZERO,
            mask=pm.FILE | pm.PFNZERO,
            anyof=kinds,
            returned=kinds,
        )
        swapped = (regions["categories"] & pm.SWAPPED) != 0
        found = pm.to_pages(regions[~swapped])
        if swapped.any():
            entries = pm.to_pages(regions[swapped])
            found = found | self.pagemap.without_markers(entries, file_pages=False)
        return within(found, bounds[:, 0], bounds[:, 1])

    def _from_entries(self, bounds: U64) -> PageSet:
        found = empty()
        for first, end in bounds.tolist():
            found = found | self._entries(first, end)
        return found

    def _entries(self, first: int, last: int) -> PageSet:
        """Find own pages among the page numbers [first, last) by their raw entries."""
        found = empty()
        for at in range(first, last, _CHUNK):
            entries = self.pagemap.entries(at, min(_CHUNK, last - at))
            own = pm.holds_page(entries) & ((entries & pm.ENTRY_FILE) == 0)
            if own.any():
                found = found | pm.pages_where(at, own)
        return found

    def close(self) -> None:
        """Close the page map."""
        self.pagemap.close()
