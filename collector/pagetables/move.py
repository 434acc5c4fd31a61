"""Answers of `redirty pagetables --to-node`: what would move, and what moved."""

from __future__ import annotations

import sys
from typing import Any

from redirty.collector.pagetables.preconditions import require_movable
from redirty.collector.pagetables.relocation import (
    Relocation,
    RelocationLimits,
    RelocationTarget,
    plan_for,
    trial_s,
)
from redirty.collector.pagetables.tlb_counter import Flushes, flushes_text
from redirty.collector.pagetables.walker import leaves_by_node
from redirty.collector.units import show_pages, show_time


def would_move(target: RelocationTarget, node: int, limits: RelocationLimits) -> dict[str, Any]:
    """Predict the effect of a move; its time is measured on memory of this process.

    Raises:
        RedirtyError: Nothing of the process may be moved.
    """
    require_movable(target.pid, node)
    planned, tables = plan_for(target, node, split_huge=limits.split_huge)
    count = len(planned.regions)
    pause_s = trial_s() * count if count else 0.0
    return {
        "pid": target.pid,
        "done": False,
        "before": leaves_by_node(tables, target.nodes),
        "to_node": node,
        "tables": count,
        "kept": dict(planned.kept),
        "stopped_s": pause_s,
        "steps": max(1, round(pause_s / limits.max_pause_s + 0.5)) if count else 0,
        "max_pause_s": limits.max_pause_s,
    }


def move(
    target: RelocationTarget, node: int, limits: RelocationLimits, *, progress: bool
) -> dict[str, Any]:
    """Move page tables; return what moved as a JSON-serializable dict.

    Args:
        target: The process.
        node: The NUMA node.
        limits: Limits on stopping and changing the process.
        progress: Whether to show it on stderr.

    Raises:
        RedirtyError: The tables cannot be moved.
        TargetEndedError: The process is gone.
    """
    require_movable(target.pid, node)  # before the flush counter, which is slow to load
    observer = _MoveObserver(target.pid, show=progress)
    try:
        moved = Relocation(target, node, limits, observer).run()
    finally:
        observer.close()
    return {
        "pid": target.pid,
        "done": True,
        "before": moved.before,
        "after": moved.after,
        "to_node": node,
        "tables": moved.moved,
        "kept": dict(moved.kept),
        "steps": moved.steps,
        "max_pause_s": limits.max_pause_s,
        "longest_pause_s": moved.longest_s,
        "stopped_s": moved.stopped_s,
        "moves_s": moved.moves_s,
        "took_s": moved.took_s,
        "tlb": observer.flushes.as_json(),
    }


class _MoveObserver:
    """Counts TLB flushes during steps, and shows progress on stderr."""

    def __init__(self, pid: int, *, show: bool) -> None:
        self.flushes = Flushes(pid)
        self._show = show

    def step_started(self) -> None:
        """Start counting flushes."""
        self.flushes.start()

    def step_ended(self) -> None:
        """Stop counting flushes."""
        self.flushes.stop()

    def progress(self, done: int, total: int) -> None:
        """Show how many tables have been moved."""
        if self._show:
            print(f"\r{done} of {total} page tables moved", end="", file=sys.stderr, flush=True)

    def close(self) -> None:
        """Detach the counter, and end the line of progress."""
        self.flushes.close()
        if self._show:
            print(file=sys.stderr)


def _nodes_text(tables: dict[int, int]) -> str:
    return ", ".join(f"{count} on node {node}" for node, count in sorted(tables.items())) or "none"


def as_text(answer: dict[str, Any]) -> str:
    """Format an answer for people."""
    a = answer
    lines = [f"process {a['pid']}: page tables of the lowest level: {_nodes_text(a['before'])}"]
    size = show_pages(a["tables"] * 512)
    if a["done"]:
        lines += [
            f"  now          {_nodes_text(a['after'])}",
            f"  moved        {a['tables']} tables, {size} of addresses, in {a['steps']} stops",
            f"  downtime     {show_time(a['stopped_s'])} in all, {show_time(a['longest_pause_s'])} at most "
            f"({show_time(a['max_pause_s'])} requested); the moves took {show_time(a['moves_s'])}",
            flushes_text(a["tlb"]),
        ]
    else:
        lines.append(f"  would move   {a['tables']} tables, {size} of addresses")
        if a["tables"]:
            lines.append(
                f"  downtime     about {show_time(a['stopped_s'])} in all, in {a['steps']} or more "
                f"stops of at most {show_time(a['max_pause_s'])}"
            )
    lines += [f"  stay         {count}: {reason}" for reason, count in a["kept"].items()]
    if not a["done"] and a["tables"]:
        lines.append("  nothing was moved: --yes moves them")
    return "\n".join(lines) + "\n"
