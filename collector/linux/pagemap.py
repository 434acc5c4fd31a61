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
from redirty.collector.pageset import (
    FEW_RANGES,
    PAGE_SHIFT,
    U64,
    PageSet,
    from_few_ranges,
    from_pages,
    from_ranges,
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
        self.fd = os.open(f"/proc/{pid}/pagemap", os.O_RDONLY | os.O_CLOEXEC)
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
        """PAGEMAP_SCAN over [start, end): the (n,) REGIONs whose pages have all categories of mask
        and one of anyof (those of inverted taken as their opposite), with flags WP_MATCHING
        write-protecting them in the same step.

        Errors: GoneError; ArmError (code ENOTTY: the kernel is older than 6.7; EFAULT: end is above
        all that this processor can map).
        """
        # plain struct and bytearray: an arm of a small process is mostly what Python adds to it
        argument, size = self._argument, _ARGUMENT.size
        found = []
        at = start
        while True:
            _ARGUMENT.pack_into(
                *(argument, 0, size, flags, at, end, 0, *self._answer, 0),
                *(inverted, mask, anyof, returned),
            )
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
        """(count,) raw entries of /proc/PID/pagemap from a page number on (shorter at the end)."""
        data = os.pread(self.fd, count * 8, first_page * 8)
        return np.frombuffer(data, np.uint64)

    def close(self) -> None:
        """Lets go of the process's memory."""
        os.close(self.fd)


def scan_supported() -> bool:
    """Whether this kernel has PAGEMAP_SCAN, tried on an empty range of our own."""
    pagemap = Pagemap(os.getpid(), regions=1)
    try:
        pagemap.scan(0, 1 << PAGE_SHIFT, mask=PRESENT, returned=PRESENT)
    except ArmError as e:
        if e.code in (errno.ENOTTY, errno.EINVAL):
            return False
        raise
    finally:
        pagemap.close()
    return True


def to_pages(*found: Regions) -> PageSet:
    """The pages of regions, which ascend from one to the next and do not overlap."""
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


def pages_where(first_page: int, chosen: npt.NDArray[np.bool_]) -> PageSet:
    """Pages first_page + i where chosen[i]."""
    return from_pages(np.flatnonzero(chosen).astype(np.uint64) + np.uint64(first_page))


def swapped_kib(pid: int) -> int:
    """How much of a process is swapped out; 0 when it is gone."""
    return _status_kib(pid, b"VmSwap:")


def pinned_kib(pid: int) -> int:
    """How much of a process is pinned for long, for io_uring's registered buffers, RDMA, iommufd:
    written there by physical address, unseen by any page table. 0 when it is gone."""
    return _status_kib(pid, b"VmPin:")


def hugetlb_kib(pid: int) -> int:
    """How much of a process is in hugetlb pages; 0 when it is gone."""
    return _status_kib(pid, b"HugetlbPages:")


def _status_kib(pid: int, name: bytes) -> int:
    try:
        with open(f"/proc/{pid}/status", "rb") as status:  # noqa: PTH123 - once a round, kept bare
            for line in status:
                if line.startswith(name):
                    return int(line.split()[1])
    except OSError:
        pass
    return 0
