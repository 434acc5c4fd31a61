"""The digests of a mirror's contents, computed in the same way at both ends.

Both cover the sources in ascending order: the pages of each that are not zero, ascending, with their page numbers.
One is over the contents; the other over a hash of the contents of each page, which the sender has kept of what it sent.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

import numpy as np
import xxhash
from redirty.collector.mirror.sources.page_hashes import hashes_of, zero_pages
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


_ENTRY = np.dtype([("page", "<u8"), ("source", "<u8"), ("hash", "<u8")])


class HashDigest:
    """Digests the hashes of pages, in the order described above."""

    def __init__(self) -> None:
        self._hash = xxhash.xxh3_128()

    def add(self, number: int, pages: U64, hashes: U64) -> None:
        """Add pages of one source, ascending, with the hashes of their contents; none of them is zero."""
        entries = np.empty(len(pages), _ENTRY)
        entries["page"], entries["source"], entries["hash"] = pages, number, hashes
        self._hash.update(entries.tobytes())

    def hex(self) -> str:
        """Return the digest of all pages added."""
        return self._hash.hexdigest()


def hash_digest_of(
    parts: Iterable[tuple[int, U64, Callable[[U64, memoryview], object]]], seed: int
) -> str:
    """Digest the hashes of parts given as (source number, pages, read), keyed with a seed."""
    digest = HashDigest()
    buffer = memoryview(bytearray(CHUNK_PAGES * PAGE_SIZE))
    views = [buffer[at : at + PAGE_SIZE] for at in range(0, len(buffer), PAGE_SIZE)]
    for number, pages, read in parts:
        for at in range(0, len(pages), CHUNK_PAGES):
            part = pages[at : at + CHUNK_PAGES]
            view = buffer[: len(part) * PAGE_SIZE]
            read(part, view)
            zero = zero_pages(np.frombuffer(view, np.uint64).reshape(-1, PAGE_SIZE // 8))
            hashes = hashes_of(views[: len(part)], zero, seed)
            digest.add(number, part[~zero], hashes[~zero])
    return digest.hex()
