"""The state of a process's pages, read from /proc by the tests themselves and by none of the code they test."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Self

import numpy as np
from numpy.typing import NDArray

from tests.workloads.pages import PAGE_BYTES, Area, Pages

U64 = np.uint64
Entries = NDArray[np.uint64]
"""(n,) entries of /proc/PID/pagemap (admin-guide/mm/pagemap.rst)."""
Mask = NDArray[np.bool_]

_PRESENT, _SWAPPED, _FILE, _UFFD_WP, _SOFT_DIRTY = (U64(1 << bit) for bit in (63, 62, 61, 57, 55))
_FRAME = U64((1 << 55) - 1)
_SWAP_TYPE, _MARKER = U64(31), U64(31)  # the swap type of a marker: "protected, no page here"


class Pagemap:
    """An open /proc/PID/pagemap; leaving its `with` block closes it.

    Raises: OSError when the process has ended.
    """

    def __init__(self, pid: int) -> None:
        self._file = Path(f"/proc/{pid}/pagemap").open("rb", buffering=0)  # noqa: SIM115

    def entries(self, first_page: int, count: int) -> Entries:
        """Return the entries of `count` pages; fewer where the address space ends."""
        return np.frombuffer(os.pread(self._file.fileno(), count * 8, first_page * 8), U64)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()


def entries(pid: int, area: Area) -> Entries:
    """Return the entry of each page of an area."""
    with Pagemap(pid) as pagemap:
        return pagemap.entries(area.first_page, area.page_count)


def is_present(found: Entries) -> Mask:
    """Return which entries have a page in memory."""
    mask: Mask = (found & _PRESENT) != 0
    return mask


def is_swapped(found: Entries) -> Mask:
    """Return which entries have a page in swap; a marker is not one."""
    mask: Mask = ((found & _SWAPPED) != 0) & ((found & _SWAP_TYPE) != _MARKER)
    return mask


def is_file(found: Entries) -> Mask:
    """Return which entries show a file's page or a page of shared memory."""
    mask: Mask = (found & _FILE) != 0
    return mask


def is_protected(found: Entries) -> Mask:
    """Return which entries a userfaultfd write-protects."""
    mask: Mask = (found & _UFFD_WP) != 0
    return mask


def is_soft_dirty(found: Entries) -> Mask:
    """Return which entries have the soft-dirty bit."""
    mask: Mask = (found & _SOFT_DIRTY) != 0
    return mask


def frames_of(found: Entries) -> Entries:
    """Return the page frame number of each entry, 0 where no page is present."""
    return np.where(is_present(found), found & _FRAME, U64(0))


def _chosen(area: Area, chosen: Mask) -> Pages:
    found: Pages = area.pages[: len(chosen)][chosen]
    return found


def present(pid: int, area: Area) -> Pages:
    """Return the pages of an area that are present."""
    return _chosen(area, is_present(entries(pid, area)))


def swapped(pid: int, area: Area) -> Pages:
    """Return the pages of an area that are swapped out."""
    return _chosen(area, is_swapped(entries(pid, area)))


def protected(pid: int, area: Area) -> Pages:
    """Return the pages of an area that a userfaultfd write-protects."""
    return _chosen(area, is_protected(entries(pid, area)))


def frames(pid: int, area: Area) -> Entries:
    """Return the page frame number of each page of an area, 0 for pages that are not present."""
    return frames_of(entries(pid, area))


def present_frames(pid: int, area: Area) -> dict[int, int]:
    """Return the page frame number by page number of the pages of an area that are present."""
    found = entries(pid, area)
    pages = _chosen(area, is_present(found)).tolist()
    return dict(zip(pages, frames_of(found)[is_present(found)].tolist(), strict=True))


def frames_of_pages(pid: int, pages: Pages) -> Entries:
    """Return the page frame number of each page, by page number, 0 for pages that are not present."""
    with Pagemap(pid) as pagemap:
        found = [pagemap.entries(int(page), 1) for page in pages]
    return frames_of(np.concatenate(found) if found else np.empty(0, U64))


def contents(pid: int, area: Area) -> NDArray[np.uint8]:
    """Return the (pages, 4096) bytes of an area. This reads, and so populates, every page."""
    with Path(f"/proc/{pid}/mem").open("rb", buffering=0) as memory:
        data = os.pread(memory.fileno(), area.end - area.start, area.start)
    return np.frombuffer(data, np.uint8).reshape(-1, PAGE_BYTES)


def changed(area: Area, before: NDArray[np.uint8], after: NDArray[np.uint8]) -> Pages:
    """Return the pages of an area whose bytes differ between two calls of contents()."""
    return _chosen(area, (before != after).any(axis=1))


def minor_faults(pid: int) -> int:
    """Return the minor faults of a process since it started."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return int(fields[7])
