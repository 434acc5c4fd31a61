"""Reads the core files of a committed mirror: contents, and the process's own pages.

A mirror may be damaged, or come from somebody else: what its headers claim is checked against the file, so that
neither memory nor time nor the output of an export depend on a number in it.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from redirty.collector.checked_files import open_regular
from redirty.collector.errors import RedirtyError, why
from redirty.collector.mirror.image.core_notes import OWN_NAME, OWN_PAGES
from redirty.collector.mirror.image.elf_core import HEADER_BYTES
from redirty.collector.mirror.image.page_store import MAX_PAGE, MAX_WINDOWS, WINDOW_PAGES
from redirty.collector.pageset import PAGE_SIZE, U64

_PHDR = struct.Struct("<IIQQQQQQ")
_LOAD, _NOTE = 1, 4
_XNUM = 0xFFFF
_MAX_FILE = 1 << 62
_CHUNK = 1024  # pages


class CoreFile:
    """An open core file of a mirror.

    Attributes:
        path: the file.
        own: (n, 2) first page and length of runs of the process's own pages, ascending, all of them mapped.
    """

    def __init__(self, path: Path) -> None:
        """Open a core file, and read its headers.

        Raises:
            RedirtyError: the file is not a core file of a mirror, or is truncated.
        """
        self.path = path
        try:
            self._fd = open_regular(path)
        except OSError as e:
            raise RedirtyError(f"cannot read {path}: {why(e)}") from None
        try:
            self._size = os.fstat(self._fd).st_size
            self._read_headers()
        except OSError as e:
            os.close(self._fd)
            raise RedirtyError(f"cannot read {path}: {why(e)}") from None
        except (struct.error, ValueError):
            os.close(self._fd)
            raise RedirtyError(f"{path} is not a core file of redirty mirror") from None
        except RedirtyError:
            os.close(self._fd)
            raise

    def _pread(self, size: int, at: int) -> bytes:
        """Read a part of the header. Raises: ValueError when it is not there; OSError."""
        if at + size > min(HEADER_BYTES, self._size):
            raise ValueError
        data = os.pread(self._fd, size, at)
        if len(data) != size:
            raise ValueError
        return data

    def _read_headers(self) -> None:
        head = self._pread(64, 0)
        if head[:6] != b"\x7fELF\x02\x01":  # 64 bits, little endian
            raise ValueError
        (table,) = struct.unpack_from("<Q", head, 32)
        (count,) = struct.unpack_from("<H", head, 56)
        if count == _XNUM:
            (at,) = struct.unpack_from("<Q", head, 40)
            (count,) = struct.unpack("<I", self._pread(4, at + 44))
        rows = list(_PHDR.iter_unpack(self._pread(count * _PHDR.size, table)))
        if any(row[0] not in (_LOAD, _NOTE) for row in rows):
            raise ValueError
        loads = [row for row in rows if row[0] == _LOAD]
        # (n, 4) first and end page, end of the pages in the file, offset of the contents
        self._segments = _segments(loads)
        if max((r[2] + r[5] for r in loads if r[5]), default=0) > self._size:
            raise RedirtyError(f"{self.path} is truncated: make a new mirror")
        (notes,) = [row for row in rows if row[0] == _NOTE]
        self.own = _own_pages(self._pread(notes[5], notes[2]))
        self._require_mapped()

    def _require_mapped(self) -> None:
        """Check that all own pages are in mappings. Raises: ValueError when they are not."""
        if len(self.own) == 0:
            return
        if len(self._segments) == 0:
            raise ValueError
        firsts, ends = self._segments[:, 0], self._segments[:, 1]
        joints = np.flatnonzero(firsts[1:] != ends[:-1]) + 1
        starts = firsts[np.insert(joints, 0, 0)]
        stops = ends[np.append(joints - 1, len(ends) - 1)]
        at = np.searchsorted(starts, self.own[:, 0], side="right").astype(np.int64) - 1
        if (at < 0).any() or (self.own.sum(axis=1) > stops[np.maximum(at, 0)]).any():
            raise ValueError

    def data(self, first: int, count: int) -> Iterator[tuple[int, bytes]]:
        """Yield the contents of `count` pages as pieces (first page, contents); all other pages are zero.

        Raises:
            RedirtyError: the file cannot be read.
        """
        end = first + count
        at = int(np.searchsorted(self._segments[:, 0], np.uint64(first), side="right")) - 1
        for start, _, in_file, offset in self._segments[max(at, 0) :].tolist():
            if start >= end:
                break
            low, high = max(start, first), min(in_file, end)
            if low < high:
                try:
                    yield from self._pieces(low, high, offset - start * PAGE_SIZE)
                except OSError as e:
                    raise RedirtyError(f"cannot read {self.path}: {why(e)}") from None

    def _pieces(self, first: int, end: int, base: int) -> Iterator[tuple[int, bytes]]:
        """Yield the pieces of pages [first, end) that are no holes. base: offset of page 0. Raises: OSError."""
        page = first
        while page < end:
            try:
                data_at = os.lseek(self._fd, base + page * PAGE_SIZE, os.SEEK_DATA)
            except OSError:  # ENXIO: no more data
                return
            hole_at = os.lseek(self._fd, data_at, os.SEEK_HOLE)
            page = max(page, (data_at - base) // PAGE_SIZE)
            stop = min(end, -(-(hole_at - base) // PAGE_SIZE))
            while page < stop:
                count = min(_CHUNK, stop - page)
                data = os.pread(self._fd, count * PAGE_SIZE, base + page * PAGE_SIZE)
                yield page, data.ljust(count * PAGE_SIZE, b"\0")
                page += count

    def close(self) -> None:
        """Close the file."""
        os.close(self._fd)


def _segments(loads: list[tuple[int, ...]]) -> U64:
    """Return (n, 4), see CoreFile, ascending. loads: program headers. Raises: ValueError for invalid ones."""
    found: list[tuple[int, int, int, int]] = []
    for _, _, offset, address, _, in_file, size, _ in sorted(loads, key=lambda row: row[3]):
        if (address | in_file | size | offset) % PAGE_SIZE or in_file > size or offset > _MAX_FILE:
            raise ValueError
        first, pages = address // PAGE_SIZE, size // PAGE_SIZE
        if first + pages > MAX_PAGE or (found and found[-1][1] > first):
            raise ValueError
        found.append((first, first + pages, first + in_file // PAGE_SIZE, offset))
    return np.array(found, np.uint64).reshape(-1, 4)


def _own_pages(notes: bytes) -> U64:
    """Return the runs in the note of own pages. Raises: ValueError for invalid ones."""
    at = 0
    while at + 12 <= len(notes):
        name, size, kind = struct.unpack_from("<III", notes, at)
        body = at + 12 + -(-name // 4) * 4
        if kind == OWN_PAGES and notes[at + 12 : at + 12 + name] == OWN_NAME + b"\0":
            if size % 16 or body + size > len(notes):
                raise ValueError
            runs = np.frombuffer(notes, "<u8", size // 8, body).reshape(-1, 2).astype(np.uint64)
            _require_runs(runs)
            return runs
        at = body + -(-size // 4) * 4
    raise ValueError


def _require_runs(runs: U64) -> None:
    """Check that runs ascend, do not overlap, and are not more than a mirror can have. Raises: ValueError."""
    if len(runs) == 0:
        return
    if int(runs.max()) > MAX_PAGE or int(runs[:, 1].min()) == 0:
        raise ValueError
    if (runs[1:, 0] < runs[:-1].sum(axis=1)).any():
        raise ValueError
    if int(runs[:, 1].sum()) > MAX_WINDOWS * WINDOW_PAGES:
        raise ValueError
