"""The kernel's page-table state of a process: PAGEMAP_SCAN (Linux 6.7) and /proc/PID/pagemap.

Sources: Documentation/admin-guide/mm/pagemap.rst, fs/proc/task_mmu.c.
"""

from __future__ import annotations

import errno
import fcntl
import os
import struct

import numpy as np
import numpy.typing as npt
from redirty.collector.errors import ArmError, GoneError, why
from redirty.collector.linux import procfs
from redirty.collector.pageset import (
    FEW_RANGES,
    PAGE_SHIFT,
    PAGE_SIZE,
    U64,
    PageSet,
    empty,
    from_few_ranges,
    from_pages,
    from_ranges,
    region_runs,
)

WPALLOWED, WRITTEN, FILE, PRESENT, SWAPPED, PFNZERO, HUGE, SOFT_DIRTY = (1 << i for i in range(8))
WP_MATCHING, CHECK_WPASYNC = 1, 2
_SCAN = 0xC0606610  # _IOWR('f', 16, struct pm_scan_arg), 96 bytes

REGION = np.dtype([("start", "<u8"), ("end", "<u8"), ("categories", "<u8")])
Regions = npt.NDArray[np.void]
# struct pm_scan_arg: size, flags, start, end, walk_end, vec, vec_len, max_pages, category_inverted,
# category_mask, category_anyof_mask, return_mask
_ARGUMENT = struct.Struct("<12Q")
_WALK_END = struct.Struct("<Q")
_WALK_END_AT = 32


class Pagemap:
    """An open /proc/PID/pagemap: bound to the memory the process had when it was opened."""

    def __init__(self, pid: int, regions: int = 65536) -> None:
        self.pid = pid
        self.fd = os.open(f"{procfs.directory(pid)}/pagemap", os.O_RDONLY | os.O_CLOEXEC)
        self._regions = np.empty(regions, REGION)
        self._answer = self._regions.ctypes.data, regions
        self._argument = bytearray(_ARGUMENT.size)

    def scan(
        self,
        start: int,
        end: int,
        *,
        mask: int = 0,
        anyof: int = 0,
        returned: int = 0,
        flags: int = 0,
        inverted: int = 0,
    ) -> Regions:
        """Run PAGEMAP_SCAN over [start, end).

        Args:
            start: First address.
            end: End address, exclusive.
            mask: Categories of which a page must have all.
            anyof: Categories of which a page must have one.
            returned: Categories to report.
            flags: WP_MATCHING write-protects the pages found in the same step.
            inverted: Categories that are inverted before matching.

        Returns:
            The (n,) REGIONs found, ascending.

        Raises:
            GoneError: The memory is gone.
            ArmError: The scan failed; code ENOTTY: the kernel is older than 6.7; EFAULT: end is
                above all that this processor can map.
        """
        # plain struct and bytearray: arming a small process is mostly Python's overhead
        argument, size = self._argument, _ARGUMENT.size
        found = []
        at = start
        while True:
            _ARGUMENT.pack_into(
                argument, 0, size, flags, at, end, 0, *self._answer, 0, inverted, mask, anyof, returned
            )  # fmt: skip
            try:
                count = fcntl.ioctl(self.fd, _SCAN, argument, True)
            except InterruptedError:
                continue
            except OSError as e:
                if e.errno in (errno.ESRCH, errno.EIO):
                    raise GoneError from None
                what = f"cannot scan the page tables of process {self.pid}: {why(e)}"
                raise ArmError(what, e.errno or 0) from None
            if count:
                found.append(self._regions[:count].copy())
            at = _WALK_END.unpack_from(argument, _WALK_END_AT)[0]
            if at >= end or count < len(self._regions):
                break
        if len(found) == 1:
            return found[0]
        return np.concatenate(found) if found else self._regions[:0].copy()

    def entries(self, first_page: int, count: int) -> U64:
        """Read (count,) raw entries from a page number on; fewer at the end of the address space."""
        data = os.pread(self.fd, count * 8, first_page * 8)
        return np.frombuffer(data, np.uint64)

    def without_markers(self, pages: PageSet, *, file_pages: bool = True) -> PageSet:
        """Return those of some pages that are swapped out (or present again by now).

        Left out are places without a page that only look swapped out: see holds_page().

        Args:
            pages: Pages that a scan reported as swapped.
            file_pages: Whether pages that belong to a file or to shared memory count.

        Raises:
            OSError: The memory is gone.
        """
        found = empty()
        for first, last in region_runs(pages):
            end = last << _REGION_PAGES_SHIFT
            for at in range(first << _REGION_PAGES_SHIFT, end, _CHUNK_PAGES):
                entries = self.entries(at, min(_CHUNK_PAGES, end - at))
                chosen = holds_page(entries)
                if not file_pages:
                    chosen &= (entries & ENTRY_FILE) == 0
                if chosen.any():
                    found = found | pages_where(at, chosen)
        return found & pages

    def close(self) -> None:
        """Close the reference to the process's memory."""
        os.close(self.fd)


