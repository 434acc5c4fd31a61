"""The kernel's page tables and memory, read by the tests themselves and by nothing of what they test."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from tests.workloads.pages import PAGE_BYTES, Area, Pages

U64 = np.uint64
_PRESENT, _SWAPPED, _UFFD_WP = (U64(1 << bit) for bit in (63, 62, 57))
_FRAME = U64((1 << 55) - 1)
_MARKER = U64(31)  # the swap type of the kernel's note "protected, no page here"


def entries(pid: int, area: Area) -> NDArray[np.uint64]:
    """(pages,) entries of /proc/PID/pagemap (admin-guide/mm/pagemap.rst)."""
    with Path(f"/proc/{pid}/pagemap").open("rb", buffering=0) as pagemap:
        data = os.pread(pagemap.fileno(), area.page_count * 8, area.first_page * 8)
    return np.frombuffer(data, U64)


def _those(area: Area, chosen: NDArray[np.bool_]) -> Pages:
    found: Pages = area.pages[chosen]
    return found


def present(pid: int, area: Area) -> Pages:
    """Pages that are mapped now."""
    return _those(area, (entries(pid, area) & _PRESENT) != 0)


def swapped(pid: int, area: Area) -> Pages:
    """Pages that are swapped out."""
    found = entries(pid, area)
    return _those(area, ((found & _SWAPPED) != 0) & ((found & U64(31)) != _MARKER))


def protected(pid: int, area: Area) -> Pages:
    """Pages that a userfaultfd protects from writing."""
    return _those(area, (entries(pid, area) & _UFFD_WP) != 0)


def frames(pid: int, area: Area) -> NDArray[np.uint64]:
    """(pages,) the physical page behind each page that is mapped, 0 behind others."""
    found = entries(pid, area)
    return np.where((found & _PRESENT) != 0, found & _FRAME, U64(0))


def contents(pid: int, area: Area) -> NDArray[np.uint8]:
    """(pages, 4096) bytes of an area. Reads, and so populates, every page."""
    with Path(f"/proc/{pid}/mem").open("rb", buffering=0) as memory:
        data = os.pread(memory.fileno(), area.end - area.start, area.start)
    return np.frombuffer(data, np.uint8).reshape(-1, PAGE_BYTES)


def changed(
    area: Area,
    before: NDArray[np.uint8],
    after: NDArray[np.uint8],
) -> Pages:
    """Pages with other bytes than before."""
    return _those(area, (before != after).any(axis=1))


def faults(pid: int) -> int:
    """Minor faults of a process so far."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return int(fields[7])
