"""What a write fault on an armed page costs on this machine: measured on a few pages of our own."""

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
from redirty.collector.arming.uffd import initialise
from redirty.collector.arming.uffd_registration import MODE_WP, REGISTER
from redirty.collector.errors import ArmError, why
from redirty.collector.linux import pagemap as pm
from redirty.collector.ptrace.helpers.arch import TABLE

USUAL_S = 0.7e-6  # measured on a 6.18 kernel
_PAGES = 2048
_TRIES = 5
_MADV_NOHUGEPAGE = 15
_UFFD_USER_MODE_ONLY = 1


def fault_s(way: str) -> float:
    """Seconds that the first write to an armed page takes more than another one; USUAL_S where that
    cannot be measured. way: of arm.choose.WAYS. Takes some 10 ms."""
    try:
        with mmap.mmap(
            -1, _PAGES * mmap.PAGESIZE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS
        ) as m:
            m.madvise(_MADV_NOHUGEPAGE)
            pages = np.frombuffer(m, np.uint8)[:: mmap.PAGESIZE]
            try:
                return _measured(way, pages)
            finally:
                del pages
    except (OSError, ArmError, KeyError):
        return USUAL_S


def _measured(way: str, pages: npt.NDArray[np.uint8]) -> float:
    start = pages.ctypes.data
    end = start + _PAGES * mmap.PAGESIZE
    pages[:] = 1
    descriptor = _own_userfaultfd(start, end) if way == "uffd" else -1
    pagemap = pm.Pagemap(os.getpid(), regions=64) if way == "uffd" else None
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
    begun = time.perf_counter()
    pages[:] = value
    return time.perf_counter() - begun


def _own_userfaultfd(start: int, end: int) -> int:
    """Over a range of our own memory. Errors: OSError, ArmError."""
    libc = ctypes.CDLL(None, use_errno=True)
    number = TABLE[platform.machine()].userfaultfd
    flags = os.O_CLOEXEC | os.O_NONBLOCK | _UFFD_USER_MODE_ONLY
    descriptor = int(libc.syscall(number, flags))
    if descriptor < 0:
        raise OSError(ctypes.get_errno(), why(OSError(ctypes.get_errno(), "userfaultfd")))
    try:
        initialise(descriptor)
        fcntl.ioctl(descriptor, REGISTER, struct.pack("QQQQ", start, end - start, MODE_WP, 0))
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor
