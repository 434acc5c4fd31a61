"""Another process's memory: read by process_vm_readv in batches, by /proc/PID/mem where that fails.

Sources: process_vm_readv(2), proc(5).
"""

from __future__ import annotations

import ctypes
import errno
import os

import numpy as np
from redirty.collector.linux import procfs
from redirty.collector.pageset import PAGE_SHIFT, PAGE_SIZE, U64, Bools, runs_of

_IOV_MAX = 1024

_libc = ctypes.CDLL(None, use_errno=True)
_readv = _libc.process_vm_readv
_readv.restype = ctypes.c_ssize_t
_readv.argtypes = [
    ctypes.c_int,  # PID
    ctypes.c_void_p,  # local vector
    ctypes.c_ulong,
    ctypes.c_void_p,  # remote vector
    ctypes.c_ulong,
    ctypes.c_ulong,  # flags
]


class ProcessMemory:
    """Reads pages of one address space. May be used by several threads at once.

    Raises:
        OSError: The process is gone.
    """

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self._tid = procfs.living_thread(pid)
        self._mem = os.open(f"/proc/{self._tid}/mem", os.O_RDONLY | os.O_CLOEXEC)

    def read(self, pages: U64, buffer: memoryview) -> Bools:
        """Copy ascending pages to the start of a buffer.

        Returns:
            (n,) which pages could be read. The buffer has zeros for the others: unmapped meanwhile,
            behind a file's end, or gone with the process.
        """
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
            got = _readv(self._tid, local.ctypes.data, 1, part.ctypes.data, len(part), 0)
            if got < 0:
                code = ctypes.get_errno()
                if code == errno.ESRCH and self._other_thread():
                    continue
                if code not in (errno.EFAULT, errno.ENOMEM, errno.ESRCH, errno.EPERM):
                    raise OSError(code, os.strerror(code))
                got = 0
            at += got >> PAGE_SHIFT << PAGE_SHIFT
            if got < size:  # the next page could not be read, or only in part
                index = at >> PAGE_SHIFT
                good[index] = self._read_one(int(pages[index]), buffer[at : at + PAGE_SIZE])
                at += PAGE_SIZE
        return good

    def _other_thread(self) -> bool:
        """Read through another thread from now on, as this one has ended; return whether there is one."""
        tid = procfs.living_thread(self.pid)
        found, self._tid = tid != self._tid, tid
        return found

    def _read_one(self, page: int, buffer: memoryview) -> bool:
        """Read a page even if the program itself may not read it (PROT_NONE, execute only)."""
        try:
            got = os.preadv(self._mem, [buffer], page << PAGE_SHIFT)
        except (OSError, OverflowError):
            got = 0
        if got != PAGE_SIZE:
            buffer[:] = bytes(PAGE_SIZE)
        return got == PAGE_SIZE

    def fileno(self) -> int:
        """Return the descriptor of /proc/PID/mem."""
        return self._mem

    def close(self) -> None:
        """Close the reference to the process's memory."""
        os.close(self._mem)


def read_file(fd: int, pages: U64, buffer: memoryview) -> Bools:
    """Copy ascending pages of a file, as in the page cache, to the start of a buffer.

    Holes, and the rest of a page behind the file's end, are zeros.

    Returns:
        (n,) which pages could be read; the buffer has zeros for the others.
    """
    good = np.ones(len(pages), np.bool_)
    firsts, lengths = runs_of(pages)
    at = 0
    for first, length in zip(firsts.tolist(), lengths.tolist(), strict=True):
        end = at + (length << PAGE_SHIFT)
        offset = first << PAGE_SHIFT
        while at < end:
            try:
                got = os.preadv(fd, [buffer[at:end]], offset)
            except OSError:  # EIO: the disk cannot read a page
                good[at >> PAGE_SHIFT] = False
                got = PAGE_SIZE - at % PAGE_SIZE
                buffer[at : at + got] = bytes(got)
            if got == 0:
                buffer[at:end] = bytes(end - at)
                got = end - at
            at += got
            offset += got
    return good
