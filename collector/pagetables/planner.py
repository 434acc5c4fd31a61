"""Plans which page tables of a process are relocated, and in which steps.

A table maps 2 MiB, a region, and moves only if all that is mapped in its region moves.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from itertools import pairwise

import numpy as np
import numpy.typing as npt
from redirty.collector.linux.maps import SPECIAL_PATHS, SYSTEM_V_PATH
from redirty.collector.linux.smaps import SmapsMapping
from redirty.collector.pageset import U64

I64 = npt.NDArray[np.int64]

REGION = 1 << 21
MAX_SEGMENTS = 96
"""Maximum number of segments in a step: fewer than the stub in the target has room for."""
_FLAGS = {
    "ht": "hugetlb pages",
    "um": "registered with a userfaultfd",
    "uw": "registered with a userfaultfd",
    "ui": "registered with a userfaultfd",
    "io": "device memory",
    "pf": "device memory",
    "mm": "device memory",
    "gd": "the stack",
    "sl": "sealed (mseal)",
    "ss": "a shadow stack",
}
_UNMOVABLE_PATHS = (*SPECIAL_PATHS, "[uprobes]", "[stack]")
# The kernel does not merge System V mappings again once they were split.
_PATHS = {
    SYSTEM_V_PATH: "System V shared memory",
    "anon_inode:": "memory provided by the kernel",
    "/[": "memory provided by the kernel",
}
IN_USE = "thread data that the kernel uses (rseq)"
MANY = "too many mappings in 2 MiB"
MERGED = "pages merged by KSM, which would be unmerged"
HUGE = "huge pages, which would be split (--split-huge)"


def stays(mapping: SmapsMapping, *, merged: bool = False) -> str:
    """Return the reason why a mapping cannot be moved briefly; empty if it can be.

    Args:
        mapping: The mapping.
        merged: Whether KSM has merged pages: the kernel unmerges those of a mapping that it moves.
    """
    if merged and "mg" in mapping.flags:
        return MERGED
    for flag, reason in _FLAGS.items():
        if flag in mapping.flags:
            return reason
    if mapping.path in _UNMOVABLE_PATHS:
        return "memory provided by the kernel"
    for prefix, reason in _PATHS.items():
        if mapping.path.startswith(prefix):
            return reason
    if mapping.path.startswith("/dev/") and not mapping.path.startswith(("/dev/zero", "/dev/shm/")):
        return "device memory"
    return ""


@dataclass(frozen=True, eq=False)
class RelocationPlan:
    """The plan of a relocation.

    Attributes:
        regions: (n,) addresses of regions to relocate, ascending.
        mappings: All mappings of the process.
        kept: Reason -> number of tables that stay for that reason.
    """

    regions: U64
    mappings: Sequence[SmapsMapping]
    kept: Counter[str] = field(default_factory=Counter)


def overlaps(regions: U64, mappings: Sequence[SmapsMapping]) -> tuple[I64, I64]:
    """Return the mappings in each region, by index: (n,) the first, (n,) one past the last."""
    starts = np.array([m.start for m in mappings], np.uint64)
    ends = np.array([m.end for m in mappings], np.uint64)
    first = np.searchsorted(ends, regions, side="right").astype(np.int64)
    last = np.searchsorted(starts, regions + np.uint64(REGION), side="left").astype(np.int64)
    return first, last


def plan(
    regions: U64,
    mappings: Sequence[SmapsMapping],
    in_use: Collection[int] = (),
    *,
    merged: bool = False,
) -> RelocationPlan:
    """Plan the relocation of those of some regions that can be relocated.

    Args:
        regions: (n,) addresses of regions whose tables are in the wrong place, ascending.
        mappings: All mappings of the process.
        in_use: Addresses that must not be moved, even briefly.
        merged: See stays().
    """
    reasons = [stays(m, merged=merged) for m in mappings]
    unmovable = np.flatnonzero([bool(r) for r in reasons])
    first, last = overlaps(regions, mappings)
    # the first unmovable mapping that is not before the region's first mapping
    nearest = np.append(unmovable, len(mappings))[np.searchsorted(unmovable, first)]
    blocked = nearest < last
    many = ~blocked & (last - first > MAX_SEGMENTS)
    kept = Counter(reasons[i] for i in nearest[blocked].tolist())
    if many.any():
        kept[MANY] += int(many.sum())
    # if nothing is mapped there, the table was freed meanwhile
    good = ~blocked & ~many & (last > first)
    used = np.isin(regions, [address // REGION * REGION for address in in_use])
    if (good & used).any():
        kept[IN_USE] += int((good & used).sum())
    return RelocationPlan(regions[good & ~used], mappings, kept)


@dataclass(frozen=True)
class RelocationStep:
    """A step of a relocation.

    Attributes:
        runs: [start, end) of adjacent regions.
        segments: (start, end, permissions) of the mappings there.
    """

    runs: list[tuple[int, int]]
    segments: list[tuple[int, int, str]]

    @property
    def regions(self) -> int:
        """Number of tables that the step relocates."""
        return sum(end - start for start, end in self.runs) // REGION


def clipped(
    mappings: Sequence[SmapsMapping], start: int, end: int, at: int
) -> list[tuple[int, int, str]]:
    """Return the parts of mappings in [start, end); at: index of the first that may be in it."""
    found = []
    for m in mappings[at:]:
        if m.start >= end:
            break
        found.append((max(m.start, start), min(m.end, end), m.perms))
    return found


class StepPlanner:
    """Splits a plan into steps, each as large as requested."""

    def __init__(self, plan: RelocationPlan) -> None:
        self._mappings = plan.mappings
        self._regions = plan.regions
        self._first, last = overlaps(plan.regions, plan.mappings)
        # A mapping that continues from the region before is in that one's segment already.
        continues = np.zeros(len(plan.regions), np.int64)
        neighbours = plan.regions[1:] - plan.regions[:-1] == REGION
        continues[1:] = neighbours & (self._first[1:] == last[:-1] - 1)
        self._segments = np.cumsum(last - self._first - continues)
        self._at = 0

    def next(self, max_regions: int) -> RelocationStep | None:
        """Return the next step, limited to a number of regions; None at the end."""
        at = self._at
        if at >= len(self._regions):
            return None
        before = int(self._segments[at - 1]) if at else 0
        # One more than counted: the first region's mapping may have started in the step before.
        room = int(np.searchsorted(self._segments, before + MAX_SEGMENTS, side="right"))
        self._at = min(at + max_regions, max(room, at + 1), len(self._regions))
        regions = self._regions[at : self._at]
        cuts = np.flatnonzero(regions[1:] - regions[:-1] != REGION) + 1
        runs: list[tuple[int, int]] = []
        segments: list[tuple[int, int, str]] = []
        for a, b in pairwise([0, *cuts.tolist(), len(regions)]):
            start, end = int(regions[a]), int(regions[b - 1]) + REGION
            runs.append((start, end))
            segments += clipped(self._mappings, start, end, int(self._first[at + a]))
        return RelocationStep(runs, segments)
