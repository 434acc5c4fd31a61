"""First writes of pages in a round, by the time since each page's own protection."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
from redirty.collector.arming.protection import Protection
from redirty.collector.bpf.arm_log import ArmWrites
from redirty.collector.pageset import PageSet, empty, from_pages

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class FirstWrites:
    """What the histogram of a round does not tell about one address space.

    Attributes:
        elapsed_s: (n,) ascending, of pages that are not in the histogram: seconds since the page was protected.
        lag_s: by how much, on average, its pages were protected before the histogram's times begin.
        raced: pages logged in the round that were written only before they were protected; None if not known.
    """

    elapsed_s: Floats = field(default_factory=lambda: np.empty(0))
    lag_s: float = 0.0
    raced: PageSet | None = None


NOT_KNOWN = FirstWrites()


def first_writes(
    writes: ArmWrites, protection: Protection | None, ref_ns: float, dirty: PageSet
) -> FirstWrites:
    """Relate the writes around an arm to the protection of their pages.

    A page that was not written in the previous round is still protected when the next one begins: its first write
    is logged there also when it comes before the arm, which protects the page again, and ends the previous round.

    Args:
        writes: Those of one address space around the arm that began the round.
        protection: That arm; None: the memory is not armed.
        ref_ns: Begin of the histogram's times.
        dirty: Pages dirtied in the round.
    """
    if protection is None:
        elapsed_s = np.sort(np.maximum(writes.ns - ref_ns, 0.0)) / 1e9
        return FirstWrites(elapsed_s, 0.0, empty())
    since_ns = writes.ns - protection.times_ns(writes.pages)
    after = since_ns >= 0
    pages, first = np.unique(writes.pages[after], return_index=True)
    before = np.unique(writes.pages[~after])
    return FirstWrites(
        np.sort(since_ns[after][first]) / 1e9,
        (ref_ns - protection.mean_ns(dirty)) / 1e9,
        from_pages(np.setdiff1d(before, pages, assume_unique=True)) & dirty,
    )
