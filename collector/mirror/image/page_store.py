"""Page contents in a sparse file, however far apart the addresses are.

Page numbers exceed what a file can hold, so space in the file is allocated in windows of 1 GiB, one for each
1 GiB of addresses that contains a page. Pages that were never written, or became zero, are holes.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
from collections.abc import Iterator

import numpy as np
import numpy.typing as npt
from redirty.collector.pageset import PAGE_SHIFT, PAGE_SIZE, U64

WINDOW_SHIFT = 18  # in pages
WINDOW_PAGES = 1 << WINDOW_SHIFT
WINDOW_BYTES = WINDOW_PAGES * PAGE_SIZE
MAX_WINDOWS = 8192  # 8 TiB: well below the limit of ext4
MAX_PAGE = 1 << 52
_PUNCH_HOLE, _KEEP_SIZE = 2, 1

_libc = ctypes.CDLL(None, use_errno=True)
_libc.fallocate.argtypes = [ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64]


class StoreError(Exception):
    """A request beyond the limits of a mirror, which no correct sender makes."""


class PageStore:
    """Contents of pages by page number.

    Attributes:
        fd: the file.
        header: bytes left free at the start of the file.
        windows: by window of pages, its window in the file.
        filled: by window, a bit for each page that has contents other than zero.
    """

    def __init__(self, fd: int, header: int, windows: dict[int, int] | None = None) -> None:
        self.fd = fd
        self.header = header
        self.windows = dict(windows or {})
        self.filled: dict[int, npt.NDArray[np.uint8]] = {}

    def new_windows(self, firsts: U64, lengths: U64) -> list[int]:
        """Return the windows that runs of pages need and that are not open yet, ascending.

        Raises:
            StoreError: a page number is out of range, or there are too many windows.
        """
        if len(firsts) == 0:
            return []
        if int(firsts.max()) >= MAX_PAGE or int(lengths.max()) > WINDOW_PAGES:
            raise StoreError("page number or run length out of range")
        windows = np.unique(
            np.concatenate((firsts, firsts + lengths - np.uint64(1))) >> np.uint64(WINDOW_SHIFT)
        )
        new = [w for w in windows.tolist() if w not in self.windows]
        if len(self.windows) + len(new) > MAX_WINDOWS:
            raise StoreError(f"pages in more than {MAX_WINDOWS} GiB of addresses")
        return new

    def open_window(self, window: int) -> int:
        """Allocate space for a window, and return its window in the file."""
        slot = self.windows[window] = len(self.windows)
        return slot

    def offset(self, page: int) -> int:
        """Return the file offset of a page in an open window."""
        slot = self.windows[page >> WINDOW_SHIFT]
        return self.header + slot * WINDOW_BYTES + ((page & (WINDOW_PAGES - 1)) << PAGE_SHIFT)

    def pieces(self, firsts: U64, lengths: U64) -> Iterator[tuple[int, int]]:
        """Yield runs (first, length), split at the ends of windows."""
        for first, length in zip(firsts.tolist(), lengths.tolist(), strict=True):
            at, end = first, first + length
            while at < end:
                part = min(end - at, WINDOW_PAGES - (at & (WINDOW_PAGES - 1)))
                yield at, part
                at += part

    def mark(self, first: int, length: int, *, filled: bool) -> None:
        """Mark pages of one window as having contents, or as zero."""
        window = first >> WINDOW_SHIFT
        bits = self.filled.get(window)
        if bits is None:
            if not filled:
                return
            bits = self.filled[window] = np.zeros(WINDOW_PAGES // 8, np.uint8)
        a = first & (WINDOW_PAGES - 1)
        if length == 1:
            bit = 1 << (a & 7)
            bits[a >> 3] = bits[a >> 3] | bit if filled else bits[a >> 3] & (255 ^ bit)
            return
        lo, hi = a >> 3, (a + length + 7) >> 3
        part = np.unpackbits(bits[lo:hi], bitorder="little")
        part[a - lo * 8 : a - lo * 8 + length] = filled
        bits[lo:hi] = np.packbits(part, bitorder="little")

    def write(self, firsts: U64, lengths: U64, data: memoryview) -> None:
        """Write contents; the windows have to be open.

        Raises:
            OSError: the disk is full, or fails.
        """
        at = 0
        for first, length in self.pieces(firsts, lengths):
            size, offset = length * PAGE_SIZE, self.offset(first)
            while size:
                done = os.pwrite(self.fd, data[at : at + size], offset)
                at, offset, size = at + done, offset + done, size - done
            self.mark(first, length, filled=True)

    def zero(self, firsts: U64, lengths: U64) -> None:
        """Make pages zero.

        Raises:
            OSError: the disk fails.
        """
        for first, length in self.pieces(firsts, lengths):
            if first >> WINDOW_SHIFT in self.filled:
                self._punch(self.offset(first), length * PAGE_SIZE)
                self.mark(first, length, filled=False)

    def _punch(self, offset: int, size: int) -> None:
        if _libc.fallocate(self.fd, _PUNCH_HOLE | _KEEP_SIZE, offset, size) == 0:
            return
        while size:  # a file system without holes
            done = os.pwrite(self.fd, bytes(min(size, 1 << 20)), offset)
            offset, size = offset + done, size - done

    def filled_pages(self, window: int, first: int = 0, end: int = WINDOW_PAGES) -> U64:
        """Return the page numbers of a window that are not zero, ascending.

        Args:
            window: the window.
            first: the first page to look at, counted from the start of the window; a little before is included.
            end: the page to end before; a little after is included.
        """
        bits = self.filled.get(window)
        if bits is None:
            return np.empty(0, np.uint64)
        lo = max(first, 0) >> 3
        part = bits[lo : (end + 7) >> 3]
        found = np.flatnonzero(np.unpackbits(part, bitorder="little")).astype(np.uint64)
        return found + np.uint64((window << WINDOW_SHIFT) + lo * 8)

    def find_filled(self) -> None:
        """Mark pages that have data in the file, after a restart. Some of them may be zero."""
        for window, slot in self.windows.items():
            start = self.header + slot * WINDOW_BYTES
            at, end = start, start + WINDOW_BYTES
            with contextlib.suppress(OSError):  # ENXIO: no more data
                while at < end:
                    data = os.lseek(self.fd, at, os.SEEK_DATA)
                    hole = min(os.lseek(self.fd, data, os.SEEK_HOLE), end)
                    if data >= end:
                        break
                    first = (data - start) // PAGE_SIZE
                    last = -(-(hole - start) // PAGE_SIZE)
                    self.mark((window << WINDOW_SHIFT) + first, last - first, filled=True)
                    at = hole

    def read_into(self, firsts: U64, lengths: U64, buffer: memoryview) -> None:
        """Read the contents of runs of filled pages, one after the other.

        Raises:
            OSError: the disk fails.
        """
        at = 0
        for first, length in self.pieces(firsts, lengths):
            size, offset = length * PAGE_SIZE, self.offset(first)
            while size:
                got = os.preadv(self.fd, [buffer[at : at + size]], offset)
                if got == 0:  # a hole after the last page that was written
                    buffer[at : at + size] = bytes(size)
                    got = size
                at, offset, size = at + got, offset + got, size - got

    def close(self) -> None:
        """Close the file."""
        os.close(self.fd)
