"""Reads a committed mirror: mirror.json, and the core files' contents and own pages."""

from __future__ import annotations

import json
import os
import struct
from pathlib import Path
from typing import Any

import numpy as np
from redirty.collector.errors import RedirtyError, why
from redirty.collector.mirror.image.core_notes import OWN_NAME, OWN_PAGES
from redirty.collector.pageset import PAGE_SIZE, U64

_PHDR = struct.Struct("<IIQQQQQQ")
SCHEMA = 1  # of mirror.json


def read_manifest(directory: Path) -> dict[str, Any]:
    """Return the contents of mirror.json.

    Raises:
        RedirtyError: the directory is not a mirror, or was made by another version.
    """
    try:
        information: dict[str, Any] = json.loads((directory / "mirror.json").read_bytes())
        if information["state"] != "committed":
            raise ValueError
        if information["schema"] != SCHEMA:
            raise RedirtyError(
                f"{directory} was made by another version of redirty (schema {information['schema']}): use that version"
            )
    except FileNotFoundError:
        raise RedirtyError(f"{directory} is not a mirror: it has no mirror.json") from None
    except OSError as e:
        raise RedirtyError(f"cannot read {directory}/mirror.json: {why(e)}") from None
    except (ValueError, KeyError, TypeError):
        raise RedirtyError(f"{directory} is not a mirror: invalid mirror.json") from None
    return information


class CoreFile:
    """An open core file of a mirror.

    Attributes:
        path: the file.
        own: (n, 2) first page and length of runs of the process's own pages.
    """

    def __init__(self, path: Path) -> None:
        """Open a core file, and read its headers.

        Raises:
            RedirtyError: the file is not a core file of a mirror, or is truncated.
        """
        self.path = path
        try:
            self._fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except OSError as e:
            raise RedirtyError(f"cannot read {path}: {why(e)}") from None
        try:
            self._read_headers()
        except (struct.error, IndexError, ValueError):
            os.close(self._fd)
            raise RedirtyError(f"{path} is not a core file of redirty mirror") from None
        if os.fstat(self._fd).st_size < self._size:
            os.close(self._fd)
            raise RedirtyError(f"{path} is truncated: make a new mirror")

    def _read_headers(self) -> None:
        head = os.pread(self._fd, 64, 0)
        if head[:4] != b"\x7fELF":
            raise ValueError
        (table,) = struct.unpack_from("<Q", head, 32)
        (count,) = struct.unpack_from("<H", head, 56)
        if count == 0xFFFF:
            (at,) = struct.unpack_from("<Q", head, 40)
            (count,) = struct.unpack("<I", os.pread(self._fd, 4, at + 44))
        data = os.pread(self._fd, count * _PHDR.size, table)
        rows = list(_PHDR.iter_unpack(data))
        # (n, 3) start and end of the contents in the file, and their offset
        self._segments = np.array(
            sorted((r[3], r[3] + r[5], r[2]) for r in rows if r[0] == 1), np.uint64
        ).reshape(-1, 3)
        self._size = max(r[2] + r[5] for r in rows)
        (notes,) = [r for r in rows if r[0] == 4]
        self.own = _own_pages(os.pread(self._fd, notes[5], notes[2]))

    def read(self, page: int, count: int) -> bytes:
        """Return the contents of `count` pages; pages that are not in the file are zero."""
        found = bytearray(count * PAGE_SIZE)
        start, end = page * PAGE_SIZE, (page + count) * PAGE_SIZE
        first = int(np.searchsorted(self._segments[:, 0], np.uint64(start), side="right")) - 1
        for a, b, offset in self._segments[max(first, 0) :].tolist():
            if a >= end:
                break
            low, high = max(a, start), min(b, end)
            if low < high:
                data = os.pread(self._fd, high - low, offset + low - a)
                found[low - start : low - start + len(data)] = data
        return bytes(found)

    def close(self) -> None:
        """Close the file."""
        os.close(self._fd)


def _own_pages(notes: bytes) -> U64:
    at = 0
    while at < len(notes):
        name, size, kind = struct.unpack_from("<III", notes, at)
        body = at + 12 + -(-name // 4) * 4
        if kind == OWN_PAGES and notes[at + 12 : at + 12 + name] == OWN_NAME + b"\0":
            return np.frombuffer(notes, np.uint64, size // 8, body).reshape(-1, 2)
        at = body + -(-size // 4) * 4
    raise ValueError
