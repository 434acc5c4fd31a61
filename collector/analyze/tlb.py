"""Sums of TLB flushes: the target's own, and those caused by arming."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from redirty.collector.units import plural, show_time

if TYPE_CHECKING:
    import pandas as pd

_SIDES = {"target": "", "arm": "arm_"}
# The sums, and the hooks of which at least one must be attached.
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
# Reasons of the tracepoint where a flush starts: on this CPU, or by interrupting others (or both).
_LOCAL = ("local_shootdown", "local_mm_shootdown")
_REMOTE = ("remote_send_ipi",)


def summarise(frame: pd.DataFrame, hooks: frozenset[str]) -> dict[str, dict[str, Any]]:
    """Return `target` and `arm`, each with the sums of its flushes.

    The sums are flushes, pages, ranges, full_flushes, cpus (interrupted, summed), time_s; None where the kernel
    cannot count them, or an older recording lacks them.

    frame: tlb.csv as loaded. hooks: `features` of meta.json.
    """
    return {side: _side(frame, prefix, hooks) for side, prefix in _SIDES.items()}


def _side(frame: pd.DataFrame, prefix: str, hooks: frozenset[str]) -> dict[str, Any]:
    if "tlb_time" in hooks:
        chosen = frame[frame["reason"].isin(_TIMED)]
    else:
        # A flush that both interrupts others and flushes on this CPU has a row of each.
        parts = [frame[frame["reason"].isin(reasons)] for reasons in (_LOCAL, _REMOTE)]
        chosen = max(parts, key=lambda part: float(part[f"{prefix}flushes"].sum()))
    found: dict[str, Any] = {}
    for name, needed in _NEEDED.items():
        column = chosen[f"{prefix}{name}"]
        known = hooks & needed and (column.empty or column.notna().any())
        total = round(float(column.sum()), 9) if known else None
        found[name] = total if total is None or name == "time_s" else int(total)
    return found


def as_lines(sums: dict[str, dict[str, Any]]) -> list[str]:
    """Format the lines of the report, below the one with the target's flushes and their time."""
    lines = []
    own, arm = sums["target"], sums["arm"]
    if own["flushes"]:
        lines.append(f"  {_details(own)}")
    if arm["flushes"]:
        took = "" if arm["time_s"] is None else f", {show_time(arm['time_s'])} in all"
        lines.append(f"  {arm['flushes']} more caused by arming{took}: {_details(arm)}")
    return lines


def _details(side: dict[str, Any]) -> str:
    parts = []
    if side["ranges"] is not None:
        parts.append(f"{side['ranges']} ranged ({plural(side['pages'], 'page')})")
    parts.append(f"{side['full_flushes']} full")
    if side["cpus"] is not None:
        parts.append(f"other CPUs interrupted {plural(side['cpus'], 'time')}")
    return ", ".join(parts)
