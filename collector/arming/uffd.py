"""Arming with userfaultfd's asynchronous write protection (Linux 6.7).

The kernel lifts the protection of a page by itself at its first write, so no thread waits for the
collector, and a scan finds the pages that are no longer protected. Only the collector has the
descriptor: when it is closed, however the collector ends, the protection is gone.

Sources: Documentation/admin-guide/mm/userfaultfd.rst, pagemap.rst, fs/userfaultfd.c.
"""

from __future__ import annotations

import errno
import fcntl
import os
import struct

import numpy as np
from redirty.collector.arming.base import Presence
from redirty.collector.arming.protection import Protection
from redirty.collector.arming.uffd_registration import Registration
from redirty.collector.errors import ArmError, GoneError, require_resources, why
from redirty.collector.linux import pagemap as pm
from redirty.collector.linux.maps import Mappings
from redirty.collector.pageset import (
    PAGE_SHIFT,
    REGION_SHIFT,
    PageSet,
    empty,
    full_region_runs,
    region_runs,
)

_API, _API_VERSION = 0xC018AA3F, 0xAA
_FEATURE_WP_UNPOPULATED, _FEATURE_WP_ASYNC = 1 << 13, 1 << 15

# Runs of full regions (2 MiB each) worth a system call of their own, and their maximum number.
_MIN_RUN, _MAX_RUNS = 16, 256
# Pages scanned by one system call, about a quarter of a millisecond: between two it is known when they were protected.
_PIECE_PAGES, _FAST_PIECE_PAGES = 16384, 131072


def initialize(descriptor: int) -> None:
    """Enable asynchronous write protection on a userfaultfd.

    Raises:
        ArmError: The kernel lacks it.
    """
    features = _FEATURE_WP_ASYNC | _FEATURE_WP_UNPOPULATED
    try:
        fcntl.ioctl(descriptor, _API, struct.pack("QQQ", _API_VERSION, features, 0))
    except OSError as e:
        if e.errno == errno.EINVAL:
            raise ArmError(
                "this kernel's userfaultfd has no asynchronous write protection (needs Linux 6.7)",
                e.errno,
            ) from None
        raise ArmError(f"cannot initialize userfaultfd: {why(e)}", e.errno or 0) from None


