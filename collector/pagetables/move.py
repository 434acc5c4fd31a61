"""The answers of `redirty pagetables --to-node`: what would move, and what moved."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

from redirty.collector.linux.numa import NumaNodes
from redirty.collector.pagetables.preconditions import require_movable
from redirty.collector.pagetables.relocation import RelocationResult, plan_for, relocate, trial_s
from redirty.collector.pagetables.tlb_counter import Flushes, flushes_text
from redirty.collector.pagetables.walker import Walker, leaves_by_node
from redirty.collector.units import show_pages, show_time


def would_move(
    pid: int, walker: Walker, nodes: NumaNodes, node: int, max_pause_s: float, *, split_huge: bool
) -> dict[str, Any]:
    """What a move would do, tried on memory of our own for its time. Errors: RedirtyError."""
    require_movable(pid, node)
    wanted, tables = plan_for(pid, walker, nodes, node, split_huge=split_huge)
    count = len(wanted.regions)
    pause_s = trial_s() * count if count else 0.0
    return {
        "pid": pid,
        "done": False,
        "before": leaves_by_node(tables, nodes),
        "to_node": node,
        "tables": count,
        "kept": dict(wanted.kept),
        "stopped_s": pause_s,
        "steps": max(1, round(pause_s / max_pause_s + 0.5)) if count else 0,
        "max_pause_s": max_pause_s,
    }


def move(
    pid: int,
    walker: Walker,
    nodes: NumaNodes,
    node: int,
    max_pause_s: float,
    *,
    split_huge: bool,
    progress: bool,
) -> dict[str, Any]:
    """Moves. Errors: RedirtyError, TargetEndedError."""
    require_movable(pid, node)  # what counts flushes takes a while to load
    flushes = Flushes(pid)
    show: Callable[[int, int], None] = _progress if progress else lambda done, of: None
    try:
        moved = relocate(
            *(pid, walker, nodes, node),
            max_pause_s=max_pause_s,
            split_huge=split_huge,
            on_step=show,
            around=flushes,
        )
    finally:
        flushes.close()
        if progress:
            print(file=sys.stderr)
    return _moved_json(pid, node, max_pause_s, moved, flushes.as_json())


def _moved_json(
    pid: int, node: int, max_pause_s: float, moved: RelocationResult, flushes: dict[str, Any] | None
) -> dict[str, Any]:
    return {
        "pid": pid,
        "done": True,
        "before": moved.before,
        "after": moved.after,
        "to_node": node,
        "tables": moved.moved,
        "kept": dict(moved.kept),
        "steps": moved.steps,
        "max_pause_s": max_pause_s,
        "longest_pause_s": moved.longest_s,
        "stopped_s": moved.stopped_s,
        "moves_s": moved.moves_s,
        "took_s": moved.took_s,
        "tlb": flushes,
    }


def _progress(done: int, of: int) -> None:
    print(f"\r{done} of {of} page tables moved", end="", file=sys.stderr, flush=True)


def _nodes_text(tables: dict[int, int]) -> str:
    return ", ".join(f"{count} on node {node}" for node, count in sorted(tables.items())) or "none"


def as_text(answer: dict[str, Any]) -> str:
    """For people."""
    a = answer
    lines = [f"process {a['pid']}: page tables of the lowest level: {_nodes_text(a['before'])}"]
    size = show_pages(a["tables"] * 512)
    if a["done"]:
        lines += [
            f"  now          {_nodes_text(a['after'])}",
            f"  moved        {a['tables']} tables, {size} of addresses, in {a['steps']} stops",
            f"  stood still  {show_time(a['stopped_s'])} in all, {show_time(a['longest_pause_s'])} at most "
            f"({show_time(a['max_pause_s'])} asked for); the moves took {show_time(a['moves_s'])}",
            flushes_text(a["tlb"]),
        ]
    else:
        lines.append(f"  would move   {a['tables']} tables, {size} of addresses")
        if a["tables"]:
            lines.append(
                f"  standing still for about {show_time(a['stopped_s'])} in all, in {a['steps']} or more "
                f"stops of at most {show_time(a['max_pause_s'])}"
            )
    lines += [f"  stay         {count}: {reason}" for reason, count in a["kept"].items()]
    if not a["done"] and a["tables"]:
        lines.append("  nothing was moved: --yes does it")
    return "\n".join(lines) + "\n"
