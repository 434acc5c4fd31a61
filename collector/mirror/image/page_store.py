"""Contents of pages in a sparse file, however far apart the pages lie.

Page numbers reach further than files can: space in the file is given out in windows of 1 GiB, one for
each 1 GiB of addresses that has a page in it. What was never written, or became zero, is a hole.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
from collections.abc import Iterator

import numpy as np
import numpy.typing as npt
from redirty.collector.linux.process_memory import PAGE
from redirty.collector.pageset import PAGE_SHIFT, U64

WINDOW_SHIFT = 18  # in pages
WINDOW_PAGES = 1 << WINDOW_SHIFT
WINDOW_BYTES = WINDOW_PAGES * PAGE
MOST_WINDOWS = 8192  # 8 TiB: what ext4 takes with room to spare
MOST_PAGE = 1 << 52
_PUNCH, _KEEP_SIZE = 2, 1

_libc = ctypes.CDLL(None, use_errno=True)
_libc.fallocate.argtypes = [ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64]


class StoreError(Exception):
    """It asks for more than a mirror may have: no sender that is right does."""


class PageStore:
    """Pages by number. header: bytes left free at the file's beginning. windows: which window of pages
    lies in which one of the file."""

    def __init__(self, fd: int, header: int, windows: dict[int, int] | None = None) -> None:
        self.fd = fd
        self.header = header
        self.windows = dict(windows or {})
        # by window, a bit for each page that has contents which are not zero
        self.filled: dict[int, npt.NDArray[np.uint8]] = {}

    def new_windows(self, firsts: U64, lengths: U64) -> list[int]:
        """Windows that runs of pages need and that have no room yet, ascending.

        Errors: StoreError.
        """
        if len(firsts) == 0:
            return []
        if int(firsts.max()) >= MOST_PAGE or int(lengths.max()) > WINDOW_PAGES:
            raise StoreError("a page number that no address has")
        windows = np.unique(
            np.concatenate((firsts, firsts + lengths - np.uint64(1))) >> np.uint64(WINDOW_SHIFT)
        )
        new = [w for w in windows.tolist() if w not in self.windows]
        if len(self.windows) + len(new) > MOST_WINDOWS:
            raise StoreError(f"pages in more than {MOST_WINDOWS} GiB of addresses")
        return new

    def open_window(self, window: int) -> int:
        """Gives a window room in the file; where."""
        slot = self.windows[window] = len(self.windows)
        return slot

    def offset(self, page: int) -> int:
        """Where a page of an open window lies in the file."""
        slot = self.windows[page >> WINDOW_SHIFT]
        return self.header + slot * WINDOW_BYTES + ((page & (WINDOW_PAGES - 1)) << PAGE_SHIFT)

    def pieces(self, firsts: U64, lengths: U64) -> Iterator[tuple[int, int]]:
        """Runs (first, length), cut at windows' ends."""
        for first, length in zip(firsts.tolist(), lengths.tolist(), strict=True):
            at, end = first, first + length
            while at < end:
                part = min(end - at, WINDOW_PAGES - (at & (WINDOW_PAGES - 1)))
                yield at, part
                at += part

    def mark(self, first: int, length: int, *, filled: bool) -> None:
        """Notes that pages of one window have contents, or none."""
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
        """Puts contents in; the windows are open. Errors: OSError (a full disk)."""
        at = 0
        for first, length in self.pieces(firsts, lengths):
            size, offset = length * PAGE, self.offset(first)
            while size:
                done = os.pwrite(self.fd, data[at : at + size], offset)
                at, offset, size = at + done, offset + done, size - done
            self.mark(first, length, filled=True)

    def zero(self, firsts: U64, lengths: U64) -> None:
        """These pages are zero. Errors: OSError."""
        for first, length in self.pieces(firsts, lengths):
            if first >> WINDOW_SHIFT in self.filled:
                self._punch(self.offset(first), length * PAGE)
                self.mark(first, length, filled=False)

    def _punch(self, offset: int, size: int) -> None:
        if _libc.fallocate(self.fd, _PUNCH | _KEEP_SIZE, offset, size) == 0:
            return
        while size:  # a file system that cannot
            done = os.pwrite(self.fd, bytes(min(size, 1 << 20)), offset)
            offset, size = offset + done, size - done

    def filled_pages(self, window: int) -> U64:
        """Ascending page numbers of a window that are not zero."""
        bits = self.filled.get(window)
        if bits is None:
            return np.empty(0, np.uint64)
        found = np.flatnonzero(np.unpackbits(bits, bitorder="little")).astype(np.uint64)
        return found + np.uint64(window << WINDOW_SHIFT)

    def find_filled(self) -> None:
        """After a restart: pages that the file has anything of. Some may be zero throughout."""
        for window, slot in self.windows.items():
            start = self.header + slot * WINDOW_BYTES
            at, end = start, start + WINDOW_BYTES
            with contextlib.suppress(OSError):  # ENXIO: nothing follows
                while at < end:
                    data = os.lseek(self.fd, at, os.SEEK_DATA)
                    hole = min(os.lseek(self.fd, data, os.SEEK_HOLE), end)
                    if data >= end:
                        break
                    first = (data - start) // PAGE
                    last = -(-(hole - start) // PAGE)
                    self.mark((window << WINDOW_SHIFT) + first, last - first, filled=True)
                    at = hole

    def read_into(self, firsts: U64, lengths: U64, buffer: memoryview) -> None:
        """Contents of runs of filled pages, one after the other. Errors: OSError."""
        at = 0
        for first, length in self.pieces(firsts, lengths):
            size, offset = length * PAGE, self.offset(first)
            while size:
                got = os.preadv(self.fd, [buffer[at : at + size]], offset)
                if got == 0:  # a hole behind the last page that was written
                    buffer[at : at + size] = bytes(size)
                    got = size
                at, offset, size = at + got, offset + got, size - got

    def close(self) -> None:
        """Lets go of the file."""
        os.close(self.fd)
