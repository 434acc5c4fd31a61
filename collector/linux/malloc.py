"""How the C library treats this process's memory, and how many files it may have open."""

from __future__ import annotations

import ctypes
from pathlib import Path

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # malloc.h
_KEPT_BYTES = 64 << 20
_MADV_DONTNEED = 4


def retain_freed_memory() -> None:
    """Has the C library keep what numpy frees, up to 64 MiB, for the next array.

    By default it gives large blocks back to the kernel at once, and the next array's pages are made
    anew: a fault a page, which takes several times longer than the arithmetic on it. glibc only.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_M_MMAP_THRESHOLD, _KEPT_BYTES // 2)
        mallopt(_M_TRIM_THRESHOLD, _KEPT_BYTES)


def trim_heap() -> None:
    """Gives back to the kernel what is free now: compiling leaves tens of MiB. glibc only."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)


def drop_compiler_memory(least_bytes: int = 8 << 20) -> None:
    """Drops large libraries' code from this process's memory: the compiler's, once it has done its work. What
    is needed again comes back from the file."""
    libc = ctypes.CDLL(None, use_errno=True)
    libc.madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
    with Path("/proc/self/maps").open(encoding="utf-8", errors="replace") as maps:
        for line in maps:
            place, permissions, _, _, inode = line.split(maxsplit=5)[:5]
            start, end = (int(text, 16) for text in place.split("-"))
            # Code is never written, so nothing of this process's own is lost.
            if permissions == "r-xp" and inode != "0" and end - start >= least_bytes:
                libc.madvise(start, end - start, _MADV_DONTNEED)


def raise_fd_limit() -> None:
    """Raises the limit of open files to what the user may have: each file that a target maps is kept open
    by a mirror, so that its inode's number is no other's."""
    import resource

    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
