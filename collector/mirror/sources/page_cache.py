"""Tells whether a mapping shows the pages of a file that was opened by its path.

On an overlay it may not: a file that is written for the first time is copied up, and mappings made before keep
showing the old one. The path, and what was opened by it, stand for the copy from then on. Pages are the same
if they lie in the same page frame. Sources: Documentation/filesystems/overlayfs.rst, pagemap.rst.
"""

from __future__ import annotations

import mmap
import os

import numpy as np
from redirty.collector.linux import pagemap as pm
from redirty.collector.mirror.sources.vmas import Vma
from redirty.collector.pageset import PAGE_SHIFT, PAGE_SIZE

_CHUNK = 1 << 14  # raw entries per read
_MAX_CHUNKS = 64
_TRIES = 4  # a page that is migrated in between changes its frame


def shows_file(pagemap: pm.Pagemap, memory: int, vma: Vma, fd: int) -> bool:
    """Return whether a mapping of a process shows the pages that reading a file gives.

    Args:
        pagemap: the process's page map.
        memory: descriptor of its /proc/PID/mem.
        vma: the mapping.
        fd: the file.

    Raises:
        OSError: the memory is gone.
    """
    # What was opened before a copy-up reads the copy and maps the old file: map what is opened now.
    opened = os.open(f"/proc/self/fd/{fd}", os.O_RDONLY | os.O_CLOEXEC | os.O_NOATIME)
    try:
        return _same(pagemap, memory, vma, opened)
    finally:
        os.close(opened)


def _same(pagemap: pm.Pagemap, memory: int, vma: Vma, opened: int) -> bool:
    for _ in range(_TRIES):
        page = _file_page(pagemap, memory, vma)
        if page is None:
            return True  # none of its pages can be seen: all are copies, or lie behind the end of the file
        theirs = pagemap.entries(page, 1)
        own = _own_entry(opened, vma.offset + (page << PAGE_SHIFT) - vma.start)
        frame = int(own & pm.ENTRY_FRAME)
        if frame and len(theirs) and int(theirs[0] & pm.ENTRY_FRAME) == frame:
            return True
    return False


def _file_page(pagemap: pm.Pagemap, memory: int, vma: Vma) -> int | None:
    """Return a page of a mapping that its page tables map and that belongs to the file; None if there is none."""
    page = _mapped_page(pagemap, vma)
    if page is not None:
        return page
    try:
        os.pread(memory, 1, vma.start)  # reading maps the first one
    except OSError:
        return None
    return _mapped_page(pagemap, vma)


def _mapped_page(pagemap: pm.Pagemap, vma: Vma) -> int | None:
    first, end = vma.start >> PAGE_SHIFT, vma.end >> PAGE_SHIFT
    for at in range(first, min(end, first + _CHUNK * _MAX_CHUNKS), _CHUNK):
        entries = pagemap.entries(at, min(_CHUNK, end - at))
        of_file = ((entries & pm.ENTRY_PRESENT) != 0) & ((entries & pm.ENTRY_FILE) != 0)
        if of_file.any():
            return at + int(np.argmax(of_file))
    return None


def _own_entry(fd: int, offset: int) -> np.uint64:
    """Return this process's page-table entry of the page at an offset of a file; 0 if it has none."""
    nothing = np.uint64(0)
    length = min(PAGE_SIZE, os.fstat(fd).st_size - offset)
    if length <= 0:
        return nothing
    with mmap.mmap(fd, length, mmap.MAP_SHARED, mmap.PROT_READ, offset=offset) as area:
        array = np.frombuffer(area, np.uint8)
        address = array.ctypes.data
        del array
        with open("/proc/self/mem", "rb", buffering=0) as own:  # noqa: PTH123
            try:
                os.pread(
                    own.fileno(), 1, address
                )  # maps it; a page that is gone is an error, no signal
            except OSError:
                return nothing
        pagemap = pm.Pagemap(os.getpid(), regions=1)
        try:
            return np.uint64(pagemap.entries(address >> PAGE_SHIFT, 1)[0])
        finally:
            pagemap.close()
