"""The rows of tlb.csv."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt
from redirty.collector.bpf import abi

_TIMED = frozenset({abi.TLB_MM_RANGE, abi.TLB_BATCH})
# of the kernel's own reasons, by what tells the arm's share apart from the target's
_ASKED = frozenset({1, 5})  # on a CPU that was asked: known where it is known who asked
_LATER = frozenset({0})  # at a switch of tasks: nobody knows what made it necessary


def _seconds(tlb: npt.NDArray[np.void]) -> str:
    return f"{int(tlb['ns']) / 1e9:.9f}"


def _counts(
    tlb: npt.NDArray[np.void], timed: bool, cpus: bool
) -> tuple[int, int, str | None, int, int, int | None]:
    """(flushes, pages, time_s, full_flushes, ranges, cpus); None where not known."""
    return (
        int(tlb["flushes"]),
        int(tlb["pages"]),
        _seconds(tlb) if timed else None,
        int(tlb["full_flushes"]),
        int(tlb["ranges"]),
        int(tlb["cpus"]) if cpus else None,
    )


def rows(
    number: int, pid: int, stats: npt.NDArray[np.void], features: frozenset[str]
) -> Iterator[tuple[object, ...]]:
    """Of one address space in one round; stats: (1,) abi.STATS. A reason that did not occur has
    no row."""
    for reason, name in enumerate(abi.TLB_REASON_NAMES):
        own, arm = stats["tlb"][0, reason], stats["arm_tlb"][0, reason]
        if not own["flushes"] and not arm["flushes"]:
            continue
        timed = reason in _TIMED
        split = reason not in _LATER and (reason not in _ASKED or "tlb_cpus" in features)
        cpus = timed and "tlb_cpus" in features
        of_arm = _counts(arm, timed, cpus) if split else (None,) * 6
        yield (number, pid, name, *_counts(own, timed, cpus), *of_arm)
