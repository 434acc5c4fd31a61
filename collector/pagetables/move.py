"""The answers of `redirty pagetables --to-node`: what would move, and what moved."""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable
from typing import Any

from redirty.collector.bpf import abi
from redirty.collector.bpf.loader import Options
from redirty.collector.bpf.tracer import Tracer
from redirty.collector.errors import RedirtyError
from redirty.collector.linux.numa import Nodes
from redirty.collector.pagetables.preconditions import require_movable
from redirty.collector.pagetables.relocation import Moved, plan_for, relocate, trial_s
from redirty.collector.pagetables.walker import Walker, leaves_by_node
from redirty.collector.units import show_pages, show_time

log = logging.getLogger(__name__)

_SLOT = 1


class Flushes:
    """TLB flushes of a process between two moments, summed over such pairs.

    counts: as abi.TLB, by what the kernel's tracepoint gives as the reason; None where no program
    can be attached.
    """

    def __init__(self, pid: int) -> None:
        self._tracer: Tracer | None = None
        try:
            self._tracer = Tracer(Options(slots=2, targets=64, regions=1024))
            self._tracer.set_target(pid, pid, _SLOT)
        except RedirtyError as e:
            log.info("TLB flushes are not counted: %s", e)
        self._sum = dict.fromkeys(("flushes", "pages", "full_flushes", "cpus", "ns"), 0)
        self._before = self._now()

    @property
    def timed(self) -> bool:
        """Whether the kernel tells how long a flush takes (kprobes or fentry)."""
        return self._tracer is not None and "tlb_time" in self._tracer.attached

    def _now(self) -> dict[str, int]:
        if self._tracer is None:
            return {}
        counts = self._tracer.tlb_counts(_SLOT)
        # asked for, and timed, where that is seen; else what the processors tell, but for switches
        # of tasks (0), which nobody asked for
        rows = counts[abi.TLB_MM_RANGE :] if self.timed else counts[1 : abi.TLB_MM_RANGE]
        return {name: int(rows[name].sum()) for name in self._sum}

    def begin(self) -> None:
        """From now on."""
        self._before = self._now()

    def end(self) -> None:
        """Until now."""
        for name, value in self._now().items():
            self._sum[name] += value - self._before[name]

    def as_json(self) -> dict[str, Any] | None:
        """For programs; time_s and cpus are None where the kernel does not tell them."""
        if self._tracer is None or "tlb" not in self._tracer.attached:
            return None
        told = self.timed
        return {
            "flushes": self._sum["flushes"],
            "pages": self._sum["pages"],
            "full_flushes": self._sum["full_flushes"],
            "other_cpus": self._sum["cpus"] if "tlb_cpus" in self._tracer.attached else None,
            "time_s": self._sum["ns"] / 1e9 if told else None,
        }

    def close(self) -> None:
        """Detaches."""
        if self._tracer is not None:
            self._tracer.close()


def would_move(
    pid: int, walker: Walker, nodes: Nodes, node: int, max_pause_s: float, *, split_huge: bool
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
    nodes: Nodes,
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
    pid: int, node: int, max_pause_s: float, moved: Moved, flushes: dict[str, Any] | None
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
            _flushes_text(a["tlb"]),
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


def _flushes_text(flushes: dict[str, Any] | None) -> str:
    if flushes is None:
        return "  TLB flushes  not counted here (see: redirty check)"
    text = f"  TLB flushes  {flushes['flushes']}, {flushes['full_flushes']} of everything"
    if flushes["other_cpus"] is not None:
        text += f", other CPUs interrupted {flushes['other_cpus']} times"
    if flushes["time_s"] is not None:
        text += f", {show_time(flushes['time_s'])} in all"
    return text + " (while it stood still, and a moment before and after)"
