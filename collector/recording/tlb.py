"""Rows of tlb.csv."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt
from redirty.collector.bpf import abi

_TIMED = frozenset({abi.TLB_MM_RANGE, abi.TLB_BATCH})
# The kernel's reasons for which the share caused by arming is not always known.
_REMOTE = frozenset({1, 5})  # on the CPU that was interrupted: known where the initiator is
_DEFERRED = frozenset({0})  # at a context switch: the cause is unknown


def _seconds(tlb: npt.NDArray[np.void]) -> str:
    return f"{int(tlb['ns']) / 1e9:.9f}"


def _counts(
    tlb: npt.NDArray[np.void], timed: bool, cpus: bool
) -> tuple[int, int, str | None, int, int, int | None]:
    """Return (flushes, pages, time_s, full_flushes, ranges, cpus); None where not known."""
    return (
        int(tlb["flushes"]),
        int(tlb["pages"]),
        _seconds(tlb) if timed else None,
        int(tlb["full_flushes"]),
        int(tlb["ranges"]),
        int(tlb["cpus"]) if cpus else None,
    )


def rows(
    number: int, pid: int, stats: npt.NDArray[np.void], hooks: frozenset[str]
) -> Iterator[tuple[object, ...]]:
    """Yield the rows of one address space in one round.

    A reason that did not occur has no row. stats: (1,) abi.STATS. hooks: see writer.Meta.
    """
    for reason, name in enumerate(abi.TLB_REASON_NAMES):
        own, arm = stats["tlb"][0, reason], stats["arm_tlb"][0, reason]
        if not own["flushes"] and not arm["flushes"]:
            continue
        timed = reason in _TIMED
        split = reason not in _DEFERRED and (reason not in _REMOTE or "tlb_cpus" in hooks)
        cpus = timed and "tlb_cpus" in hooks
        of_arm = _counts(arm, timed, cpus) if split else (None,) * 6
        yield (number, pid, name, *_counts(own, timed, cpus), *of_arm)
