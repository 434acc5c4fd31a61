"""malloc tuning and the open-file limit of this process."""

from __future__ import annotations

import ctypes
from pathlib import Path

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # malloc.h
_KEPT_BYTES = 64 << 20
_MADV_DONTNEED = 4


def retain_freed_memory() -> None:
    """Make the C library keep up to 64 MiB of what numpy frees for the next array.

    By default it returns large blocks to the kernel at once, and the next array's pages are faulted
    in again: a fault a page, which takes several times longer than the arithmetic on it. glibc only.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_M_MMAP_THRESHOLD, _KEPT_BYTES // 2)
        mallopt(_M_TRIM_THRESHOLD, _KEPT_BYTES)


def trim_heap() -> None:
    """Return free heap memory to the kernel: compiling leaves tens of MiB. glibc only."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)


def drop_compiler_memory(min_bytes: int = 8 << 20) -> None:
    """Drop the code of large libraries from this process's memory, such as the compiler's after its work.

    Whatever is needed again is read back from the file.
    """
    from redirty.collector.linux.maps import bounds_of, split_line

    libc = ctypes.CDLL(None, use_errno=True)
    libc.madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
    with Path("/proc/self/maps").open("rb") as maps:
        for line in maps:
            fields = split_line(line)
            start, end = bounds_of(fields.bounds)
            # Code is never written, so nothing of this process's own is lost.
            if fields.perms == b"r-xp" and fields.inode != b"0" and end - start >= min_bytes:
                libc.madvise(start, end - start, _MADV_DONTNEED)


def raise_fd_limit() -> None:
    """Raise the soft limit of open files to the hard limit.

    Each process of a target takes several, and a mirror keeps each file that a target maps open, so that nothing else
    takes its place. A command that redirty runs was forked before, and keeps the limit that it would have had.
    """
    import resource

    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
