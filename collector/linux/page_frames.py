"""Page frames (PFNs): where pages of a process lie in physical memory.

A frame is where the page lies at the moment of reading; frame 0 stands for "none", as the kernel
never allocates it. Source: Documentation/admin-guide/mm/pagemap.rst.
"""

from __future__ import annotations

import functools
import mmap
import os
from collections.abc import Callable

import numpy as np
from redirty.collector.errors import RedirtyError
from redirty.collector.linux import capabilities
from redirty.collector.linux import pagemap as pm
from redirty.collector.linux.pagemap import ENTRY_FRAME, ENTRY_PRESENT, Pagemap
from redirty.collector.pageset import (
    PAGE_SHIFT,
    PAGE_SIZE,
    PAGES_PER_REGION,
    U64,
    PageSet,
    drop_empty,
    from_pages,
    matrix,
    page_runs,
    region_runs,
)

NO_FRAME = 0

_HUGE_BYTES = 2 << 20
_REGIONS_A_PART = 2048  # 8 MiB of entries

Entries = Callable[[int, U64], object]
"""(first page, array): a function that reads raw entries of /proc/PID/pagemap into the array, as
far as the memory goes."""
Ranges = tuple[tuple[int, int], ...]


def frames_of(entries: U64, zeros: Ranges = ()) -> U64:
    """Return the frame of each raw entry.

    NO_FRAME where the page is not present, is swapped out, or is one of the kernel's zero pages
    (zeros: half-open ranges of frames), which nobody ever wrote.
    """
    frames = np.where((entries & ENTRY_PRESENT) != 0, entries & ENTRY_FRAME, np.uint64(NO_FRAME))
    for first, end in zeros:
        frames[(frames >= np.uint64(first)) & (frames < np.uint64(end))] = NO_FRAME
    return frames


def entries_of(read: Entries, pages: PageSet) -> U64:
    """Return (len(pages),) raw entries, in the order of pageset.page_numbers.

    Whole regions are read, each run of them by one call.
    """
    pages = drop_empty(pages)
    found = []
    for at in range(0, len(pages.keys), _REGIONS_A_PART):
        part = PageSet(
            pages.keys[at : at + _REGIONS_A_PART], pages.words[at : at + _REGIONS_A_PART]
        )
        block = np.zeros((len(part.keys), PAGES_PER_REGION), np.uint64)
        row = 0
        for first, last in region_runs(part, gap=1):
            end = row + last - first
            read(first * PAGES_PER_REGION, block[row:end])
            row = end
        found.append(block[matrix(part).view(np.bool_)])
    return np.concatenate(found) if found else np.empty(0, np.uint64)


# ---- this process ----


def zero_frames() -> Ranges:
    """Return the frames of the kernel's zero pages, the small and the huge one, as half-open ranges.

    Found as the frames of memory of this process that was only read. The huge zero page stays where
    it is as long as this process lives.
    """
    # An area of two huge pages contains a whole one, wherever it starts.
    with mmap.mmap(-1, 2 * _HUGE_BYTES, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS) as area:
        try:
            area.madvise(mmap.MADV_HUGEPAGE)
        except OSError:
            pass  # a kernel without huge pages
        array = np.frombuffer(area, np.uint8)
        int(array[::PAGE_SIZE].sum())  # reads each page
        first = int(array.ctypes.data) >> PAGE_SHIFT
        del array
        found = _own_frames(first, 2 * _HUGE_BYTES >> PAGE_SHIFT)
    frames = from_pages(np.append(found[found != NO_FRAME], np.uint64(zero_page_frame())))
    starts, ends = page_runs(frames)
    return tuple((int(a), int(b)) for a, b in zip(starts, ends, strict=True))


def _own_frames(first_page: int, count: int) -> U64:
    pagemap = Pagemap(os.getpid(), regions=1)
    try:
        return frames_of(pagemap.entries(first_page, count))
    finally:
        pagemap.close()


def require_frames() -> None:
    """Check that the kernel shows frame numbers to this process.

    Raises:
        RedirtyError: It hides them.
    """
    with mmap.mmap(-1, mmap.PAGESIZE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS) as area:
        area[0] = 1
        array = np.frombuffer(area, np.uint8)
        page = int(array.ctypes.data) >> PAGE_SHIFT
        del array
        frames = _own_frames(page, 1)
    if len(frames) and int(frames[0]) != NO_FRAME:
        return
    lacking = capabilities.root_lacks(("CAP_SYS_ADMIN",))
    raise RedirtyError(
        f"--physical needs {lacking}"
        if lacking
        else "--physical: this kernel shows no frame numbers in /proc/PID/pagemap"
    )


@functools.cache
def zero_page_frame() -> int:
    """Return the frame of the zero page, which reads of untouched memory get; 0 if hidden."""
    with mmap.mmap(-1, mmap.PAGESIZE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS) as page:
        array = np.frombuffer(page, np.uint8)
        int(array[0])  # a read, so that it is mapped
        pagemap = pm.Pagemap(os.getpid(), regions=1)
        entry = pagemap.entries(array.ctypes.data >> PAGE_SHIFT, 1)
        pagemap.close()
        del array
    return int(entry[0] & pm.ENTRY_FRAME)
