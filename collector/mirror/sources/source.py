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
    """number: its name on the wire. have: pages that the other end has as they were when they were read,
    zero ones included. pending: pages that are to be sent. dirty: of the last rounds, the youngest
    first. sent: hashes of what was sent."""

    number: int
    have: PageSet
    pending: PageSet
    dirty: list[PageSet]
    sent: PageHashes

    def read(self, pages: U64, buffer: memoryview) -> Bools:
        """Copies ascending pages to the front of the buffer; (n,) which could be read."""
