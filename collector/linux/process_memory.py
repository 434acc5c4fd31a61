"""Reading another process's memory: process_vm_readv in batches, /proc/PID/mem for what that refuses.

Sources: process_vm_readv(2), proc(5).
"""

from __future__ import annotations

import ctypes
import errno
import os

import numpy as np
from redirty.collector.pageset import PAGE_SHIFT, U64, Bools, runs_of

PAGE = 1 << PAGE_SHIFT
_IOV_MAX = 1024

_libc = ctypes.CDLL(None, use_errno=True)
_readv = _libc.process_vm_readv
_readv.restype = ctypes.c_ssize_t
_readv.argtypes = [
    ctypes.c_int,
    *(ctypes.c_void_p, ctypes.c_ulong),
    *(ctypes.c_void_p, ctypes.c_ulong),
    ctypes.c_ulong,
]


class ProcessMemory:
    """Reads pages of one address space. Safe to be used by several threads at once.

    Errors of the constructor: OSError when the process is gone.
    """

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self._mem = os.open(f"/proc/{pid}/mem", os.O_RDONLY | os.O_CLOEXEC)

    def read(self, pages: U64, buffer: memoryview) -> Bools:
        """Copies ascending pages to the front of a buffer. Returns (n,) which could be read; the
        others are zero there: unmapped meanwhile, behind a file's end, or gone with the process."""
        good = np.ones(len(pages), np.bool_)
        firsts, lengths = runs_of(pages)
        remote = np.stack(
            [firsts << np.uint64(PAGE_SHIFT), lengths << np.uint64(PAGE_SHIFT)], axis=1
        )
        ends = np.cumsum(remote[:, 1])
        total = len(pages) << PAGE_SHIFT
        base = np.frombuffer(buffer, np.uint8).ctypes.data
        at = 0  # bytes done
        while at < total:
            first = int(np.searchsorted(ends, at, side="right"))
            part = remote[first : first + _IOV_MAX].copy()
            skip = at - (int(ends[first - 1]) if first else 0)
            part[0, 0] += np.uint64(skip)
            part[0, 1] -= np.uint64(skip)
            size = int(part[:, 1].sum())
            local = np.array([base + at, size], np.uint64)
            got = _readv(self.pid, local.ctypes.data, 1, part.ctypes.data, len(part), 0)
            if got < 0:
                code = ctypes.get_errno()
                if code not in (errno.EFAULT, errno.ENOMEM, errno.ESRCH, errno.EPERM):
                    raise OSError(code, os.strerror(code))
                got = 0
            at += got >> PAGE_SHIFT << PAGE_SHIFT
            if got < size:  # the next page is what it could not read, or do in part
                index = at >> PAGE_SHIFT
                good[index] = self._read_one(int(pages[index]), buffer[at : at + PAGE])
                at += PAGE
        return good

    def _read_one(self, page: int, buffer: memoryview) -> bool:
        """Memory that the program itself may not read (PROT_NONE, execute only) has contents, too."""
        try:
            got = os.preadv(self._mem, [buffer], page << PAGE_SHIFT)
        except (OSError, OverflowError):
            got = 0
        if got != PAGE:
            buffer[:] = bytes(PAGE)
        return got == PAGE

    def close(self) -> None:
        """Lets go of the process's memory."""
        os.close(self._mem)


def read_file(fd: int, pages: U64, buffer: memoryview) -> Bools:
    """The same of a file's pages, through its descriptor: what the page cache has, holes as zeros.
    The rest of a page behind the file's end is zero."""
    good = np.ones(len(pages), np.bool_)
    firsts, lengths = runs_of(pages)
    at = 0
    for first, length in zip(firsts.tolist(), lengths.tolist(), strict=True):
        end = at + (length << PAGE_SHIFT)
        offset = first << PAGE_SHIFT
        while at < end:
            try:
                got = os.preadv(fd, [buffer[at:end]], offset)
            except OSError:  # EIO: a page that the disk does not give
                good[at >> PAGE_SHIFT] = False
                got = PAGE - at % PAGE
                buffer[at : at + got] = bytes(got)
            if got == 0:
                buffer[at:end] = bytes(end - at)
                got = end - at
            at += got
            offset += got
    return good
