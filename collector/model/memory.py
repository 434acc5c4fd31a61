"""The memory that a simulated mirror copies."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt
from redirty.collector.model.policy import Policy, Remaining

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Memory:
    """Memory to be mirrored.

    Attributes:
        pages: pages present.
        zero_pages: those of them that are all zeros.
        page_size: in bytes.
        compression: how many times smaller the contents of a page are on the link.
        rewritten_rate: bytes a second on the link that passes after the first send at most, as their pages lie
            scattered; None: the link alone limits them.
        compare_s: seconds that a page takes which is pending and turns out to be unchanged.
        layout: (pages, zero pages) of the pieces of the memory, (n,) each, in the order in which they are
            copied. Without it, zero pages are assumed to be spread evenly.
    """

    pages: float
    zero_pages: float
    page_size: int
    layout: tuple[Floats, Floats] | None = None
    compression: float = 1.0
    rewritten_rate: float | None = None
    compare_s: float = 0.0

    def first_pass_bytes(self, policy: Policy) -> float:
        """Return the bytes on the link of a pass over all memory."""
        return self._bytes(self.pages, self.zero_pages, policy)

    def _bytes(self, pages: float, zero_pages: float, policy: Policy) -> float:
        zero = policy.zero_page_bytes
        if zero is None:
            return pages * self.page_bytes(policy)
        return (pages - zero_pages) * self.page_bytes(policy) + zero_pages * zero

    def page_bytes(self, policy: Policy) -> float:
        """Return the bytes on the link of a page that is not zero."""
        return self.page_size / self.compression + policy.header_bytes

    def first_pass(self, policy: Policy) -> Remaining:
        """Return the work left before the first pass."""
        whole = self.first_pass_bytes(policy)
        pending = self.pages * self.page_size
        if self.layout is None or policy.zero_page_bytes is None:
            return Remaining(whole, pending)
        pages, zero = self._from_the_end

        def end_of(pending_bytes: float) -> float:
            last = pending_bytes / self.page_size
            return self._bytes(last, float(np.interp(last, pages, zero)), policy)

        return Remaining(whole, pending, end_of)

    @cached_property
    def _from_the_end(self) -> tuple[Floats, Floats]:
        """(pages, zero pages) summed from the end of the memory on: (n + 1,) each, ascending from 0."""
        assert self.layout is not None
        pages, zero = (np.cumsum(part[::-1]) for part in self.layout)
        return np.insert(pages, 0, 0.0), np.insert(zero, 0, 0.0)

    def unsent_pages(self, unsent_bytes: float, policy: Policy) -> float:
        """Return how many pages the last unsent_bytes of the first pass, on the link, represent."""
        if unsent_bytes <= 0:
            return 0.0
        whole = self.first_pass_bytes(policy)
        if self.layout is None or policy.zero_page_bytes is None:
            return self.pages * share(unsent_bytes, whole)
        pages, zero = self._from_the_end
        sizes = (pages - zero) * self.page_bytes(policy) + zero * policy.zero_page_bytes
        return float(np.interp(unsent_bytes, sizes, pages))


def share(part: float, whole: float) -> float:
    """Return part / whole, at most 1; 0 of nothing."""
    return min(part / whole, 1.0) if whole > 0 else 0.0
