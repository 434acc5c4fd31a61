"""How the C library treats this process's memory, and how many files it may have open."""

from __future__ import annotations

import ctypes

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # malloc.h
_KEPT_BYTES = 64 << 20


def keep_freed_memory() -> None:
    """Has the C library keep what numpy frees, up to 64 MiB, for the next array.

    By default it gives large blocks back to the kernel at once, and the next array's pages are made
    anew: a fault a page, which takes several times longer than the arithmetic on it. glibc only.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_M_MMAP_THRESHOLD, _KEPT_BYTES // 2)
        mallopt(_M_TRIM_THRESHOLD, _KEPT_BYTES)


def give_back_freed_memory() -> None:
    """Gives back to the kernel what is free now: compiling leaves tens of MiB. glibc only."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)


def open_as_many_files_as_may_be() -> None:
    """Raises the limit of open files to what the user may have: each file that a target maps is kept open
    by a mirror, so that its inode's number is no other's."""
    import resource

    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
