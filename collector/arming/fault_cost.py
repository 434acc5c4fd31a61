"""Cost of a write fault on an armed page, measured on a few pages of this process."""

from __future__ import annotations

import ctypes
import fcntl
import mmap
import os
import platform
import struct
import time
from pathlib import Path

import numpy as np
import numpy.typing as npt
from redirty.collector.arming.uffd import initialize
from redirty.collector.arming.uffd_registration import MODE_WP, REGISTER
from redirty.collector.errors import ArmError, why
from redirty.collector.linux import pagemap as pm
from redirty.collector.pageset import PAGE_SIZE
from redirty.collector.ptrace.helpers.arch import TABLE

USUAL_S = 0.7e-6  # measured on a 6.18 kernel
_PAGES = 2048
_TRIES = 5
_MADV_NOHUGEPAGE = 15
_UFFD_USER_MODE_ONLY = 1


def fault_s(method: str) -> float:
    """Measure how many seconds longer the first write to an armed page takes than another one.

    Takes some 10 ms. Returns USUAL_S where it cannot be measured. method: one of methods.METHODS.
    """
    try:
        flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS
        with mmap.mmap(-1, _PAGES * PAGE_SIZE, flags=flags) as m:
            m.madvise(_MADV_NOHUGEPAGE)
            pages = np.frombuffer(m, np.uint8)[::PAGE_SIZE]
            try:
                return _measure(method, pages)
            finally:
                del pages
    except (OSError, ArmError, KeyError):
        return USUAL_S


def _measure(method: str, pages: npt.NDArray[np.uint8]) -> float:
    start = pages.ctypes.data
    end = start + _PAGES * PAGE_SIZE
    pages[:] = 1
    descriptor = _own_userfaultfd(start, end) if method == "uffd" else -1
    pagemap = pm.Pagemap(os.getpid(), regions=64) if method == "uffd" else None
    armed, plain = [], []
    try:
        for value in range(_TRIES):
            if pagemap is not None:
                pagemap.scan(
                    start, end, mask=pm.WRITTEN, anyof=pm.PRESENT, returned=pm.WRITTEN,
                    flags=pm.WP_MATCHING,
                )  # fmt: skip
            else:
                Path("/proc/self/clear_refs").write_text("4")
            armed.append(_seconds(pages, value))
            plain.append(_seconds(pages, value + 1))
    finally:
        if pagemap is not None:
            pagemap.close()
        if descriptor >= 0:
            os.close(descriptor)
    return max(float(np.median(armed) - np.median(plain)) / _PAGES, 0.0)


def _seconds(pages: npt.NDArray[np.uint8], value: int) -> float:
    started = time.perf_counter()
    pages[:] = value
    return time.perf_counter() - started


def _own_userfaultfd(start: int, end: int) -> int:
    """Register a range of this process's memory with a new userfaultfd. Raises: OSError, ArmError."""
    libc = ctypes.CDLL(None, use_errno=True)
    number = TABLE[platform.machine()].userfaultfd
    flags = os.O_CLOEXEC | os.O_NONBLOCK | _UFFD_USER_MODE_ONLY
    descriptor = int(libc.syscall(number, flags))
    if descriptor < 0:
        raise OSError(ctypes.get_errno(), why(OSError(ctypes.get_errno(), "userfaultfd")))
    try:
        initialize(descriptor)
        fcntl.ioctl(descriptor, REGISTER, struct.pack("QQQQ", start, end - start, MODE_WP, 0))
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor
