"""The digest of a mirror's contents, computed in the same way at both ends.

Covers the sources in ascending order: the pages of each that are not zero, ascending, with their page numbers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

import numpy as np
import xxhash
from redirty.collector.mirror.sources.page_hashes import zero_pages
from redirty.collector.pageset import PAGE_SIZE, U64

CHUNK_PAGES = 512  # the size of the buffer: the digest does not depend on it


class Digest:
    """Hashes pages in the order described above."""

    def __init__(self) -> None:
        self._hash = xxhash.xxh3_128()
        self._buffer = memoryview(bytearray(CHUNK_PAGES * PAGE_SIZE))
        self.pages = 0

    def add(self, number: int, pages: U64, read: Callable[[U64, memoryview], object]) -> None:
        """Add pages of one source, ascending; read(pages, buffer) reads their contents."""
        for at in range(0, len(pages), CHUNK_PAGES):
            part = pages[at : at + CHUNK_PAGES]
            view = self._buffer[: len(part) * PAGE_SIZE]
            read(part, view)
            contents = np.frombuffer(view, np.uint64).reshape(-1, PAGE_SIZE // 8)
            kept = np.flatnonzero(~zero_pages(contents))
            for i in kept.tolist():
                self._hash.update(int(part[i]).to_bytes(8, "little") + number.to_bytes(4, "little"))
                self._hash.update(view[i * PAGE_SIZE : (i + 1) * PAGE_SIZE])
            self.pages += len(kept)

    def hex(self) -> str:
        """Return the digest of all pages added."""
        return self._hash.hexdigest()


def digest_of(parts: Iterable[tuple[int, U64, Callable[[U64, memoryview], object]]]) -> str:
    """Hash parts given as (source number, pages, read)."""
    digest = Digest()
    for number, pages, read in parts:
        digest.add(number, pages, read)
    return digest.hex()
