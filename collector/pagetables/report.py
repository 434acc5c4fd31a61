"""Reports page-table placement as text and JSON."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from redirty.collector.errors import one_line
from redirty.collector.linux.maps import mapping_class
from redirty.collector.linux.numa import NumaNodes, machine_tables
from redirty.collector.pagetables.placement import Placement
from redirty.collector.units import show_pages, show_time

_SHOWN_MAPPINGS = 12


def as_json(found: Sequence[Placement], nodes: NumaNodes, reason: str) -> dict[str, Any]:
    """Return a JSON-serializable dict.

    Args:
        found: Placements of processes.
        nodes: The NUMA nodes of this machine.
        reason: Why page tables were not walked; empty if they were.
    """
    return {
        "source": "vmstat" if reason else "walk",
        "reason": reason or None,
        "nodes": {"online": list(nodes.online), "with_memory": list(nodes.with_memory)},
        "machine_pages": machine_tables(nodes.online),
        "processes": [_process_json(p) for p in found],
    }


def _process_json(p: Placement) -> dict[str, Any]:
    return {
        "pid": p.pid,
        "comm": p.comm,
        "counted_pages": p.counted_pages,
        "huge_pages": p.huge_pages,
        "levels": [{"level": r.what, "node": r.node, "pages": r.pages} for r in p.levels],
        "mappings": [
            {
                "start": hex(r.mapping.start),
                "end": hex(r.mapping.end),
                "perms": r.mapping.perms,
                "mapping_class": mapping_class(r.mapping.perms, r.mapping.path),
                "path": r.mapping.path,
                "node": r.node,
                "pages": r.pages,
            }
            for r in p.mappings
        ],
        "threads_ran_s": p.ran_s,
        "remote_walk_share": p.remote,
        "advice": p.advice,
    }


def as_text(found: Sequence[Placement], nodes: NumaNodes, reason: str) -> str:
    """Format placements for people; for the arguments see as_json()."""
    lines = []
    for p in found:
        lines.append(
            f"process {p.pid} ({one_line(p.comm)}): {show_pages(p.counted_pages)} of page tables"
        )
        lines += _levels_text(p)
        if reason:
            lines += ["", f"  by node: cannot be read here for one process ({reason})"]
        lines += ["", f"  threads ran  {_ran_text(p.ran_s)}"]
        if p.remote is not None:
            lines.append(
                f"  remote page walks  {p.remote:.0%}, if all of its memory is accessed evenly"
            )
        lines += [f"  {p.advice}", ""]
    tables = machine_tables(nodes.online)
    if tables:
        each = ", ".join(f"node {n} {show_pages(c)}" for n, c in tables.items())
        lines.append(f"page tables of all programs: {each} (vmstat)")
    source = "from the nodes' vmstat and VmPTE" if reason else "walked by BPF"
    lines.append(f"read {source}")
    return "\n".join(lines) + "\n"


def _levels_text(p: Placement) -> list[str]:
    if not p.levels:
        return []
    nodes = sorted({row.node for row in p.levels})
    head = "".join(f"{f'node {n}':>12}" for n in nodes)
    lines = ["", f"  {'level':<8}{head}"]
    for name in dict.fromkeys(row.what for row in p.levels):
        counts = {row.node: row.pages for row in p.levels if row.what == name}
        lines.append(f"  {name:<8}" + "".join(f"{counts.get(n, 0):>12}" for n in nodes))
    if p.huge_pages:
        lines.append(f"  {p.huge_pages} huge pages need no pte; for most a page is kept in reserve")
    rows = sorted(p.mappings, key=lambda r: -r.pages)
    lines += ["", f"  {'pages':>8}  {'node':>4}  mapping (pte level)"]
    for row in rows[:_SHOWN_MAPPINGS]:
        m = row.mapping
        name = one_line(m.path) or "(anonymous)"
        lines.append(f"  {row.pages:>8}  {row.node:>4}  0x{m.start:x} {m.perms} {name}")
    if len(rows) > _SHOWN_MAPPINGS:
        rest = sum(row.pages for row in rows[_SHOWN_MAPPINGS:])
        lines.append(f"  {rest:>8}        in {len(rows) - _SHOWN_MAPPINGS} more (--json has all)")
    return lines


def _ran_text(ran_s: dict[int, float]) -> str:
    return ", ".join(f"node {n} {show_time(s)}" for n, s in ran_s.items()) or "not at all"
