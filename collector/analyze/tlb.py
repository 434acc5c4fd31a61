"""Flushes of the TLB, summed up: the target's own, and those that arming it caused."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from redirty.collector.units import plural, show_time

if TYPE_CHECKING:
    import pandas as pd

_SIDES = {"target": "", "arm": "arm_"}
# what is added up, and the features of which one tells it
_COUNTED = frozenset({"tlb", "tlb_time"})
_NEEDED = {
    "flushes": _COUNTED,
    "pages": _COUNTED,
    "ranges": _COUNTED,
    "full_flushes": _COUNTED,
    "cpus": frozenset({"tlb_cpus"}),
    "time_s": frozenset({"tlb_time"}),
}
_TIMED = ("flush_tlb_mm_range", "arch_tlbbatch_flush")
# where a flush begins, as the tracepoint tells: on this CPU, or by asking others (or both)
_HERE = ("local_shootdown", "local_mm_shootdown")
_ASKS = ("remote_send_ipi",)


def summarise(frame: pd.DataFrame, features: frozenset[str]) -> dict[str, dict[str, Any]]:
    """`target` and `arm`, each with flushes, pages, ranges, full_flushes, cpus (interrupted, each
    time), time_s; None where the kernel, or an older recording, does not tell.

    frame: tlb.csv as loaded. features: meta.json's.
    """
    return {side: _side(frame, prefix, features) for side, prefix in _SIDES.items()}


def _side(frame: pd.DataFrame, prefix: str, features: frozenset[str]) -> dict[str, Any]:
    if "tlb_time" in features:
        chosen = frame[frame["reason"].isin(_TIMED)]
    else:
        # A flush that asks others and flushes here too has a row of each.
        parts = [frame[frame["reason"].isin(reasons)] for reasons in (_HERE, _ASKS)]
        chosen = max(parts, key=lambda part: float(part[f"{prefix}flushes"].sum()))
    found: dict[str, Any] = {}
    for name, needed in _NEEDED.items():
        column = chosen[f"{prefix}{name}"]
        known = features & needed and (column.empty or column.notna().any())
        total = round(float(column.sum()), 9) if known else None
        found[name] = total if total is None or name == "time_s" else int(total)
    return found


def as_lines(sums: dict[str, dict[str, Any]]) -> list[str]:
    """Lines of the report, below the one with the target's flushes and their time."""
    lines = []
    own, arm = sums["target"], sums["arm"]
    if own["flushes"]:
        lines.append(f"  {_details(own)}")
    if arm["flushes"]:
        took = "" if arm["time_s"] is None else f", {show_time(arm['time_s'])} in all"
        lines.append(f"  and {arm['flushes']} that arming caused{took}: {_details(arm)}")
    return lines


def _details(side: dict[str, Any]) -> str:
    parts = []
    if side["ranges"] is not None:
        parts.append(f"{side['ranges']} named a range ({plural(side['pages'], 'page')})")
    parts.append(f"{side['full_flushes']} flushed everything")
    if side["cpus"] is not None:
        parts.append(f"other CPUs interrupted {plural(side['cpus'], 'time')}")
    return ", ".join(parts)