def scan_supported() -> bool:
    """Return whether this kernel has PAGEMAP_SCAN, tried on an empty range of this process."""
    pagemap = Pagemap(os.getpid(), regions=1)
    try:
        pagemap.scan(0, PAGE_SIZE, mask=PRESENT, returned=PRESENT)
    except ArmError as e:
        if e.code in (errno.ENOTTY, errno.EINVAL):
            return False
        raise
    finally:
        pagemap.close()
    return True


def to_pages(*found: Regions) -> PageSet:
    """Return the pages of regions, which ascend from one to the next and do not overlap."""
    if sum(map(len, found)) <= FEW_RANGES:
        ranges = [(row[0] >> PAGE_SHIFT, row[1] >> PAGE_SHIFT) for f in found for row in f.tolist()]
        return from_few_ranges(ranges)
    regions = found[0] if len(found) == 1 else np.concatenate(found)
    shift = np.uint64(PAGE_SHIFT)
    return from_ranges(regions["start"] >> shift, regions["end"] >> shift)


# bits of a raw entry
ENTRY_PRESENT = np.uint64(1 << 63)
ENTRY_SWAPPED = np.uint64(1 << 62)
ENTRY_FILE = np.uint64(1 << 61)
ENTRY_SOFT_DIRTY = np.uint64(1 << 55)
ENTRY_FRAME = np.uint64((1 << 55) - 1)
# of an entry that is swapped out, the lowest bits: its swap type
_SWAP_TYPE = np.uint64(31)
_SWAP_TYPE_MARKER = np.uint64(31)  # include/linux/swapops.h: the last of the 32 swap types

_REGION_PAGES_SHIFT = 9
_CHUNK_PAGES = 1 << 16  # pages whose raw entries are read at once


def holds_page(entries: U64) -> npt.NDArray[np.bool_]:
    """Return (n,) whether a page, present or swapped out, belongs to each raw entry.

    The kernel also uses a swap entry to mark a place that is write-protected and has no page.
    """
    swapped = (entries & ENTRY_SWAPPED) != 0
    swapped &= (entries & _SWAP_TYPE) != _SWAP_TYPE_MARKER
    found: npt.NDArray[np.bool_] = ((entries & ENTRY_PRESENT) != 0) | swapped
    return found


def pages_where(first_page: int, chosen: npt.NDArray[np.bool_]) -> PageSet:
    """Return the pages first_page + i where chosen[i]."""
    return from_pages(np.flatnonzero(chosen).astype(np.uint64) + np.uint64(first_page))


def swapped_kib(pid: int) -> int:
    """Return how much of a process is swapped out, in KiB; 0 once it is gone."""
    return procfs.status_kib(pid, "VmSwap")


def pinned_kib(pid: int) -> int:
    """Return how much of a process is pinned long-term, in KiB; 0 once it is gone.

    This is memory of io_uring's registered buffers, RDMA and iommufd, which is written by physical
    address, so that no page table shows it.
    """
    return procfs.status_kib(pid, "VmPin")


def hugetlb_kib(pid: int) -> int:
    """Return how much of a process is in hugetlb pages, in KiB; 0 once it is gone."""
    return procfs.status_kib(pid, "HugetlbPages")