class UffdArmed:
    """An address space armed through its userfaultfd.

    Raises:
        ArmError: The kernel lacks a required feature.
        GoneError: The process is gone.
    """

    one_step = True
    moved_looks_written = False

    def __init__(self, pid: int, descriptor: int, stopped_s: float) -> None:
        """Take the descriptor over; stopped_s: for how long the process was stopped to get it."""
        self.pid = pid
        self.stopped_s = stopped_s
        self.unarmed = 0
        self.protection: Protection | None = None
        self._fd = descriptor
        try:
            initialize(descriptor)
            self._pagemap = pm.Pagemap(pid)
        except ArmError:
            os.close(descriptor)
            raise
        except OSError as e:
            os.close(descriptor)
            require_resources(e, f"cannot trace process {pid}")
            raise GoneError from None
        self._registration = Registration(pid, descriptor, self._pagemap)

    def arm(self, mappings: Mappings, present: PageSet | None = None) -> PageSet:
        """Register new mappings and write-protect every page; see Armed."""
        found = self._registration.update(mappings)
        self.unarmed = self._registration.unarmed
        return found | self.scan_and_protect(mappings, empty() if present is None else present)

    def scan_and_protect(self, mappings: Mappings, present: PageSet) -> PageSet:
        """Find the pages that are not protected, and protect them in the same step.

        Full regions are scanned by the kernel's fast path (2 ns a page). It also marks places
        without a page, and would allocate page tables for all that a program has only reserved, so
        elsewhere only present pages are requested (15 ns each).
        """
        runs = full_region_runs(present, _MIN_RUN, _MAX_RUNS)
        course = self.protection = Protection(present)
        found = []
        at = 0
        for first, last in runs:
            if last << REGION_SHIFT > mappings.items[-1].end:
                break  # unmapped since it was scanned
            for end in course.cuts(at, first << REGION_SHIFT, _PIECE_PAGES):
                found.append(self._protect_present(at, end))
                course.passed(end)
                at = end
            for end in course.cuts(at, last << REGION_SHIFT, _FAST_PIECE_PAGES):
                found.append(self._protect_all(at, end))
                course.passed(end)
                at = end
        for end in course.cuts(at, max(at, mappings.items[-1].end), _PIECE_PAGES):
            found.append(self._protect_present(at, end))
            course.passed(end)
            at = end
        course.finished()
        return pm.to_pages(*found)

    def assume_dirty(self, mappings: Mappings) -> PageSet:
        """Return no page, as reading and protecting is one step; see Armed."""
        return empty()

    def _protect_present(self, start: int, end: int) -> pm.Regions:
        return self._pagemap.scan(
            start,
            end,
            mask=pm.WRITTEN,
            anyof=pm.PRESENT | pm.SWAPPED,
            returned=pm.WRITTEN,
            flags=pm.WP_MATCHING,
        )

    def _protect_all(self, start: int, end: int) -> pm.Regions:
        return self._pagemap.scan(
            start, end, mask=pm.WRITTEN, returned=pm.WRITTEN, flags=pm.WP_MATCHING
        )

    def resolve(self, candidates: PageSet, mappings: Mappings) -> tuple[PageSet, PageSet]:
        """Scan the candidates once more to classify them; see Armed."""
        if len(candidates.keys) == 0:
            return empty(), empty()
        returned = pm.PRESENT | pm.SWAPPED | pm.PFNZERO | pm.FILE
        # A stack may lie in the last, incomplete region of all addresses: past it is EFAULT.
        end = mappings.items[-1].end
        found = [
            self._pagemap.scan(
                first << REGION_SHIFT,
                min(last << REGION_SHIFT, end),
                mask=0,
                anyof=pm.PRESENT | pm.SWAPPED,
                returned=returned,
            )
            for first, last in region_runs(candidates)
            if first << REGION_SHIFT < end
        ]
        if not found:
            return empty(), empty()
        regions = np.concatenate(found)
        categories = regions["categories"]
        real = pm.to_pages(regions[(categories & pm.SWAPPED) == 0])
        swapped = pm.to_pages(regions[(categories & pm.SWAPPED) != 0]) & candidates
        present = (real & candidates) | self._pagemap.without_markers(swapped)
        zero = pm.to_pages(regions[(categories & pm.PFNZERO) != 0])
        cache = pm.to_pages(regions[(categories & pm.FILE) != 0])
        # The page cache seen through a private mapping was read, never written through it: a
        # write would have made it anonymous.
        unwritten = zero | mappings.pages_of(cache, private_file=True)
        # A mapping that stayed read-only; one that was made read-only may have been written before.
        unchanged = self._registration.unchanged
        unwritten = unwritten | mappings.pages_of(present, read_only_shared=unchanged)
        return present - unwritten, present

    def present(self, mappings: Mappings, first: int, last: int) -> Presence:
        """Scan for present and swapped out pages; see Armed."""
        end = min(last << PAGE_SHIFT, mappings.items[-1].end)
        start = first << PAGE_SHIFT
        if start >= end:
            return Presence(empty(), empty())
        swap = pm.swapped_kib(self.pid)
        kinds = pm.PRESENT | (pm.SWAPPED if swap else 0)
        returned = kinds | pm.FILE | pm.PFNZERO
        regions = self._pagemap.scan(start, end, mask=0, anyof=kinds, returned=returned)
        categories = regions["categories"]
        unowned = pm.to_pages(regions[(categories & (pm.FILE | pm.PFNZERO)) != 0])
        if not swap:
            return Presence(pm.to_pages(regions), unowned)
        out = (categories & pm.SWAPPED) != 0
        swapped = pm.to_pages(regions[out])
        pages = pm.to_pages(regions[~out]) | self._pagemap.without_markers(swapped)
        return Presence(pages, unowned & pages)

    def close(self) -> None:
        """Close the last copy of the descriptor, which lifts the protection; see Armed."""
        if self._fd >= 0:
            os.close(self._fd)
            self._pagemap.close()
            self._fd = -1
