"""The interface of a source of pages."""

from __future__ import annotations

from typing import Protocol

from redirty.collector.mirror.sources.page_hashes import PageHashes
from redirty.collector.pageset import (
    U64,
    Bools,
    PageSet,
)


class Source(Protocol):
    """An address space or a file, whose pages are mirrored.

    Attributes:
        number: identifies it on the wire.
        have: pages that the other end has, with the contents that were last read, zero pages included.
        pending: pages that have to be sent.
        unread: pages that could not be read at the last attempt, so that the other end has zeros for them.
        retried: those of them that were tried once more.
        dirty: pages written in each of the last rounds, the latest round first.
        sent: hashes of the contents that were sent.
    """

    number: int
    have: PageSet
    pending: PageSet
    unread: PageSet
    retried: PageSet
    dirty: list[PageSet]
    sent: PageHashes

    def read(self, pages: U64, buffer: memoryview) -> Bools:
        """Read ascending pages to the start of the buffer, and return (n,) which could be read."""
