"""Which page tables of a process can be relocated, and in which steps.

A table maps 2 MiB, a region, and only goes when all that is mapped in its region goes.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from itertools import pairwise

import numpy as np
import numpy.typing as npt
from redirty.collector.linux.smaps import SmapsMapping
from redirty.collector.pageset import U64

I64 = npt.NDArray[np.int64]

REGION = 1 << 21
MOST_SEGMENTS = 96  # of a step: fewer than the routine in the target has room for
_FLAGS = {
    "ht": "hugetlb pages",
    "um": "registered with a userfaultfd",
    "uw": "registered with a userfaultfd",
    "ui": "registered with a userfaultfd",
    "io": "memory of a device",
    "pf": "memory of a device",
    "mm": "memory of a device",
    "gd": "the stack",
    "sl": "sealed (mseal)",
    "ss": "a shadow stack",
}
_SPECIAL = ("[vsyscall]", "[vvar]", "[vvar_vclock]", "[vdso]", "[uprobes]", "[stack]")
# The kernel does not join System V segments again once they were parted.
_PATHS = {
    "/SYSV": "System V shared memory",
    "anon_inode:": "the kernel's own",
    "/[": "the kernel's own",
}
IN_USE = "thread data that the kernel uses (rseq)"
MANY = "too many mappings in 2 MiB"
MERGED = "pages merged by KSM, which would be parted"
HUGE = "huge pages, which would be split (--split-huge)"


def stays(mapping: SmapsMapping, *, merged: bool = False) -> str:
    """Why a mapping can't be moved away for a moment; empty when it can. merged: whether KSM has merged
    pages; the kernel parts those of a mapping that it moves."""
    if merged and "mg" in mapping.flags:
        return MERGED
    for flag, reason in _FLAGS.items():
        if flag in mapping.flags:
            return reason
    if mapping.path in _SPECIAL:
        return "the kernel's own"
    for begin, reason in _PATHS.items():
        if mapping.path.startswith(begin):
            return reason
    if mapping.path.startswith("/dev/") and not mapping.path.startswith(("/dev/zero", "/dev/shm/")):
        return "memory of a device"
    return ""


@dataclass(frozen=True, eq=False)
class RelocationPlan:
    """regions: (n,) addresses of regions to relocate, ascending. kept: reason -> how many tables stay for it."""

    regions: U64
    mappings: Sequence[SmapsMapping]
    kept: Counter[str] = field(default_factory=Counter)


def overlaps(regions: U64, mappings: Sequence[SmapsMapping]) -> tuple[I64, I64]:
    """Of each region the mappings in it, by number: (n,) the first, (n,) one past the last."""
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
    """Of regions with tables in the wrong place those that can be relocated. mappings: all of the
    process. in_use: addresses that may not be away for a moment. merged: see stays()."""
    reasons = [stays(m, merged=merged) for m in mappings]
    bad = np.flatnonzero([bool(r) for r in reasons])
    first, last = overlaps(regions, mappings)
    # of what is bad, the first that is not before the region's first mapping
    nearest = np.append(bad, len(mappings))[np.searchsorted(bad, first)]
    blocked = nearest < last
    many = ~blocked & (last - first > MOST_SEGMENTS)
    kept = Counter(reasons[i] for i in nearest[blocked].tolist())
    if many.any():
        kept[MANY] += int(many.sum())
    # with nothing mapped there the table went away meanwhile
    good = ~blocked & ~many & (last > first)
    used = np.isin(regions, [address // REGION * REGION for address in in_use])
    if (good & used).any():
        kept[IN_USE] += int((good & used).sum())
    return RelocationPlan(regions[good & ~used], mappings, kept)


@dataclass(frozen=True)
class RelocationStep:
    """runs: [start, end) of neighbouring regions; segments: (start, end, permissions) mapped there."""

    runs: list[tuple[int, int]]
    segments: list[tuple[int, int, str]]

    @property
    def regions(self) -> int:
        """How many tables it relocates."""
        return sum(end - start for start, end in self.runs) // REGION


def clipped(
    mappings: Sequence[SmapsMapping], start: int, end: int, at: int
) -> list[tuple[int, int, str]]:
    """What of mappings lies in [start, end); at: the first that may."""
    found = []
    for m in mappings[at:]:
        if m.start >= end:
            break
        found.append((max(m.start, start), min(m.end, end), m.perms))
    return found


class StepPlanner:
    """StepPlanner of a plan, each as large as is said when it is asked for."""

    def __init__(self, plan: RelocationPlan) -> None:
        self._mappings = plan.mappings
        self._regions = plan.regions
        self._first, last = overlaps(plan.regions, plan.mappings)
        # A mapping that goes on from the region before is in that one's segment already.
        goes_on = np.zeros(len(plan.regions), np.int64)
        neighbours = plan.regions[1:] - plan.regions[:-1] == REGION
        goes_on[1:] = neighbours & (self._first[1:] == last[:-1] - 1)
        self._segments = np.cumsum(last - self._first - goes_on)
        self._at = 0

    def next(self, most: int) -> RelocationStep | None:
        """A step of at most so many regions; None at the end."""
        at = self._at
        if at >= len(self._regions):
            return None
        before = int(self._segments[at - 1]) if at else 0
        # One more than counted: the first region's mapping may have begun in the step before.
        room = int(np.searchsorted(self._segments, before + MOST_SEGMENTS, side="right"))
        self._at = min(at + most, max(room, at + 1), len(self._regions))
        regions = self._regions[at : self._at]
        cuts = np.flatnonzero(regions[1:] - regions[:-1] != REGION) + 1
        runs: list[tuple[int, int]] = []
        segments: list[tuple[int, int, str]] = []
        for a, b in pairwise([0, *cuts.tolist(), len(regions)]):
            start, end = int(regions[a]), int(regions[b - 1]) + REGION
            runs.append((start, end))
            segments += clipped(self._mappings, start, end, int(self._first[at + a]))
        return RelocationStep(runs, segments)
